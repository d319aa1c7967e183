"""The environment of the ranks: that of torchrun, whoever starts them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan

# What an outer job or launcher may have left in the environment; the launcher of the ranks sets its own.
_STALE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME",
          "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
_STALE_PREFIXES = ("PET_", "TORCHELASTIC_")
_OF_AGENTS = ("SEATRIAL_LEAD", "SEATRIAL_LINK_TOKEN", "SEATRIAL_HOSTS", "SEATRIAL_CHECK_IN_S")
_WARM = {
    # Threads that libraries would start when they are imported, and CUDA, which must not be asked before the fork.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_OUTER = "SEATRIAL_OUTER_"


@dataclass(frozen=True, slots=True)
class Place:
    """Which node this is, and where the ranks of all nodes meet."""

    node_rank: int = 0
    address: str = "127.0.0.1"
    """Of rank 0's node."""
    interface: str | None = None
    """The network interface that reaches the other nodes, where there are any."""

    def ranks(self, plan: LaunchPlan) -> range:
        """The ranks of this node."""
        return range(self.node_rank * plan.nproc, (self.node_rank + 1) * plan.nproc)


def warm_environment(outer: Mapping[str, str], threads: int) -> dict[str, str]:
    """The warm process's environment while it imports; `outer_environment` is the way back."""
    warm = _WARM | {"OMP_NUM_THREADS": str(threads)}
    return {**outer, **{_OUTER + name: outer.get(name, "") for name in warm}, **warm}


def outer_environment(warm: Mapping[str, str]) -> dict[str, str]:
    """The environment that `warm_environment` was made from; a variable that was empty is gone."""
    outer = {name: value for name, value in warm.items() if not name.startswith(_OUTER)}
    for name in [name for name in warm if name.startswith(_OUTER)]:
        outer.pop(name.removeprefix(_OUTER), None)
        if warm[name]:
            outer[name.removeprefix(_OUTER)] = warm[name]
    return outer


def rank_environment(
    plan: LaunchPlan, outer: Mapping[str, str], restart: int = 0, place: Place | None = None
) -> dict[str, str]:
    """What all ranks share: the agent's environment, without what another launcher left in it.

    Args:
        plan: the attempt's.
        outer: the environment of the agent.
        restart: how often the ranks have been started again.
        place: this node's.
    """
    dropped = (*_STALE, *_OF_AGENTS)
    env = {k: v for k, v in outer.items() if k not in dropped and not k.startswith(_STALE_PREFIXES)}
    if place is not None and place.interface is not None:
        # Gloo takes the address that the host's own name stands for, which may be a loopback.
        env.setdefault("GLOO_SOCKET_IFNAME", place.interface)
    if plan.device == "cuda" and plan.nodes > 1 and "NCCL_DEBUG" not in env:
        # Some lines a rank, once: which network carries it is known afterwards.
        logs = RunPaths(plan.run_dir).attempt(plan.attempt).logs
        env |= {
            "NCCL_DEBUG": "INFO",
            "NCCL_DEBUG_SUBSYS": "INIT,NET",
            "NCCL_DEBUG_FILE": f"{logs}/nccl.%h.%p.log",
        }
    # The last collectives of a rank, for a report of a hang; NCCL keeps so many by itself.
    env.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    return env | {
        "OMP_NUM_THREADS": str(plan.threads),
        # Newer torchrun reads the first, all read the second.
        "PET_SHUTDOWN_TIMEOUT": str(plan.grace_s),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(plan.grace_s),
        "PYTHONUNBUFFERED": "1",
        "SEATRIAL_RUN_ID": plan.run_id,
        "SEATRIAL_RUN_DIR": str(plan.run_dir),
        "SEATRIAL_ATTEMPT": str(plan.attempt),
        "SEATRIAL_RESTART": str(restart),
    }


def rank_variables(
    plan: LaunchPlan, place: Place, local_rank: int, port: int, restart: int
) -> dict[str, str]:
    """What torchrun sets for each rank (``torch.distributed.elastic.agent.server.local_elastic_agent``).

    Of the store, rank 0 is the host itself: ``TORCHELASTIC_USE_AGENT_STORE`` is False.
    """
    number = place.ranks(plan)[local_rank]
    rank, world = str(number), str(plan.world_size)
    error_file = RunPaths(plan.run_dir).attempt(plan.attempt).failures / f"error_{number:05d}.json"
    return {
        "RANK": rank, "LOCAL_RANK": str(local_rank), "ROLE_RANK": rank, "GROUP_RANK": str(place.node_rank),
        "ROLE_NAME": "default",
        "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": str(plan.nproc), "ROLE_WORLD_SIZE": world,
        "GROUP_WORLD_SIZE": str(plan.nodes), "MASTER_ADDR": place.address, "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": str(restart),
        "TORCHELASTIC_MAX_RESTARTS": str(plan.max_restarts), "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": str(error_file),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }  # fmt: skip
