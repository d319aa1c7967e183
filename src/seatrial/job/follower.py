"""The agent of every node but the first: it does what the first one says, and ends when that one goes."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict
from types import FrameType
from typing import Any

from seatrial.errors import ExitCode, SeatrialError
from seatrial.job.link import Wire
from seatrial.job.node import Node

_POLL_S = 0.1
_BEATS_EVERY_S = 1.0


class Follower:
    """One node's part of an attempt.

    Args:
        node: this node.
        wire: the connection to the leading agent.
    """

    def __init__(self, node: Node, wire: Wire) -> None:
        self._node = node
        self._wire = wire
        self._running = False
        self._asked: int | None = None
        self._said_at = 0.0

    def run(self) -> ExitCode:
        """Until the first node's agent says that there is no more to do, or goes without a word."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        try:
            while self._do(self._wire.receive(0 if self._running else _POLL_S)):
                self._look()
        except EOFError:
            return ExitCode.PLATFORM
        finally:
            self._node.end(0.5)
            self._node.close()
        return ExitCode.OK

    def _do(self, message: dict[str, Any] | None) -> bool:
        match (message or {}).get("do"):
            case "close":
                return False
            case "start":
                assert message is not None
                self._start(message)
            case "ask":
                assert message is not None
                self._node.ask(message["request"])
            case "end":
                assert message is not None
                grace_s = message["grace_s"]
                self._node.end() if grace_s is None else self._node.end(grace_s)
            case "stack":
                assert message is not None
                rank = message["rank"]
                self._wire.send({"say": "stack", "rank": rank, **self._node.autopsy(rank)})
        return True

    def _start(self, message: dict[str, Any]) -> None:
        stage = self._node.plan.stages[message["stage"]]
        self._node.start(stage, message["restart"], message["port"])
        self._running = True

    def _look(self) -> None:
        if self._running:
            try:
                account = self._node.wait(_POLL_S)
            except SeatrialError as error:
                self._running = False
                self._wire.send({"say": "failed", "error": error.to_dict()})
            else:
                if account is not None:
                    self._running = False
                    self._wire.send({"say": "ended", "account": asdict(account)})
        if self._asked is not None:
            self._wire.send({"say": "stop", "signal": self._asked})
            self._asked = None
        if time.monotonic() - self._said_at > _BEATS_EVERY_S:
            self._said_at = time.monotonic()
            beats = {rank: self._node.beat(rank) for rank in self._node.ranks}
            self._wire.send(
                {
                    "say": "beats",
                    "beats": {
                        rank: (beat.line, self._node.halted(rank))
                        for rank, beat in beats.items()
                        if beat is not None
                    },
                }
            )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Not passed on to the ranks here: all nodes stop together, when the first one says so.
        self._asked = number
