"""What a rank is doing, as far as it can still be asked: the stacks of its threads, and how the kernel sees it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.job.heartbeat import STACK_SIGNAL, Beat

_WAIT_S = 2.0
_SPY_S = 10.0
_MOST_LINES = 200


@dataclass(frozen=True, slots=True)
class Stack:
    """What was found of one rank."""

    text: str
    """One clause for people, such as ``process 12 is sleeping; its stack is in <log>``."""
    frames: list[str] = field(default_factory=list)
    """As they were printed, the innermost frame of each thread first."""
    source: str = ""
    """py-spy, or faulthandler."""


def signal_rank(beat: Beat | None) -> bool:
    """Sends `STACK_SIGNAL` to a rank, where it is a process below this one that still runs; returns whether."""
    if beat is None or beat.pid not in {process.pid for process in psutil.Process().children(recursive=True)}:
        return False
    os.kill(beat.pid, STACK_SIGNAL)
    return True


def ask_for_stack(log: Path, beat: Beat | None) -> Stack:
    """Has a rank print the stacks of its threads into its log, and dump its flight recorder; looks with py-spy where there is one.

    Only a process below this one is signalled.

    Args:
        log: the rank's.
        beat: what it said last.
    """
    if beat is None:
        return Stack("it never reported a phase")
    pid = beat.pid
    below = {process.pid: process for process in psutil.Process().children(recursive=True)}
    if pid not in below:
        return Stack(f"process {pid} is gone")
    size = _size(log)
    os.kill(pid, STACK_SIGNAL)
    until = time.monotonic() + _WAIT_S
    while _size(log) == size and time.monotonic() < until:
        time.sleep(0.05)
    try:
        state = below[pid].status()
    except psutil.NoSuchProcess:
        return Stack(f"process {pid} is gone")
    printed = _size(log) != size
    where = f"its stack is in {log}" if printed else "it could not print its stack"
    frames = _spied(pid)
    if frames:
        return Stack(f"process {pid} is {state}; {where}", frames, "py-spy")
    told = _added(log, size) if printed else []
    return Stack(f"process {pid} is {state}; {where}", told, "faulthandler" if told else "")


def _spied(pid: int) -> list[str]:
    """By py-spy, which can look into a process that is halted; nothing where it is not installed, or not allowed to."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return []
    try:
        done = command.run([program, "dump", "--nonblocking", "--pid", str(pid)], timeout_s=_SPY_S)
    except PlatformError:
        return []
    return done.stdout.splitlines()[:_MOST_LINES] if done.returncode == 0 else []


def _added(log: Path, size: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace").splitlines()[:_MOST_LINES]


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
