"""The process behind the pretend Slurm: ``python -m seatrial.testing.slurm.server DIRECTORY CHANNEL``.

It answers the clients and its owner, starts what is due, and is the parent of all that runs in jobs. It ends, with all
of that, when its owner lets go of the channel, however that comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from seatrial.command import Channel
from seatrial.errors import SeatrialError
from seatrial.testing.slurm import client, commands, orders, processes, scontrol, steps
from seatrial.testing.slurm.controller import Controller
from seatrial.testing.slurm.model import Config, now
from seatrial.testing.slurm.options import UsageError
from seatrial.testing.slurm.reply import Call, Reply, away

_TICK_S = 0.02
_IDLE_TICK_S = 0.2
_PATIENCE_S = 5.0
"""For a client that sends half of a line, or reads nothing."""
_PROGRAMS: Mapping[str, Callable[[Controller, Call], Reply]] = {
    "sbatch": commands.run_sbatch, "squeue": commands.run_squeue, "scancel": commands.run_scancel, "sacct": commands.run_sacct,
    "sacctmgr": commands.run_sacctmgr, "sinfo": commands.run_sinfo, "scontrol": scontrol.run_scontrol,
}  # fmt: skip


class Server:
    """Listens in the cluster's directory.

    Args:
        config: the cluster's.
        channel: to its owner.
    """

    def __init__(self, config: Config, channel: Channel) -> None:
        self._controller = Controller(config, now)
        self._channel = channel
        self._listener = _listen(Path(config.directory))
        self._connections: dict[int, _Line] = {}
        self._followed: dict[int, steps.Followed] = {}
        self._stops = False

    def run(self) -> None:
        """Until the owner lets go."""
        self._channel.send({"ready": True})
        while not self._stops:
            self._controller.tick()
            self._tell_followers()
            processes.reap_orphans(self._own_pids())
            readers = [self._channel.fileno(), self._listener.fileno(), *self._connections]
            busy = any(job.state in {"PENDING", "RUNNING"} for job in self._controller.jobs.values())
            ready, _, _ = select.select(readers, [], [], _TICK_S if busy else _IDLE_TICK_S)
            for descriptor in ready:
                self._serve(descriptor)

    def _own_pids(self) -> set[int]:
        jobs = self._controller.jobs.values()
        tasks = [task for job in jobs for step in job.steps for task in step.tasks]
        return {task.process.pid for task in tasks if task.process is not None and task.status is None}

    def _serve(self, descriptor: int) -> None:
        if descriptor == self._channel.fileno():
            try:
                self._channel.receive(0)
            except EOFError:
                self._stops = True
        elif descriptor == self._listener.fileno():
            accepted, _ = self._listener.accept()
            accepted.settimeout(_PATIENCE_S)
            self._connections[accepted.fileno()] = _Line(accepted)
        elif descriptor in self._connections:
            line = self._connections[descriptor]
            try:
                message = line.receive()
            except (OSError, ValueError):
                self._lose(descriptor)
                return
            if message is not None:
                self._answer(descriptor, message)

    def _lose(self, descriptor: int) -> None:
        """A client has gone. With an srun go its tasks."""
        self._connections.pop(descriptor).close()
        followed = self._followed.pop(descriptor, None)
        if followed is not None and followed.step.is_running:
            self._controller.end_step(followed.step, signal.SIGKILL)

    def _answer(self, descriptor: int, message: dict[str, Any]) -> None:
        line = self._connections[descriptor]
        if "order" in message:
            steps.order(self._controller, str(message["order"]), int(message["signal"]))
            line.send({})
        elif "do" in message:
            line.send(self._obey(message))
        else:
            self._call(descriptor, line, message["call"])

    def _obey(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"value": orders.obey(self._controller, message["do"], message.get("with", {}))}
        except SeatrialError as error:
            return {"error": error.to_dict()}

    def _call(self, descriptor: int, line: _Line, data: dict[str, Any]) -> None:
        call = Call(**{**data, "words": tuple(data["words"])})
        refused = None
        if self._controller.away_s is not None:
            refused = away(call, self._controller.away_s, self._controller.config.host)
        try:
            if refused is not None:
                line.send(asdict(refused))
                return
            if call.program == "srun":
                begun = steps.begin(self._controller, call)
                if isinstance(begun, steps.Followed):
                    self._followed[descriptor] = begun
                    line.send(steps.described(begun))
                else:
                    line.send(asdict(begun))
                return
            reply = _PROGRAMS[call.program](self._controller, call)
        except UsageError as error:
            reply = commands.usage(error)
        # What a call changes shows at once in the next one.
        self._controller.tick()
        line.send(asdict(reply))

    def _tell_followers(self) -> None:
        for descriptor, followed in list(self._followed.items()):
            line = self._connections[descriptor]
            if news := followed.news(self._controller):
                line.send({"say": news})
            if followed.step.end is not None:
                line.send({"say": followed.summary(), "code": followed.code()})
                del self._followed[descriptor]


class _Line:
    """One client's connection."""

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        self._rest = b""

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None while it is not all there; `OSError` when the client has gone."""
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionResetError
        self._rest += data
        line, end, rest = self._rest.partition(b"\n")
        if not end:
            return None
        self._rest = rest
        return dict(json.loads(line))

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self._socket.close()


def _listen(directory: Path) -> socket.socket:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(client.address(opened))
    finally:
        os.close(opened)
    listener.listen(512)
    return listener


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Does nothing."""


def main() -> None:
    """Serves one cluster to its end."""
    directory, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    config = Config.from_json((directory / "config.json").read_text(encoding="utf-8"))
    processes.adopt_orphans()
    # The owner ends it by letting go; a Ctrl-C is the owner's business. Jobs would inherit a signal that is ignored, but
    # no handler.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _pass_over)
    try:
        Server(config, Channel(descriptor)).run()
    finally:
        processes.kill_below()


if __name__ == "__main__":
    main()
