"""Talking to Seatrial on a login node through the user's own ssh: one process there serves all that a command asks."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seatrial import __version__, command
from seatrial.backends.ssh import wire
from seatrial.backends.ssh.failures import Login, differs, explain, silent
from seatrial.errors import PlatformError, SeatrialError, from_dict

CONNECT_S = 15
"""For the network; what asks for more patience has it in ~/.ssh/config of the user, and is asked there."""
ANSWER_S = 60.0
"""A login node that works says so every few seconds; one that has said nothing for so long is gone."""
PERSIST_S = 120
"""How long an idle connection of ours is kept for the next command."""
_HOLDS_S = 0.5
_LONGEST_HOLD_S = 60.0
"""A failure to connect holds for so long, twice as long with each one more: who asks for many runs shall not wait for each,
and a login node that is asked again and again shall not take it for an attack."""
_LONGEST_SOCKET = 104 - 1 - 40 - 1 - 17
"""Of its directory: a Unix socket's path has 104 bytes, %C has 40, and ssh adds 17 while it makes one."""
_MODULE = "seatrial.cli.login_node"


def open_login(login: Login) -> Connection:
    """The connection to a login node, one for the whole process; it connects when it is first asked something."""
    if login not in _open:
        _open[login] = Connection(login)
    return _open[login]


_open: dict[Login, Connection] = {}


class Connection:
    """Asks one login node; reconnects when it is asked again after a failure.

    Args:
        login: where.
    """

    def __init__(self, login: Login) -> None:
        self.login = login
        self.say: Callable[[str], None] = lambda text: None
        """Gets what the login node says to people while it works."""
        self._talk: command.Conversation | None = None
        self._failure: PlatformError | None = None
        self._failures = 0
        self._holds_until = 0.0
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def ask(
        self, do: str, *, feed: Callable[[Callable[[bytes], None]], None] | None = None, **arguments: Any
    ) -> tuple[Any, bytes]:
        """What the login node answers, and the bytes that come with it.

        Args:
            do: the name of what it shall do.
            feed: writes the bytes that follow the question; called only if the login node wants them.
            arguments: of it, as plain data.

        Raises:
            UnreachableError: it can't be reached, or was lost; it may go on with what it was asked.
            SeatrialError: its own error.
        """
        talk = self._talk or self._connect()
        try:
            talk.write(wire.encode({"do": do, **arguments}), ANSWER_S)
            while True:
                message, payload = self._reader.message()
                if "note" in message:
                    self.say(message["note"])
                elif "error" in message:
                    raise from_dict(message["error"])
                elif "send" in message:
                    self._send(talk, feed)
                elif "answer" in message:
                    return message["answer"], payload
        except EOFError:
            raise self._lost() from None
        except TimeoutError:
            self.close(kill_master=True)
            raise silent(self.login, ANSWER_S, begun=True) from None
        except KeyboardInterrupt:
            # An answer may be under way, and would be taken for that of the next question.
            self.close()
            raise

    def close(self, *, kill_master: bool = False) -> int:
        """Ends the connection, and `kill_master` also what keeps it open for later commands; ssh's exit code."""
        talk, self._talk = self._talk, None
        code = talk.close() if talk is not None else 0
        options = control_options(self.login) if kill_master else []
        if options:
            # One whose network is gone would swallow the next attempt, too.
            with contextlib.suppress(PlatformError):
                command.run(["ssh", *options, "-O", "exit", "--", f"ssh://{self.login.host}"], timeout_s=5)
        return code

    def _connect(self) -> command.Conversation:
        if self._failure is not None and time.monotonic() < self._holds_until:
            raise self._failure
        try:
            talk = self._connected()
        except PlatformError as error:
            held_s = min(_HOLDS_S * 2 ** min(self._failures, 10), _LONGEST_HOLD_S)
            self._failure, self._failures, self._holds_until = (
                error,
                self._failures + 1,
                time.monotonic() + held_s,
            )
            raise
        self._failures = 0
        return talk

    def _connected(self) -> command.Conversation:
        self._directory = self._directory or tempfile.TemporaryDirectory(prefix="seatrial-")
        self._log = Path(self._directory.name) / "ssh.log"
        self._log.write_bytes(b"")
        talk = command.converse(
            [
                "ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", *control_options(self.login),
                "--", f"ssh://{self.login.host}", program(self.login),
            ],
            log=self._log,
        )  # fmt: skip
        reader = wire.Reader(lambda size: talk.read(size, ANSWER_S))
        before: list[str] = []
        try:
            while not (line := reader.line().decode(errors="replace")).startswith(wire.MARK):
                before.append(line)
        except EOFError:
            code = talk.close()
            raise explain(self.login, code, "\n".join([*before, self._said()])) from None
        except TimeoutError:
            self._talk = talk
            self.close(kill_master=True)
            raise silent(self.login, ANSWER_S, begun=False) from None
        except KeyboardInterrupt:
            talk.close()
            raise
        self._check(talk, json.loads(line.removeprefix(wire.MARK)))
        self._talk, self._reader = talk, reader
        return talk

    def _check(self, talk: command.Conversation, hello: dict[str, Any]) -> None:
        if (hello.get("seatrial"), hello.get("protocol")) != (__version__, wire.PROTOCOL):
            talk.close()
            raise differs(self.login, str(hello.get("seatrial")))

    def _send(
        self, talk: command.Conversation, feed: Callable[[Callable[[bytes], None]], None] | None
    ) -> None:
        def write(data: bytes) -> None:
            for start in range(0, len(data), wire.CHUNK):
                talk.write(wire.encode({}, data[start : start + wire.CHUNK]), ANSWER_S)

        try:
            if feed is not None:
                feed(write)
        except SeatrialError:
            self.close()  # half a stream is nothing that it could go on from
            raise
        talk.write(wire.encode({}, b""), ANSWER_S)

    def _lost(self) -> PlatformError:
        code = self.close()
        return explain(self.login, code, self._said(), begun=True)

    def _said(self) -> str:
        return self._log.read_text(errors="replace")


def program(login: Login) -> str:
    """What the login shell is given to run; ``~/`` is its to replace, everything else is quoted."""
    python = login.python
    home, rest = ("~/", python[2:]) if python.startswith("~/") else ("", python)
    return f"exec {home}{shlex.quote(rest)} -m {_MODULE} {shlex.quote(login.directory)}"


def control_options(login: Login) -> list[str]:
    """What lets many connections share one handshake; nothing where the user has arranged that already."""
    try:
        done = command.run(["ssh", "-G", "--", f"ssh://{login.host}"], timeout_s=10)
    except PlatformError as error:
        raise PlatformError(
            "there is no ssh here", evidence=str(error.evidence), remedy="install OpenSSH's client"
        ) from error
    theirs = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("controlpath ")]
    directory = None if theirs and theirs[0] != "none" else socket_directory()
    if directory is None:
        return []
    return [
        "-o", "ControlMaster=auto", "-o", f"ControlPath={directory}/%C", "-o", f"ControlPersist={PERSIST_S}",
    ]  # fmt: skip


def socket_directory() -> Path | None:
    """A directory that only this user can look into, for ssh's sockets; None where there can be none."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    for root in (base, "/tmp"):
        path = Path(root) / f"seatrial-ssh-{os.getuid()}"
        if len(str(path)) > _LONGEST_SOCKET or "%" in str(path):
            continue
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
        except OSError:
            continue
        # Whoever made it first could otherwise take part in what is said.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return path
    return None
