"""One node's part of each start of the ranks; the same on the first node and on all others."""

from __future__ import annotations

import dataclasses
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seatrial.job import sampler
from seatrial.job.environment import Place
from seatrial.job.gang import WarmProcess, gang_of
from seatrial.job.heartbeat import Beat, FileBeats
from seatrial.job.processes import end_descendants
from seatrial.job.stack import ask_for_stack, signal_rank
from seatrial.job.verdict import Account, give_account
from seatrial.runs.files import write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage

_SAMPLER_S = 2.0
"""For its last row; a driver that does not answer keeps it longer."""
_ASKED = 64
"""Ranks of a node that are asked for their flight recorders."""
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
        self._sampler = sampler.start_if_wanted(plan, place.node_rank)
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

    def autopsy(self, rank: int) -> dict[str, Any]:
        """What this node knows when `rank` is frozen: ``{"stack", "host", "links"}``, the stack of `rank` where it is here.

        All of its ranks write their flight recorders.
        """
        others = [other for other in self.ranks if other != rank]
        for other in others[:_ASKED]:
            signal_rank(self.beat(other))
        if rank not in self.ranks:
            return {"stack": None}
        from seatrial.job.checks.fabric import read_ports  # takes long to import, and is hardly ever needed

        stack = ask_for_stack(self._attempt.rank_log(rank), self.beat(rank))
        return {"stack": asdict(stack), "host": socket.gethostname(), "links": read_ports(Path("/sys"))}

    def close(self) -> None:
        """No more stages will come."""
        if self._sampler is not None:
            self._sampler.finish(_SAMPLER_S)
            self._sampler = None
        self._gang.close()
        end_descendants()
