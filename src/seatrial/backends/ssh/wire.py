"""Messages between Seatrial here and Seatrial on a login node: a JSON object a line, and bytes after it where it says so."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from seatrial import __version__

PROTOCOL = 1
MARK = "seatrial-login-node "
"""Begins the first line of the login node; whatever its shell prints before is not ours."""
CHUNK = 1 << 18
"""Bytes of one payload, at most."""
_LONGEST_LINE = 1 << 26


def encode(message: Mapping[str, Any], payload: bytes | None = None) -> bytes:
    """A message; `payload` follows its line."""
    size = {} if payload is None else {"payload": len(payload)}
    return json.dumps({**message, **size}).encode() + b"\n" + (payload or b"")


class Reader:
    """Reads messages from a stream of bytes.

    Args:
        read: at most so many bytes, and at least one; b"" at the end of the stream.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._rest = bytearray()

    def line(self) -> bytes:
        """The next line, without its end; `EOFError` when the stream ends before it, or it has no end."""
        start = 0
        while (end := self._rest.find(b"\n", start)) < 0:
            start = len(self._rest)
            if start > _LONGEST_LINE:
                raise EOFError("a line without an end")
            self._more()
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    def message(self) -> tuple[dict[str, Any], bytes]:
        """The next message and its payload.

        Raises:
            EOFError: the stream ended, or something else than messages is on it.
        """
        try:
            message = dict(json.loads(self.line()))
        except (ValueError, TypeError) as error:
            raise EOFError("not a message") from error
        size = int(message.pop("payload", 0))
        while len(self._rest) < size:
            self._more()
        payload = bytes(self._rest[:size])
        del self._rest[:size]
        return message, payload

    def payloads(self) -> Iterator[bytes]:
        """The payloads of messages up to the first without bytes."""
        while True:
            _, payload = self.message()
            if not payload:
                return
            yield payload

    def _more(self) -> None:
        data = self._read(CHUNK)
        if not data:
            raise EOFError
        self._rest += data


class Output:
    """Messages to the other side. A broken one ends the process: nobody is left who asked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any], payload: bytes | None = None) -> None:
        """Writes one message."""
        self._write(encode(message, payload))

    def hello(self) -> None:
        """The first line."""
        self._write(
            MARK.encode() + encode({"seatrial": __version__, "protocol": PROTOCOL}),
        )

    def _write(self, data: bytes) -> None:
        with self._lock:
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except OSError:
                    os._exit(1)


class Notes(io.TextIOBase):
    """A stderr whose lines go to the person outside."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rest = ""

    def write(self, text: str) -> int:
        """Sends the lines that are whole."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._output.send({"note": line})
        return len(text)
