"""The only caller of subprocess: argv lists, always a time limit or an owner, never a shell."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from seatrial.errors import PlatformError


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command that ended left behind."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class CommandRunner(Protocol):
    """What runs a command to its end; `run` is the real one, tests bring their own."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Completed:
        """Runs `argv` and returns what it printed."""


def run(
    argv: Sequence[str],
    *,
    timeout_s: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> Completed:
    """Runs a command to its end; a non-zero exit code is returned, not raised.

    Args:
        argv: program and arguments.
        timeout_s: it is killed after so many seconds.
        env: the whole environment; None passes this process's on.
        cwd: where it runs.
        stdin: what it reads; None: nothing.

    Raises:
        PlatformError: it can't be started, or ran past its time.
    """
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=env,
            cwd=cwd,
            check=False,
            input=stdin or "",
        )
    except OSError as error:
        raise PlatformError(f"{argv[0]} can't be started", evidence=str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise PlatformError(
            f"{argv[0]} did not end within {timeout_s:g} s", evidence=" ".join(argv)[:300]
        ) from error
    return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)


class Process:
    """A started program that its owner waits for."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it), or None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Waits for its end at most `timeout_s`; the exit code, or None when it still runs."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Signals it; nothing happens when it has ended."""
        self._popen.send_signal(number)


class Conversation:
    """A started program that its owner writes to and reads from, each with a time limit. Closing it ends the program."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdin is not None and popen.stdout is not None
        self._popen = popen
        self._stdin, self._stdout = popen.stdin.fileno(), popen.stdout.fileno()
        os.set_blocking(self._stdin, False)

    def write(self, data: bytes, timeout_s: float) -> None:
        """Writes all of it.

        Raises:
            EOFError: the program reads no more.
            TimeoutError: it took nothing for so long.
        """
        rest = memoryview(data)
        while rest:
            _, ready, _ = select.select([], [self._stdin], [], timeout_s)
            if not ready:
                raise TimeoutError
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise EOFError from error

    def read(self, size: int, timeout_s: float) -> bytes:
        """At most `size` bytes of what it printed, and at least one; b"" once it prints no more.

        Raises:
            TimeoutError: it printed nothing for so long.
        """
        ready, _, _ = select.select([self._stdout], [], [], timeout_s)
        if not ready:
            raise TimeoutError
        return os.read(self._stdout, size)

    def close(self, patience_s: float = 5) -> int:
        """Tells it that nothing more comes, and kills it where it goes on; its exit code (negative: the signal)."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        for pipe in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            return self._popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()


def converse(argv: Sequence[str], *, log: Path) -> Conversation:
    """Starts a program to talk with, out of reach of the terminal's Ctrl-C; its stderr is appended to `log`.

    Raises:
        PlatformError: it can't be started.
    """
    try:
        with log.open("ab") as errors:
            popen = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise PlatformError(f"{argv[0]} can't be started", evidence=str(error)) from error
    return Conversation(popen)


class Channel:
    """Messages between two processes of one machine, each a JSON object, over a socket that keeps them apart."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends: one to keep, one for a program that is about to be started."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(here.detach()), cls(there.detach())

    def fileno(self) -> int:
        """The descriptor, for ``select`` and for the program that inherits it."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message of at most some 100 KB; `EOFError` when nobody is left to read it."""
        try:
            self._socket.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError from error

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message, or None when none came within `timeout_s` (None waits for ever).

        Raises:
            EOFError: the other end is closed; its process has gone.
        """
        ready, _, _ = select.select([self._socket], [], [], timeout_s)
        if not ready:
            return None
        try:
            data = self._socket.recv(1 << 20)
        except ConnectionResetError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return dict(json.loads(data))

    def close(self) -> None:
        """Closes this end; the other one's `receive` raises."""
        self._socket.close()


def start(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    new_session: bool = False,
    channel: Channel | None = None,
) -> Process:
    """Starts a program whose output is appended to `log`.

    Args:
        argv: program and arguments.
        log: receives stdout and stderr.
        env: the whole environment; None passes this process's on.
        cwd: where it runs.
        new_session: out of reach of the terminal's Ctrl-C and of its end.
        channel: inherited by the program under the same number, and closed here.

    Raises:
        PlatformError: it can't be started.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=env,
            cwd=cwd,
            start_new_session=new_session,
            pass_fds=() if channel is None else (channel.fileno(),),
        )
    except OSError as error:
        raise PlatformError(f"{argv[0]} can't be started", evidence=str(error)) from error
    finally:
        os.close(descriptor)
        if channel is not None:
            channel.close()
    return Process(popen)
