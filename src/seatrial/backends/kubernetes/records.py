"""A run's small files as lines of a pod's log, and back: what a pod writes, whoever follows it has. Pure.

A line of a file that only grows stands as it is, behind the file's name and the offset of the line::

    [attempt-0/logs/rank_00003.log +1234] epoch 1

so that nothing is taken twice, and a gap is seen, whatever a stream does. A ``|`` in the place of ``]`` means that no line
break follows. Any other file comes whole, in numbered pieces of base64::

    [attempt-0/exit.json =1764200000000000000 1/1] eyJzY2hlbWE…

and the last line of an attempt says what there is: ``[end attempt-0] {"files": {…}}``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PIECE = 6 << 10
"""Bytes of a file in one line: runtimes cut lines at 16 KiB."""
GROWING = (".log", ".jsonl", ".out")
_HEAD = re.compile(rb"\[([^\s\]|]+) (?:\+(\d+)([\]|])|=(\d+) (\d+)/(\d+)\]) ?")
_END = re.compile(rb"\[end attempt-(\d+)\] ")


@dataclass(frozen=True, slots=True)
class Grown:
    """More of a file that grows."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file that comes whole."""

    name: str
    version: int
    """Its time of change in ns."""
    index: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """What an attempt left: size of each file, and SHA-256 of those that come whole."""

    attempt: int
    files: dict[str, list[Any]]
    left: dict[str, int] = field(default_factory=dict)
    """Files that are too large to come this way."""


def grown_lines(name: str, offset: int, data: bytes, *, final: bool = False) -> Iterator[bytes]:
    """Records for what was added to a file: whole lines, and with `final` also a last one that has no end."""
    head = name.encode()
    while data:
        at = data.find(b"\n", 0, PIECE)
        if at >= 0:
            yield b"[%b +%d] %b" % (head, offset, data[:at])
            used = at + 1
        elif len(data) >= PIECE or final:
            used = min(len(data), PIECE)
            yield b"[%b +%d| %b" % (head, offset, data[:used])
        else:
            return
        offset, data = offset + used, data[used:]


def whole_lines(name: str, version: int, data: bytes) -> Iterator[bytes]:
    """Records for a file that comes whole."""
    count = max(1, -(-len(data) // PIECE))
    for i in range(count):
        part = base64.b64encode(data[i * PIECE : (i + 1) * PIECE])
        yield b"[%b =%d %d/%d] %b" % (name.encode(), version, i + 1, count, part)


def end_line(end: End) -> bytes:
    """The record that an attempt ends with."""
    return b"[end attempt-%d] %b" % (end.attempt, json.dumps({"files": end.files, "left": end.left}).encode())


def parse(line: bytes) -> Grown | Piece | End | None:
    """What a line is; None for anything else that was printed."""
    found = _HEAD.match(line)
    if found is None:
        ended = _END.match(line)
        if ended is None:
            return None
        try:
            data = json.loads(line[ended.end() :])
            return End(int(ended[1]), dict(data["files"]), dict(data["left"]))
        except (ValueError, KeyError, TypeError):
            return None
    name = found[1].decode(errors="replace")
    if name.startswith("/") or ".." in name.split("/"):
        return None
    body = line[found.end() :]
    if found[2] is not None:
        return Grown(name, int(found[2]), body if found[3] == b"|" else body + b"\n")
    try:
        return Piece(name, int(found[4]), int(found[5]), int(found[6]), base64.b64decode(body, validate=True))
    except ValueError:
        return None
