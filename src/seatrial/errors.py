"""Every error that Seatrial raises on purpose, under one root.

    SeatrialError            exit code
    ├── MeasuredFailure      1    measured, and it failed
    ├── SpecError            2    the request is wrong
    ├── IncompleteError      3    required evidence is missing
    ├── PlatformError        4    a platform or a tool failed
    ├── PreemptedError       75   stopped from outside, will resume
    └── InterruptedRunError  130  the user stopped it

Each has three parts: what failed, the evidence for it, and the next command to type. They cross process
borders as JSON (a rank writes one, the command that follows the run prints it).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What a ``seatrial`` command's exit status means."""

    OK = 0
    FAILED = 1
    BAD_REQUEST = 2
    INCOMPLETE = 3
    PLATFORM = 4
    PREEMPTED = 75
    INTERRUPTED = 130


class SeatrialError(Exception):
    """What failed, the evidence, and what to do next.

    Args:
        what: one clause, no full stop.
        evidence: what was seen that proves it; may be several lines.
        remedy: the next command or edit.
    """

    exit_code: ExitCode = ExitCode.PLATFORM

    def __init__(self, what: str, *, evidence: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.evidence:
            lines.append("  evidence: " + self.evidence.replace("\n", "\n            "))
        if self.remedy:
            lines.append("  next:     " + self.remedy.replace("\n", "\n            "))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The error as plain data, read back by `from_dict`."""
        return {
            "exit_code": int(self.exit_code),
            "what": self.what,
            "evidence": self.evidence,
            "remedy": self.remedy,
        }


class MeasuredFailure(SeatrialError):
    """Something was measured and did not pass: a gate, a post-condition, a loss that is not finite."""

    exit_code = ExitCode.FAILED


class SpecError(SeatrialError):
    """The request is wrong: a recipe, a flag, a path, a data file."""

    exit_code = ExitCode.BAD_REQUEST


class IncompleteError(SeatrialError):
    """Evidence that the request needs does not exist."""

    exit_code = ExitCode.INCOMPLETE


class PlatformError(SeatrialError):
    """A machine, a scheduler or a tool failed."""

    exit_code = ExitCode.PLATFORM


class UnreachableError(PlatformError):
    """A platform that doesn't answer now: whatever it was asked to do may go on, and trying again makes sense."""


class PreemptedError(SeatrialError):
    """The run was asked to stop from outside, saved, and can be resumed."""

    exit_code = ExitCode.PREEMPTED


class InterruptedRunError(SeatrialError):
    """The user stopped the run."""

    exit_code = ExitCode.INTERRUPTED


_BY_CODE: dict[int, type[SeatrialError]] = {
    int(cls.exit_code): cls
    for cls in (
        MeasuredFailure,
        SpecError,
        IncompleteError,
        PlatformError,
        PreemptedError,
        InterruptedRunError,
    )
}


def from_dict(data: dict[str, Any]) -> SeatrialError:
    """The error that `SeatrialError.to_dict` wrote; an unknown exit code gives a `PlatformError`."""
    cls = _BY_CODE.get(int(data.get("exit_code", ExitCode.PLATFORM)), PlatformError)
    return cls(
        str(data.get("what", "unknown failure")),
        evidence=str(data.get("evidence", "")),
        remedy=str(data.get("remedy", "")),
    )
