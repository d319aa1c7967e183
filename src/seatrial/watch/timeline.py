"""When a run did what: start-up, training, evaluation, predicting, of each attempt. Pure, from what its files say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

STEADY = "training"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an attempt, seconds since the epoch."""

    name: str
    """start-up, training, evaluation, saving, predicting or script."""
    begin: float
    end: float


def spans(
    events: Iterable[Mapping[str, Any]],
    evaluations: Iterable[Mapping[str, Any]],
    begin: float,
    end: float,
) -> list[Span]:
    """An attempt's parts, one after the other without a gap.

    Args:
        events: rows of rank 0's events, in their order.
        evaluations: rows of kind "eval" of this attempt.
        begin: when its agent began, seconds since the epoch.
        end: when it ended, or now.
    """
    found: list[Span] = []
    name, since = "start-up", begin
    for row in events:
        following = _phase(row, name)
        at = seconds(row.get("time"))
        if following is None or following == name or at is None:
            continue
        found.append(Span(name, since, max(since, at)))
        name, since = following, max(since, at)
    found.append(Span(name, since, max(since, end)))
    return [part for span in found for part in _without(span, evaluations) if part.end > part.begin]


def _phase(row: Mapping[str, Any], name: str) -> str | None:
    match row.get("event"):
        case "started":
            return {"predict": "predicting", "script": "script"}.get(str(row.get("stage")), "start-up")
        case "training":
            return STEADY
        case "saving":
            return "saving"
        case "stopped":
            return "saving"
    return None


def _without(span: Span, evaluations: Iterable[Mapping[str, Any]]) -> list[Span]:
    """A span of training, cut where it was interrupted by evaluations."""
    if span.name != STEADY:
        return [span]
    parts, since = [], span.begin
    for row in evaluations:
        end, took = seconds(row.get("time")), row.get("eval_s")
        if end is None or not isinstance(took, int | float) or not span.begin < end <= span.end + 1:
            continue
        end = min(end, span.end)  # the last one may be written down after what follows has begun
        begin = min(end, max(since, end - took))
        parts += [Span(STEADY, since, begin), Span("evaluation", begin, end)]
        since = end
    return [*parts, Span(STEADY, since, span.end)]


def script_spans(use: Sequence[tuple[float, float]], begin: float, end: float) -> list[Span]:
    """Of somebody's own script, which tells no phases: start-up until a device is first used.

    Args:
        use: time and highest use of any device in percent, in the order of time.
        begin: when the attempt began.
        end: when it ended.
    """
    first = next((time for time, percent in use if percent >= 5), None)
    if first is None:
        return [Span(STEADY, begin, end)]
    return [
        span for span in (Span("start-up", begin, first), Span(STEADY, first, end)) if span.end > span.begin
    ]


def seconds(text: Any) -> float | None:
    """An ISO time of a record as seconds since the epoch."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
