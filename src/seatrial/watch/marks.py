"""Bars, sparklines and numbers for a terminal. Pure; plain ASCII where the terminal has nothing else."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
MISSING = "·"


def spark(
    values: Sequence[float | None], width: int, top: float | None = None, *, unicode: bool = True
) -> str:
    """The last values as blocks, the newest at the right; a dot where there is none.

    Args:
        values: oldest first.
        width: characters.
        top: what fills a block; None is the largest value, and then the smallest empties it.
        unicode: whether there are blocks.
    """
    marks = _BLOCKS if unicode else _ASCII
    shown = list(values)[-width:] if width > 0 else []
    told = [value for value in shown if value is not None]
    low, high = (0.0, top) if top is not None else (min(told, default=0.0), max(told, default=1.0))
    span = (high - low) or 1.0
    out = ""
    for value in shown:
        if value is None:
            out += MISSING if unicode else "?"
        else:
            level = round((value - low) / span * (len(marks) - 2)) + 1
            out += marks[min(max(level, 1), len(marks) - 1)]
    return out


def bar(percent: float | None, width: int, *, unicode: bool = True) -> str:
    """A bar of so many characters, filled to `percent`."""
    full, empty = ("█", "░") if unicode else ("#", "-")
    if percent is None:
        return ("·" if unicode else "?") * width
    filled = min(width, max(0, round(percent / 100 * width)))
    return full * filled + empty * (width - filled)


def parts(shares: Sequence[tuple[str, float]], width: int) -> str:
    """One letter for each part, as many as its share of the width; what is less than half a character is left out."""
    out = "".join(letter * round(share * width) for letter, share in shares)
    return out[:width]


def duration(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``; empty for None."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def short(value: float | None) -> str:
    """``12.3k``; empty for None."""
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def fitted(pieces: Sequence[str], width: int, gap: str = "  ") -> str:
    """As many of the pieces as fit, whole; the first is cut where it alone is too long."""
    line = ""
    for piece in filter(None, pieces):
        longer = f"{line}{gap}{piece}" if line else piece
        if len(longer) > width:
            if not line:
                return cut(piece, width)
            continue
        line = longer
    return line


def cut(text: str, width: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= width else (text[: max(0, width - 1)] + "…")[:width]
