"""How often the acceptance test finds what is slow or wrong, and how often it accuses what is not: a simulation.

    benchmarks/check_recall.py [--runs 200] [--nodes 8,64,256,1024] [--suites quick,standard,full] [--noise 0.02]
    benchmarks/check_recall.py --healthy 1000 --nodes 64 --suites quick

Nodes have 8 GPUs. Healthy ones differ: products of matrices by 1.5 % (standard deviation), memory by 0.5 %, a node's network
by 1 %. Each reading has heavy-tailed noise on top: Student's t with 4 degrees of freedom, scaled to a standard deviation of
`--noise`, drawn anew for each reading and so not less where a reading is itself a median. A slow GPU computes slowly, a slow
node computes and sends slowly, a slow link only sends slowly.

Rounds are those of the real schedule, judged by the real judges; what they want measured again is measured again, in rounds
of pairs that share no node. For rates the judges' cores are called with arrays (`peers.compare`, `pair_model.tell`), since
a million samples take minutes to make; `--whole` runs the same through `judge` on samples. States (driver, hash, throttling)
always go through `judge`.

Accused is who gets a FAIL. Recall: the share of faults whose part is accused (of a slow link: the link itself). False: the
innocent GPUs, nodes and links accused in a run, on average; 95 % upper bounds (Poisson) stand beside zeros. `warned` is the
share of faults that got at least a WARN. `extra` is what was measured again: rounds of pairs, and times that suspects' GPUs
ran once more.

Beside it, on the same first readings: (a) a scan of pairs that blames both ends of each pair more than 10 % below the mean;
(b) 5 % below the mean: of GPUs, of a node's mean over its pairs, and of each pair.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from seatrial.check import pair_model, peers
from seatrial.check.judge import judge
from seatrial.check.judge import suspects as ask_again
from seatrial.check.pairs import LIMIT
from seatrial.job.checks import rounds
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from seatrial.spec.checks import SUITES, CheckSpec, SuiteSpec

GPUS = 8
SPREAD = {"gemm": 0.015, "memory": 0.005, "network": 0.01}
SPEEDS = {"quick": (("tf32", "bf16"), 2), "standard": (("fp32", "tf32", "bf16", "fp16", "fp8"), 2), "full": (("fp32", "tf32", "bf16", "fp16", "fp8"), 2)}  # fmt: skip
PATIENCE = 12
"""Times that suspects are measured again, at most."""
Part = tuple[int, int | None, int | None]
"""Node, GPU, other node."""


@dataclass
class Fault:
    kind: str
    factor: float = 1.0

    def __str__(self) -> str:
        return self.kind + (f" -{1 - self.factor:.0%}" if self.factor < 1 else "")


SLOW = [Fault(kind, factor) for kind in ("slow GPU", "slow node", "slow link") for factor in (0.9, 0.8)]
STATES = [Fault(kind) for kind in ("wrong driver", "hash mismatch", "throttling")]


@dataclass
class World:
    """A cluster with one fault or none; every reading is drawn anew."""

    nodes: int
    fault: Fault
    noise: float
    rng: np.random.Generator
    bad: Part = field(init=False)

    def __post_init__(self) -> None:
        n, rng, fault = self.nodes, self.rng, self.fault
        self.gemm = 1 + SPREAD["gemm"] * rng.standard_normal((n, GPUS))
        self.memory = 1 + SPREAD["memory"] * rng.standard_normal((n, GPUS))
        self.network = 1 + SPREAD["network"] * rng.standard_normal(n)
        self.link = None
        i, j = sorted(rng.choice(n, 2, replace=False).tolist())
        gpu = int(rng.integers(GPUS))
        self.bad = {"slow node": (i, None, None), "slow link": (i, None, j), "healthy": (-1, None, None)}.get(
            fault.kind, (i, gpu, None)
        )
        if fault.kind == "slow GPU":
            self.gemm[i, gpu] *= fault.factor
        elif fault.kind == "slow node":
            self.gemm[i] *= fault.factor
            self.network[i] *= fault.factor
        elif fault.kind == "slow link":
            self.link = (i, j)

    def noisy(self, rates: np.ndarray) -> np.ndarray:
        return rates * (1 + self.noise / math.sqrt(2) * self.rng.standard_t(4, rates.shape))

    def speeds(self, suite: str) -> dict[str, np.ndarray]:
        """True rates of every GPU by metric."""
        dtypes, memory = SPEEDS[suite]
        found = {f"gemm_{dtype}": self.gemm for dtype in dtypes}
        return found | dict.fromkeys(("memory_copy", "memory_triad")[:memory], self.memory)

    def pairs(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """One reading of each pair."""
        rates = np.minimum(self.network[i], self.network[j])
        if self.link is not None:
            a, b = self.link
            rates = np.where((i == a) & (j == b) | (i == b) & (j == a), rates * self.fault.factor, rates)
        return self.noisy(rates)


@dataclass
class Outcome:
    """What a run came to."""

    accused: set[Part] = field(default_factory=set)
    warned: set[Part] = field(default_factory=set)
    rounds: int = 0
    again: int = 0
    scan: set[Part] = field(default_factory=set)
    mean: set[Part] = field(default_factory=set)
    scan_ran: bool = False


def run(world: World, suite: str, whole: bool) -> Outcome:
    """One acceptance test."""
    out = Outcome()
    firsts = {metric: world.noisy(rates) for metric, rates in world.speeds(suite).items()}
    for first in firsts.values():
        out.mean |= {(int(i), int(g), None) for i, g in np.argwhere(first < 0.95 * first.mean())}
    scanned = scan(world, suite) if suite != "quick" else None
    if scanned is not None:
        simple(scanned, out)
    if whole:
        judged_whole(world, suite, firsts, scanned, out)
        return out
    speeds(world, suite, firsts, out)
    if scanned is not None:
        pairs(world, scanned, out)
    return out


def speeds(world: World, suite: str, firsts: dict[str, np.ndarray], out: Outcome) -> None:
    """GPUs, by the peers' core; suspects run once more, all of them at once."""
    truth = world.speeds(suite)
    readings = {
        metric: {
            (str(i), g, None, None): [float(first[i, g])] for i in range(world.nodes) for g in range(GPUS)
        }
        for metric, first in firsts.items()
    }
    open_ = set(readings)
    for turn in range(PATIENCE):
        asked = False
        for metric in sorted(open_):
            judged = peers.compare(readings[metric], peers.EFFECT)
            if judged.suspects and turn < PATIENCE - 1:
                asked = True
                for key in judged.suspects:
                    true = truth[metric][int(key[0]), int(key[1] or 0)]
                    readings[metric][key].append(float(world.noisy(np.array([true]))[0]))
                continue
            open_.discard(metric)
            for key, word in judged.word.items():
                part = (int(key[0]), key[1], None)
                if word == "slow":
                    out.accused.add(part)
                elif word == "doubtful":
                    out.warned.add(part)
        out.again += asked
        if not asked:
            break


