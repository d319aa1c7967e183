"""Which rank failed first, and with what? Read from what ranks and torchrun left behind."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

from seatrial.errors import ExitCode
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.paths import AttemptPaths
from seatrial.runs.plan import Stage

_LAST_LINES = 20
_ENDED_BY_OTHERS = {75, -signal.SIGTERM, 128 + signal.SIGTERM}


def first_failure(attempt: AttemptPaths, stage: str, returncode: int) -> dict[str, Any]:
    """The failure that the others followed from.

    A rank that lost its peer says so, often before torchrun has noticed the peer's death: such accounts count only
    when there is no other.

    Returns:
        ``{"exit_code", "what", "evidence", "remedy", "rank", "last_lines", "told"}``; rank is None when no rank is
        known, ``told`` whether the rank itself gave the reason.
    """
    told = _told_by_ranks(attempt, stage)
    found = told + _seen_by_torchrun(attempt)
    if not found:
        log = attempt.logs / "torchrun.log"
        return {
            "exit_code": int(ExitCode.PLATFORM),
            "what": f"stage {stage} ended with {describe_exit(returncode)} and no rank said why",
            "evidence": str(log),
            "remedy": "",
            "rank": None,
            "last_lines": tail(log),
        }
    first = min(found, key=lambda row: (row["secondary"], row["time"]))
    rank = first["rank"]
    return {
        "exit_code": first["exit_code"],
        "what": first["what"],
        "evidence": first["evidence"],
        "remedy": first["remedy"],
        "rank": rank,
        "last_lines": tail(attempt.rank_log(rank)),
        "told": first in told and not first["secondary"],
    }


def missing_finishes(attempt: AttemptPaths, stage: Stage, world_size: int) -> dict[str, Any] | None:
    """A failure when torchrun is content but a rank never said that it finished the stage."""
    if not stage.reports:
        return None
    silent = [
        rank
        for rank in range(world_size)
        if not any(
            row.get("event") == "finished" and row.get("stage") == stage.name
            for row in read_json_lines(attempt.rank_events(rank))
        )
    ]
    if not silent:
        return None
    return {
        "exit_code": int(ExitCode.PLATFORM),
        "what": f"stage {stage.name} ended, but ranks {silent} did not finish it",
        "evidence": f"no 'finished' event in {attempt.rank_events(silent[0])}",
        "remedy": "",
        "rank": silent[0],
        "last_lines": tail(attempt.rank_log(silent[0])),
    }


def describe_exit(code: int) -> str:
    """``exit code 3`` or ``SIGKILL``."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def tail(path: Path, num_lines: int = _LAST_LINES) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()[-num_lines:]
    except FileNotFoundError:
        return []


def _told_by_ranks(attempt: AttemptPaths, stage: str) -> list[dict[str, Any]]:
    rows = [read_json(path) for path in sorted(attempt.root.glob("failures/rank_*.json"))]
    return [row for row in rows if row is not None and row["stage"] == stage]


def _seen_by_torchrun(attempt: AttemptPaths) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(attempt.root.glob("failures/node_*.json")):
        for failure in (read_json(path) or {}).get("failures", []):
            rank, code = failure["rank"], failure["exitcode"]
            killed = code < 0
            rows.append(
                {
                    "exit_code": int(ExitCode.PLATFORM),
                    "what": f"rank {rank} "
                    + ("was killed by " if killed else "ended with ")
                    + describe_exit(code),
                    "evidence": f"torchrun, pid {failure['pid']}; log: {attempt.rank_log(rank)}",
                    "remedy": "out of memory? dmesg | tail" if code == -signal.SIGKILL else "",
                    "rank": rank,
                    "time": failure["time"],
                    # What the rank itself wrote says more than its exit code, and the death of one rank makes
                    # torchrun end the others.
                    "secondary": attempt.rank_failure(rank).exists() or code in _ENDED_BY_OTHERS,
                }
            )
    return rows
