"""One node's part of each start of the ranks; the same on the first node and on all others."""

from __future__ import annotations

import dataclasses
from typing import Any

from seatrial.job.environment import Place
from seatrial.job.gang import WarmProcess, gang_of
from seatrial.job.heartbeat import Beat, FileBeats, Frozen
from seatrial.job.processes import end_descendants
from seatrial.job.stack import ask_for_stack
from seatrial.job.verdict import Account, give_account
from seatrial.runs.files import write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage

_END_GRACE_S = 5.0
"""For ranks that lost a peer: they hang in a collective or say what they saw; there is nothing to save."""


class Node:
    """Starts, asks, watches and ends the ranks of this node.

    Args:
        plan: the attempt's.
        place: which node this is.
        warm: a warm process of this agent's, where one was started ahead.
    """

    def __init__(self, plan: LaunchPlan, place: Place, warm: WarmProcess | None = None) -> None:
        self.plan = plan
        self.place = place
        self.ranks = place.ranks(plan)
        self._attempt = RunPaths(plan.run_dir).attempt(plan.attempt)
        self._attempt.failures.mkdir(parents=True, exist_ok=True)
        self._attempt.logs.mkdir(parents=True, exist_ok=True)
        self._gang = gang_of(plan, place, warm)
        self._stage: Stage | None = None
        self._was_ended = False
        self._beats: FileBeats | None = None

    def start(self, stage: Stage, restart: int, port: int) -> None:
        """Starts this node's ranks of a stage; those of all nodes meet at `port` of the first."""
        self._stage, self._was_ended = stage, False
        self._attempt.failures.mkdir(exist_ok=True)
        self._beats = FileBeats({rank: self._attempt.heartbeat(rank) for rank in self.ranks})
        self._gang.start(stage, restart, port)

    def wait(self, timeout_s: float) -> Account | None:
        """How they ended, once all have and nothing of them is left; None while they run.

        Raises:
            SeatrialError: they could not be started.
        """
        assert self._stage is not None
        code = self._gang.wait(timeout_s)
        if code is None:
            return None
        left = end_descendants(spare=self._gang.spared())
        account = give_account(
            self._attempt, self._stage, self.ranks, self.place.node_rank, code, self._gang.log
        )
        return dataclasses.replace(account, left_behind=left, ended=self._was_ended)

    def ask(self, request: dict[str, Any]) -> None:
        """Asks the ranks to save and stop; `request` says who wants it.

        They look for its file: with it they stop together, without it a peer has died. Each node writes it, since
        what another one wrote may take its time on a shared file system.
        """
        write_json(self._attempt.stop_request, request)
        if self._stage is not None:
            self._gang.ask()

    def end(self, grace_s: float = _END_GRACE_S) -> None:
        """Ends the ranks: a peer has died, or hangs, or there is no more time."""
        self._was_ended = True
        end_descendants(grace_s=grace_s, spare=self._gang.spared())

    def beat(self, rank: int) -> Beat | None:
        """What one of this node's ranks said last."""
        return None if self._beats is None else self._beats.beat(rank)

    def halted(self, rank: int) -> bool:
        """Whether the kernel holds one of this node's ranks."""
        return self._beats is not None and self._beats.halted(rank)

    def stack(self, frozen: Frozen) -> str:
        """What a frozen rank of this node was doing, in one clause."""
        return ask_for_stack(self._attempt.rank_log(frozen.rank), frozen)

    def close(self) -> None:
        """No more stages will come."""
        self._gang.close()
        end_descendants()
