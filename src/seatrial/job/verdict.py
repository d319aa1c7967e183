"""Which rank failed first, and with what? Read from what ranks and their launcher left behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial.errors import ExitCode
from seatrial.job.heartbeat import Frozen
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.paths import AttemptPaths
from seatrial.runs.plan import Stage

_LAST_LINES = 20
_ENDED_BY_TERM = {-signal.SIGTERM, 128 + signal.SIGTERM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one node saw of one start of a stage's ranks; plain data, since it crosses the network.

    Each node reads what its own ranks left: another one's files may take their time on a shared file system.
    """

    returncode: int
    """Of the launcher of the ranks."""
    told: list[dict[str, Any]] = field(default_factory=list)
    """What failed ranks said themselves."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """How ranks ended, as their launcher saw it."""
    unfinished: list[int] = field(default_factory=list)
    """Ranks that never said that they finished the stage."""
    left_behind: list[str] = field(default_factory=list)
    """Processes that had to be ended afterwards."""
    log: str = ""
    """The launcher's."""
    last_lines: list[str] = field(default_factory=list)
    ended: bool = False
    """Whether it was told to end its ranks, so that how they ended says nothing."""


def give_account(
    attempt: AttemptPaths, stage: Stage, ranks: range, node_rank: int, returncode: int, log: Path
) -> Account:
    """Reads what the `ranks` of this node left behind.

    Args:
        attempt: where they left it.
        stage: what they ran.
        ranks: those of this node.
        node_rank: this node.
        returncode: of the launcher of the ranks.
        log: of the launcher of the ranks.
    """
    told = _told_by_ranks(attempt, stage.name, ranks) if returncode else []
    seen = _seen_by_launcher(attempt, node_rank) if returncode else []
    rows = [{**row, "last_lines": tail(attempt.rank_log(row["rank"]))} for row in told + seen]
    silent = [r for r in ranks if stage.reports and not _finished(attempt.rank_events(r), stage.name)]
    return Account(
        returncode=returncode, told=rows[: len(told)], seen=rows[len(told) :], unfinished=silent, log=str(log),
        last_lines=tail(log) if returncode else [],
    )  # fmt: skip


def first_failure(attempt: AttemptPaths, stage: Stage, accounts: Sequence[Account]) -> dict[str, Any] | None:
    """The failure that the others followed from; None when every rank of every node did its part.

    A rank that lost its peer says so, often before the launcher has noticed the peer's death: such accounts count
    only when there is no other.

    Args:
        attempt: of the ranks.
        stage: what they ran.
        accounts: one a node.

    Returns:
        ``{"exit_code", "what", "evidence", "remedy", "rank", "last_lines", "told"}``; rank is None when no rank is
        known, ``told`` whether the rank itself gave the reason.
    """
    failed = [account for account in accounts if account.returncode != 0]
    if not failed:
        return _unfinished(attempt, stage, sorted(rank for a in accounts for rank in a.unfinished))
    told = [{**row, "told": True} for account in failed for row in account.told]
    seen = [
        {**row, "told": False, "secondary": row["secondary"] or account.ended}
        for account in failed
        for row in account.seen
    ]
    if not told and not seen:
        own = next((account for account in failed if not account.ended), failed[0])
        return {
            "exit_code": int(ExitCode.PLATFORM),
            "what": f"stage {stage.name} ended with {describe_exit(own.returncode)} and no rank said why",
            "evidence": own.log,
            "remedy": "",
            "rank": None,
            "last_lines": own.last_lines,
        }
    first = min(told + seen, key=lambda row: (row["secondary"], row["time"]))
    keys = ("exit_code", "what", "evidence", "remedy", "rank", "last_lines")
    return {key: first[key] for key in keys} | {"told": first["told"] and not first["secondary"]}


def _unfinished(attempt: AttemptPaths, stage: Stage, silent: list[int]) -> dict[str, Any] | None:
    """A failure when the launcher is content but a rank never said that it finished the stage it last started."""
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
    hang = read_json(attempt.hang)
    if hang is not None and hang["waiting"] is not None:
        others += f"\n{hang['sentence']}"
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


def _told_by_ranks(attempt: AttemptPaths, stage: str, ranks: range) -> list[dict[str, Any]]:
    rows = [read_json(attempt.rank_failure(rank)) for rank in ranks]
    return [row for row in rows if row is not None and row["stage"] == stage]


def _seen_by_launcher(attempt: AttemptPaths, node_rank: int) -> list[dict[str, Any]]:
    rows = []
    for failure in (read_json(attempt.launcher_failures(node_rank)) or {}).get("failures", []):
        rank, code = failure["rank"], failure["exitcode"]
        how = ("was killed by " if code < 0 else "ended with ") + describe_exit(code)
        rows.append(
            {
                "exit_code": int(ExitCode.PLATFORM),
                "what": f"rank {rank} {how}",
                "evidence": f"pid {failure['pid']}; log: {attempt.rank_log(rank)}",
                "remedy": "out of memory? dmesg | tail" if code == -signal.SIGKILL else "",
                "rank": rank,
                "exitcode": code,
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
