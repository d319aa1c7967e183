"""A run's files in a store, as ``RUN_ID/…``: what should be there, what is, and bringing them there.

Checkpoints and models go only once they are committed, the marker last: what has one there is whole there. Files that still
grow are sent as they are at one moment. ``mirror.json`` says what has arrived and was verified, here and there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.errors import SeatrialError, SpecError
from seatrial.runs import commit, lock
from seatrial.runs.clock import now
from seatrial.runs.evidence import Evidence, Verdict, record
from seatrial.runs.files import read_json, sha256_file, size_text, write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.stores import Store, open_store

STATE = "mirror.json"
_LOCK = ".mirror.lock"
SEALED = ("checkpoints", "models", "release")
"""Where a run keeps directories that count only when they are committed."""
_LEFT_OUT = {"heartbeats", STATE, "mirror.log", "wandb"}
_AT_ONCE = 4
_SAVE_EVERY_S = 1.0
_PASSES = 3
_ENOUGH_ERRORS = 3
"""A store that fails so often in a pass is asked again in the next."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A file that is not in the mirror as it is here."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    path: Path
    bytes: int
    mtime_ns: int
    sha256: str | None
    """Of what was committed; None of a file that may still grow."""


def url_of(paths: RunPaths) -> str | None:
    """Where the run's recipe wants it to be mirrored."""
    found = (read_json(paths.spec) or {}).get("artifacts")
    return str(found) if found else None


def state(paths: RunPaths) -> dict[str, dict[str, Any]]:
    """What has arrived: by name, ``{sha256, bytes, mtime_ns, at}``. A state that can't be read is none: all is sent again."""
    try:
        found = read_json(paths.root / STATE)
        return dict(found["files"]) if found else {}
    except (ValueError, KeyError, TypeError):
        return {}


@contextmanager
def alone(paths: RunPaths, what: str, patience_s: float) -> Iterator[None]:
    """Only one process at a time brings a run to its mirror.

    Raises:
        SpecError: another one does, and goes on doing so.
    """
    with lock.hold(paths.root / _LOCK, what, patience_s):
        yield


def missing(paths: RunPaths) -> list[Pending]:
    """What the mirror should have and has not; nothing of a run that has no mirror."""
    if url_of(paths) is None and not (paths.root / STATE).exists():
        return []
    there = state(paths)
    return [Pending(file.name, file.bytes) for file in _files(paths) if not _arrived(file, there)]


