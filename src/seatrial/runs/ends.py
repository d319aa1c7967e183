"""The exit record of an attempt whose agents left none, as the job that started them writes it."""

from __future__ import annotations

import socket
from typing import Any

from seatrial.errors import ExitCode
from seatrial.runs.clock import now


def end_record(
    attempt: int, outcome: str, code: ExitCode, started: str, failure: dict[str, Any] | None
) -> dict[str, Any]:
    """What ``exit.json`` says of an attempt whose agents left nothing there."""
    return {
        "schema": 1, "attempt": attempt, "outcome": outcome, "exit_code": int(code), "started": started, "ended": now(),
        "host": socket.gethostname(), "stages": [], "failure": failure,
    }  # fmt: skip


def end_failure(what: str, evidence: str = "", last_lines: list[str] | None = None) -> dict[str, Any]:
    """A failure that is the platform's, as a record has it."""
    return {
        "exit_code": int(ExitCode.PLATFORM), "what": what, "evidence": evidence, "remedy": "", "rank": None,
        "last_lines": last_lines or [], "told": False,
    }  # fmt: skip
