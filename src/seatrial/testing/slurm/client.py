"""Every client program of the pretend Slurm: ``client.py DIRECTORY NAME WORDS…``.

It hands its command line to the controller and prints the answer. Polled often, it starts with the standard library
alone, and is run by its path, outside of the package.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

_EVERY_S = 0.03
_ENDS_STEP = {signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_FORWARDED = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM}
_AWAY = "{}: error: Unable to contact slurm controller (connect failure)\n"


def address(directory: int) -> str:
    """The controller's socket. A Unix socket's path has 107 characters at most; this one is short for any directory."""
    return f"/proc/self/fd/{directory}/socket"


class Connection:
    """Lines of JSON to and from the controller.

    Raises:
        OSError: no controller is there.
    """

    def __init__(self, directory: str | Path) -> None:
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = b""
        try:
            self._socket.connect(address(opened))
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(opened)

    def send(self, message: dict[str, Any]) -> None:
        """One line."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next line, or None when none came in time; `EOFError` when the controller has gone."""
        while b"\n" not in self._rest:
            if not select.select([self._socket], [], [], timeout_s)[0]:
                return None
            data = self._socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends one, and waits for the answer."""
        self.send(message)
        answer = self.receive()
        assert answer is not None
        return answer

    def close(self) -> None:
        """Ends it."""
        self._socket.close()


def main() -> int:
    """Runs one client; its exit code."""
    directory, program, *words = sys.argv[1:]
    call = {"program": program, "words": words, "env": dict(os.environ), "cwd": str(Path.cwd())}
    try:
        connection = Connection(directory)
        answer = connection.ask({"call": call})
        if answer.get("needs_input"):
            answer = connection.ask({"call": call | {"stdin": sys.stdin.read()}})
        if "step" in answer:
            return _Follower(directory, connection, answer).run()
    except (OSError, EOFError):
        answer = {"err": _AWAY.format(program), "code": 1}
    time.sleep(answer.get("wait_s", 0))
    _write(1, answer.get("out", "").encode(errors="surrogateescape"))
    _write(2, answer.get("err", "").encode(errors="surrogateescape"))
    return int(answer["code"])


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class _Follower:
    """srun, while its step runs.

    The tasks are the controller's children and write into files of the spool; what comes there is copied.
    """

    def __init__(self, directory: str, connection: Connection, answer: dict[str, Any]) -> None:
        self._directory = directory
        self._connection = connection
        self._step = str(answer["step"])
        self._label = bool(answer["label"])
        self._tasks = int(answer["tasks"])
        self._logs = [(int(rank), Path(log), 0, b"") for rank, log in answer["logs"]]
        self._interrupted_at = float("-inf")

    def run(self) -> int:
        for number in {signal.SIGINT, signal.SIGCONT} | _ENDS_STEP | _FORWARDED:
            signal.signal(number, self._on_signal)
        while True:
            message = self._connection.receive(_EVERY_S)
            self._copy(last=message is not None and "code" in message)
            if message is not None:
                _write(2, str(message.get("say", "")).encode())
                if "code" in message:
                    return int(message["code"])

    def _copy(self, *, last: bool) -> None:
        for index, (rank, log, offset, rest) in enumerate(self._logs):
            try:
                with log.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
            except FileNotFoundError:
                continue
            if not data and not (last and rest):
                continue
            if not self._label:
                _write(1, data)
                self._logs[index] = (rank, log, offset + len(data), b"")
                continue
            *lines, left = (rest + data).split(b"\n")
            if last and left:
                lines, left = [*lines, left], b""
            _write(1, b"".join(f"{rank}: ".encode() + line + b"\n" for line in lines))
            self._logs[index] = (rank, log, offset + len(data), left)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGCONT:
            self._say("got SIGCONT")
        elif number == signal.SIGINT and time.monotonic() - self._interrupted_at > 1:
            self._interrupted_at = time.monotonic()
            tasks = f"tasks 0-{self._tasks - 1}" if self._tasks > 1 else "task 0"
            self._say("interrupt (one more within 1 sec to abort)", f"StepId={self._step} {tasks}: running")
        elif number in _FORWARDED:
            self._order(number)
        else:
            self._say("forcing job termination")
            self._order(signal.SIGKILL)

    def _order(self, number: int) -> None:
        try:
            other = Connection(self._directory)
            other.ask({"order": self._step, "signal": int(number)})
            other.close()
        except (OSError, EOFError):
            return

    def _say(self, *lines: str) -> None:
        _write(2, "".join(f"srun: {line}\n" for line in lines).encode())


if __name__ == "__main__":
    sys.exit(main())
