"""A directory as a store: a mounted disk, a shared file system."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from seatrial.runs.files import sha256_file, sync_directory
from seatrial.runs.stores.base import ABSENT, ConflictError, Entry, MissingError, StoreError, checked

ASIDE = ".partial-"
"""Beginning of the names of files that are being written."""
_LOCK = ".lock"
_BLOCK_BYTES = 4 << 20


class DirectoryStore:
    """Objects are files below a directory; what is not whole has another name.

    Args:
        root: the directory; made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def put(self, path: Path, key: str, sha256: str) -> None:
        """See `Store.put`; what was written is read back."""
        final = self.root / checked(key)
        with _named(self.url):
            final.parent.mkdir(parents=True, exist_ok=True)
            copy_verified(path, final, sha256)

    def get(self, key: str, path: Path, sha256: str | None = None) -> None:
        """See `Store.get`."""
        source = self.root / checked(key)
        with _named(self.url):
            if not source.is_file():
                raise MissingError(f"there is no {key}", evidence=self.url)
            path.parent.mkdir(parents=True, exist_ok=True)
            copy_verified(source, path, sha256)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """See `Store.read`; the tag is the SHA-256."""
        with _named(self.url):
            try:
                data = (self.root / checked(key)).read_bytes()
            except FileNotFoundError:
                return None
        return data, _tag(data)

    def write(self, key: str, data: bytes, when: str | None = None) -> str:
        """See `Store.write`; a lock makes comparing and writing one."""
        final = self.root / checked(key)
        with _named(self.url):
            final.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                found = self.read(key)
                has = ABSENT if found is None else found[1]
                if when is not None and has != when:
                    raise ConflictError(f"{key} was written by somebody else", evidence=self.url)
                aside = _aside(final)
                try:
                    with aside.open("wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                    aside.replace(final)
                finally:
                    aside.unlink(missing_ok=True)
                sync_directory(final.parent)
        return _tag(data)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.entries`; symbolic links are not followed."""
        top = self.root / prefix.rpartition("/")[0]
        for directory, _, names in os.walk(top):
            for name in names:
                path = Path(directory, name)
                key = path.relative_to(self.root).as_posix()
                if not key.startswith(prefix) or name.startswith(ASIDE) or key == _LOCK or path.is_symlink():
                    continue
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                yield Entry(key, found.st_size, found.st_mtime)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`; directories that are empty then go too."""
        with _named(self.url):
            for key in keys:
                path = self.root / checked(key)
                path.unlink(missing_ok=True)
                for parent in path.relative_to(self.root).parents:
                    if (
                        parent == Path()
                        or not (self.root / parent).is_dir()
                        or any((self.root / parent).iterdir())
                    ):
                        break
                    (self.root / parent).rmdir()

    def abandon(self, prefix: str) -> None:
        """See `Store.abandon`."""
        with _named(self.url):
            for path in (self.root / prefix).rglob(f"{ASIDE}*"):
                path.unlink(missing_ok=True)
            if prefix and (self.root / prefix).is_dir():
                for directory, _, _ in os.walk(self.root / prefix, topdown=False):
                    if not any(Path(directory).iterdir()):
                        Path(directory).rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def copy_verified(source: Path, final: Path, sha256: str | None) -> None:
    """Copies a file: written aside, synced, read back, renamed.

    Raises:
        StoreError: the source does not hash to `sha256`, or other bytes are read back than were written.
        OSError: the disk is full, or gone.
    """
    aside = _aside(final)
    digest = hashlib.sha256()
    try:
        with source.open("rb") as reader, aside.open("wb") as writer:
            while block := reader.read(_BLOCK_BYTES):
                digest.update(block)
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
        if sha256 is not None and digest.hexdigest() != sha256:
            raise StoreError(
                f"{source.name} has other bytes than it should have",
                evidence=f"{source}: SHA-256 {digest.hexdigest()[:12]}…, not {sha256[:12]}…",
            )
        if sha256_file(aside) != digest.hexdigest():
            raise StoreError(
                f"{final.name} reads back other bytes than were written", evidence=str(final.parent)
            )
        aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(final.parent)


def _aside(final: Path) -> Path:
    # The name may be as long as a name can be.
    return final.with_name(f"{ASIDE}{os.getpid()}-{secrets.token_hex(4)}")


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _named(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{url} can't be used as a store",
            evidence=str(error),
            remedy=f"is {url} mounted, writable, and not full?",
        ) from error
