"""Phases 2 and 3: collectives over the GPUs of a node, or over all nodes: rates, numbers, and what carried them.

``python -m seatrial.job.checks.links``, a rank; its options say ``scope``: ``node`` or ``cluster``.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from seatrial.job.checks import inject
from seatrial.job.checks.collectives import OPS, Collective, blamed, bus_factor, missing, wire_rate_gb_s
from seatrial.job.checks.ranks import Ranks, end, joined
from seatrial.job.checks.task import Task
from seatrial.job.checks.transport import Transport, grown, parse, sent_bytes

_MIB = 2**20
_CPU_SHARE = 64
_BUDGET_S = {"cuda": 1.0, "cpu": 0.2}
_ITERATIONS = (3, 50)
_DIES_AT = 2
# Buffers, and what NCCL needs beside them.
_ROOM = 2.5
_SCALING_MIB = 256
# What sends around a ring: so do gloo's sums.
_RINGS = ("ring", "gloo")


class Links:
    """One rank's part of the phase."""

    def __init__(self, ranks: Ranks, scope: str, log: Path) -> None:
        self.ranks, self.task, self.scope, self.log = ranks, ranks.task, scope, log
        self.prefix = "node" if scope == "node" else "cluster"
        self.nodes = len(ranks.numbers)
        self.slow = _slow_send(ranks) if scope == "cluster" else 1.0
        self.expected_bytes = 0.0
        """What each node should have sent to others so far."""

    def run(self) -> None:
        """Measures everything that is wanted, in the order of sizes."""
        task, ranks = self.task, self.ranks
        transport = "transport" if self.scope == "node" else "cluster_transport"
        before = sent_bytes()
        data, rates = task.wants(f"{self.prefix}_data"), task.wants(f"{self.prefix}_collectives")
        ranks.doing(f"{self.prefix}_collectives", "all_to_all")
        lacking = {op for op in OPS if missing(op, ranks.device, ranks.rank, ranks.size)}
        for size_mib in task.spec.sizes_mib:
            for op in OPS:
                self.collective(op, int(size_mib * _MIB), op in lacking, data=data, rates=rates)
        if task.wants(transport):
            self.transport(transport, before)
        if self.scope == "cluster" and task.wants("scaling"):
            self.scaling()

    def collective(self, op: str, size: int, emulated: bool, *, data: bool, rates: bool) -> None:
        """One operation at one size: its numbers, then its rate."""
        ranks, task = self.ranks, self.task
        size = size if ranks.cuda else size // _CPU_SHARE
        for wanted, check, metric in (
            (data, f"{self.prefix}_data", "wrong_elements"),
            (rates, f"{self.prefix}_collectives", op),
        ):
            if not wanted:
                continue
            ranks.doing(check, metric, op=op, bytes=size)
            if (free := self.least_free()) < _ROOM * size:
                if ranks.rank == 0:
                    reason = f"{size / 2**30:.3g} GiB need {_ROOM:g} times as much memory, {free / 2**30:.3g} GiB are free"
                    task.write(
                        task.sample(check, metric, gpu=None, reason=reason, detail={"op": op, "bytes": size})
                    )
                continue
            work = Collective(op, size, ranks.rank, ranks.size, ranks.device, emulated=emulated)
            if check.endswith("_data"):
                self.numbers(check, work)
            else:
                self.rate(check, work)
            each = wire_rate_gb_s(op, work.bytes, ranks.size, self.nodes, ring=self.algo() in _RINGS)
            self.expected_bytes += work.runs * each * self.task.nproc

    def least_free(self) -> float:
        """Bytes of memory that every rank has free."""
        if not self.ranks.cuda:
            return math.inf
        torch.cuda.empty_cache()
        return min(row[0] for row in self.ranks.gather(float(torch.cuda.mem_get_info()[0])))

    def numbers(self, check: str, work: Collective) -> None:
        """Whether each rank received what it should have; the sample names the rank that is at fault, where one is."""
        ranks = self.ranks
        work.fill()
        work.run()
        ranks.synchronize()
        if inject.flips(self.task, "flipped-bits", ranks.world.local_rank):
            inject.flip_bit(work.output)
        counts = [[int(x) for x in row] for row in ranks.gather(*(float(n) for n in work.wrong()))]
        if ranks.rank != 0:
            return
        rank = blamed(counts, work.op)
        detail = {"op": work.op, "bytes": work.bytes, "ranks": ranks.size, "emulated": work.emulated,
                  "seen_by": [r for r, row in enumerate(counts) if any(row)], "blamed_rank": rank}  # fmt: skip
        node, gpu = (self.task.node, None) if rank is None else (ranks.node_of(rank), rank % self.task.nproc)
        value = sum(map(sum, counts))
        self.task.write(
            self.task.sample(check, "wrong_elements", value, gpu=gpu, detail=detail).model_copy(
                update={"node": node}
            )
        )

    def rate(self, check: str, work: Collective) -> None:
        """busbw, from the median time of the slowest rank."""
        ranks = self.ranks
        work.clear()
        times = self.times(work.run)
        if ranks.rank == 0:
            algo = self.algo()
            figures = rates(work.op, work.bytes, times, self.nodes, ring=algo in _RINGS)
            detail = {"op": work.op, "ranks": ranks.size, "emulated": work.emulated, "algo": algo, **figures}
            self.task.write(
                self.task.sample(check, work.op, **_value(figures, ranks.size), gpu=None, detail=detail)
            )
        # The others wait for rank 0 at the next step.

    def algo(self) -> str:
        """What the last operation was done by, as far as this rank can tell: NCCL may say it on rank 0 alone."""
        if not self.ranks.cuda:
            return "gloo"
        return last_algo(self.log) or os.environ.get("NCCL_ALGO", "").lower()

    def times(self, run: Callable[[], None], group: dist.ProcessGroup | None = None) -> list[list[float]]:
        """Seconds of iterations, by rank of the group; as many on every rank."""
        self.once(run, group)
        first = max(row[0] for row in self.ranks.gather(self.once(run, group), group=group))
        least, most = _ITERATIONS
        count = min(most, max(least, math.ceil(_BUDGET_S[self.ranks.device.type] / max(first, 1e-9))))
        if self.ranks.cuda and self.slow == 1 and not inject.faults(self.task, "dead-rank"):
            self.ranks.alive(2 * count * first)
            mine = self.queued(run, count, group)
        else:
            mine = []
            for turn in range(count):
                if turn == _DIES_AT:
                    inject.die_if(self.task, self.ranks.world.local_rank)
                mine.append(self.once(run, group))
        return self.ranks.gather(*mine, group=group)

    def once(self, run: Callable[[], None], group: dist.ProcessGroup | None) -> float:
        """Seconds of one iteration that all begin together."""
        self.ranks.alive()
        self.ranks.barrier(group)
        began = time.perf_counter()
        run()
        self.ranks.synchronize()
        inject.stretch(time.perf_counter() - began, self.slow)
        return time.perf_counter() - began

    def queued(self, run: Callable[[], None], count: int, group: dist.ProcessGroup | None) -> list[float]:
        """Seconds of iterations that a GPU does one after another without the host, by events."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        self.ranks.barrier(group)
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        self.ranks.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]

    def scaling(self) -> None:
        """all_reduce over the first 1, 2, 4 … nodes, and all."""
        ranks, nproc = self.ranks, self.task.nproc
        sizes = [size for size in self.task.spec.sizes_mib if size <= _SCALING_MIB]
        size = int(max(sizes, default=min(self.task.spec.sizes_mib)) * _MIB) // (
            1 if ranks.cuda else _CPU_SHARE
        )
        steps = [2**i for i in range(self.nodes.bit_length()) if 2**i < self.nodes] + [self.nodes]
        for nodes in steps:
            ranks.doing("scaling", "all_reduce_nodes", nodes=nodes)
            with pinned(nodes):
                group = dist.new_group(list(range(nodes * nproc)))
                if ranks.rank < nodes * nproc:
                    work = Collective(
                        "all_reduce", size, ranks.rank, nodes * nproc, ranks.device, group=group
                    )
                    work.clear()
                    times = self.times(work.run, group)
            if ranks.rank == 0:
                algo = self.algo()
                figures = rates("all_reduce", work.bytes, times, nodes, ring=algo in _RINGS)
                names = [ranks.node_of(i * nproc) for i in range(nodes)]
                detail = {"nodes": nodes, "ranks": nodes * nproc, "names": names, "algo": algo, **figures}
                self.task.write(
                    self.task.sample(
                        "scaling",
                        "all_reduce_nodes",
                        **_value(figures, nodes * nproc),
                        gpu=None,
                        detail=detail,
                    )
                )
            ranks.barrier()

    def transport(self, check: str, before: dict[str, int]) -> None:
        """What carried it, one sample a node."""
        self.ranks.doing(check, "transport")
        self.ranks.barrier()
        if self.ranks.world.local_rank != 0:
            return
        sent = grown(before, sent_bytes())
        detail: dict[str, Any] = {"bytes_by_interface": sent, "ranks": self.ranks.size, "nodes": self.nodes}
        if self.nodes > 1:
            detail["expected_bytes"] = round(self.expected_bytes)
        metric = "transport" if self.scope == "node" else "network"
        if self.ranks.cuda:
            logs = [_read(_log_path(self.task, self.scope, rank)) for rank in range(self.task.nproc)]
            found = parse("\n".join(logs))
            value, reason = (found.inside if self.scope == "node" else found.between), ""
            detail |= _facts(found)
            if not value:
                reason = "NCCL's log names no connection" if any(logs) else "NCCL wrote no log"
        else:
            interface = os.environ.get("GLOO_SOCKET_IFNAME") or next(iter(sent), "")
            value, reason = f"gloo over {interface}" if interface else "", "no interface has counters"
        told = inject.transport(self.task, value) if self.scope == "cluster" else value
        if told != value:
            detail["injected"] = inject.faults(self.task, "wrong-transport")[0][0]
        self.task.write(
            self.task.sample(
                check, metric, told or None, gpu=None, reason="" if told else reason, detail=detail
            )
        )


def rates(op: str, size: int, times: list[list[float]], nodes: int, *, ring: bool) -> dict[str, Any]:
    """The figures of a collective, from the seconds of each iteration by rank: the slowest rank's median counts."""
    medians = [statistics.median(row) for row in times]
    n, took = len(medians), max(medians)
    algbw = size / took / 1e9
    return {
        "bytes": size,
        "time_s": took,
        "algbw_gb_s": algbw,
        "busbw_gb_s": algbw * bus_factor(op, n),
        "wire_rate_gb_s": wire_rate_gb_s(op, algbw, n, nodes, ring=ring),
        "times_s": medians,
        "values": [size / max(turn) / 1e9 * bus_factor(op, n) for turn in zip(*times, strict=True)],
    }


