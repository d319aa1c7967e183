"""Directories that count only once they are whole: checkpoints and models.

A directory is written under a name of its own, every file is synced and hashed, a marker with the hashes is
added, and then it is renamed. What has no marker does not exist for a reader; what has one can be verified.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seatrial.runs.files import read_json, sha256_file, sync_directory, write_json

MARKER = "COMMITTED.json"
ASIDE = ".writing"
"""Ending of a directory that is being written; nothing in it counts."""


def start(final: Path) -> Path:
    """An empty directory beside `final` to write into; what an earlier, broken writer left there is removed."""
    aside = final.with_name(final.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def commit(
    aside: Path, final: Path, hashed: dict[str, dict[str, Any]] | None = None, **facts: Any
) -> dict[str, Any]:
    """Seals `aside` and renames it to `final`, replacing a directory there that was never committed.

    Args:
        aside: a directory from `start`, with all files written.
        final: its name from now on.
        hashed: by name, what the writers of some files know: ``{"sha256", "bytes"}`` of what they wrote and synced.
            Such a file must be there in that size; it is not read again.
        facts: what else the marker records (step, world_size, …).

    Returns:
        The marker: ``{"schema": 1, "sha256", "files": {name: {"sha256", "bytes"}}, **facts}``.

    Raises:
        OSError: the disk is full or gone, or a file of `hashed` is not what its writer says.
    """
    files: dict[str, dict[str, Any]] = {}
    for name, entry in (hashed or {}).items():
        size = (aside / name).stat().st_size
        if size != entry["bytes"]:
            raise OSError(
                errno.EIO, f"{entry['bytes']} bytes were written, {size} are there", str(aside / name)
            )
        files[name] = entry
    for path in sorted(p for p in aside.rglob("*") if p.is_file()):
        name = path.relative_to(aside).as_posix()
        if name in files:
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    marker = {"schema": 1, "sha256": tree_hash(files), "files": files, **facts}
    write_json(aside / MARKER, marker)
    sync_directory(aside)
    if final.exists() and not is_committed(final):
        shutil.rmtree(final)
    aside.rename(final)
    sync_directory(final.parent)
    return marker


def is_committed(path: Path) -> bool:
    """Whether `path` carries a marker."""
    return (path / MARKER).is_file()


def read_marker(path: Path) -> dict[str, Any] | None:
    """The marker of a committed directory, or None."""
    marker = read_json(path / MARKER)
    return marker if isinstance(marker, dict) else None


def problems(path: Path, part: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with a committed directory: every file is hashed again. Empty when it is sound.

    Args:
        path: the directory.
        part: (i, n): of n readers that share the work, look at the files that fall to the i-th.
    """
    try:
        marker = read_marker(path)
    except ValueError as error:
        return [f"{MARKER} is not JSON: {error}"]
    if marker is None:
        return [f"no {MARKER}: it was never committed"]
    listed = marker.get("files")
    if not isinstance(listed, dict):
        return [f"{MARKER} lists no files"]
    found = []
    for name, expected in sorted(listed.items())[part[0] :: part[1]]:
        file = path / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != expected["bytes"]:
            found.append(f"{name} has {file.stat().st_size} bytes, {expected['bytes']} were written")
        elif sha256_file(file) != expected["sha256"]:
            found.append(f"{name} has other bytes than were written (SHA-256 differs)")
    return found


def weights_sha256(path: Path, suffixes: Iterable[str] = (".safetensors",)) -> str | None:
    """One hash for the weights of a committed directory, whatever else lies there; None without weights."""
    marker = read_marker(path)
    if marker is None:
        return None
    weights = {n: f for n, f in marker["files"].items() if n.endswith(tuple(suffixes))}
    return tree_hash(weights) if weights else None


def tree_hash(files: dict[str, dict[str, Any]]) -> str:
    """One hash for files: of their names and their own hashes."""
    lines = (f"{name}\0{entry['sha256']}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
