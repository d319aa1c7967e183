"""One attempt at a time: the lock of a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seatrial.errors import SpecError


@contextmanager
def hold(lock: Path, what: str) -> Iterator[None]:
    """Holds the run's lock while the block runs; the kernel lets go of it when the process dies.

    Raises:
        SpecError: another process holds it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
            raise SpecError(
                f"the run directory {lock.parent.name} is in use",
                evidence=f"{lock} is held by {holder or 'another process'}",
                remedy=f"seatrial runs show {lock.parent.name}    (or wait for it to end)",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(
            descriptor,
            json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "what": what}).encode(),
            0,
        )
        yield
    finally:
        os.close(descriptor)


def check_free(lock: Path) -> None:
    """Raises `SpecError` when another process holds the lock; leaves it as it was."""
    if lock.exists():
        with hold(lock, "looking"):
            pass