def scan(world: World, suite: str) -> np.ndarray:
    """The first readings of pairs, n x n x 1: every round, or the two adaptive ones."""
    n = world.nodes
    first = np.full((n, n, 1), np.nan)
    if suite == "full":
        schedule: Iterator[list[tuple[int, int]]] = iter(rounds.full_rounds(n))
        read = np.array([pair for some in schedule for pair in some])
        first[read[:, 0], read[:, 1], 0] = world.pairs(read[:, 0], read[:, 1])
    else:
        results: list[dict[tuple[int, int], float]] = []
        for _ in range(2):
            some = rounds.next_round(results, n)
            read = np.array(some)
            values = world.pairs(read[:, 0], read[:, 1])
            results.append(dict(zip(some, values.tolist(), strict=True)))
            first[read[:, 0], read[:, 1], 0] = values
    return np.fmax(first, first.transpose(1, 0, 2))


def pairs(world: World, readings: np.ndarray, out: Outcome) -> None:
    """Nodes and links, by the core of the pairs' judge."""
    for turn in range(PATIENCE):
        told = pair_model.tell(readings, LIMIT)
        if not told.again or turn == PATIENCE - 1:
            break
        out.rounds += len(pair_model.rounds(told.again))
        readings = appended(readings, told.again, world)
    out.accused |= {(int(i), None, None) for i in np.flatnonzero(told.slow_node)}
    out.warned |= {(int(i), None, None) for i in np.flatnonzero(told.doubtful_node)}
    out.accused |= {(int(i), None, int(j)) for i, j in np.argwhere(np.triu(told.slow_link, 1))}
    out.warned |= {(int(i), None, int(j)) for i, j in np.argwhere(np.triu(told.doubtful_link, 1))}


def appended(readings: np.ndarray, again: list[tuple[int, int]], world: World) -> np.ndarray:
    """With one more reading of each pair."""
    i, j = np.array(again).T
    place = np.isfinite(readings[i, j]).sum(axis=1)
    if place.max() >= readings.shape[2]:
        readings = np.concatenate([readings, np.full((*readings.shape[:2], 1), np.nan)], axis=2)
    values = world.pairs(i, j)
    readings[i, j, place] = readings[j, i, place] = values
    return readings


