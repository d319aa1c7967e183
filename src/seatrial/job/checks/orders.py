"""The conductor's orders to the crews, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seatrial.job.checks.steps import World
from seatrial.job.link import Wire

Starts = dict[int, list[dict[str, Any]]]
"""By node rank, the processes to start."""
_POLL_S = 0.02
_TALK_EVERY_S = 1.0
_SAY_WAITING_EVERY_S = 2.0
_MARGIN_S = 15.0
"""Crews keep the time limits; one that does not is waited for so much longer."""
_PEERS_S = 3.0
"""Ranks that lost a peer say what they saw, then are ended."""
_next_order = 0


@dataclass(frozen=True, slots=True)
class End:
    """How one process ended."""

    node_rank: int
    gpu: int | None
    returncode: int | None
    """Negative: the signal; None: it could not be started, or its node is gone."""
    seconds: float
    late: bool
    """It took longer than it may, and was ended."""
    ended: bool
    """It was ended on purpose, because another one had failed or it was late."""
    last_lines: tuple[str, ...] = ()
    at: float = 0.0
    """When its end was heard of, by the conductor's clock."""

    @property
    def failed(self) -> bool:
        """Whether it did not do what it should."""
        return self.returncode != 0

    @property
    def about(self) -> str:
        """For people."""
        last = f": {self.last_lines[-1][:200]}" if self.last_lines else ""
        if self.late:
            return f"did not end within {self.seconds:.0f} s{last}"
        if self.returncode is None:
            return f"could not be run{last}"
        if self.returncode < 0:
            return f"was killed by signal {-self.returncode}{last}"
        return f"ended with {self.returncode}{last}"


class Orders:
    """Orders to some crews.

    Args:
        wires: the connections to them, by node rank.
        asked: told of signals that a crew was sent (None: of none); says whether the test is to stop.
    """

    def __init__(self, wires: Mapping[int, Wire], asked: Callable[[int | None], bool]) -> None:
        self._wires = dict(wires)
        self._asked = asked
        self._talked_at = 0.0
        self.lost: dict[int, str] = {}
        """Crews that went away, and how."""

    def ask(
        self, node_rank: int, message: dict[str, Any], answer: str, timeout_s: float
    ) -> dict[str, Any] | None:
        """The answer of a crew to a question; None when none comes in time, or the crew is gone."""
        self._send(node_rank, message)
        until = time.monotonic() + timeout_s
        while node_rank in self._wires and time.monotonic() < until:
            heard = self._hear(node_rank, _POLL_S)
            if heard is not None and heard["say"] == answer:
                return heard
        return None

    def carry_out(
        self, starts: Starts, timeout_s: float, *, world: World, waiting: Callable[[list[int]], None]
    ) -> list[End]:
        """Has processes started, and waits until all have ended.

        Args:
            starts: what each crew is to start.
            timeout_s: what each process may take.
            world: who needs whom: once one has failed, the others of its world are ended.
            waiting: told now and then which nodes have not finished.
        """
        global _next_order
        _next_order += 1
        order = _next_order
        ends: dict[tuple[int, int], End] = {}
        for node_rank, processes in starts.items():
            self._send(
                node_rank, {"do": "run", "order": order, "processes": processes, "timeout_s": timeout_s}
            )
        begun = said_at = time.monotonic()
        end_at: dict[int, float] = {}
        told: set[int] = set()
        while True:
            left = [
                r for r, processes in starts.items() if any((r, i) not in ends for i in range(len(processes)))
            ]
            if not left:
                return list(ends.values())
            for node_rank in left:
                if node_rank not in self._wires:
                    self._give_up(node_rank, starts, ends, self.lost.get(node_rank, "gone"), begun)
                    continue
                while (message := self._hear(node_rank, 0.0)) is not None:
                    self._take(message, node_rank, order, starts, ends)
            time.sleep(_POLL_S)
            now = time.monotonic()
            failed = {r for (r, _), end in ends.items() if end.failed}
            doomed = left if world == "all" and failed else failed if world == "node" else ()
            for node_rank in doomed:
                end_at.setdefault(node_rank, now + _PEERS_S)
            stopped = self._asked(None)
            for node_rank in set(left) - told:
                if stopped or now >= end_at.get(node_rank, float("inf")):
                    told.add(node_rank)
                    self._send(node_rank, {"do": "end", "order": order})
            if now - begun > timeout_s + _MARGIN_S:
                for node_rank in left:
                    self._lose(node_rank, f"says nothing of processes that may take {timeout_s:.0f} s")
            if now - said_at > _SAY_WAITING_EVERY_S:
                said_at = now
                waiting(left)
            self._keep_talking()

    def _take(
        self,
        message: dict[str, Any],
        node_rank: int,
        order: int,
        starts: Starts,
        ends: dict[tuple[int, int], End],
    ) -> None:
        if message["say"] != "ended" or message["order"] != order:
            return
        index = message["index"]
        ends[node_rank, index] = End(
            node_rank, starts[node_rank][index].get("gpu"), message["returncode"], message["seconds"],
            message["late"], message["ended"], tuple(message["last_lines"]), time.monotonic(),
        )  # fmt: skip

    def _give_up(
        self, node_rank: int, starts: Starts, ends: dict[tuple[int, int], End], why: str, begun: float
    ) -> None:
        now = time.monotonic()
        for index, given in enumerate(starts[node_rank]):
            ends.setdefault(
                (node_rank, index),
                End(
                    node_rank,
                    given.get("gpu"),
                    None,
                    now - begun,
                    False,
                    False,
                    (f"its agent is gone: {why}",),
                    now,
                ),
            )

    def _keep_talking(self) -> None:
        if time.monotonic() - self._talked_at > _TALK_EVERY_S:
            self._talked_at = time.monotonic()
            for node_rank in list(self._wires):
                self._send(node_rank, {"do": "go on"})

    def _send(self, node_rank: int, message: dict[str, Any]) -> None:
        try:
            if node_rank in self._wires:
                self._wires[node_rank].send(message)
        except EOFError as error:
            self._lose(node_rank, str(error))

    def _hear(self, node_rank: int, timeout_s: float) -> dict[str, Any] | None:
        """The next message of a crew, unless it is only a sign of life; None when there is none."""
        while node_rank in self._wires:
            try:
                message = self._wires[node_rank].receive(timeout_s)
            except EOFError as error:
                self._lose(node_rank, str(error))
                return None
            if message is None or message["say"] not in {"alive", "stop"}:
                return message
            if message["say"] == "stop":
                self._asked(message["signal"])
        return None

    def _lose(self, node_rank: int, why: str) -> None:
        wire = self._wires.pop(node_rank, None)
        if wire is not None:
            wire.close()
            self.lost[node_rank] = why
