"""Which rank failed first, and with what? Read from what ranks and their launcher left behind."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

from seatrial.errors import ExitCode
from seatrial.job.heartbeat import Frozen
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.paths import AttemptPaths
from seatrial.runs.plan import Stage

_LAST_LINES = 20
_ENDED_BY_TERM = {-signal.SIGTERM, 128 + signal.SIGTERM}


def first_failure(attempt: AttemptPaths, stage: str, returncode: int, log: Path) -> dict[str, Any]:
    """The failure that the others followed from.

    A rank that lost its peer says so, often before the launcher has noticed the peer's death: such accounts count
    only when there is no other.

    Args:
        attempt: where they left it.
        stage: the stage that failed.
        returncode: of the launcher of the ranks.
        log: of the launcher of the ranks, for when no rank is known.

    Returns:
        ``{"exit_code", "what", "evidence", "remedy", "rank", "last_lines", "told"}``; rank is None when no rank is
        known, ``told`` whether the rank itself gave the reason.
    """
    told = _told_by_ranks(attempt, stage)
    found = told + _seen_by_launcher(attempt)
    if not found:
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
    """A failure when the launcher is content but a rank never said that it finished the stage it last started."""
    if not stage.reports:
        return None
    silent = [rank for rank in range(world_size) if not _finished(attempt.rank_events(rank), stage.name)]
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


def frozen_failure(attempt: AttemptPaths, frozen: Frozen, stack: str) -> dict[str, Any]:
    """The failure of a rank that made no progress, with the place where it was last seen."""
    beat = frozen.beat
    where = f"it was last seen at step {beat.step}, {beat.phase}" if beat else "it was never seen"
    others = f"\nthe others: {frozen.others}" if frozen.others else ""
    return {
        "exit_code": int(ExitCode.PLATFORM),
        "what": f"rank {frozen.rank} is frozen: no progress for {frozen.silent_s:.0f} s",
        "evidence": f"{where}; {stack}{others}",
        "remedy": "",
        "rank": frozen.rank,
        "last_lines": tail(attempt.rank_log(frozen.rank)),
        "told": True,
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


def _finished(events: Path, stage: str) -> bool:
    last = ""
    for row in read_json_lines(events):
        if row.get("stage") == stage and row.get("event") in {"started", "finished"}:
            last = row["event"]
    return last == "finished"


def _told_by_ranks(attempt: AttemptPaths, stage: str) -> list[dict[str, Any]]:
    rows = [read_json(path) for path in sorted(attempt.root.glob("failures/rank_*.json"))]
    return [row for row in rows if row is not None and row["stage"] == stage]


def _seen_by_launcher(attempt: AttemptPaths) -> list[dict[str, Any]]:
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
                    "evidence": f"pid {failure['pid']}; log: {attempt.rank_log(rank)}",
                    "remedy": "out of memory? dmesg | tail" if code == -signal.SIGKILL else "",
                    "rank": rank,
                    "time": failure["time"],
                    # What the rank itself wrote says more than its exit code.
                    "secondary": attempt.rank_failure(rank).exists() or _ended_by_others(failure),
                }
            )
    return rows


def _ended_by_others(failure: dict[str, Any]) -> bool:
    """Whether this end followed from another: the death of one rank makes the launcher end the others.

    The warm process records no end that it brought about itself, unless it was asked to; torchrun doesn't tell.
    """
    code = failure["exitcode"]
    return code == ExitCode.PREEMPTED or (code in _ENDED_BY_TERM and failure.get("asked", True))