def last_algo(log: Path) -> str:
    """The algorithm that NCCL's log names last: ``ring``, ``tree``, ``nvls``; empty where it names none."""
    lines = [line for line in _read(log).splitlines() if " Bytes -> Algo " in line]
    return next(iter(parse(lines[-1]).algos), "").lower() if lines else ""


@contextmanager
def pinned(nodes: int) -> Iterator[None]:
    """Ring, for communicators over two nodes that are made in the block.

    NVLink's tree over two nodes has each byte cross the network but half as often as busbw says, so that it exceeds
    the NICs' rate, and says nothing of them (https://github.com/NVIDIA/nccl-tests/issues/309).
    """
    before = os.environ.get("NCCL_ALGO")
    if nodes == 2:
        os.environ["NCCL_ALGO"] = "Ring"
    try:
        yield
    finally:
        if before is not None:
            os.environ["NCCL_ALGO"] = before
        else:
            os.environ.pop("NCCL_ALGO", None)


def _value(figures: dict[str, Any], n: int) -> dict[str, Any]:
    values = figures.pop("values")
    if n == 1:
        return {"reason": "one rank sends nothing to anybody", "unit": "GB/s"}
    return {"value": figures["busbw_gb_s"], "values": values, "unit": "GB/s"}


def _facts(found: Transport) -> dict[str, Any]:
    return {"connections": dict(found.via), "networks": list(found.networks), "nics": list(found.nics),
            "channels": found.channels, "nvls_channels": found.nvls_channels, "algos": dict(found.algos),
            "nccl": found.version, "gdrdma": "GDRDMA" in found.between}  # fmt: skip


