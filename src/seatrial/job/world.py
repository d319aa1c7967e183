"""Who am I among the ranks? The only reader of torchrun's environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from seatrial.errors import PlatformError, SpecError
from seatrial.job.cpu import keep_memory
from seatrial.runs.plan import Device, LaunchPlan

_COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One rank's place; names as torchrun has them."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    tp_size: int = 1
    """Ranks that follow each other and split each matrix between them: they see the same samples."""

    @classmethod
    def from_env(cls, device: Device) -> World:
        """Reads what torchrun set.

        Raises:
            SpecError: not started by torchrun, or a CUDA rank without a GPU of its own: a rank that quietly
                moved to the CPU, or a world of one per process, would train something else.
        """
        try:
            rank, local_rank, world_size = (int(os.environ[k]) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        except KeyError as error:
            raise SpecError(
                "not started as a rank",
                evidence=f"{error.args[0]} is not in the environment",
                remedy="seatrial train …    (it starts the ranks)",
            ) from None
        if device == "cpu":
            return cls(rank=rank, local_rank=local_rank, world_size=world_size, device=torch.device("cpu"))
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise SpecError(
                f"rank {rank} has no GPU",
                evidence=f"local_rank {local_rank} on {socket.gethostname()}, where torch sees {count} GPUs",
                remedy="seatrial doctor    (or resources.gpus_per_node=0 for CPU)",
            )
        torch.cuda.set_device(local_rank)
        return cls(
            rank=rank, local_rank=local_rank, world_size=world_size, device=torch.device("cuda", local_rank)
        )

    @property
    def dp_rank(self) -> int:
        """Which part of a global batch this rank sees."""
        return self.rank // self.tp_size

    @property
    def dp_size(self) -> int:
        """How many ranks, or groups of them, see different samples."""
        return self.world_size // self.tp_size

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0


@contextmanager
def process_group(world: World) -> Iterator[None]:
    """Joins the ranks (NCCL for tensors on GPUs, gloo for those of CPUs) while the block runs."""
    cuda = world.device.type == "cuda"
    # Weights that are kept in the machine's memory are reduced there.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if not cuda:
        keep_memory()
    dist.init_process_group(
        backend,
        rank=world.rank,
        world_size=world.world_size,
        timeout=_COLLECTIVE_TIMEOUT,
        device_id=world.device if cuda else None,
    )
    yield
    # Not on failure: tearing down while peers are stuck in a collective would hide the reason by hanging.
    dist.destroy_process_group()


def check_in(world: World, plan: LaunchPlan) -> list[dict[str, object]]:
    """Every rank reports; all must be there, on devices of their own, as many as were asked for.

    Returns:
        One row a rank: ``{"rank", "host", "pid", "device"}``.

    Raises:
        PlatformError: the world is not the one that the plan asked for.
    """
    me = {
        "rank": world.rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": str(world.device),
    }
    present: list[dict[str, object]] = [{} for _ in range(world.world_size)]
    dist.all_gather_object(present, me)
    if sorted(int(str(row["rank"])) for row in present) != list(range(plan.world_size)):
        raise PlatformError(
            f"{world.world_size} ranks came, {plan.world_size} were asked for",
            evidence=", ".join(f"rank {row['rank']} on {row['host']}" for row in present),
            remedy="look for an inherited WORLD_SIZE or RANK in the environment: seatrial doctor",
        )
    places = [(row["host"], row["device"]) for row in present]
    if world.device.type == "cuda" and len(set(places)) < len(places):
        raise PlatformError("two ranks share a GPU", evidence=str(places), remedy="seatrial doctor")
    return present