class Mirror:
    """Brings a run's files to a store, in as many passes as it takes.

    Args:
        paths: the run's.
        store: where to; None opens the one that the recipe names.
        clock: seconds.

    Raises:
        SpecError: the run names no store, or one that can't be opened.
    """

    def __init__(
        self, paths: RunPaths, store: Store | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        url = url_of(paths)
        if store is None and url is None:
            raise SpecError(
                f"the run {paths.run_id} has no mirror", evidence="its recipe has no 'artifacts'",
                remedy="seatrial runs push RUN --to s3://bucket/prefix",
            )  # fmt: skip
        self._paths = paths
        self._store = store or open_store(str(url))
        self._clock = clock
        self._there = state(paths)
        self._lock = threading.Lock()
        self._saved_at = 0.0
        self.errors: list[str] = []
        """Of the latest pass."""

    @property
    def url(self) -> str:
        """The store's."""
        return self._store.url

    def one_pass(
        self, stop: Callable[[], bool] = lambda: False, say: Callable[[Pending], None] = lambda file: None
    ) -> list[Pending]:
        """Sends what is not there yet; what is left. A file that can't be sent stops no other.

        Args:
            stop: asked before each file.
            say: told of each that has arrived.
        """
        self.errors = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for markers in (False, True):
                wave = [
                    file
                    for file in _files(self._paths)
                    if _is_marker(file.name) == markers
                    and not _arrived(file, self._there)
                    and (not markers or self._all_of(file))
                ]
                list(pool.map(lambda file: self._send(file, stop, say), wave))
        self._save(force=True)
        return [Pending(f.name, f.bytes) for f in _files(self._paths) if not _arrived(f, self._there)]

    def conclude(
        self, stop: Callable[[], bool] = lambda: False, say: Callable[[Pending], None] = lambda file: None
    ) -> list[Pending]:
        """A pass after which nothing more is written, with the verdict ``mirror`` in the run's evidence."""
        for _ in range(_PASSES):
            left = self.one_pass(stop, say)
            if not left or self.errors or stop():
                break  # else a file has changed meanwhile
        about = describe(left, self.errors)
        record(
            self._paths.evidence,
            Evidence(
                check="mirror", verdict=Verdict.WARN if left else Verdict.PASS, measured=len(left), expected=0, unit="files",
                source=STATE, message=about or f"every file is in {self.url}, verified there",
            ),
        )  # fmt: skip
        return left or self.one_pass(stop, say)

    def _all_of(self, marker: _File) -> bool:
        """Whether all that a marker seals is there."""
        home = marker.name.rpartition("/")[0]
        listed = (commit.read_marker(marker.path.parent) or {}).get("files", {})
        return all(self._there.get(f"{home}/{n}", {}).get("sha256") == e["sha256"] for n, e in listed.items())

    def _send(self, file: _File, stop: Callable[[], bool], say: Callable[[Pending], None]) -> None:
        if stop() or len(self.errors) >= _ENOUGH_ERRORS:
            return
        try:
            sha256, size = self._put(file)
        except FileNotFoundError:
            return  # it was cleared away meanwhile: what isn't here need not be there
        except (SeatrialError, OSError) as error:
            what = f"{error.what} ({error.evidence})" if isinstance(error, SeatrialError) else str(error)
            self.errors.append(f"{file.name}: {what}")
            return
        with self._lock:
            self._there[file.name] = {"sha256": sha256, "bytes": size, "mtime_ns": file.mtime_ns, "at": now()}
        self._save()
        say(Pending(file.name, size))

    def _put(self, file: _File) -> tuple[str, int]:
        key = f"{self._paths.run_id}/{file.name}"
        if file.sha256 is not None and file.path.exists():
            self._store.put(file.path, key, file.sha256)
            return file.sha256, file.bytes
        with tempfile.TemporaryDirectory(prefix="seatrial-mirror-") as directory:
            moment = Path(directory, "file")
            shutil.copyfile(file.path, moment)
            sha256 = sha256_file(moment)
            self._store.put(moment, key, sha256)
            return sha256, moment.stat().st_size

    def _save(self, *, force: bool = False) -> None:
        with self._lock:
            if not force and self._clock() - self._saved_at < _SAVE_EVERY_S:
                return
            self._saved_at = self._clock()
            write_json(
                self._paths.root / STATE,
                {"schema": 1, "url": self.url, "files": dict(sorted(self._there.items()))},
            )
        if force and not self.errors:
            try:
                data = (self._paths.root / STATE).read_bytes()
                self._store.write(f"{self._paths.run_id}/{STATE}", data)
            except SeatrialError as error:
                self.errors.append(f"{STATE}: {error.what} ({error.evidence})")


def describe(left: list[Pending], errors: list[str]) -> str:
    """What is not mirrored, for people; empty where all is."""
    if not left:
        return ""
    size = sum(file.bytes for file in left)
    many = f"{len(left)} file{'s' if len(left) > 1 else ''}"
    return f"not mirrored yet: {many}, {size_text(size)}" + (f": {errors[0]}" if errors else "")


def _is_marker(name: str) -> bool:
    return name.endswith(f"/{commit.MARKER}")


def _arrived(file: _File, there: dict[str, dict[str, Any]]) -> bool:
    found = there.get(file.name)
    if found is None:
        return False
    if file.sha256 is not None:
        return bool(found["sha256"] == file.sha256)
    return bool((found["bytes"], found.get("mtime_ns")) == (file.bytes, file.mtime_ns))


def _files(paths: RunPaths) -> list[_File]:
    """What belongs into the mirror: small files first, then models, then checkpoints."""
    open_ones = [file for path in _loose(paths.root) if (file := _file(paths, path, None)) is not None]
    sealed = [file for part in reversed(SEALED) for file in _sealed(paths, paths.root / part)]
    return sorted(open_ones, key=lambda file: file.bytes) + sealed


def _loose(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        here = Path(directory)
        if here == root:
            names[:] = [name for name in names if name not in SEALED]
        names[:] = [
            n for n in names if not n.startswith(".") and n not in _LEFT_OUT and not n.endswith(commit.ASIDE)
        ]
        for name in files:
            path = here / name
            if not name.startswith(".") and name not in _LEFT_OUT and not path.is_symlink():
                yield path


def _sealed(paths: RunPaths, part: Path) -> Iterator[_File]:
    homes = [part] if commit.is_committed(part) else sorted(part.glob("*")) if part.is_dir() else []
    for home in homes:
        try:
            marker = commit.read_marker(home) if not home.is_symlink() else None
        except ValueError:
            continue
        if marker is None or home.name.endswith((commit.ASIDE, ".damaged")):
            continue
        for name, entry in sorted(marker["files"].items()):
            if (file := _file(paths, home / name, entry["sha256"])) is not None:
                yield file
        if (file := _file(paths, home / commit.MARKER, None)) is not None:
            yield file


def _file(paths: RunPaths, path: Path, sha256: str | None) -> _File | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return _File(path.relative_to(paths.root).as_posix(), path, found.st_size, found.st_mtime_ns, sha256)
