"""Collectives: buffers whose right content is known, how often bytes cross the wire, and emulation where one is missing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
PERIOD = 1021
"""Content repeats after so many elements. A prime: chunks of round sizes don't begin alike."""
_SHIFT = 131
_ITEM_BYTES = 4


def bus_factor(op: str, n: int) -> float:
    """busbw / algbw of a collective over n ranks: how often each byte crosses a rank's link, in the best case.

    Source: nccl-tests, https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md. algbw is S/t, where S is
    one rank's buffer for all_reduce, and the whole of n chunks for the others.
    """
    return (2 if op == "all_reduce" else 1) * (n - 1) / n


def wire_rate_gb_s(op: str, algbw_gb_s: float, n: int, nodes: int, *, ring: bool) -> float:
    """What each NIC carries each way, where each of n GPUs on `nodes` nodes has one; of one node, each GPU's link.

    A ring enters and leaves each node once, so busbw is what all NICs of a node carry together
    (https://github.com/NVIDIA/nccl-tests/issues/290). Else the least that must cross, which trees and reductions inside
    the node come near: S·(k-1)/k a node of k, twice for all_reduce; and of all_to_all each rank's own.
    """
    per_node = n // nodes
    if nodes == 1:
        return algbw_gb_s * bus_factor(op, n)
    if op == "all_to_all":
        return algbw_gb_s * (nodes - 1) / nodes
    if ring:
        return algbw_gb_s * bus_factor(op, n) / per_node
    return algbw_gb_s * (2 if op == "all_reduce" else 1) * (nodes - 1) / nodes / per_node


def content(rank: int) -> torch.Tensor:
    """What a rank puts in: whole numbers below 1021, other ones for each rank (of 1,021) and element of a period."""
    return ((torch.arange(PERIOD) + _SHIFT * rank) % PERIOD).to(torch.float32)


def total(n: int) -> torch.Tensor:
    """The sum of what n ranks put in: exact in fp32 below 2^24, so for 16,000 ranks, in any order."""
    return torch.stack([content(rank) for rank in range(n)]).sum(0)


def fill(buffer: torch.Tensor, period: torch.Tensor) -> None:
    """Repeats a period over a buffer of one dimension."""
    period = period.to(buffer.device)
    whole = buffer.numel() // PERIOD * PERIOD
    buffer[:whole].view(-1, PERIOD).copy_(period)
    buffer[whole:].copy_(period[: buffer.numel() - whole])


def wrong(buffer: torch.Tensor, period: torch.Tensor, offset: int = 0) -> int:
    """How many elements of a buffer are not those of a period that is entered at `offset`; in slices, to save memory."""
    period = torch.roll(period, -(offset % PERIOD)).to(buffer.device)
    count = 0
    step = 16384 * PERIOD
    for begin in range(0, buffer.numel(), step):
        part = buffer[begin : begin + step]
        whole = part.numel() // PERIOD * PERIOD
        count += int((part[:whole].view(-1, PERIOD) != period).sum())
        count += int((part[whole:] != period[: part.numel() - whole]).sum())
    return count


class Collective:
    """One operation over n ranks, with its buffers."""

    def __init__(
        self, op: str, size_bytes: int, rank: int, n: int, device: torch.device, *, emulated: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        self.op, self.rank, self.n, self.group, self.emulated = op, rank, n, group, emulated
        self.runs = 0
        self.chunk = max(1, size_bytes // _ITEM_BYTES // n)
        self.bytes = self.chunk * n * _ITEM_BYTES
        """S of `bus_factor`."""
        whole = self.chunk * n
        sizes = {"all_reduce": (whole, 0), "all_gather": (self.chunk, whole), "reduce_scatter": (whole, self.chunk),
                 "all_to_all": (whole, whole)}  # fmt: skip
        give, take = sizes[op]
        self.input = torch.empty(give, dtype=torch.float32, device=device)
        self.output = torch.empty(take, dtype=torch.float32, device=device) if take else self.input

    def fill(self) -> None:
        """Puts the known content in, and spoils what an earlier run left."""
        self.output.fill_(-1)
        fill(self.input, content(self.rank))

    def clear(self) -> None:
        """Zeros, whose sums stay zeros however often they are added up."""
        self.input.zero_()

    def run(self) -> None:
        """Runs it once, on the current stream."""
        self.runs += 1
        if self.op == "all_reduce":
            dist.all_reduce(self.input, group=self.group)
        elif self.emulated:
            self._emulate()
        elif self.op == "all_gather":
            _call("all_gather_single", "all_gather_into_tensor")(self.output, self.input, group=self.group)
        elif self.op == "reduce_scatter":
            _call("reduce_scatter_single", "reduce_scatter_tensor")(self.output, self.input, group=self.group)
        else:
            dist.all_to_all_single(self.output, self.input, group=self.group)

    def wrong(self) -> list[int]:
        """How many elements that this rank received are wrong, by the rank that they came from; of sums, its own."""
        if self.op in ("all_reduce", "reduce_scatter"):
            counts = [0] * self.n
            offset = self.rank * self.chunk if self.op == "reduce_scatter" else 0
            counts[self.rank] = wrong(self.output, total(self.n), offset)
            return counts
        parts = self.output.split(self.chunk)
        offset = self.rank * self.chunk if self.op == "all_to_all" else 0
        return [wrong(part, content(source), offset) for source, part in enumerate(parts)]

    def _emulate(self) -> None:
        """By sends and receives, with all ranks at once."""
        give = [self.input] * self.n if self.op == "all_gather" else list(self.input.split(self.chunk))
        whole = torch.empty(self.chunk * self.n) if self.op == "reduce_scatter" else self.output
        take = list(whole.split(self.chunk))
        take[self.rank].copy_(give[self.rank])
        others = [(self.rank + step) % self.n for step in range(1, self.n)]
        works = [
            dist.P2POp(call, tensors[peer], group=self.group, group_peer=peer)
            for peer in others
            for call, tensors in ((dist.isend, give), (dist.irecv, take))
        ]
        for work in dist.batch_isend_irecv(works):
            work.wait()
        if self.op == "reduce_scatter":
            self.output.copy_(whole.view(self.n, self.chunk).sum(0))


def missing(op: str, device: torch.device, rank: int, n: int) -> bool:
    """Whether this backend lacks an operation: gloo had no reduce_scatter and all_to_all in earlier versions of torch."""
    if device.type == "cuda" or op == "all_reduce":
        return False
    try:
        Collective(op, 4 * n, rank, n, device).run()
    except (RuntimeError, NotImplementedError) as error:
        words = ("not support", "unsupported", "does not implement", "not implemented")
        if any(word in str(error).lower() for word in words):
            return True
        raise
    return False


def blamed(counts: list[list[int]], op: str) -> int | None:
    """The rank that is at fault, from what each rank saw wrong of each other's chunk; None where it can't be told.

    One rank that alone saw wrong numbers received or computed them wrong. Where several saw them and all in one rank's
    chunk, that rank sent it wrong; sums have no chunk of one rank.
    """
    saw = [rank for rank, row in enumerate(counts) if any(row)]
    if len(saw) == 1:
        return saw[0]
    sources = {source for row in counts for source, count in enumerate(row) if count}
    sent = op in ("all_gather", "all_to_all")
    return next(iter(sources)) if sent and len(sources) == 1 else None


def _call(name: str, before: str) -> Any:
    """A function of torch.distributed that had another name before torch 2.13."""
    return getattr(dist, name, None) or getattr(dist, before)
