"""How Slurm's clients write things down: records, times, exit codes and counts of resources.

Nothing here uses ``str.splitlines`` or ``str.strip`` on whole records: both take U+001C to U+001F, U+0085 and U+2028
for white space, and job names may hold any of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

FIELD_END = "\x1f"
"""Written after every field of squeue and sacct: the one ASCII character that means "end of a field"."""
RECORD_END = FIELD_END + "\n"
TEXT_END = FIELD_END + "\x1e"
"""Between the two texts that people choose freely: a job's comment, and its name, which comes last."""

_NOTHING = {"", "(null)", "N/A", "n/a", "None", "NONE", "Unknown", "None assigned", "INVALID", "NOT_SET"}
_PAIR = re.compile(r" *([A-Za-z][\w/:-]*)=")
_NEXT_PAIR = re.compile(r" (?=[A-Za-z][\w/:-]*=)")
# `scontrol show`: values that people wrote, each the last of its line.
_FREE = {
    "JobName", "Command", "WorkDir", "StdErr", "StdIn", "StdOut", "Comment", "AdminComment", "SystemComment",
    "Extra", "OS", "SubmitLine",
}  # fmt: skip


def rows(text: str, fields: Sequence[str]) -> Iterator[dict[str, str]]:
    """The records of squeue or sacct, one dict a job or step.

    The last field is a text that somebody chose and may hold anything, new lines and ends of fields too, so it reaches to
    the end of the record. What does not begin with the other fields on one line is a piece of such a text, and is skipped.
    """
    position = 0
    while position < len(text):
        # Where SLURM_CLUSTERS names another cluster, the clients head its jobs with its name.
        if text.startswith("CLUSTER: ", position):
            position = text.find("\n", position) + 1 or len(text)
            continue
        values: list[str] = []
        start = position
        while len(values) < len(fields) - 1 and (end := text.find(FIELD_END, start)) >= 0:
            values.append(text[start:end])
            start = end + len(FIELD_END)
        end = text.find(RECORD_END, start)
        if end < 0:
            return
        if any("\n" in value for value in values):
            position = text.find(RECORD_END, position) + len(RECORD_END)
            continue
        yield dict(zip(fields, [*values, text[start:end]], strict=True))
        position = end + len(RECORD_END)


def blocks(text: str, first_key: str, *, free: frozenset[str] = frozenset()) -> list[dict[str, str]]:
    """The records of ``scontrol show``, in its form of several lines.

    In the form of one line (``-o``) a job called ``x UserId=root`` can't be told from two fields. Here, what people
    wrote stands at the end of a line. A line without indentation continues such a value.

    Args:
        text: what it printed.
        first_key: begins a record: ``JobId``, ``NodeName``, …
        free: further keys whose value reaches to the end of its line.
    """
    found: list[dict[str, str]] = []
    last = ""
    for line in text.split("\n"):
        if line.startswith(f"{first_key}="):
            found.append({})
        elif found and last in _FREE and line and not line.startswith("   "):
            found[-1][last] += "\n" + line
            continue
        if found:
            for key, value in _pairs(line, _FREE | free):
                found[-1].setdefault(key, value)
                last = key
    return found


def _pairs(line: str, free: set[str] | frozenset[str]) -> Iterator[tuple[str, str]]:
    position = 0
    while match := _PAIR.match(line, position):
        key, start = match.group(1), match.end()
        following = None if key in free else _NEXT_PAIR.search(line, start)
        end = following.start() if following else len(line)
        yield key, line[start:end].rstrip(" ")
        position = end


def text_or_none(value: str) -> str:
    """The value, or "" where Slurm says in one of its many ways that there is none."""
    value = value.strip(" ")
    return "" if value in _NOTHING else value


def number(value: str) -> int | None:
    """A whole number; None where there is none. ``2-4`` (a range of nodes) is its lower end."""
    match = re.match(r"\s*(\d+)", value)
    return int(match.group(1)) if match else None


def epoch_s(value: str) -> int | None:
    """A time as the clients write it under ``SLURM_TIME_FORMAT=%s``: seconds since the epoch, or None."""
    value = value.strip(" ")
    return int(value) if value.isdigit() and int(value) else None


def duration_s(value: str) -> int | None:
    """``[days-]hours:minutes:seconds`` or ``minutes:seconds`` in seconds; None for unlimited or not set."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", value.strip(" "))
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def exit_pair(value: str) -> tuple[int, int]:
    """Exit code and signal from ``code:signal``, or from the raw wait status that squeue prints (wait(2))."""
    code, colon, signal = value.strip(" ").partition(":")
    if colon:
        return number(code) or 0, number(signal) or 0
    status = number(code) or 0
    return (0, status & 0x7F) if status & 0x7F else (status >> 8 & 0xFF, 0)


def tres(value: str) -> dict[str, str]:
    """``cpu=128,mem=62.50G,gres/gpu:h100=16`` as a dict."""
    return dict(part.split("=", 1) for part in value.split(",") if "=" in part)


def gpus(value: str) -> tuple[int, str]:
    """How many GPUs a gres or TRES text asks for, and of which type ("" for any).

    Written in as many ways as there are versions: ``gres:gpu:h100:2``, ``gres/gpu:h100:2``, ``gres/gpu=8``,
    ``gpu:h100:8(IDX:0-7)``, ``gpu`` (one). A total (``gres/gpu=8``) counts before its shares by type.
    """
    total, by_type, kind = 0, 0, ""
    for part in re.sub(r"\([^)]*\)", "", value).split(","):
        match = re.fullmatch(
            r"\s*(?:gres[:/])?gpu(?::([A-Za-z][^:=]*|\d+[^\d:=][^:=]*))?(?:[:=](\d+))?\s*", part
        )
        if match:
            count = int(match.group(2) or 1)
            total += 0 if match.group(1) else count
            by_type += count if match.group(1) else 0
            kind = kind or match.group(1) or ""
    return total or by_type, kind


def memory_mib(value: str) -> int | None:
    """``500M``, ``62.50G`` or ``1T`` in MiB, Slurm's own unit; None where there is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)([KMGTP]?)[nc]?\s*", value)
    if not match:
        return None
    return round(float(match.group(1)) * 1024.0 ** ("KMGTP".index(match.group(2) or "M") - 1))


def hosts(nodelist: str) -> list[str]:
    """``rack[1-2]n[08-10],login1`` as names, like ``scontrol show hostnames``."""
    found: list[str] = []
    for expression in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", expression):
            endings = [plain] if plain else [number for part in ranges.split(",") for number in _range(part)]
            names = [name + ending for name in names for ending in endings]
        found += names
    return found


def _range(part: str) -> list[str]:
    first, _, last = part.partition("-")
    if not (first.isdigit() and last.isdigit()):
        return [part]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
