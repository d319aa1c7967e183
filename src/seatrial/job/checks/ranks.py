"""What the programs of ranks share: they meet, none waits for ever, and one that fails says what it was at."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from seatrial.errors import PlatformError
from seatrial.job.checks import inject
from seatrial.job.checks.task import Task
from seatrial.job.world import World

COLLECTIVE_S = 30.0
"""No collective, and no step between two of them, takes longer; ``collective_s`` of a task's options changes it."""
JOIN_S = 120.0
"""Ranks that have not come by then are named (imports from a shared disk take their time); option ``join_s``."""
FAILED = 1


@dataclass
class Ranks:
    """This rank among the others. `doing` is to be called before whatever may wait for others."""

    task: Task
    world: World
    at: tuple[str, str] = ("", "")
    """Check and metric that are being measured."""
    detail: dict[str, Any] = field(default_factory=dict)
    _deadline: float = math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rank(self) -> int:
        """Among all ranks."""
        return self.world.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.world.world_size

    @property
    def device(self) -> torch.device:
        """Of this rank."""
        return self.world.device

    @property
    def cuda(self) -> bool:
        """Whether ranks are GPUs."""
        return self.device.type == "cuda"

    @property
    def numbers(self) -> list[int]:
        """Of the nodes whose ranks these are, in the order of the ranks."""
        numbers = list(self.task.nodes)
        return numbers if len(numbers) * self.task.nproc == self.size else [self.task.node_rank]

    def node_of(self, rank: int) -> str:
        """Name of a rank's node."""
        number = self.numbers[rank // self.task.nproc]
        return self.task.nodes.get(number, self.task.node)

    def place(self, rank: int) -> str:
        """A rank for people: ``rank 5 (node1, GPU 1)``."""
        kind = "GPU" if self.cuda else "CPU rank"
        return f"rank {rank} ({self.node_of(rank)}, {kind} {rank % self.task.nproc})"

    @property
    def collective_s(self) -> float:
        """How long a collective may take."""
        return float(self.task.options.get("collective_s", COLLECTIVE_S))

    @property
    def join_s(self) -> float:
        """How long to wait for ranks that have not come."""
        return float(self.task.options.get("join_s", JOIN_S))

    def doing(self, check: str, metric: str, more_s: float = 0.0, **detail: Any) -> None:
        """Says what comes next, and gives it as long as a collective, and so many seconds more."""
        self.alive(more_s)
        with self._lock:
            self.at, self.detail = (check, metric), detail

    def alive(self, more_s: float = 0.0) -> None:
        """Gives what follows as long as a collective, and so many seconds more."""
        with self._lock:
            self._deadline = time.monotonic() + self.collective_s + more_s

    def fail(self, reason: str) -> None:
        """Writes down what can't be measured, and ends this process: others may hang in a collective, and so would it."""
        check, metric = self.at
        detail = {**self.detail, "rank": self.rank, "failed": True}
        self.task.write(
            self.task.sample(check, metric, reason=reason, gpu=self.world.local_rank, detail=detail)
        )
        os._exit(FAILED)

    def watch(self) -> None:
        """Ends this process once its time is up, whatever it is in; run by a thread."""
        while True:
            time.sleep(0.1)
            with self._lock:
                late = time.monotonic() > self._deadline
            if late:
                self.fail(f"{self.at[1]}: no end within the time limit, on {self.place(self.rank)}")

    def barrier(self, group: dist.ProcessGroup | None = None) -> None:
        """Waits for all, by the host's processors: a GPU's queue may still be at work."""
        dist.all_reduce(torch.zeros(1), group=group)

    def gather(self, *values: float, group: dist.ProcessGroup | None = None) -> list[list[float]]:
        """Figures of every rank, in the order of ranks."""
        mine = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, mine, group=group)
        return [[float(x) for x in row] for row in every]

    def synchronize(self) -> None:
        """Waits for this rank's own device."""
        if self.cuda:
            torch.cuda.synchronize()


@contextmanager
def joined(task: Task, check: str) -> Iterator[Ranks]:
    """This process as a rank, while the block runs: NCCL for tensors on GPUs, gloo for those of the host.

    Whatever fails is written down as a sample without a value, and ends the process with code 1 without leaving the
    process group, which would wait for ranks that may have died.
    """
    if task.device == "cpu":
        torch.set_num_threads(1)
    # NCCL's own watchdog would abort the process before it could say what it was at.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    ranks = Ranks(task, World.from_env(task.device))
    ranks.doing(check, "join", 2 * ranks.join_s)
    threading.Thread(target=ranks.watch, daemon=True).start()
    try:
        store = _meet(ranks)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if ranks.cuda else "gloo",
            store=PrefixStore("group", store),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timedelta(seconds=ranks.collective_s),
            device_id=ranks.device if ranks.cuda else None,
        )
        ranks.doing(check, "join")
        inject.hang_if(task, ranks.world.local_rank)
        yield ranks
        ranks.doing(check, "leave")
        ranks.synchronize()
        ranks.barrier()
        dist.destroy_process_group()
    except Exception as error:
        ranks.fail(
            f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ''}"
        )


def end(code: int) -> NoReturn:
    """Ends this process without the interpreter's teardown, in which threads of the store may abort it: its work is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _meet(ranks: Ranks) -> Any:
    """The store, once every rank has come."""
    store = dist.TCPStore(  # type: ignore[attr-defined]  # not in its module's list of names
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=ranks.rank == 0,
        timeout=timedelta(seconds=ranks.join_s),
        wait_for_workers=False,  # It would say how many are missing, but not which.
    )
    store.set(f"here/{ranks.rank}", "1")
    if store.add("count", 1) == ranks.size:
        store.set("all", "1")
    try:
        store.wait(["all"], timedelta(seconds=ranks.join_s))
    except RuntimeError:
        absent = [rank for rank in range(ranks.size) if not store.check([f"here/{rank}"])]
        names = ", ".join(ranks.place(rank) for rank in absent[:8])
        raise PlatformError(f"{len(absent)} of {ranks.size} ranks did not come: {names}") from None
    return store
