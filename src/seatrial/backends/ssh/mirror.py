"""A run's directory here as a copy of the one on the cluster, brought up to date a piece at a time.

Nothing is remembered beside the copy itself: a file that only grows goes on at its own length, and any other has the size
and time of what it was copied from. A copy that was cut off goes on where it was.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seatrial.backends.ssh import store
from seatrial.backends.ssh.connection import Connection, open_login
from seatrial.backends.ssh.failures import Login
from seatrial.errors import PlatformError, SpecError
from seatrial.runs import lock
from seatrial.runs.files import read_json, sync_directory, write_json
from seatrial.runs.manifest import Manifest, read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState

EVERY_S = 1.0
"""At most so often the login node is asked; and for no more than a part of the time, where its files are slow."""
_SHARE = 3
_PART = ".part"
_PIECE = 4 << 20
"""Bytes asked for at once."""
_MAY_STILL_COME_S = 900.0
"""A run that the login node doesn't know may be on its way for so long: data that is looked at, a line that was cut."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Where the run itself is: ``remote.json``."""

    host: str
    python: str
    directory: str

    @property
    def login(self) -> Login:
        """What to connect to."""
        return Login(self.host, self.python, self.directory)

    @classmethod
    def of(cls, login: Login) -> Remote:
        """A run on this cluster."""
        return cls(login.host, login.python, login.directory)

    @classmethod
    def read(cls, paths: RunPaths) -> Remote:
        """What the copy says; `SpecError` when it is no copy, or not readable."""
        try:
            data = dict(read_json(paths.remote) or {})
            return cls(data["host"], data["python"], data["directory"])
        except (ValueError, KeyError) as error:
            raise SpecError(
                f"{paths.run_id} does not say where it runs", evidence=f"{paths.remote}: {error}"
            ) from error

    def write(self, paths: RunPaths) -> None:
        """Marks a directory as a copy."""
        write_json(paths.remote, {"schema": 1, **asdict(self)})


class Mirror:
    """The copy of one run.

    Args:
        paths: of the copy.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.remote = Remote.read(paths)
        self._next_at = float("-inf")
        self._written: dict[str, Any] = {}

    @property
    def connection(self) -> Connection:
        """To its login node."""
        return open_login(self.remote.login)

    def look(self, *, anyway: bool = False) -> Manifest:
        """Brings the copy up to date: the files first, then the manifest, so that an end is told when all is here.

        Args:
            anyway: also when this was done a moment ago.

        Raises:
            UnreachableError: the login node can't be reached now.
            PlatformError: it can't be used at all.
        """
        began = time.monotonic()
        if not anyway and began < self._next_at:
            return read_manifest(self.paths)
        with lock.copying(self.paths.root, wait=anyway) as alone:
            manifest = self._brought_up_to_date() if alone else read_manifest(self.paths)
        ended = time.monotonic()
        self._next_at = ended + max(EVERY_S, _SHARE * (ended - began))
        return manifest

    def _brought_up_to_date(self) -> Manifest:
        answer, _ = self.connection.ask("look", run_id=self.paths.run_id)
        if answer is None:
            return self._unknown()
        self.copy(answer["files"])
        manifest = Manifest.model_validate(answer["manifest"])
        for record in manifest.attempts:
            if record.handle is not None:
                record.handle = f"ssh://{self.remote.host}/{record.handle}"
        if answer["manifest"] != self._written:
            write_manifest(self.paths, manifest)
            self._written = answer["manifest"]
        return manifest

    def pull_models(self) -> int:
        """Copies models and checkpoints as well; the number of files that came."""
        answer, _ = self.connection.ask("models", run_id=self.paths.run_id)
        with lock.copying(self.paths.root, wait=True):
            # What seals a directory comes last.
            return self.copy(
                dict(sorted(answer.items(), key=lambda item: item[0].endswith("COMMITTED.json")))
            )

    def copy(self, files: dict[str, Any]) -> int:
        """Copies what is not here yet of these files (size and time in ns, by name); how many were."""
        copied = 0
        for name, (size, mtime_ns) in files.items():
            path = self.paths.root / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise SpecError(f"the login node names a file outside of the run: {name}")
            try:
                if name.endswith(store.GROWING):
                    copied += self._grow(name, path, size)
                elif not _is_same(path, size, mtime_ns):
                    copied += self._replace(name, path, size, mtime_ns)
            except OSError as error:
                self.connection.close()  # it believes that we have what it has listed
                raise PlatformError(
                    f"the copy of {self.paths.run_id} can't be written",
                    evidence=str(error),
                    remedy=f"the run goes on; make room here, then: seatrial runs show {self.paths.run_id}",
                ) from error
        return copied

    def _grow(self, name: str, path: Path, size: int) -> bool:
        here = path.stat().st_size if path.exists() else -1
        if here == size:
            return False
        if here > size:
            path.unlink()  # it was begun anew, or somebody here has added to it
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            self._fetch(name, file, size)
        return True

    def _replace(self, name: str, path: Path, size: int, mtime_ns: int) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{mtime_ns}{_PART}")
        for older in path.parent.glob(f".{path.name}.*{_PART}"):
            if older != part:
                older.unlink()
        with part.open("ab") as file:
            whole = self._fetch(name, file, size)
            file.flush()
            os.fsync(file.fileno())
        if not whole:
            part.unlink()  # it has become another file meanwhile, which the next look tells of
            return False
        os.utime(part, ns=(mtime_ns, mtime_ns))
        part.replace(path)
        sync_directory(path.parent)
        return True

    def _fetch(self, name: str, file: Any, size: int) -> bool:
        """Appends what is missing up to `size`; whether all of it came."""
        while (offset := file.tell()) < size:
            try:
                _, data = self.connection.ask(
                    "read",
                    run_id=self.paths.run_id,
                    name=name,
                    offset=offset,
                    size=min(_PIECE, size - offset),
                )
            except SpecError:
                return False
            if not data:
                return False
            file.write(data)
        return bool(file.tell() == size)

    def _unknown(self) -> Manifest:
        manifest = read_manifest(self.paths)
        age_s = time.time() - self.paths.remote.stat().st_mtime
        if age_s < _MAY_STILL_COME_S:
            manifest.reason = f"{self.remote.host} doesn't know it yet: it was cut off while it was sent"
        else:
            manifest.state = RunState.LOST
            manifest.reason = f"{self.remote.host} doesn't know it: it never got there"
        write_manifest(self.paths, manifest)
        return manifest


def _is_same(path: Path, size: int, mtime_ns: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == (size, mtime_ns)
