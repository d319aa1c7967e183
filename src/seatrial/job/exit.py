"""How an attempt ended, for whoever settles the run."""

from __future__ import annotations

import socket
from typing import Any

from seatrial.errors import ExitCode
from seatrial.runs.clock import now
from seatrial.runs.files import write_json
from seatrial.runs.paths import AttemptPaths
from seatrial.runs.plan import LaunchPlan


def write_exit(
    attempt: AttemptPaths,
    plan: LaunchPlan,
    outcome: str,
    code: ExitCode,
    *,
    started: str,
    stages: list[dict[str, Any]],
    failure: dict[str, Any] | None,
) -> None:
    """Writes ``exit.json``, the last thing that the leading agent of an attempt does."""
    write_json(
        attempt.exit,
        {
            "schema": 1,
            "attempt": plan.attempt,
            "outcome": outcome,
            "exit_code": int(code),
            "started": started,
            "ended": now(),
            "host": socket.gethostname(),
            "stages": stages,
            "failure": failure,
        },
    )
