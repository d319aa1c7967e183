"""All nodes of an attempt as one: what the first node's agent does, every node does."""

from __future__ import annotations

import time
from typing import Any

from seatrial.errors import ExitCode, SeatrialError, from_dict
from seatrial.job.gang import free_port
from seatrial.job.heartbeat import Beat, Frozen
from seatrial.job.link import Lead, Meeting, Wire
from seatrial.job.node import Node
from seatrial.job.stack import Stack
from seatrial.job.verdict import Account
from seatrial.runs.plan import Stage

_IN_AGREEMENT = int(ExitCode.PREEMPTED)
_SAY_EVERY_S = 1.0
_STACK_WAIT_S = 15.0


class Nodes:
    """This node, and those that follow it.

    Args:
        own: this node.
        lead: the connections to the others, which have checked in; None where there are no others.
        meeting: their names.
    """

    def __init__(self, own: Node, lead: Lead | None = None, meeting: Meeting | None = None) -> None:
        self._own = own
        self._lead = lead
        self._meeting = meeting
        self._wires: dict[int, Wire] = dict(lead.wires) if lead is not None else {}
        self._accounts: dict[int, Account] = {}
        self._told_to_end: set[int] = set()
        self._beats: dict[int, tuple[Beat | None, bool]] = {}
        self._stacks: dict[int, dict[str, Any]] = {}
        self._said_at = 0.0
        self.wish: int | None = None
        """The number of a signal that asked another node's agent to stop."""

    @property
    def num_nodes(self) -> int:
        """How many there are."""
        return self._own.plan.nodes

    def start(self, stage: Stage, restart: int) -> None:
        """Starts all ranks of a stage, at a port that no earlier start had."""
        self._accounts, self._told_to_end, self._beats = {}, set(), {}
        port = free_port() if self._lead is None else self._lead.free_port()
        index = self._own.plan.stages.index(stage)
        for node_rank in list(self._wires):
            self._send(node_rank, {"do": "start", "stage": index, "restart": restart, "port": port})
        self._own.start(stage, restart, port)
        for node_rank in range(1, self.num_nodes):
            if node_rank not in self._wires:
                self._accounts[node_rank] = self._gone(node_rank, "before this start")

    def wait(self, timeout_s: float) -> list[Account] | None:
        """How the ranks ended on each node, once they have on all; None while some run.

        A node whose ranks fail, or which is gone, takes the others with it; unless its ranks stopped by agreement:
        then the others are still saving.

        Raises:
            SeatrialError: a node could not start its ranks.
        """
        if 0 not in self._accounts:
            account = self._own.wait(timeout_s)
            if account is not None:
                self._accounts[0] = account
        elif timeout_s:
            time.sleep(timeout_s)
        for node_rank in list(self._wires):
            self._hear(node_rank)
        self._keep_talking()
        if any(_failed(account) for account in self._accounts.values()):
            self.end()
        if len(self._accounts) < self.num_nodes:
            return None
        return [self._accounts[node_rank] for node_rank in sorted(self._accounts)]

    def ask(self, request: dict[str, Any]) -> None:
        """Asks all ranks to save and stop."""
        for node_rank in list(self._wires):
            self._send(node_rank, {"do": "ask", "request": request})
        self._own.ask(request)

    def end(self, grace_s: float | None = None) -> None:
        """Ends the ranks of every node where they still run."""
        for node_rank in set(range(self.num_nodes)) - set(self._accounts) - self._told_to_end:
            self._told_to_end.add(node_rank)
            if node_rank == 0:
                self._own.end() if grace_s is None else self._own.end(grace_s)
            else:
                self._send(node_rank, {"do": "end", "grace_s": grace_s})

    def beat(self, rank: int) -> Beat | None:
        """What a rank said last, wherever it is."""
        if rank in self._own.ranks:
            return self._own.beat(rank)
        return self._beats.get(rank, (None, False))[0]

    def halted(self, rank: int) -> bool:
        """Whether its kernel holds a rank."""
        return self._own.halted(rank) if rank in self._own.ranks else self._beats.get(rank, (None, False))[1]

    def autopsy(self, frozen: Frozen) -> tuple[Stack, dict[str, Any]]:
        """What a frozen rank was doing, and what its node says; every node has its ranks write their flight recorders."""
        for node_rank in list(self._wires):
            self._send(node_rank, {"do": "stack", "rank": frozen.rank})
        found = self._own.autopsy(frozen.rank)
        node_rank = frozen.rank // self._own.plan.nproc
        until = time.monotonic() + _STACK_WAIT_S
        while node_rank in self._wires and node_rank not in self._stacks and time.monotonic() < until:
            self._hear(node_rank, 0.1)
        found = self._stacks.pop(node_rank, found)
        self._stacks.clear()
        stack = found.get("stack")
        return Stack(**stack) if stack else Stack("its node did not answer"), found

    def close(self) -> None:
        """No more stages will come."""
        for node_rank in list(self._wires):
            self._send(node_rank, {"do": "close"})
        self._own.close()
        if self._lead is not None:
            self._lead.close()

    def _send(self, node_rank: int, message: dict[str, Any]) -> None:
        try:
            self._wires[node_rank].send(message)
        except EOFError as error:
            self._lose(node_rank, str(error))

    def _hear(self, node_rank: int, timeout_s: float = 0.0) -> None:
        while node_rank in self._wires:
            try:
                message = self._wires[node_rank].receive(timeout_s)
            except EOFError as error:
                self._lose(node_rank, str(error))
                return
            if message is None:
                return
            self._take(node_rank, message)

    def _take(self, node_rank: int, message: dict[str, Any]) -> None:
        match message["say"]:
            case "ended":
                self._accounts[node_rank] = Account(**message["account"])
            case "failed":
                self._accounts[node_rank] = _could_not(from_dict(message["error"]))
            case "stop":
                self.wish = message["signal"]
            case "stack":
                self._stacks[node_rank] = message
            case "beats":
                for rank, (line, halted) in message["beats"].items():
                    self._beats[int(rank)] = (Beat.parse(line), halted)

    def _keep_talking(self) -> None:
        if self._wires and time.monotonic() - self._said_at > _SAY_EVERY_S:
            self._said_at = time.monotonic()
            for node_rank in list(self._wires):
                self._send(node_rank, {"do": "go on"})

    def _lose(self, node_rank: int, why: str) -> None:
        wire = self._wires.pop(node_rank, None)
        if wire is not None:
            wire.close()
        self._accounts.setdefault(node_rank, self._gone(node_rank, why))

    def _gone(self, node_rank: int, why: str) -> Account:
        name = self._meeting.host(node_rank) if self._meeting is not None else f"node {node_rank}"
        row = {
            "exit_code": int(ExitCode.PLATFORM), "what": f"the agent of {name} is gone", "evidence": why, "remedy": "",
            "rank": None, "last_lines": [], "time": time.time(), "secondary": False,
        }  # fmt: skip
        return Account(returncode=1, told=[row])


def _failed(account: Account) -> bool:
    agreed = bool(account.seen) and all(row["exitcode"] == _IN_AGREEMENT for row in account.seen)
    return account.returncode != 0 and not agreed


def _could_not(error: SeatrialError) -> Account:
    row = error.to_dict() | {"rank": None, "last_lines": [], "time": time.time(), "secondary": False}
    return Account(returncode=1, told=[row])
