"""Phase 3: nodes send to each other two by two, all pairs of a round at once, each GPU to its counterpart (its rail).

``python -m seatrial.job.checks.pairs``, a rank. Its options may say ``rounds``: lists of pairs of node ranks to measure
instead of the suite's, to try suspects again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from seatrial.job.checks import inject
from seatrial.job.checks.collectives import PERIOD, content, fill, wrong
from seatrial.job.checks.ranks import Ranks, end, joined
from seatrial.job.checks.rounds import Pair, full_rounds, next_round
from seatrial.job.checks.task import Task
from seatrial.job.checks.timing import steady
from seatrial.runs.samples import Sample

_ADAPTIVE_ROUNDS = 2
_CPU_SHARE = 64
_ITERATIONS = {"cuda": (5, 20), "cpu": (8, 60)}
_BUDGET_S = 0.3
_LOOKED_AT = 8 * PERIOD
_BYTES_OF_FLOAT = 4


class Pairs:
    """One rank's part of the scan."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.task = ranks, ranks.task
        self.nproc, self.nodes = self.task.nproc, len(ranks.numbers)
        size = int(self.task.spec.pair_mib * 2**20) // (1 if ranks.cuda else _CPU_SHARE)
        self.give = torch.empty(max(1, size // _BYTES_OF_FLOAT), device=ranks.device)
        self.take = torch.empty_like(self.give)
        self.bytes = self.give.numel() * _BYTES_OF_FLOAT
        fill(self.give, content(ranks.rank))

    def rounds(self, results: list[dict[Pair, float]]) -> Iterator[list[Pair]]:
        """Pairs of each round, as places in the order of nodes; every rank comes to the same."""
        if "rounds" in self.task.options:
            places = {number: place for place, number in enumerate(self.ranks.numbers)}
            for pairs in self.task.options["rounds"]:
                # A node that has been left out since is in no pair.
                here = [
                    tuple(sorted(places[x] for x in pair)) for pair in pairs if all(x in places for x in pair)
                ]
                yield [(pair[0], pair[1]) for pair in here]
        elif self.task.spec.pairs == "full":
            yield from full_rounds(self.nodes)
        else:
            for _ in range(_ADAPTIVE_ROUNDS):
                yield next_round(results, self.nodes)

    def run(self) -> None:
        """Goes through all rounds; rank 0 writes the samples of each when it is over."""
        results: list[dict[Pair, float]] = []
        for number, pairs in enumerate(self.rounds(results)):
            peers = dict(pairs) | {b: a for a, b in pairs}
            peer = peers.get(self.ranks.rank // self.nproc)
            self.ranks.doing("pairs", "pair", round=number, peer=None if peer is None else self.name(peer))
            found = self.measure(peer)
            results.append({pair: sum(self.rails(found, pair)) for pair in pairs})
            if self.ranks.rank == 0:
                self.task.write_all(self.samples(found, pairs, number))

    def measure(self, peer: int | None) -> list[list[float]]:
        """What every rank saw in a round: wrong elements first, then seconds of each iteration; zeros of one that rests."""
        ranks = self.ranks
        errors, first = 0, 0.0
        ranks.barrier()
        if peer is not None:
            self.take.fill_(-1)
            self.exchange(peer)  # Connects.
            errors = self.errors(peer)
            self.exchange(peer)
            first = self.exchange(peer)
        firsts = [row[0] for row in ranks.gather(first) if row[0]]
        least, most = _ITERATIONS[ranks.device.type]
        typical = statistics.median(firsts) if firsts else _BUDGET_S
        count = min(most, max(least, math.ceil(_BUDGET_S / typical)))
        ranks.alive(2 * count * max(firsts, default=0.0))
        ranks.barrier()
        times = [0.0] * count if peer is None else [self.exchange(peer) for _ in range(count)]
        return ranks.gather(float(errors), *times)

    def exchange(self, peer: int) -> float:
        """Seconds until this rank has sent all to its counterpart and received all from it, both ways at once."""
        rank = peer * self.nproc + self.ranks.world.local_rank
        if self.ranks.cuda and not self.task.inject:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            self.swap(self.give, self.take, rank)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3
        # Both begin together: the time that one sleeps, to be slower on purpose, is not the other's.
        self.swap(self.give[:1], self.take[:1], rank)
        self.ranks.synchronize()
        began = time.perf_counter()
        self.swap(self.give, self.take, rank)
        self.ranks.synchronize()
        inject.stretch(time.perf_counter() - began, inject.slow_send(self.task, self.ranks.numbers[peer]))
        return time.perf_counter() - began

    def swap(self, give: torch.Tensor, take: torch.Tensor, rank: int) -> None:
        """Sends to a rank and receives from it, both at once, on the current stream."""
        works = [dist.P2POp(dist.isend, give, rank), dist.P2POp(dist.irecv, take, rank)]
        for work in dist.batch_isend_irecv(works):
            work.wait()

    def errors(self, peer: int) -> int:
        """Wrong elements among the first and last of what was received."""
        if inject.flips(self.task, "flipped-bits", self.ranks.world.local_rank):
            inject.flip_bit(self.take[:PERIOD])
        period = content(peer * self.nproc + self.ranks.world.local_rank)
        begin = max(0, self.take.numel() - _LOOKED_AT)
        first = self.take[: min(_LOOKED_AT, begin)]
        return wrong(first, period) + wrong(self.take[begin:], period, begin)

    def rails(self, found: Sequence[Sequence[float]], pair: Pair) -> list[float]:
        """GB/s each way of each rail; an iteration has ended when both ends have."""
        return [steady(row, busy=not self.ranks.cuda) for row in self.readings(found, pair)]

    def readings(self, found: Sequence[Sequence[float]], pair: Pair) -> list[list[float]]:
        """GB/s each way of each rail in each iteration."""
        ends = [[found[node * self.nproc + rail][1:] for node in pair] for rail in range(self.nproc)]
        return [[self.bytes / max(both) / 1e9 for both in zip(a, b, strict=True)] for a, b in ends]

    def samples(self, found: Sequence[Sequence[float]], pairs: list[Pair], number: int) -> Iterator[Sample]:
        """A round's samples: a rate for each pair, and wrong numbers where there are any."""
        for pair in pairs:
            rails, readings = self.rails(found, pair), self.readings(found, pair)
            names = {"node": self.name(pair[0]), "peer": self.name(pair[1])}
            detail = {"round": number, "pairs_at_once": len(pairs), "rails": rails, "bytes": self.bytes,
                      "iterations": len(readings[0])}  # fmt: skip
            values = [sum(turn) for turn in zip(*readings, strict=True)]
            sample = self.task.sample(
                "pairs", "pair", sum(rails), values=values, unit="GB/s", gpu=None, detail=detail
            )
            yield sample.model_copy(update=names)
        for pair in pairs:
            for node, sender in (pair, pair[::-1]):
                for rail in range(self.nproc):
                    if count := int(found[node * self.nproc + rail][0]):
                        detail = {"op": "sendrecv", "bytes": self.bytes, "round": number,
                                  "blamed_rank": node * self.nproc + rail}  # fmt: skip
                        sample = self.task.sample(
                            "cluster_data", "wrong_elements", count, gpu=rail, detail=detail
                        )
                        yield sample.model_copy(update={"node": self.name(node), "peer": self.name(sender)})

    def name(self, place: int) -> str:
        """Name of a node."""
        return self.ranks.node_of(place * self.nproc)


def main() -> int:
    """Measures pairs; 0 unless a rank failed."""
    task = Task.from_env()
    if not task.wants("pairs"):
        return 0
    with joined(task, "pairs") as ranks:
        Pairs(ranks).run()
    return 0


if __name__ == "__main__":
    end(main())
