"""Processes that end with their parent, and orphans that come back to the agent (Linux)."""

from __future__ import annotations

import ctypes
import signal
import sys
import time

import psutil

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """The kernel kills this process when its parent dies; the wish survives ``exec``."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process, so that none can hide from it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_descendants(grace_s: float = 3.0) -> list[str]:
    """Ends every process below this one: asks, waits, kills. By pid only, and only what descends from here.

    Returns:
        What was found alive, as ``"<pid> <command>"``, for the record.
    """
    found = [process for process in psutil.Process().children(recursive=True) if _is_alive(process)]
    described = [_describe(process) for process in found]
    for process in found:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(found, timeout=grace_s)
    deadline = time.monotonic() + grace_s
    while alive and time.monotonic() < deadline:
        for process in alive:
            _quietly(process.kill)
        # A killed parent's children arrive here only now.
        alive = [p for p in psutil.Process().children(recursive=True) if _is_alive(p)]
        psutil.wait_procs(alive, timeout=0.2)
    return described


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone)"


def _quietly(action: object) -> None:
    try:
        action()  # type: ignore[operator]
    except psutil.NoSuchProcess:
        return
