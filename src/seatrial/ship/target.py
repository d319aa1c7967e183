"""Where released models live: numbered versions of a name, and one that is current.

    NAME/v7.json            who promoted what, on which evidence; the number is taken by making this, once
    NAME/v7/…               the release; it counts once its marker is there, which comes last
    NAME/current -> v7      in a directory: replaced by a rename
    NAME/current.json       in S3: replaced only where it is unchanged
    NAME/history/000012.json

Whoever loads through ``current`` resolves it first: between two files of one model it may come to mean another version.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from seatrial.errors import PlatformError, SpecError
from seatrial.runs import commit
from seatrial.runs.clock import now
from seatrial.runs.stores import ABSENT, ConflictError, Store, open_store
from seatrial.runs.stores.directory import DirectoryStore
from seatrial.ship.names import is_version, model_name, version_number

CURRENT = "current"
_HISTORY = "history"
_TRIES = 1000


class Target:
    """One name at one place.

    Args:
        url: a directory, or a store's URL.
        name: of the model.
    """

    def __init__(self, url: str, name: str) -> None:
        self.name = model_name(name)
        self.store: Store = open_store(url)
        self.url = self.store.url
        self._directory = self.store.root if isinstance(self.store, DirectoryStore) else None

    # --- which versions there are ---------------------------------------------------------------------------------

    def versions(self) -> dict[str, dict[str, Any]]:
        """The record of each version, by number; ``complete`` says whether its files are all there."""
        found: dict[str, dict[str, Any]] = {}
        complete: set[str] = set()
        for entry in self.store.entries(f"{self.name}/"):
            first, _, rest = entry.key.removeprefix(f"{self.name}/").partition("/")
            if not rest and first.endswith(".json") and is_version(first.removesuffix(".json")):
                found[first.removesuffix(".json")] = self._record(first)
            elif rest == commit.MARKER:
                complete.add(first)
        return {
            version: found[version] | {"version": version, "complete": version in complete}
            for version in sorted(found, key=version_number)
        }

    def _record(self, name: str) -> dict[str, Any]:
        answer = self.store.read(f"{self.name}/{name}")
        try:
            return dict(json.loads(answer[0])) if answer else {}
        except ValueError:
            return {"unreadable": True}

    def claim(self, record: dict[str, Any]) -> str:
        """Takes the next number, and leaves a record under it.

        Raises:
            StoreError: the target does not take it.
        """
        taken = [version_number(version) for version in self.versions()]
        for number in range(max(taken, default=0) + 1, max(taken, default=0) + _TRIES):
            with suppress(ConflictError):
                self.store.write(f"{self.name}/v{number}.json", _json(record), when=ABSENT)
                return f"v{number}"
        raise PlatformError(f"no number is free for {self.name}", evidence=self.url)

    def marker(self, version: str) -> dict[str, Any] | None:
        """The marker of a version's files; None where it is not whole."""
        answer = self.store.read(f"{self.name}/{version}/{commit.MARKER}")
        return None if answer is None else dict(json.loads(answer[0]))

    # --- files ----------------------------------------------------------------------------------------------------

    def fill(self, version: str, root: Path) -> None:
        """Copies a committed directory there, each file verified; the marker comes last."""
        for name, entry in sorted((commit.read_marker(root) or {})["files"].items()):
            self.store.put(root / name, f"{self.name}/{version}/{name}", entry["sha256"])
        self.store.write(f"{self.name}/{version}/{commit.MARKER}", (root / commit.MARKER).read_bytes())

    def discard(self, version: str) -> None:
        """Removes the files of a version that was never whole; its record stays and says so."""
        keys = [entry.key for entry in self.store.entries(f"{self.name}/{version}/")]
        # The marker first: half a version must not look like a whole one.
        self.store.delete(sorted(keys, key=lambda key: not key.endswith(f"/{commit.MARKER}")))
        self.store.abandon(f"{self.name}/{version}/")
        self.amend(version, discarded=now())

    def amend(self, version: str, **facts: Any) -> None:
        """Adds to a version's record."""
        self.store.write(f"{self.name}/{version}.json", _json(self._record(f"{version}.json") | facts))

    def discard_leftovers(self) -> list[str]:
        """Removes what promotions left that were killed: of this machine's dead processes. Returns the versions."""
        gone = []
        for version, record in self.versions().items():
            if record["complete"] or record.get("discarded") or not is_dead(record):
                continue
            self.discard(version)
            gone.append(version)
        return gone

    # --- which one is current -------------------------------------------------------------------------------------

    def current(self) -> tuple[str | None, str]:
        """The version that is current, and a tag to `switch` by."""
        if self._directory is None:
            answer = self.store.read(f"{self.name}/{CURRENT}.json")
            return (None, ABSENT) if answer is None else (str(json.loads(answer[0])["version"]), answer[1])
        try:
            version = (self._directory / self.name / CURRENT).readlink().name
        except FileNotFoundError:
            return None, ABSENT
        except OSError as error:
            raise SpecError(
                f"{self._directory / self.name / CURRENT} is not ours", evidence=f"it is no symbolic link: {error}",
                remedy="move it away",
            ) from error  # fmt: skip
        return version, version

    def switch(self, version: str, tag: str) -> None:
        """Makes a version current, where what is current is still what the tag says.

        Raises:
            ConflictError: somebody else has switched meanwhile.
        """
        if self._directory is None:
            self.store.write(
                f"{self.name}/{CURRENT}.json", _json({"version": version, "time": now()}), when=tag
            )
            return
        home = self._directory / self.name
        with _locked(home / ".lock"):
            if self.current()[1] != tag:
                raise ConflictError(
                    f"{self.name} has become {self.current()[0]} meanwhile", evidence=str(home)
                )
            aside = home / f".{CURRENT}-{secrets.token_hex(4)}"
            aside.symlink_to(version)
            try:
                aside.replace(home / CURRENT)
            finally:
                aside.unlink(missing_ok=True)

    # --- what was done --------------------------------------------------------------------------------------------

    def history(self) -> list[dict[str, Any]]:
        """Each switch, oldest first."""
        keys = sorted(
            e.key for e in self.store.entries(f"{self.name}/{_HISTORY}/") if e.key.endswith(".json")
        )
        answers = [self.store.read(key) for key in keys]
        return [dict(json.loads(answer[0])) for answer in answers if answer is not None]

    def note(self, row: dict[str, Any]) -> None:
        """Adds to the history."""
        number = len(self.history()) + 1
        for number in range(number, number + _TRIES):  # noqa: B020 - two may note at once
            with suppress(ConflictError):
                self.store.write(f"{self.name}/{_HISTORY}/{number:06d}.json", _json(row), when=ABSENT)
                return

    def catch_up(self) -> None:
        """Notes a switch whose maker was killed before it could."""
        version, _ = self.current()
        rows = self.history()
        last = rows[-1]["version"] if rows else None
        if version is not None and version != last:
            self.note({"kind": "found", "version": version, "previous": last, "time": now()})


def names_at(url: str) -> list[str]:
    """The names that a place has versions of."""
    found = set()
    for entry in open_store(url).entries():
        name, _, rest = entry.key.partition("/")
        if rest.endswith(".json") and is_version(rest.removesuffix(".json")):
            found.add(name)
    return sorted(found)


def who() -> dict[str, Any]:
    """Who does something, for records."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return {"user": user, "host": socket.gethostname(), "pid": os.getpid(),
            "pid_started": psutil.Process().create_time(), "time": now()}  # fmt: skip


def is_dead(record: dict[str, Any]) -> bool:
    """Whether the process that made a version is gone for sure: one of this machine that no longer runs."""
    by = record.get("by") or {}
    if by.get("host") != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(int(by["pid"])).create_time() != by["pid_started"])
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return True


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
