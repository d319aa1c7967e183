"""The only caller of subprocess: argv lists, always a time limit or an owner, never a shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
) -> Completed:
    """Runs a command to its end; a non-zero exit code is returned, not raised.

    Args:
        argv: program and arguments.
        timeout_s: it is killed after so many seconds.
        env: the whole environment; None passes this process's on.
        cwd: where it runs.

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
            stdin=subprocess.DEVNULL,
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


def start(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    new_session: bool = False,
) -> Process:
    """Starts a program whose output is appended to `log`.

    Args:
        argv: program and arguments.
        log: receives stdout and stderr.
        env: the whole environment; None passes this process's on.
        cwd: where it runs.
        new_session: out of reach of the terminal's Ctrl-C and of its end.

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
        )
    except OSError as error:
        raise PlatformError(f"{argv[0]} can't be started", evidence=str(error)) from error
    finally:
        os.close(descriptor)
    return Process(popen)
