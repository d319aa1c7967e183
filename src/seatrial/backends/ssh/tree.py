"""A set of files, named by a hash of all of them: written as a tar stream here, unpacked and checked there."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from seatrial.errors import SpecError
from seatrial.runs.files import sha256_file

_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Item:
    """A file, or a symbolic link."""

    name: str
    """Relative, with slashes."""
    path: Path
    size: int
    executable: bool = False
    target: str | None = None
    """Of a link."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Files, sorted by name, and their hash."""

    sha256: str
    items: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(item.size for item in self.items)


def look(name: str, path: Path) -> Item | None:
    """What lies at `path`, called `name`; None when it is neither a file nor a link."""
    if path.is_symlink():
        return Item(name, path, 0, target=str(path.readlink()))
    if not path.is_file():
        return None
    found = path.stat()
    return Item(name, path, found.st_size, executable=bool(found.st_mode & 0o100))


def make(items: Iterable[Item]) -> Tree:
    """The tree of some files, each read once.

    Raises:
        SpecError: one can't be read.
    """
    ordered = tuple(sorted(items, key=lambda item: item.name))
    try:
        lines = [
            line(item, item.target if item.target is not None else sha256_file(item.path)) for item in ordered
        ]
    except OSError as error:
        raise SpecError("a file that would be sent can't be read", evidence=str(error)) from error
    return Tree(hash_of(lines), ordered)


def line(item: Item, content: str) -> str:
    """What a tree's hash knows of an item: times and owners don't count."""
    kind = "link" if item.target is not None else "exec" if item.executable else "file"
    return f"{kind} {content} {item.name}\n"


def hash_of(lines: Iterable[str]) -> str:
    """Of a tree, from the lines of its items."""
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def pack(tree: Tree, write: Callable[[bytes], None]) -> None:
    """Writes the tree as a tar stream; equal trees give equal bytes.

    Raises:
        SpecError: a file has changed since `make`.
    """
    name = ""
    try:
        with tarfile.open(
            fileobj=cast(Any, _Writable(write)),
            mode="w|",
            format=tarfile.PAX_FORMAT,
            bufsize=_BLOCK,
        ) as tar:
            for item in tree.items:
                name = item.name
                entry = tarfile.TarInfo(name)
                if item.target is not None:
                    entry.type, entry.linkname = tarfile.SYMTYPE, item.target
                    tar.addfile(entry)
                else:
                    entry.size, entry.mode = item.size, 0o555 if item.executable else 0o444
                    with item.path.open("rb") as file:
                        tar.addfile(entry, file)
    except OSError as error:
        raise SpecError(
            "the files changed while they were sent", evidence=f"{name}: {error}", remedy="try again"
        ) from error


def unpack(stream: Iterable[bytes], directory: Path) -> str:
    """Writes the files of a tar stream below an empty directory; the hash of what came.

    The files are read-only, since others with the same hash share them; the directories are not: a run may write there.

    Raises:
        ValueError: a name leads out of the directory.
        OSError: the disk is full, …
    """
    lines = []
    inside = directory.resolve()
    with tarfile.open(fileobj=cast(Any, _Readable(iter(stream))), mode="r|", bufsize=_BLOCK) as tar:
        for entry in tar:
            name = PurePosixPath(entry.name)
            path = directory / name
            if ".." in name.parts or not path.parent.resolve().is_relative_to(inside):
                raise ValueError(f"{entry.name} leads out of the directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            executable = bool(entry.mode & 0o100)
            if entry.issym():
                path.symlink_to(entry.linkname)
                lines.append(line(Item(entry.name, path, 0, target=entry.linkname), entry.linkname))
                continue
            content = hashlib.sha256()
            source = tar.extractfile(entry)
            assert source is not None
            with path.open("xb") as file:
                while block := source.read(_BLOCK):
                    content.update(block)
                    file.write(block)
            path.chmod(0o555 if executable else 0o444)
            lines.append(line(Item(entry.name, path, entry.size, executable), content.hexdigest()))
    return hash_of(lines)


class _Writable:
    """What tarfile writes a stream to."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(data)
        return len(data)


class _Readable:
    """What tarfile reads a stream from."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (part := next(self._parts, b"")):
            self._rest += part
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
