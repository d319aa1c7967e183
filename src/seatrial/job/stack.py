"""What a frozen rank was doing, as far as it can still be asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from seatrial.job.heartbeat import STACK_SIGNAL, Frozen

_WAIT_S = 2.0


def ask_for_stack(log: Path, frozen: Frozen) -> str:
    """Has the rank print the stacks of its threads into its log, and says how the kernel sees it.

    Only a process below this one is signalled.

    Returns:
        One clause for people, such as ``process 12 is sleeping; its stack is in <log>``.
    """
    if frozen.beat is None:
        return "it never reported a phase"
    pid = frozen.beat.pid
    below = {process.pid: process for process in psutil.Process().children(recursive=True)}
    if pid not in below:
        return f"process {pid} is gone"
    size = _size(log)
    os.kill(pid, STACK_SIGNAL)
    until = time.monotonic() + _WAIT_S
    while _size(log) == size and time.monotonic() < until:
        time.sleep(0.05)
    try:
        state = below[pid].status()
    except psutil.NoSuchProcess:
        return f"process {pid} is gone"
    printed = f"its stack is in {log}" if _size(log) != size else "it could not print its stack"
    return f"process {pid} is {state}; {printed}"


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
