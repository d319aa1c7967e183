"""Probes of the file systems: how fast, how much room, and whether others read what was written here."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.job.checks.place import Place
from seatrial.job.checks.task import Task
from seatrial.runs.files import replacing
from seatrial.runs.samples import Sample

MIB, GIB = 2**20, 2**30
BLOCK = 4 * MIB
"""Of one write or read; a multiple of what O_DIRECT wants."""
SIZE_MIB = 256
"""Of the file that throughput is measured with, at most (``options.disk_mib``)."""
REHEARSED_MIB = 16
SECONDS = 2.0
"""For writing, and again for reading, at most."""
_KEEP_FREE = GIB
_DIGEST = hashlib.sha256().digest_size
_one_at_a_time = threading.Lock()
"""Both file systems may lie on one disk."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """What a file system took and gave, one stream, past the page cache where it could be."""

    write_gb_s: float
    """1e9 bytes a second."""
    read_gb_s: float
    size_bytes: int
    direct: bool
    """Whether by O_DIRECT; else written through by fdatasync, and read after the cache was told to forget."""


def local_disk(place: Place) -> Iterable[Sample]:
    """The disk for temporary files: ``TMPDIR``, or ``/tmp``."""
    directory = Path(place.environment.get("TMPDIR") or tempfile.gettempdir())
    return _measured(place, "local_disk", "local", directory, with_read=True)


def shared_disk(place: Place) -> Iterable[Sample]:
    """The run directory. Leaves a file there for `seatrial.job.checks.shared` on the other nodes."""
    task = place.task
    leave(task)
    return _measured(
        place, "shared_disk", "shared", task.run_dir / f"attempt-{task.attempt}", with_read=False
    )


def size_mib(task: Task) -> int:
    """Size of the file that throughput is measured with: pretend nodes share one disk, and have smaller ones."""
    return int(task.options.get("disk_mib", REHEARSED_MIB if task.rehearse else SIZE_MIB))


def shared_path(task: Task, node: str) -> Path:
    """Where a node leaves its file for the others."""
    return task.run_dir / f"attempt-{task.attempt}" / "shared" / node


def leave(task: Task) -> None:
    """Writes this node's file: random content and, behind it, its SHA-256.

    The more nodes, the smaller it is: each of them reads all the others' (256 MiB in all, of each 1 to 64 MiB).
    """
    path = shared_path(task, task.node)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = min(64, max(1, size_mib(task) // max(1, len(task.nodes)))) * MIB
    digest = hashlib.sha256()
    with replacing(path) as aside, aside.open("wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
        file.write(digest.digest())


def read_left(path: Path) -> tuple[int, float]:
    """Reads what a node left.

    Returns:
        Its size in bytes, and the seconds that reading (not checking) took.

    Raises:
        OSError: it is not there.
        ValueError: it is not what was written.
    """
    start = time.perf_counter()
    data = path.read_bytes()
    elapsed_s = time.perf_counter() - start
    if len(data) <= _DIGEST or hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise ValueError(f"{len(data)} bytes with another hash")
    return len(data), elapsed_s


def throughput(directory: Path, size: int, seconds: float = SECONDS) -> Throughput:
    """Writes a file of at most `size` bytes and reads it back, for at most `seconds` each; nothing is left.

    Raises:
        OSError: no permission, no room, or the file system fails.
    """
    descriptor, path = tempfile.mkstemp(prefix=".seatrial-", dir=directory)
    try:
        direct = _reopen(path)
        if direct is not None:
            os.close(descriptor)
            descriptor = direct
        # Anonymous maps begin at a page, as O_DIRECT wants it. Random, for file systems that compress.
        with mmap.mmap(-1, BLOCK) as block:
            block.write(os.urandom(BLOCK))
            written, write_s = _write(descriptor, block, size, seconds)
            if direct is None:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            got, read_s = _read(descriptor, block, written, seconds)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            Path(path).unlink()
    return Throughput(written / write_s / 1e9, got / read_s / 1e9, written, direct is not None)


def _reopen(path: str) -> int | None:
    """The file without the page cache; None where its file system can't (some refuse the first write only)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.pwrite(descriptor, page, 0)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _write(descriptor: int, block: mmap.mmap, size: int, seconds: float) -> tuple[int, float]:
    start, written = time.perf_counter(), 0
    while written < size and time.perf_counter() - start < seconds:
        written += os.pwrite(descriptor, block, written)
    os.fdatasync(descriptor)
    return written, time.perf_counter() - start


def _read(descriptor: int, block: mmap.mmap, size: int, seconds: float) -> tuple[int, float]:
    start, got = time.perf_counter(), 0
    while got < size and time.perf_counter() - start < seconds:
        count = os.preadv(descriptor, [block], got)
        if count == 0:
            break
        got += count
    return got, time.perf_counter() - start


def _measured(place: Place, check: str, name: str, directory: Path, *, with_read: bool) -> Iterable[Sample]:
    free = shutil.disk_usage(directory).free
    detail: dict[str, Any] = {"directory": str(directory), "file_system": file_system(place.root, directory)}
    yield place.sample(check, f"{name}_free_gib", round(free / GIB, 3), unit="GiB", detail=detail)
    metrics = [f"{name}_write_gb_s", *([f"{name}_read_gb_s"] if with_read else [])]
    size = min(size_mib(place.task) * MIB, (free - _KEEP_FREE) // BLOCK * BLOCK)
    if size < BLOCK:
        why = f"less than 1 GiB is free in {directory}: nothing was written"
        yield from (place.sample(check, metric, unit="GB/s", reason=why) for metric in metrics)
        return
    with _one_at_a_time:
        found = throughput(directory, size)
    detail = detail | {
        "size_mib": found.size_bytes // MIB,
        "method": "O_DIRECT" if found.direct else "fdatasync",
    }
    for metric, value in zip(metrics, (found.write_gb_s, found.read_gb_s), strict=False):
        yield place.sample(check, metric, round(value, 4), unit="GB/s", detail=detail)


def file_system(root: Path, directory: Path) -> str | None:
    """Type of the file system that a directory lies on, as ``/proc/mounts`` names it."""
    try:
        lines = (root / "proc/mounts").read_text().splitlines()
    except OSError:
        return None
    here = directory.resolve()
    kinds: dict[Path, str] = {}
    for line in lines:
        _, point, kind = [*line.split(), "", "", ""][:3]
        kinds[Path(point.replace("\\040", " "))] = kind
    return next((kinds[path] for path in (here, *here.parents) if path in kinds), None)
