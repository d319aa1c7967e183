"""Processes that end with their parent, and orphans that come back to the agent (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_kept: set[int] = set()


def keep(pid: int) -> None:
    """A child that serves the whole attempt: `end_descendants` leaves it alone, and what it starts."""
    _kept.add(pid)


def die_with_parent() -> None:
    """The kernel kills this process when its parent dies; the wish survives ``exec``."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process, so that none can hide from it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def redirect(log: Path) -> None:
    """Appends what this process prints to `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def become(title: str, environment: Mapping[str, str]) -> None:
    """Gives this process another environment, and the command line `title` in lists of processes.

    The title is written over the area that the kernel shows as arguments, and on into the first environment's
    (``arg_start`` to ``env_end``, fields 48 to 51 of ``/proc/<pid>/stat``, proc(5)): the environment has copies of
    its own by then. Where the kernel does not tell the addresses, only the title is left out.
    """
    os.environ.clear()
    os.environ.update(environment)
    if sys.platform != "linux":
        return
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end, env_begin, env_end = (int(field) for field in fields[45:49])
    if not 0 < begin < end <= env_begin < env_end:
        return
    # A text longer than the arguments has no zero at their end, which tells the kernel to read on.
    text = title.encode()[: env_end - begin - 1]
    ctypes.memset(begin, 0, env_end - begin)
    ctypes.memmove(begin, text, len(text))


def end_descendants(grace_s: float = 3.0, spare: Collection[int] = ()) -> list[str]:
    """Ends every process below this one: asks, waits, kills. By pid only, and only what descends from here.

    Args:
        grace_s: from the request to the kill.
        spare: pids that are left alone.

    Returns:
        What was found alive, as ``"<pid> <command>"``, for the record.
    """
    found = [process for process in _below(spare) if _is_alive(process)]
    described = [_describe(process) for process in found]
    for process in found:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(found, timeout=grace_s)
    deadline = time.monotonic() + grace_s
    while alive and time.monotonic() < deadline:
        for process in alive:
            _quietly(process.kill)
        # A killed parent's children arrive here only now.
        alive = [p for p in _below(spare) if _is_alive(p)]
        psutil.wait_procs(alive, timeout=0.2)
    return described


def is_halted(pid: int) -> bool:
    """Whether a process was stopped by a signal or a tracer, and does nothing until it is continued."""
    try:
        return psutil.Process(pid).status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
    except psutil.NoSuchProcess:
        return False


def _below(spare: Collection[int]) -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    kept = set(_kept)
    for process in below:  # parents come before their children
        try:
            if process.ppid() in kept:
                kept.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return [p for p in below if p.pid not in spare and p.pid not in kept]


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
