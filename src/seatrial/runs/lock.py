"""One attempt at a time: the lock of a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seatrial.errors import PlatformError, SpecError

_PATIENCE_S = 2.0
"""An agent writes its exit record a moment before it dies and lets go of the lock."""


@contextmanager
def hold(lock: Path, what: str, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Holds the run's lock while the block runs; the kernel lets go of it when the process dies.

    Args:
        lock: the file.
        what: who holds it, for messages.
        patience_s: how long to wait for another process to let go.

    Raises:
        SpecError: another process holds it, and goes on holding it.
        PlatformError: nothing can be written there.
    """
    with _taken(lock, patience_s) as descriptor:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "what": what}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield


def check_free(lock: Path) -> None:
    """Raises `SpecError` when another process holds the lock, `PlatformError` when the directory takes no writes."""
    if lock.exists():
        with _taken(lock):
            pass


@contextmanager
def _taken(lock: Path, patience_s: float = _PATIENCE_S) -> Iterator[int]:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PlatformError(
            f"the run directory {lock.parent.name} can't be written",
            evidence=str(error),
            remedy=f"make {lock.parent} writable, or copy it to where it is",
        ) from error
    try:
        deadline = time.monotonic() + patience_s
        while not _try(descriptor):
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
                raise SpecError(
                    f"the run directory {lock.parent.name} is in use",
                    evidence=f"{lock} is held by {holder or 'another process'}",
                    remedy=f"seatrial runs show {lock.parent.name}    (or wait for it to end)",
                )
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def copying(root: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the copy of a run against other commands on this machine; false when one of them is at it and this one doesn't `wait`.

    Args:
        root: the copy's directory.
        wait: until it is free.
    """
    descriptor = os.open(root / ".copying", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