def _slow_send(ranks: Ranks) -> float:
    """What is left of this node's speed towards its neighbours in the ring of nodes (a fault on purpose)."""
    numbers = ranks.numbers
    here = numbers.index(ranks.task.node_rank)
    peers = {numbers[here - 1], numbers[(here + 1) % len(numbers)]}
    return min(inject.slow_send(ranks.task, peer) for peer in peers)


def _log_path(task: Task, scope: str, local_rank: int) -> Path:
    where = task.run_dir / f"attempt-{task.attempt}" / "nccl"
    return where / f"{scope}-{task.repeat}-node{task.node_rank}-{local_rank}.log"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def main() -> int:
    """Measures the collectives of a scope; 0 unless a rank failed."""
    task = Task.from_env()
    scope = str(task.options["scope"])
    log = _log_path(task, scope, int(os.environ.get("LOCAL_RANK", "0")))
    if task.device == "cuda":
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        os.environ |= {
            "NCCL_DEBUG": "INFO",
            "NCCL_DEBUG_SUBSYS": "INIT,ENV,TUNING",
            "NCCL_DEBUG_FILE": str(log),
        }
    check = "node_collectives" if scope == "node" else "cluster_collectives"
    with pinned(len(task.nodes) if scope == "cluster" else 1), joined(task, check) as ranks:
        Links(ranks, scope, log).run()
    return 0


if __name__ == "__main__":
    end(main())
