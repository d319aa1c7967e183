"""The utilisation gate: PASS, FAIL or UNMEASURED, with the figure it rests on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seatrial.runs.evidence import Verdict
from seatrial.runs.telemetry import METRICS
from seatrial.spec.gates import UtilisationGate
from seatrial.watch.use import DeviceUse, Use

MIN_COVERAGE = 0.9
"""Of the samples that there should be: a mean over what happened to be seen is none of the whole."""
MIN_SAMPLES = 5
DEFAULT_FLOOR_PCT = 50.0
"""NVIDIA's guidance on SM activity: below 0.5 ineffective use is likely, 0.8 is necessary for effective use."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate says."""

    verdict: Verdict
    message: str
    required_pct: float | None
    floor_pct: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "verdict": str(self.verdict), "message": self.message, "required_pct": self.required_pct,
            "floor_pct": self.floor_pct,
        }  # fmt: skip


def judge(use: Use, gate: UtilisationGate, steps: int | None) -> Judgement:
    """Whether the devices were used as required.

    Args:
        use: over the gate's window.
        gate: what is asked for.
        steps: optimizer steps that were made in the window; None for a script, which tells none.
    """
    floor = None
    if gate.min is not None:
        floor = gate.floor if gate.floor is not None else min(DEFAULT_FLOOR_PCT, gate.min)
    found = _figure(use)

    def say(verdict: Verdict, why: str = "") -> Judgement:
        return Judgement(verdict, f"{found}{': ' if found and why else ''}{why}", gate.min, floor)

    if not use.devices or use.mean_pct is None:
        return say(Verdict.UNMEASURED, f"nothing was sampled{f' ({use.missing})' if use.missing else ''}")
    if gate.min is None:
        return say(Verdict.SKIP, "nothing was required")
    if gate.metric not in ("auto", use.metric):
        return say(
            Verdict.UNMEASURED,
            f"{gate.metric} is required, and the hardware tells {use.metric}: {use.missing}",
        )
    absent = use.num_expected - len(use.devices)
    if absent > 0:
        return say(Verdict.FAIL, f"nothing was heard of {absent} of {use.num_expected} devices")
    if steps == 0:
        return say(Verdict.FAIL, "no step was made")
    if use.num_samples < MIN_SAMPLES:
        return say(Verdict.UNMEASURED, f"{use.num_samples} samples in {use.seconds:.0f} s are too few")
    if use.coverage < MIN_COVERAGE:
        return say(
            Verdict.UNMEASURED,
            f"only {use.coverage:.0%} of the samples are there ({MIN_COVERAGE:.0%} are needed)",
        )
    low = [d for d in use.devices if floor is not None and (d.mean_pct or 0.0) < floor]
    if use.mean_pct < gate.min:
        return say(Verdict.FAIL, f"{gate.min:g} % is required{_named(low)}")
    if low:
        return say(Verdict.FAIL, f"each must reach {floor:g} %{_named(low)}")
    return say(Verdict.PASS, f"{gate.min:g} % is required")


def _figure(use: Use) -> str:
    if use.mean_pct is None:
        return ""
    name = METRICS[use.metric][1]
    several = f"mean of {use.num_expected} devices" if use.num_expected > 1 else "mean"
    return f"{name} {use.mean_pct:.1f} % ({several} over {use.seconds:.0f} s, coverage {use.coverage:.0%})"


def _named(low: list[DeviceUse]) -> str:
    words = [idle_text(d) for d in low[:4]] + ([f"and {len(low) - 4} more"] if len(low) > 4 else [])
    return f"; {'; '.join(words)}" if words else ""


def idle_text(device: DeviceUse) -> str:
    """``node-1 gpu 5: 3 %, no process``."""
    none = device.device.kind == "gpu" and device.means.get("processes", 1.0) < 0.5
    return f"{device.label}: {device.mean_pct or 0.0:.0f} %{', no process' if none else ''}"
