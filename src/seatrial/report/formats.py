"""Numbers as people read them: no more digits than mean something."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

MISSING = "not measured"


def number(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits; anything else as it is."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{digits}g}"


def of_unit(value: float | None, unit: str) -> str:
    """A metric's value: parts of one as percent."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if unit == "fraction" else f"{value:.4f}"


def difference(value: float | None, unit: str) -> str:
    """A change: points for what is shown in percent, always with a sign."""
    if value is None:
        return MISSING
    return f"{100 * value:+.1f} points" if unit == "fraction" else f"{value:+.4f}"


def interval(bounds: list[float] | None, unit: str, *, signed: bool = False) -> str:
    """``80.1 % to 84.3 %``."""
    if not bounds or None in bounds:
        return MISSING
    show = difference if signed else of_unit
    low, high = (show(bound, unit) for bound in bounds)
    return f"{low.removesuffix(' points')} to {high}" if signed else f"{low} to {high}"


def p_value(value: float | None) -> str:
    """Never an exact zero: a p-value below a millionth is below a millionth."""
    if value is None:
        return MISSING
    return "< 1e-6" if value < 1e-6 else f"{value:.2g}"


def duration(started: str | None, ended: str | None) -> str:
    """``1 min 12 s`` between two ISO 8601 times."""
    if not started or not ended:
        return MISSING
    seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
