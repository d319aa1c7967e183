"""Where the time of a step went, by rank; how much of all time was useful; how near the arithmetic came to the hardware's. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from seatrial.watch.recorded import Attempt, Recorded

OWN = ("data", "forward", "backward", "optimizer")
"""What a rank does by itself, without waiting for others."""


@dataclass(frozen=True, slots=True)
class RankSteps:
    """One rank's steps in the window."""

    rank: int
    steps: int
    wall_s: float
    """Seconds a step."""
    seconds: dict[str, float]
    """Seconds a step by phase, ``other`` as well."""
    starved: float | None
    """Part of the steps at whose end the GPU had caught up with the host; None on CPU."""

    @property
    def own_s(self) -> float:
        """Seconds a step of its own work."""
        return sum(self.seconds.get(phase, 0.0) for phase in OWN)


def by_rank(attempt: Attempt, last_rows: int | None = None) -> list[RankSteps]:
    """Each rank's mean step.

    Args:
        attempt: whose rows.
        last_rows: only so many of the newest rows of each rank; the first row of a rank holds its slow first steps.
    """
    found = []
    for rank, rows in sorted(attempt.phases.items()):
        rows = rows[-last_rows:] if last_rows is not None else rows
        rows = rows[1:] if len(rows) > 2 and last_rows is None else rows
        steps = sum(row["steps"] for row in rows)
        if not steps:
            continue
        spent: dict[str, float] = defaultdict(float)
        for row in rows:
            for phase, seconds in row["s"].items():
                spent[phase] += seconds
        wall = sum(row["wall_s"] for row in rows)
        spent["other"] = max(0.0, wall - sum(spent.values()))
        starved = [row["starved"] for row in rows if "starved" in row]
        found.append(
            RankSteps(
                rank, steps, wall / steps, {phase: s / steps for phase, s in spent.items()},
                sum(starved) / steps if starved else None,
            )
        )  # fmt: skip
    return found


def mean_phases(ranks: Sequence[RankSteps]) -> dict[str, float]:
    """Seconds a step by phase, mean over ranks."""
    names = list(dict.fromkeys(name for rank in ranks for name in rank.seconds))
    return {name: sum(rank.seconds.get(name, 0.0) for rank in ranks) / len(ranks) for name in names}


def over_steps(attempts: Sequence[Attempt], limit: int = 300) -> dict[str, Any]:
    """Phases over steps for a chart: ``{"steps", "seconds": {phase: […]}}``, rank 0's rows, seconds a step."""
    rows = [row for attempt in attempts for row in attempt.phases.get(0, [])]
    stride = max(1, -(-len(rows) // limit))
    rows = rows[::-1][::stride][::-1]
    names = list(dict.fromkeys(name for row in rows for name in row["s"]))
    seconds = {name: [round(row["s"].get(name, 0.0) / row["steps"], 6) for row in rows] for name in names}
    if rows:
        seconds["other"] = [
            round(max(0.0, row["wall_s"] - sum(row["s"].values())) / row["steps"], 6) for row in rows
        ]
    return {"steps": [row["step"] for row in rows], "seconds": seconds}


def goodput(run: Recorded) -> float | None:
    """Useful steps' time over the wall time of all attempts; None before a step was logged.

    A step is useful when no later attempt did it again. Time in queues is not counted: nothing was allocated then.
    """
    wall = sum(attempt.end - attempt.begin for attempt in run.attempts)
    rows = [row for row in run.metrics if row.get("kind") == "train" and "window_s" in row]
    if not rows or wall <= 0:
        return None
    began = {a.plan.attempt: a.from_step for a in run.attempts if a.from_step is not None}
    useful = 0.0
    for row in rows:
        redone = [
            start
            for attempt, start in began.items()
            if attempt > row.get("attempt", 0) and start < row["step"]
        ]
        if not redone:
            useful += row["window_s"]
    return min(1.0, useful / wall)


def throughput(run: Recorded) -> dict[str, float | None]:
    """Tokens, samples and steps a second over the last attempt that trained, without its first row."""
    last = max((row.get("attempt", 0) for row in run.metrics if row.get("kind") == "train"), default=None)
    rows = [
        r for r in run.metrics if r.get("kind") == "train" and r.get("attempt", 0) == last and "window_s" in r
    ]
    steady = rows[1:] or rows
    seconds = sum(row["window_s"] for row in steady)
    if not seconds:
        return {"tokens_per_s": None, "samples_per_s": None, "steps_per_s": None}
    steps = steady[-1]["step"] - (rows[0]["step"] if len(rows) > 1 else steady[0]["step"] - 1)
    return {
        "tokens_per_s": sum((row.get("tokens_per_s") or 0) * row["window_s"] for row in steady) / seconds,
        "samples_per_s": sum((row.get("samples_per_s") or 0) * row["window_s"] for row in steady) / seconds,
        "steps_per_s": steps / seconds,
    }


@dataclass(frozen=True, slots=True)
class Mfu:
    """Model FLOPs utilisation: of the hardware's dense peak, and of what the acceptance test reached on it."""

    tflops: float | None
    """Of one rank."""
    of_peak: float | None
    of_measured: float | None
    dtype: str
    reason: str
    """Why the first of the two is None."""
    reason_measured: str


def mfu(
    run: Recorded,
    peak: Callable[[str, str], float | None],
    measured: Mapping[str, float],
) -> Mfu:
    """MFU of the last attempt that trained.

    ``tokens/s × FLOPs/token / (ranks × peak)``: PaLM (arXiv:2204.02311), appendix B.

    Args:
        run: what was recorded.
        peak: dense TFLOP/s of a GPU by name and precision; None for one that is not known.
        measured: TFLOP/s of the acceptance test by node, in the run's precision.
    """
    dtype = dtype_of(run)
    attempt = next((a for a in reversed(run.attempts) if a.from_step is not None), None)
    flops = None if attempt is None else attempt.facts.get("flops_per_token")
    rate = throughput(run)["tokens_per_s"]
    if attempt is None or rate is None:
        return Mfu(None, None, None, dtype, "no step was logged", "no step was logged")
    if flops is None:
        why = "the model's work is not counted (only transformers' is)"
        return Mfu(None, None, None, dtype, why, why)
    ranks = attempt.plan.world_size
    tflops = rate * flops / ranks / 1e12
    devices = [(n.header.host, d) for n in attempt.nodes for d in n.header.devices]
    names = sorted({d.name for _, d in devices if d.kind == "gpu"})
    peaks = [peak(name, dtype) for name in names]
    top = min((p for p in peaks if p), default=None) if all(peaks) else None
    why = "" if top else f"no peak is known for {', '.join(names) or 'processors'} in {dtype}"
    found = [measured[host] for host in {host for host, _ in devices} if host in measured]
    ceiling = median(found) if found else None
    if attempt.plan.device == "cpu" and ceiling is not None:
        ceiling /= attempt.plan.nproc  # measured on all processors of a node, which its ranks share
    return Mfu(
        tflops, tflops / top if top else None, tflops / ceiling if ceiling else None, dtype, why,
        "" if ceiling else "no acceptance test of these devices is known: seatrial check",
    )  # fmt: skip


def dtype_of(run: Recorded) -> str:
    """The precision of the run's matrix products, as the acceptance test and the specification name it."""
    train = run.spec.get("train") or {}
    precision = str(train.get("precision", "fp32"))
    return "tf32" if precision == "fp32" and train.get("tf32") else precision
