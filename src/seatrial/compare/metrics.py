"""The metrics that a comparison computes: their direction, unit, and how people write them."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from seatrial.errors import SpecError
from seatrial.spec.run import is_classification


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a number means."""

    name: str
    classification: bool
    """Whether it is of the tasks whose predictions are classes, or of language models."""
    higher_is_better: bool
    unit: str
    """``fraction`` (0 to 1, shown as per cent), ``score`` (0 to 1), nats per sample or token, or nothing."""
    test: str
    """The paired test behind the p-value."""

    @property
    def sign(self) -> int:
        """+1 where a positive difference is an improvement, -1 where it is a loss."""
        return 1 if self.higher_is_better else -1


_SWAP = "paired randomization test"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="accuracy",
            classification=True,
            higher_is_better=True,
            unit="fraction",
            test="exact McNemar",
        ),
        Metric(name="macro_f1", classification=True, higher_is_better=True, unit="score", test=_SWAP),
        Metric(
            name="log_loss",
            classification=True,
            higher_is_better=False,
            unit="nats/sample",
            test=_SWAP,
        ),
        Metric(
            name="calibration_error",
            classification=True,
            higher_is_better=False,
            unit="fraction",
            test=_SWAP,
        ),
        Metric(name="nll", classification=False, higher_is_better=False, unit="nats/token", test=_SWAP),
        Metric(name="perplexity", classification=False, higher_is_better=False, unit="", test=_SWAP),
    )
}
"""By name; the first of a kind of task is its default."""


def choose_metric(name: str | None, task: str) -> Metric:
    """The metric that the verdict rests on: the one named, or the task's default.

    Raises:
        SpecError: the task has no metric of that name.
    """
    known = [metric for metric in METRICS.values() if metric.classification == is_classification(task)]
    if name is None:
        return known[0]
    names = [metric.name for metric in known]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise SpecError(
            f"there is no metric {name!r} for {task}",
            evidence=f"known: {', '.join(names)}",
            remedy=f"did you mean {nearest[0]!r}?" if nearest else f"use {names[0]!r}",
        )
    return METRICS[name]


def format_value(value: float, metric: Metric, width: float) -> str:
    """A value for people, with digits enough to see a change of `width`: ``81.0 %``; ``2.953`` (no unit)."""
    if metric.unit == "fraction":
        return f"{100 * value:.{_digits(100 * width, 1)}f} %"
    return f"{value:.{_digits(width, 3)}f}"


def format_change(value: float, metric: Metric, width: float) -> str:
    """A signed difference in the metric's unit; differences of fractions are in percentage points."""
    if metric.unit == "fraction":
        value, digits = 100 * value, _digits(100 * width, 1)
    else:
        digits = _digits(width, 3)
    value = round(value, digits)
    return f"{'−' if value < 0 else '+'}{abs(value):.{digits}f}"


def change_unit(metric: Metric) -> str:
    """The word after a formatted difference, with its space: `` points``, `` nats/token`` or nothing."""
    if metric.unit == "fraction":
        return " points"
    return f" {metric.unit}" if metric.unit else ""


def format_p(value: float) -> str:
    """``p = 0.031``, or ``p < 1e-6`` below that."""
    return "p < 1e-6" if value < 1e-6 else f"p = {value:.2g}"


def _digits(width: float, least: int) -> int:
    """Decimals that show the width of an interval with two significant digits, from `least` to 8."""
    if width <= 0:
        return least
    return max(least, min(8, 1 - math.floor(math.log10(width))))