def simple(first: np.ndarray, out: Outcome) -> None:
    """What the two simple ways say of the same readings."""
    cells = first[:, :, 0]
    mean = np.nanmean(cells)
    out.scan_ran = True
    with np.errstate(invalid="ignore"):
        low = np.argwhere(np.triu(cells < 0.9 * mean, 1))
        out.scan |= {(int(node), None, None) for pair in low for node in pair}
        rows = np.nanmean(cells, axis=1)
        out.mean |= {(int(i), None, None) for i in np.flatnonzero(rows < 0.95 * mean)}
        slow = rows < 0.95 * mean
        out.mean |= {
            (int(i), None, int(j))
            for i, j in np.argwhere(np.triu(cells < 0.95 * mean, 1))
            if not (slow[i] or slow[j])
        }


def judged_whole(
    world: World, suite: str, firsts: dict[str, np.ndarray], scanned: np.ndarray | None, out: Outcome
) -> None:
    """The same through samples and `judge`, asking again as the conductor does."""
    checks = ("gemm", "memory") + (("pairs",) if scanned is not None else ())
    spec = CheckSpec(suite=SuiteSpec(name=suite, checks=checks))
    names = [f"n{i:04d}" for i in range(world.nodes)]
    check = {metric: "gemm" if metric.startswith("gemm") else "memory" for metric in firsts}
    unit = {"gemm": "TFLOP/s", "memory": "GB/s"}
    samples = [
        Sample(check=check[metric], metric=metric, node=names[i], gpu=g, value=float(first[i, g]), unit=unit[check[metric]])
        for metric, first in firsts.items() for i in range(world.nodes) for g in range(GPUS)
    ]  # fmt: skip

    def pair(i: int, j: int, value: float) -> Sample:
        return Sample(check="pairs", metric="pair", node=names[i], peer=names[j], value=value, unit="GB/s")

    if scanned is not None:
        samples += [
            pair(i, j, float(scanned[i, j, 0]))
            for i, j in np.argwhere(np.triu(np.isfinite(scanned[:, :, 0]), 1)).tolist()
        ]
    truth, place = world.speeds(suite), {name: i for i, name in enumerate(names)}
    for turn in range(PATIENCE):
        parts, links = ask_again(samples, spec, profile="gpu", expected_nodes=names)
        if not (parts or links) or turn == PATIENCE - 1:
            break
        for s in parts:
            true = truth[s.metric][place[s.node], s.gpu or 0]
            samples.append(
                s.model_copy(update={"repeat": turn + 1, "value": float(world.noisy(np.array([true]))[0])})
            )
        ends = [(place[a], place[b]) for a, b in links]
        samples += [pair(i, j, float(world.pairs(np.array([i]), np.array([j]))[0])) for i, j in ends]
        out.rounds += len(pair_model.rounds(ends))
        out.again += bool(parts)
    for f in judge(samples, spec, profile="gpu", expected_nodes=names):
        if f.node is None or f.verdict not in (Verdict.FAIL, Verdict.WARN):
            continue
        part = (place[f.node], f.gpu, place[f.peer] if f.peer else None)
        (out.accused if f.verdict is Verdict.FAIL else out.warned).add(part)


def states(world: World, suite: str) -> Outcome:
    """A fault of a state, through `judge`: nothing of it is random but who has it."""
    names = [f"n{i:04d}" for i in range(world.nodes)]
    bad, gpu = world.bad[0], world.bad[1]
    kind = world.fault.kind
    samples = []
    for i, name in enumerate(names):
        wrong = i == bad
        driver = "470.57.02" if wrong and kind == "wrong driver" else "570.86.15"
        samples.append(Sample(check="versions", metric="driver", node=name, value=driver))
        for g in range(GPUS):
            mine = wrong and g == gpu
            hash_ = "cd" * 32 if mine and kind == "hash mismatch" else "ab" * 32
            bits = 0x40 if mine and kind == "throttling" else 0x4
            samples.append(Sample(check="gemm_result", metric="gemm_hash", node=name, gpu=g, value=hash_))
            samples.append(Sample(check="throttle", metric="throttle_bits", node=name, gpu=g, value=bits))
    wanted = [check for check in ("versions", "gemm_result", "throttle") if check in SUITES[suite].checks]
    spec = CheckSpec(suite=SuiteSpec(name=suite, checks=tuple(wanted)))
    out = Outcome()
    place = {name: i for i, name in enumerate(names)}
    for f in judge(samples, spec, profile="gpu", expected_nodes=names):
        if f.verdict is Verdict.FAIL and f.node is not None:
            out.accused.add((place[f.node], f.gpu, None))
    if kind == "wrong driver":
        world.bad = (bad, None, None)
    return out


