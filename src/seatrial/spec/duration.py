"""Lengths of time as people and schedulers write them."""

from __future__ import annotations

import re

_UNITS = re.compile(r"(?:(\d+)\s*d)?\s*(?:(\d+)\s*h)?\s*(?:(\d+)\s*m)?\s*(?:(\d+)\s*s)?")
_CLOCK = re.compile(r"(?:(\d+)-(\d\d?)(?::([0-5]?\d)(?::([0-5]?\d))?)?|(\d+):([0-5]\d):([0-5]\d))")
_FORMS = (
    "write 4h, 90m, 1h30m, 2d, 01:30:00 (hours:minutes:seconds) or 2-00:00:00 (days-hours:minutes:seconds)"
)


def seconds(text: str) -> int:
    """The length of `text` in seconds.

    Slurm reads a bare number as minutes and ``1:30`` as minutes and seconds (``sbatch --time``), others read seconds or
    hours: neither is guessed.

    Raises:
        ValueError: it is none of the forms, ambiguous, or zero.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        raise ValueError(f"{text} of what? {_FORMS}")
    if re.fullmatch(r"\d+:\d+", text):
        raise ValueError(f"{text} may be minutes and seconds, or hours and minutes: {_FORMS}")
    found = _UNITS.fullmatch(text)
    if found and any(found.groups()):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    elif found := _CLOCK.fullmatch(text):
        days, *clock = (int(part or 0) for part in found.groups())
        hours, minutes, rest = (max(pair) for pair in zip(clock[:3], clock[3:], strict=True))
    else:
        raise ValueError(f"{text!r} is not a length of time: {_FORMS}")
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if total == 0:
        raise ValueError(f"{text} is no time at all: {_FORMS}")
    return total
