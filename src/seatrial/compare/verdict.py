"""Better, worse, or no evidence: from an estimate to a verdict and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from seatrial.compare.bootstrap import PairedEstimate
from seatrial.compare.metrics import Metric, format_change, format_p, format_value
from seatrial.compare.power import POWER

VerdictWord = Literal["better", "worse", "no evidence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the chosen metric says."""

    metric: Metric
    verdict: VerdictWord
    estimate: PairedEstimate
    p_value: float
    confidence: float
    num_samples: int
    num_samples_needed: int | None
    same_model: bool
    """Whether both files are of the same weights; then nothing was trained that could be better."""

    @property
    def shown_improvement(self) -> float:
        """The end of the interval nearer to a loss, positive for an improvement: what is shown at least."""
        low, high = self.estimate.interval
        return low if self.metric.higher_is_better else -high


def decide(metric: Metric, estimate: PairedEstimate, p_value: float, confidence: float) -> VerdictWord:
    """The verdict: the interval of the difference must exclude zero and the paired test must reject, both.

    They fail differently. The test is valid for few samples: exact McNemar and the randomization test hold
    their level whatever the number, where a bootstrap interval is somewhat too short below some hundred
    samples. The interval is about the size of the difference in the metric's own unit, which is what a
    reader acts on. With both, at most ``1 - confidence`` of comparisons of interchangeable models get a
    verdict, half of these "better", and the verdict never contradicts the interval printed next to it. For
    accuracy it is nearly always McNemar that decides.
    """
    low, high = estimate.interval
    if p_value >= 1 - confidence or low <= 0 <= high:
        return "no evidence"
    return "better" if metric.sign * estimate.difference > 0 else "worse"


def verdict_data(verdict: Verdict) -> dict[str, Any]:
    """The verdict as it stands in ``comparison.json``."""
    estimate = verdict.estimate
    return {
        "metric": verdict.metric.name,
        "verdict": verdict.verdict,
        "difference": estimate.difference,
        "interval": list(estimate.interval),
        "p_value": verdict.p_value,
        "test": verdict.metric.test,
        "relative_change": estimate.difference / estimate.original if estimate.original else None,
        "num_samples": verdict.num_samples,
        "num_samples_needed": verdict.num_samples_needed,
        "num_samples_needed_reason": _needed_reason(verdict),
        "reason": reason(verdict),
        "sentence": sentence(verdict),
    }


def sentence(verdict: Verdict) -> str:
    """The result in one line, such as ``accuracy 12.3 % → 81.0 % (+68.7 points, 95 % interval …)``."""
    metric, estimate = verdict.metric, verdict.estimate
    width = readable_width(estimate)
    before, after = (format_value(v, metric, width) for v in (estimate.original, estimate.trained))
    change = format_change(estimate.difference, metric, width)
    if metric.unit == "fraction":
        change += " points"
    else:
        after += f" {metric.unit}" if metric.unit else ""
        if estimate.original:
            change += f", {100 * estimate.difference / estimate.original:+.1f} % relative".replace("-", "−")
    return (
        f"{metric.name} {before} → {after} ({change}, {interval_text(verdict)}; "
        f"{metric.test} {format_p(verdict.p_value)}; "
        f"{verdict.num_samples:,} sample{'' if verdict.num_samples == 1 else 's'})"
    )


def reason(verdict: Verdict) -> str:
    """Why the verdict is what it is."""
    if verdict.same_model:
        return "both files are of the same model, which can't be better than itself"
    level = f"{1 - verdict.confidence:.3g}"
    low, high = verdict.estimate.interval
    interval, test = interval_text(verdict), f"{verdict.metric.test} {format_p(verdict.p_value)}"
    if verdict.verdict != "no evidence":
        side = "above" if low > 0 else "below"
        meaning = "higher" if verdict.metric.higher_is_better else "lower"
        return f"the {interval} lies {side} zero and {test} is below {level}; {meaning} is better"
    if verdict.estimate.difference == 0:
        return f"the difference is zero; {interval}; {test}"
    parts = []
    if low <= 0 <= high:
        parts.append(f"the {interval} contains zero")
    if verdict.p_value >= 1 - verdict.confidence:
        parts.append(f"{test} is not below {level}")
    return " and ".join(parts)


def _needed_reason(verdict: Verdict) -> str:
    if verdict.num_samples_needed is None:
        return "no difference was observed, so there is no size of effect to plan for"
    return (
        f"so many samples show a true effect of the observed size with {100 * POWER:.0f} % power "
        f"at {percent(verdict.confidence)} confidence"
    )


def interval_text(verdict: Verdict) -> str:
    """Such as ``95 % interval +65.1 to +72.2``."""
    width = readable_width(verdict.estimate)
    low, high = (format_change(v, verdict.metric, width) for v in verdict.estimate.interval)
    return f"{percent(verdict.confidence)} interval {low} to {high}"


def percent(confidence: float) -> str:
    """Such as ``95 %``."""
    return f"{100 * confidence:.4g} %"


def readable_width(estimate: PairedEstimate) -> float:
    """The scale on which people read the numbers: the width of the interval, else the difference."""
    return (estimate.interval[1] - estimate.interval[0]) or abs(estimate.difference)
