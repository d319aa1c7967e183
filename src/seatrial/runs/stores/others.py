"""Whatever else fsspec has a URL for. It has no checksums that all far sides share: what was written is read back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from seatrial.errors import SpecError
from seatrial.runs.stores.base import ABSENT, ConflictError, Entry, MissingError, StoreError, checked

_BLOCK_BYTES = 4 << 20
_TRIES = 4
_FIRST_WAIT_S = 0.5


class FsspecStore:
    """Objects below an fsspec URL.

    Args:
        url: such as ``gs://bucket/prefix`` or ``abfs://container/prefix``.

    Raises:
        SpecError: fsspec, or its part for this URL, is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            from fsspec.core import url_to_fs

            self._fs, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            scheme = url.partition(":")[0]
            raise SpecError(
                f"{scheme}:// can't be used as a store",
                evidence=str(error),
                remedy=f"pip install 'fsspec[{scheme}]'",
            ) from error

    def put(self, path: Path, key: str, sha256: str) -> None:
        """See `Store.put`."""
        name = self._name(key)
        with self._told(key):
            for attempt in range(_TRIES):
                self._fs.makedirs(name.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(path), name)
                found = self._hash(name)
                if found == sha256:
                    return
                if attempt < _TRIES - 1:
                    time.sleep(_FIRST_WAIT_S * 2**attempt)
        raise StoreError(
            f"{key} reads back other bytes than it should have",
            evidence=f"{self.url}: SHA-256 {found[:12]}…, not {sha256[:12]}…",
        )

    def get(self, key: str, path: Path, sha256: str | None = None) -> None:
        """See `Store.get`."""
        from seatrial.runs.files import replacing, sha256_file

        name = self._name(key)
        with self._told(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                self._fs.get_file(name, str(aside))
                if sha256 is not None and (found := sha256_file(aside)) != sha256:
                    raise StoreError(
                        f"{key} has other bytes than were put there",
                        evidence=f"{self.url}: SHA-256 {found[:12]}…, not {sha256[:12]}…",
                    )

    def read(self, key: str) -> tuple[bytes, str] | None:
        """See `Store.read`."""
        try:
            with self._told(key):
                self._fs.invalidate_cache()
                data = bytes(self._fs.cat_file(self._name(key)))
        except MissingError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, key: str, data: bytes, when: str | None = None) -> str:
        """See `Store.write`. Only `ABSENT` and None: nothing here compares and writes in one.

        Raises:
            SpecError: `when` is a tag.
        """
        name = self._name(key)
        if when not in {None, ABSENT}:
            raise SpecError(
                f"{self.url} can't replace an object only where it is unchanged",
                evidence="fsspec has no such request",
                remedy="use a directory or s3:// where several may write",
            )
        with self._told(key):
            self._fs.makedirs(name.rpartition("/")[0], exist_ok=True)
            if when == ABSENT:
                try:
                    self._fs.pipe_file(name, data, mode="create")
                except FileExistsError as error:
                    raise ConflictError(f"{key} was written by somebody else", evidence=self.url) from error
            else:
                self._fs.pipe_file(name, data)
        return hashlib.sha256(data).hexdigest()

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.entries`."""
        start = len(str(self._root).rstrip("/")) + 1
        with self._told(prefix):
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return
            for name, about in self._fs.find(self._root, detail=True).items():
                key = str(name)[start:]
                if key.startswith(prefix):
                    yield Entry(key, int(about["size"] or 0), _seconds(about))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`."""
        for key in keys:
            try:
                with self._told(key):
                    self._fs.rm_file(self._name(key))
            except MissingError:
                continue

    def abandon(self, prefix: str) -> None:
        """See `Store.abandon`; what is begun here is for its library to end."""

    def _name(self, key: str) -> str:
        return f"{str(self._root).rstrip('/')}/{checked(key)}"

    def _hash(self, name: str) -> str:
        digest = hashlib.sha256()
        self._fs.invalidate_cache()
        with self._fs.open(name, "rb", cache_type="none") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, SpecError):
            raise
        except FileNotFoundError as error:
            raise MissingError(f"there is no {key}", evidence=self.url) from error
        except Exception as error:
            # Each far side's library has exceptions of its own.
            raise StoreError(
                f"{self.url} does not answer as it should", evidence=f"{key}: {error}"
            ) from error


def _seconds(about: dict[str, Any]) -> float:
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        found = about.get(name)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
    return 0.0