@dataclass
class Tally:
    """Many runs."""

    runs: int = 0
    found: int = 0
    noticed: int = 0
    false: int = 0
    false_warned: int = 0
    rounds: int = 0
    again: int = 0
    simple: dict[str, list[int]] = field(default_factory=lambda: {"scan": [0, 0], "mean": [0, 0]})
    scan_ran: bool = False

    def add(self, world: World, out: Outcome) -> None:
        bad = world.bad
        mine = guilty(world)
        self.runs += 1
        self.found += any(mine(part) for part in out.accused)
        self.noticed += any(mine(part) for part in out.accused | out.warned)
        self.false += sum(not mine(part) for part in out.accused)
        self.false_warned += sum(not mine(part) for part in out.warned - out.accused)
        self.rounds += out.rounds
        self.again += out.again
        self.scan_ran |= out.scan_ran
        # Who blames both ends of a pair has found the link, and accused two healthy nodes.
        ends = {(bad[0], None, None), (bad[2], None, None)}
        self.simple["scan"][0] += ends <= out.scan if bad[2] is not None else any(mine(p) for p in out.scan)
        self.simple["scan"][1] += sum(not mine(part) for part in out.scan)
        self.simple["mean"][0] += any(mine(part) for part in out.mean)
        self.simple["mean"][1] += sum(not mine(part) for part in out.mean)


def guilty(world: World) -> Callable[[Part], bool]:
    """Whether a part is the one with the fault; of a slow node its GPUs are, too. A slow GPU is found as that GPU."""
    bad = world.bad
    if world.fault.kind == "slow node":
        return lambda part: part[0] == bad[0] and part[2] is None
    return lambda part: part == bad


def row(label: list[str], tally: Tally, healthy: bool) -> str:
    n = tally.runs
    recall = "" if healthy else f"{tally.found / n:.3f}"
    noticed = "" if healthy else f"{tally.noticed / n:.3f}"
    false = f"{tally.false / n:.4f}" + (f" (<{3 / n:.3g})" if not tally.false else "")
    cells = [
        *label,
        str(n),
        recall,
        noticed,
        false,
        f"{tally.false_warned / n:.3f}",
        f"{tally.rounds / n:.1f}+{tally.again / n:.1f}",
    ]
    for name in ("scan", "mean"):
        found, wrong = tally.simple[name]
        shown = (name == "mean" or tally.scan_ran) and label[2] not in map(str, STATES)
        cells.append((("" if healthy else f"{found / n:.2f} ") + f"/ {wrong / n:.2f}") if shown else "-")
    widths = (9, 6, 15, 6, 7, 7, 16, 7, 10, 16, 16)
    return " ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--healthy", type=int, help="only healthy clusters, so many runs")
    parser.add_argument("--nodes", default="8,64,256,1024")
    parser.add_argument("--suites", default="quick,standard,full")
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", help="part of the names of faults, such as 'link'")
    parser.add_argument("--whole", action="store_true", help="through samples and judge, for all")
    args = parser.parse_args()
    print(f"noise {args.noise:.1%} a reading, t(4); spread {SPREAD}; recall and false accusations a run")
    print(row_head())
    lines = []
    for suite in args.suites.split(","):
        for nodes in map(int, args.nodes.split(",")):
            faults = [Fault("healthy")] + ([] if args.healthy else [*SLOW, *STATES])
            for fault in faults:
                if args.faults and args.faults not in str(fault):
                    continue
                began = time.perf_counter()
                tally = many(suite, nodes, fault, args)
                print(row([suite, str(nodes), str(fault)], tally, fault.kind == "healthy"), flush=True)
                lines.append({"suite": suite, "nodes": nodes, "fault": str(fault), **vars(tally), "s": round(time.perf_counter() - began, 1)})  # fmt: skip
    print(json.dumps(lines))
    return 0


def row_head() -> str:
    names = (
        "suite",
        "nodes",
        "fault",
        "runs",
        "recall",
        "warned",
        "false",
        "f.warn",
        "extra",
        "(a) 10 % scan",
        "(b) 5 % mean",
    )
    widths = (9, 6, 15, 6, 7, 7, 16, 7, 10, 16, 16)
    return " ".join(f"{name:{width}}" for name, width in zip(names, widths, strict=True)).rstrip()


def many(suite: str, nodes: int, fault: Fault, args: argparse.Namespace) -> Tally:
    tally = Tally()
    count = args.healthy or (min(args.runs, 5) if fault in STATES else args.runs)
    for k in range(count):
        seed = [args.seed, nodes, k, *map(ord, suite + str(fault))]
        world = World(nodes, fault, args.noise, np.random.default_rng(seed))
        out = states(world, suite) if fault in STATES else run(world, suite, args.whole)
        tally.add(world, out)
    return tally


if __name__ == "__main__":
    sys.exit(main())
