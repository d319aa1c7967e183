"""Slurm's ways to write names of nodes, times, memory and signals. Pure."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby


def compress(names: Iterable[str]) -> str:
    """``node[0-2,7]`` for node0, node1, node2 and node7."""
    by_prefix: dict[str, list[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)(\d+)", name)
        if match:
            by_prefix.setdefault(match[1], []).append(int(match[2]))
        else:
            by_prefix.setdefault(name, [])
    return ",".join(_compressed(prefix, sorted(numbers)) for prefix, numbers in by_prefix.items())


def _compressed(prefix: str, numbers: list[int]) -> str:
    if not numbers:
        return prefix
    if len(numbers) == 1:
        return f"{prefix}{numbers[0]}"
    return f"{prefix}[{ranges(numbers)}]"


def ranges(numbers: Sequence[int]) -> str:
    """``0-2,7`` for 0, 1, 2 and 7."""
    parts = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def expand(text: str) -> list[str]:
    """The names of ``node[0-1,7],login``; numbers keep their leading zeros."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
        if not match:
            names.append(part)
            continue
        for piece in match[2].split(","):
            first, _, last = piece.partition("-")
            for number in range(int(first), int(last or first) + 1):
                names.append(f"{match[1]}{number:0{len(first)}d}{match[3]}")
    return names


def repeated(values: Sequence[int]) -> str:
    """``4(x2),2`` for 4, 4 and 2."""
    counts = [(value, len(list(group))) for value, group in groupby(values)]
    return ",".join(str(value) if count == 1 else f"{value}(x{count})" for value, count in counts)


def minutes(text: str) -> int | None:
    """A time limit in minutes, rounded up as Slurm does; None is unlimited.

    Raises:
        ValueError: it is no time.
    """
    if text.upper() in {"UNLIMITED", "INFINITE", "-1"}:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(text)
    days, *rest = match.groups()
    given = [int(value) for value in rest if value is not None]
    if days is not None:
        hours, mins, seconds = (*given, 0, 0)[:3]
    elif len(given) == 3:
        hours, mins, seconds = given
    else:
        hours, (mins, seconds) = 0, (*given, 0)[:2]
    return int(days or 0) * 1440 + hours * 60 + mins + math.ceil(seconds / 60)


def mebibytes(text: str) -> int:
    """``2G`` in MiB, Slurm's unit; `ValueError` for what is no size."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if not match:
        raise ValueError(text)
    factor = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match[2]]
    return math.ceil(int(match[1]) * factor)


def memory(mib: int) -> str:
    """``10G`` or ``24000M``."""
    return f"{mib // 1024}G" if mib and mib % 1024 == 0 else f"{mib}M"


def signal_number(text: str) -> int:
    """``USR2``, ``SIGUSR2`` or ``12``; `ValueError` for what is no signal."""
    if text.isdigit():
        return int(text)
    try:
        return signal.Signals["SIG" + text.upper().removeprefix("SIG")].value
    except KeyError:
        raise ValueError(text) from None


def length(seconds: float, *, short: bool = False) -> str:
    """``01:30:00`` or ``1-00:00:00``; squeue's `short` form leaves zeros in front out, down to ``0:05``."""
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, mins, secs = rest // 3600, rest % 3600 // 60, rest % 60
    if days:
        return f"{days}-{hours:02d}:{mins:02d}:{secs:02d}"
    if not short:
        return f"{hours:02d}:{mins:02d}:{secs:02d}"
    return f"{hours}:{mins:02d}:{secs:02d}" if hours else f"{mins}:{secs:02d}"


def moment(seconds: float | None, env: Mapping[str, str], nothing: str = "Unknown") -> str:
    """A time, in the form that the client's SLURM_TIME_FORMAT asks for."""
    if seconds is None:
        return nothing
    form = env.get("SLURM_TIME_FORMAT") or "standard"
    return time.strftime("%Y-%m-%dT%H:%M:%S" if form == "standard" else form, time.localtime(seconds))


def pair(status: int) -> str:
    """``3:0`` or ``0:9`` from what wait(2) tells."""
    return f"{status >> 8 & 0xFF}:{status & 0x7F}"


def file_name(pattern: str, values: Mapping[str, str]) -> str:
    """An output file's name: ``%j``, ``%4j``, ``%%``; a backslash switches replacements off and is dropped."""
    if "\\" in pattern:
        return pattern.replace("\\", "")

    def replaced(match: re.Match[str]) -> str:
        width, code = match.groups()
        if code == "%":
            return "%"
        value = values.get(code, "")
        return value.zfill(int(width)) if width and value.isdigit() else value

    return re.sub(r"%(\d*)([%A-Za-z])", replaced, pattern)
