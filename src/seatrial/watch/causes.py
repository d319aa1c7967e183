"""Why devices were not used: rules over what was measured, each with its evidence and what to change. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from seatrial.runs.telemetry import IDLE_PCT
from seatrial.watch.steps import RankSteps, mean_phases
from seatrial.watch.use import Use

DATA_SHARE = 0.15
"""Of a step: a loader that keeps up is hidden behind the device."""
COMMUNICATION_SHARE = 0.2
STRAGGLER = 0.15
"""A rank whose own work takes so much longer than the median's holds the others up."""
CHECKPOINT_SHARE = 0.05
EVALUATION_SHARE = 0.2
THROTTLED_SHARE = 0.05
STARVED_SHARE = 0.5
LOW_USE_PCT = 70.0
"""Only below it a GPU that runs dry between kernels is worth a word."""
_HARD = ("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "power brake")
_CAP = "power cap"
_CAP_CLOCK = 0.75
"""A power cap is normal on a GPU that works; one that takes a quarter of the clock is not."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that keeps devices from work."""

    kind: str
    sentence: str
    evidence: tuple[str, ...]
    remedy: str
    share: float
    """Of the time, about: what could be won."""

    def to_dict(self) -> dict[str, Any]:
        """For ``utilisation.json``."""
        return asdict(self) | {"evidence": list(self.evidence), "share": round(self.share, 3)}


def causes(use: Use, ranks: Sequence[RankSteps], nproc: int) -> list[Cause]:
    """Every cause that shows, the one that costs most first.

    Args:
        use: of the devices.
        ranks: mean steps of each rank; empty for a script that tells none.
        nproc: ranks on a node.
    """
    found = [_idle(use), *_throttled(use)]
    if ranks:
        phases = mean_phases(ranks)
        wall = sum(r.wall_s for r in ranks) / len(ranks)
        found += [
            _data(phases, wall), _straggler(ranks, wall, nproc, use), _communication(ranks, wall),
            _checkpoints(phases, wall), _evaluation(phases, wall), _launch(ranks, use, phases, wall),
        ]  # fmt: skip
    return sorted((cause for cause in found if cause is not None), key=lambda cause: -cause.share)


def _idle(use: Use) -> Cause | None:
    if use.metric == "cpu_busy":
        return None
    absent = use.num_expected - len(use.devices)
    idle = use.idle
    if not idle and absent <= 0:
        return None
    without = [d for d in idle if d.means.get("processes", 1) < 0.5]
    evidence = [f"{d.label}: {d.mean_pct:.0f} %{', no process' if d in without else ''}" for d in idle[:8]]
    if len(idle) > 8:
        evidence.append(f"and {len(idle) - 8} more")
    if absent > 0:
        evidence.append(f"nothing was heard of {absent} devices that were allocated")
    num = use.num_expected
    say = (
        f"{len(without)} of {num} GPUs have no process"
        if without
        else f"{len(idle)} of {num} GPUs do nothing"
        if idle
        else f"{absent} of {num} GPUs were not seen"
    )
    remedy = "ask for as many GPUs as there are ranks: resources.gpus_per_node, or resources.nproc=auto for a rank on each"
    return Cause("idle-gpus", say, tuple(evidence), remedy, (len(idle) + max(0, absent)) / max(1, num))


def _throttled(use: Use) -> list[Cause]:
    found = []
    for reason in _HARD:
        held = [d for d in use.devices if d.throttled.get(reason, 0.0) > THROTTLED_SHARE]
        if held:
            nodes = sorted({d.node for d in held})
            evidence = [
                f"{d.label}: {d.throttled[reason]:.0%} of the samples" + _clock(d.means) for d in held[:8]
            ]
            found.append(
                Cause(
                    "throttled", f"throttled: {reason} on {', '.join(nodes[:4])}", tuple(evidence),
                    "seatrial check --only gemm on these nodes, and tell whoever runs them: cooling or power is at fault",
                    max(d.throttled[reason] for d in held) * len(held) / max(1, use.num_expected) * 0.5,
                )
            )  # fmt: skip
    clocks = [d.means["clock_mhz"] for d in use.devices if "clock_mhz" in d.means]
    top = max(clocks, default=0.0)
    capped = [
        d for d in use.devices
        if d.throttled.get(_CAP, 0.0) > 0.5 and d.means.get("clock_mhz", top) < _CAP_CLOCK * top
    ]  # fmt: skip
    if capped:
        evidence = [
            f"{d.label}: {d.throttled[_CAP]:.0%} of the samples" + _clock(d.means) for d in capped[:8]
        ]
        say = f"throttled: power cap on {', '.join(sorted({d.node for d in capped})[:4])}"
        limits = "nvidia-smi -q -d POWER shows the limit; it is lower than on the other GPUs"
        found.append(
            Cause("throttled", say, tuple(evidence), limits, 0.25 * len(capped) / max(1, use.num_expected))
        )
    return found


def _clock(means: dict[str, float]) -> str:
    return f", {means['clock_mhz']:.0f} MHz" if "clock_mhz" in means else ""


def _data(phases: dict[str, float], wall: float) -> Cause | None:
    share = phases.get("data", 0.0) / wall
    if share < DATA_SHARE:
        return None
    return Cause(
        "data-bound", f"data-bound: {_ms(phases['data'])} of {_ms(wall)} ms in the loader",
        (f"{share:.0%} of a step waits for its batch, mean over ranks",),
        "more processors for each rank (OMP_NUM_THREADS, cpus per task), data on a local disk, less work per sample",
        share,
    )  # fmt: skip


def _straggler(ranks: Sequence[RankSteps], wall: float, nproc: int, use: Use) -> Cause | None:
    if len(ranks) < 2:
        return None
    slow = max(ranks, key=lambda r: r.own_s)
    others = median(r.own_s for r in ranks if r is not slow)
    behind = slow.own_s - others
    if behind < STRAGGLER * others or behind < STRAGGLER * wall / 2:
        return None
    worst = max(
        ("data", "forward", "backward", "optimizer"),
        key=lambda p: slow.seconds.get(p, 0.0) - _mid(ranks, slow, p),
    )
    nodes = {d.node_rank: d.node for d in use.devices}
    where = nodes.get(slow.rank // max(1, nproc), f"node {slow.rank // max(1, nproc)}")
    waits = median(r.seconds.get("communication", 0.0) for r in ranks if r is not slow)
    return Cause(
        "straggler", f"one straggler: rank {slow.rank} on {where}",
        (
            f"its own work takes {_ms(slow.own_s)} ms a step, the others' {_ms(others)} ms; most of it more in {worst}",
            f"the others wait {_ms(waits)} ms of {_ms(wall)} ms for it",
        ),
        f"seatrial check on {where}, and leave it out when it fails; or look at what else runs there",
        behind / wall,
    )  # fmt: skip


def _mid(ranks: Sequence[RankSteps], slow: RankSteps, phase: str) -> float:
    return median(r.seconds.get(phase, 0.0) for r in ranks if r is not slow)


def _communication(ranks: Sequence[RankSteps], wall: float) -> Cause | None:
    told = [r for r in ranks if "communication" in r.seconds]
    if len(told) < 2:
        return None
    # Of a rank that all wait for, what is left is the network's.
    least = min(r.seconds["communication"] for r in told)
    if least < COMMUNICATION_SHARE * wall:
        return None
    return Cause(
        "communication-bound", f"communication-bound: {_ms(least)} of {_ms(wall)} ms in reducing gradients",
        (f"even the rank that waits least waits {least / wall:.0%} of a step after its last gradient",),
        "a larger train.grad_accumulation reduces less often; seatrial check --only cluster_collectives,cluster_transport "
        "shows whether the network is what it should be",
        least / wall,
    )  # fmt: skip


def _checkpoints(phases: dict[str, float], wall: float) -> Cause | None:
    share = phases.get("checkpoint", 0.0) / wall
    if share < CHECKPOINT_SHARE:
        return None
    return Cause(
        "checkpoint-stalls", f"checkpoint stalls: {share:.0%} of the time",
        (f"{_ms(phases['checkpoint'])} ms a step, spread over all steps",),
        "a larger train.checkpoint_every, or a faster file system below the run directory",
        share,
    )  # fmt: skip


def _evaluation(phases: dict[str, float], wall: float) -> Cause | None:
    share = phases.get("evaluate", 0.0) / wall
    if share < EVALUATION_SHARE:
        return None
    return Cause(
        "evaluation", f"evaluation takes {share:.0%} of the time", (f"{_ms(phases['evaluate'])} ms a step, spread over all steps",),
        "a larger train.eval_every, or fewer data.test_samples", share,
    )  # fmt: skip


def _launch(ranks: Sequence[RankSteps], use: Use, phases: dict[str, float], wall: float) -> Cause | None:
    starved = [r.starved for r in ranks if r.starved is not None]
    mean = use.mean_pct
    if (
        not starved
        or mean is None
        or not IDLE_PCT <= mean < LOW_USE_PCT
        or phases.get("data", 0.0) / wall >= DATA_SHARE
    ):
        return None
    share = sum(starved) / len(starved)
    if share < STARVED_SHARE:
        return None
    return Cause(
        "launch-bound", f"launch-bound: at the end of {share:.0%} of the steps the GPU had caught up with the host",
        (f"the host needs {_ms(wall)} ms a step to say what to do; the devices are used {mean:.0f} %",),
        "a larger train.batch_size, train.compile=on, or a faster processor",
        (1 - mean / 100) * share * 0.5,
    )  # fmt: skip


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
