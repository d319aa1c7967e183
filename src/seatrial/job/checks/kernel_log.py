"""Errors that the GPU driver logged since boot: Xid lines of the kernel's log, wherever this user may read it.

The line's form is NVIDIA's: https://docs.nvidia.com/deploy/xid-errors/ ("NVRM: Xid (PCI:0000:03:00): 14, Channel …").
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.errors import PlatformError
from seatrial.job.checks.place import Place
from seatrial.runs.samples import Sample

_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+)(.*)")
_BRACKETS = re.compile(r"^(?:<\d+>)?\[\s*(\d+\.\d+)\]")
_KMSG = re.compile(r"^\d+,\d+,(\d+),[^;]*;")
_FROM_BOOT_S = 60.0
"""A log that begins later than this after boot has lost its beginning."""
_REMEDY = "read by root, with kernel.dmesg_restrict=0, or as a member of systemd-journal; in a container, mount /dev/kmsg"


@dataclass(frozen=True, slots=True)
class Log:
    """A kernel log, since boot or since its oldest line."""

    source: str
    lines: tuple[str, ...]

    @property
    def begins_s(self) -> float | None:
        """Seconds from boot to its first line; None where lines carry no time."""
        return next((s for line in self.lines if (s := seconds_after_boot(line)) is not None), None)

    @property
    def complete(self) -> bool:
        """Whether it reaches back to the boot."""
        return self.begins_s is not None and self.begins_s < _FROM_BOOT_S


def seconds_after_boot(line: str) -> float | None:
    """The time of a line as ``dmesg``, ``journalctl -o short-monotonic`` and ``/dev/kmsg`` (microseconds) write it."""
    if match := _BRACKETS.match(line):
        return float(match[1])
    if match := _KMSG.match(line):
        return int(match[1]) / 1e6
    return None


def parse_xids(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Each Xid in the order of the log; lines that are none are passed over."""
    return [
        {
            "xid": int(match[2]),
            "device": match[1],
            "line": line[match.start() :].strip()[:300],
            "seconds_after_boot": seconds_after_boot(line),
        }
        for line in lines
        if (match := _XID.search(line))
    ]


def xid(place: Place) -> Iterable[Sample]:
    """Every Xid since boot."""
    log, refusals = read_log(place)
    if log is None:
        why = f"the kernel's log can't be read ({'; '.join(refusals)}): {_REMEDY}"
        return [place.sample("xid", "xids", reason=why)]
    reason = ""
    if not log.complete:
        since = "an unknown time" if log.begins_s is None else f"{log.begins_s:.0f} s"
        reason = f"the log begins {since} after boot: what was before is not known"
    detail = {"source": log.source, "begins_s": log.begins_s, "lines": len(log.lines)}
    return [place.sample("xid", "xids", parse_xids(log.lines), reason=reason, detail=detail)]


def read_log(place: Place) -> tuple[Log | None, list[str]]:
    """The first log that reaches back to the boot, or else the one that reaches back the furthest; who refused, and why."""
    found, refusals = [], []
    for source in (_dmesg, _kmsg, _journal):
        try:
            log = source(place)
        except (PlatformError, OSError) as error:
            refusals.append(_in_short(error))
            continue
        if log.complete:
            return log, refusals
        found.append(log)
    return min(found, key=lambda log: log.begins_s or 0.0, default=None), refusals


def _dmesg(place: Place) -> Log:
    done = place.runner(["dmesg"], timeout_s=place.command_s)
    if done.returncode != 0 or not done.stdout.strip():
        raise PlatformError("dmesg", evidence=done.stderr.strip()[:120] or "printed nothing")
    return Log("dmesg", tuple(done.stdout.splitlines()))


def _kmsg(place: Place) -> Log:
    """Each read gives one record (Linux, Documentation/ABI/testing/dev-kmsg)."""
    path: Path = place.root / "dev/kmsg"
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    records: list[bytes] = []
    try:
        while True:
            try:
                record = os.read(descriptor, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten while it was read: the next one is there
                continue
            if not record:
                break
            records.append(record)
    finally:
        os.close(descriptor)
    if not records:
        raise PlatformError(str(path), evidence="is empty")
    return Log("/dev/kmsg", tuple(b"".join(records).decode(errors="replace").splitlines()))


def _journal(place: Place) -> Log:
    argv = ["journalctl", "-k", "-b", "-o", "short-monotonic", "--no-pager"]
    done = place.runner(argv, timeout_s=place.command_s)
    lines = tuple(line for line in done.stdout.splitlines() if not line.startswith("-- "))
    # Without permission it exits with 0 and shows what little this user may see.
    if done.returncode != 0 or not lines or "not seeing messages" in done.stderr:
        raise PlatformError("journalctl", evidence=done.stderr.strip()[:120] or "shows no kernel messages")
    return Log("journalctl -k -b", lines)


def _in_short(error: Exception) -> str:
    if isinstance(error, PlatformError):
        return f"{error.what}: {error.evidence}".splitlines()[0]
    return str(error)
