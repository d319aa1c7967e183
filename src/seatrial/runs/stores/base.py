"""Where files of a run are kept besides its directory: one small interface over directories, S3 and what fsspec knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from seatrial.errors import PlatformError, SpecError

ABSENT = ""
"""In the place of a tag: only if there is no such object."""


class StoreError(PlatformError):
    """A store does not do what it was asked to."""


class ConflictError(StoreError):
    """Somebody else has written the object first."""


class MissingError(StoreError):
    """There is no such object."""


class Entry(NamedTuple):
    """One object of a store."""

    key: str
    """Relative to the store, with ``/``."""
    bytes: int
    modified: float
    """Seconds since the epoch, by the store's clock."""


class Store(Protocol):
    """A place for objects, each whole or not there. Every method raises `StoreError`."""

    url: str

    def put(self, path: Path, key: str, sha256: str) -> None:
        """Copies a file there, and makes sure that the far side has these very bytes.

        Args:
            path: the file.
            key: its name there.
            sha256: what its bytes must hash to; a file that has changed since is refused.
        """

    def get(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Copies an object here: written aside, compared with the hash where one is known, then renamed.

        Raises:
            MissingError: there is none.
        """

    def read(self, key: str) -> tuple[bytes, str] | None:
        """A small object and its tag, which changes when it does; None where there is none."""

    def write(self, key: str, data: bytes, when: str | None = None) -> str:
        """Writes a small object.

        Args:
            key: its name.
            data: its bytes.
            when: `ABSENT` writes only where there is none; a tag, only where the object still has it; None always.

        Returns:
            The new tag.

        Raises:
            ConflictError: `when` does not hold.
        """

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose keys begin with `prefix`, in no order that counts."""

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; one that isn't there is no error."""

    def abandon(self, prefix: str) -> None:
        """Removes what was begun below a prefix and never became an object: nobody may be at work there."""


def checked(key: str) -> str:
    """The key, where it stays inside the store.

    Raises:
        SpecError: it is absolute, climbs out, or has empty parts.
    """
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "/".join(parts) != key or "\0" in key:
        raise SpecError(
            f"{key!r} is no name inside a store", evidence="it is absolute, climbs out, or is empty in parts"
        )
    return key
