"""An S3 server on loopback (moto's), and faults between it and whoever talks to it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from seatrial import command
from seatrial.errors import PlatformError

_PATIENCE_S = 60.0
_BLOCK = 1 << 16


class S3Server:
    """moto's server in a process of its own; what is stored is gone when it ends.

    Needs ``pip install 'moto[server]'``. moto keeps checksums that it is sent, and does not compare them with the bytes:
    what comes out wrong is for the reader to find.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="seatrial-s3-")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._log = Path(self._directory.name, "log")
        self._process = command.start(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            log=self._log, env=os.environ | {"MOTO_S3_ALLOW_CROSSACCOUNT_ACCESS": "true"},
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    @property
    def env(self) -> dict[str, str]:
        """What makes boto3 and the AWS command line talk to it."""
        return environment(self.port)

    def __enter__(self) -> S3Server:
        """Waits until it answers."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return self
            time.sleep(0.1)
        said = self._log.read_text(errors="replace")[-500:]
        self.close()
        raise PlatformError(
            "the S3 server does not start", evidence=said, remedy="pip install 'moto[server]'"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self.close()

    def close(self) -> None:
        """Ends it, by its pid."""
        for number in (15, 9):
            self._process.send_signal(number)
            if self._process.wait(5.0) is not None:
                break
        self._directory.cleanup()

    def make_bucket(self, name: str) -> None:
        """An empty bucket."""
        import boto3

        boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",  # noqa: S106 - moto takes any
        ).create_bucket(Bucket=name)  # fmt: skip


def environment(port: int) -> dict[str, str]:
    """What makes boto3 talk to a server on loopback, and to nothing else."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


@dataclass
class Faults:
    """What a `FaultyProxy` does wrong; may be changed while it runs."""

    refuse: int = 0
    """So many requests more are answered with `status`."""
    status: str = "503 Slow Down"
    code: str = "SlowDown"
    """The error in the body of what is refused."""
    only: str = ""
    """Only requests whose first line has this text are disturbed: ``PUT``, ``partNumber=3``."""
    reset_after: int | None = None
    """Each connection is reset after so many bytes to the server."""
    resets: int = 0
    """So many connections more are reset."""
    cut_after: int | None = None
    """Answers break off after so many bytes, as long as there are `resets`."""
    flip: int = 0
    """In so many answers more, a byte of the body is another."""
    delay_s: float = 0.0
    """Before each request goes on."""


class FaultyProxy:
    """A TCP proxy on loopback that stands between a client of S3 and the server, and disturbs as it is told.

    Args:
        port: the server's.
    """

    def __init__(self, port: int) -> None:
        self.faults = Faults()
        self.requests: list[str] = []
        """The first line of each."""
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        """What makes boto3 talk to the server through it."""
        return environment(self.port)

    def __enter__(self) -> FaultyProxy:
        """Itself: it listens since it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listens no more."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        """One connection: a request and its answer after the other."""
        with (
            client,
            contextlib.suppress(OSError, EOFError),
            socket.create_connection(("127.0.0.1", self._target)) as server,
        ):
            while True:
                head, body = _head(client)
                line = head.split(b"\r\n", 1)[0].decode(errors="replace")
                with self._lock:
                    self.requests.append(line)
                    mine = self.faults.only in line
                    refused = mine and self.faults.refuse > 0
                    reset = mine and not refused and self.faults.resets > 0
                    flip = mine and not refused and self.faults.flip > 0
                    self.faults.refuse -= refused
                    self.faults.resets -= reset
                    self.faults.flip -= flip
                if mine and self.faults.delay_s:
                    time.sleep(self.faults.delay_s)
                if refused:
                    for _ in _rest(client, head, body, expect=client):
                        pass
                    client.sendall(self._refusal())
                    continue
                server.sendall(head)
                sent = 0
                for block in _rest(client, head, body, expect=None):
                    sent += len(block)
                    if reset and self.faults.reset_after is not None and sent > self.faults.reset_after:
                        _reset(client)
                        return
                    server.sendall(block)
                self._answer(client, server, line, flip=flip, cut=self.faults.cut_after if reset else None)

    def _answer(
        self, client: socket.socket, server: socket.socket, line: str, *, flip: bool, cut: int | None
    ) -> None:
        head, body = _head(server)
        while head.startswith(b"HTTP/1.1 100"):
            client.sendall(head)
            head, body = _head(server, body)
        client.sendall(head)
        sent = 0
        for block in () if line.startswith("HEAD ") else _rest(server, head, body, expect=None):
            if flip and block:
                block = bytes([block[0] ^ 1]) + block[1:]
                flip = False
            sent += len(block)
            if cut is not None and sent > cut:
                client.sendall(block[: max(0, cut - (sent - len(block)))])
                _reset(client)
                raise EOFError
            client.sendall(block)

    def _refusal(self) -> bytes:
        body = f"<?xml version='1.0'?><Error><Code>{self.faults.code}</Code><Message>on purpose</Message></Error>".encode()
        return (
            f"HTTP/1.1 {self.faults.status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body


def _head(connection: socket.socket, begun: bytes = b"") -> tuple[bytes, bytes]:
    """The head of a message with its empty line, and what came of the body with it."""
    data = begun
    while b"\r\n\r\n" not in data:
        block = connection.recv(_BLOCK)
        if not block:
            raise EOFError
        data += block
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def _rest(
    connection: socket.socket, head: bytes, begun: bytes, expect: socket.socket | None
) -> Iterator[bytes]:
    """The body of a message: by its length, or in chunks as they come."""
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (row.partition(b":") for row in head.split(b"\r\n")[1:])
    }
    if expect is not None and b"expect" in fields:
        expect.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if fields.get(b"transfer-encoding") == b"chunked":
        data = begun
        yield begun
        while not data.endswith(b"0\r\n\r\n") and not (
            data.rstrip().rpartition(b"\r\n\r\n")[0] and data.endswith(b"\r\n\r\n")
        ):
            block = connection.recv(_BLOCK)
            if not block:
                return
            data = (data + block)[-4096:]
            yield block
        return
    left = int(fields.get(b"content-length", 0)) - len(begun)
    if begun:
        yield begun
    while left > 0:
        block = connection.recv(min(_BLOCK, left))
        if not block:
            raise EOFError
        left -= len(block)
        yield block


def _reset(connection: socket.socket) -> None:
    """Ends a connection with RST: SO_LINGER of no time."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
