"""The connection between the agents of an attempt: the first node's leads, the others follow.

One TCP connection a follower, JSON a line. Whoever connects must know the attempt's token; a follower that goes away,
or says nothing for too long, is known at once and by name.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from seatrial.errors import PlatformError

SILENCE_S = 60.0
"""Each end says something every second; after so long without a word the other one counts as gone."""
CHECK_IN_S = 300.0
_LONGEST_LINE = 1 << 22
_CONNECT_S = 5.0
_NUM_PORTS = 200


class Wire:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._rest = b""
        self._lines: list[bytes] = []
        self.heard_at = time.monotonic()

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    @property
    def local_address(self) -> str:
        """The address of this end."""
        return str(self._socket.getsockname()[0])

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message; `EOFError` when the other end is gone."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise EOFError(str(error)) from error

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None when none came within `timeout_s`.

        Raises:
            EOFError: the other end is gone, silent for `SILENCE_S`, or speaks something else.
        """
        until = time.monotonic() + timeout_s
        while not self._lines:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                if time.monotonic() - self.heard_at > SILENCE_S:
                    raise EOFError(f"nothing heard for {SILENCE_S:.0f} s")
                return None
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise EOFError(str(error)) from error
            if not data or len(self._rest) > _LONGEST_LINE:
                raise EOFError("the connection was closed")
            self.heard_at = time.monotonic()
            *self._lines, self._rest = (self._rest + data).split(b"\n")
        try:
            message = json.loads(self._lines.pop(0))
        except ValueError as error:
            raise EOFError("not a message") from error
        if not isinstance(message, dict):
            raise EOFError("not a message")
        return message

    def close(self) -> None:
        """Closes this end; the other one's `receive` raises."""
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the agents of an attempt meet, and what they must know."""

    address: str
    port: int
    token: str
    hosts: tuple[str, ...] = ()
    """Names of the nodes by node rank, for messages."""
    patience_s: float = CHECK_IN_S
    """How long the first node waits for the others."""

    def host(self, node_rank: int) -> str:
        """``node 1 (gpu-b)``."""
        name = f" ({self.hosts[node_rank]})" if node_rank < len(self.hosts) else ""
        return f"node {node_rank}{name}"


class Lead:
    """The leading end: listens on the meeting's port, which is thereby known to be free."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        self._next_port = meeting.port + 1
        self._listener = listen(meeting.port, "127.0.0.1" if meeting.address == "127.0.0.1" else "")
        self.wires: dict[int, Wire] = {}

    def check_in(
        self, num_nodes: int, expected: Mapping[str, Any], given_up: Callable[[], bool] = lambda: False
    ) -> list[dict[str, Any]]:
        """Waits until every other node has said hello, and that it runs what this one runs.

        Args:
            num_nodes: of the attempt, this one included.
            expected: what every hello must contain.
            given_up: whether to stop waiting.

        Returns:
            The hellos, by node rank from 1; not all of them when it was given up.

        Raises:
            PlatformError: a node did not come in time, is there twice, can't take part, or differs.
        """

        def refuse(node_rank: int, error: PlatformError) -> None:
            raise error

        hellos = self.gather(range(1, num_nodes), expected, refuse, given_up)
        if len(hellos) < num_nodes - 1 and not given_up():
            raise self._who_is_missing(num_nodes, hellos)
        return [hellos[node_rank] for node_rank in sorted(hellos)]

    def gather(
        self,
        node_ranks: range,
        expected: Mapping[str, Any],
        refuse: Callable[[int, PlatformError], None],
        given_up: Callable[[], bool] = lambda: False,
    ) -> dict[int, dict[str, Any]]:
        """Waits until those nodes have said hello that can, as long as the meeting's patience lasts.

        Args:
            node_ranks: whom to wait for.
            expected: what every hello must contain.
            refuse: told of each node that is there twice, can't take part, or differs; it is not waited for any more.
            given_up: whether to stop waiting.

        Returns:
            The hellos by node rank.
        """
        until = time.monotonic() + self._meeting.patience_s
        hellos: dict[int, dict[str, Any]] = {}
        refused: set[int] = set()
        self._listener.settimeout(0.2)
        while len(hellos.keys() | refused) < len(node_ranks) and not given_up() and time.monotonic() < until:
            try:
                connection, peer = self._listener.accept()
            except TimeoutError:
                continue
            hello = self._hello(wire := Wire(connection))
            if hello is None:
                continue
            node_rank = hello["node_rank"]
            wrong = self._wrong(hello, expected, node_ranks, node_rank in hellos, str(peer[0]))
            if wrong is not None:
                refuse(node_rank, wrong)
                refused.add(node_rank)
                wire.close()
                continue
            hellos[node_rank], self.wires[node_rank] = hello, wire
        return hellos

    def free_port(self) -> int:
        """The next port above the meeting's that nobody has: never one of an earlier start, whose store may still close."""
        for port in range(self._next_port, self._meeting.port + _NUM_PORTS):
            with contextlib.suppress(PlatformError), listen(port):
                self._next_port = port + 1
                return port
        raise PlatformError(
            "no free port for the ranks",
            evidence=f"ports {self._meeting.port + 1} to {self._meeting.port + _NUM_PORTS - 1} are used up",
        )

    def close(self) -> None:
        """Lets go of everybody."""
        for wire in self.wires.values():
            wire.close()
        self._listener.close()

    def _hello(self, wire: Wire) -> dict[str, Any] | None:
        """What a newcomer says; None for one that doesn't know the token."""
        with contextlib.suppress(EOFError):
            hello = wire.receive(_CONNECT_S) or {}
            if hmac.compare_digest(str(hello.pop("token", "")), self._meeting.token):
                return hello
        wire.close()
        return None

    def _wrong(
        self, hello: dict[str, Any], expected: Mapping[str, Any], node_ranks: range, twice: bool, peer: str
    ) -> PlatformError | None:
        node_rank = hello["node_rank"]
        name = f"{self._meeting.host(node_rank)}, {hello.get('host')} at {peer},"
        if "error" in hello:
            return PlatformError(
                f"{name} can't take part: {hello['error']['what']}",
                evidence=hello["error"]["evidence"], remedy=hello["error"]["remedy"],
            )  # fmt: skip
        differs = {key: (hello.get(key), value) for key, value in expected.items() if hello.get(key) != value}
        if differs:
            key, (theirs, ours) = next(iter(differs.items()))
            return PlatformError(
                f"{name} runs something else", evidence=f"{key} is {theirs} there, and {ours} here"
            )
        if twice or node_rank not in node_ranks:
            return PlatformError(f"{name} is there twice" if twice else f"{name} is one too many",
                                 evidence=f"{node_ranks.stop} nodes, one agent each, were asked for")  # fmt: skip
        return None

    def _who_is_missing(self, num_nodes: int, hellos: Mapping[int, Any]) -> PlatformError:
        missing = [self._meeting.host(r) for r in range(1, num_nodes) if r not in hellos]
        return PlatformError(
            f"{len(missing)} of {num_nodes} nodes did not check in: {', '.join(missing)}",
            evidence=f"waited {self._meeting.patience_s:.0f} s on {self._meeting.address}:{self._meeting.port}",
            remedy="is that port open between the nodes, and does the address belong to the first one?",
        )


def connect(meeting: Meeting, hello: Mapping[str, Any]) -> Wire:
    """Says hello to the leading agent, which may start later than this one.

    Raises:
        PlatformError: it can't be reached within the meeting's patience.
    """
    until = time.monotonic() + meeting.patience_s
    while True:
        try:
            wire = Wire(
                socket.create_connection((meeting.address, meeting.port), min(_CONNECT_S, meeting.patience_s))
            )
            wire.send({**hello, "token": meeting.token})
            return wire
        except (OSError, EOFError) as error:
            if time.monotonic() > until:
                raise PlatformError(
                    f"{socket.gethostname()} can't reach {meeting.host(0)}",
                    evidence=f"{meeting.address}:{meeting.port}: {error}",
                    remedy="is that port open between the nodes?",
                ) from error
            time.sleep(0.2)


def listen(port: int, address: str = "") -> socket.socket:
    """A listening socket on an address, or on every one; `PlatformError` when the port is taken."""
    try:
        return socket.create_server((address, port), backlog=1024)
    except OSError as error:
        raise PlatformError(
            f"port {port} is not free on {socket.gethostname()}", evidence=str(error)
        ) from error


def own_address(meeting: Meeting) -> str:
    """The address of this machine from which the first node is reached; empty where it is not. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((meeting.address, meeting.port))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has `address`; None for a loopback or a foreign address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            return None if address.startswith("127.") or address == "::1" else name
    return None


def is_local(address: str) -> bool:
    """Whether `address` (a name or a number) belongs to this machine."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    mine = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    return bool(found & mine)


def meeting_from(environment: Mapping[str, str]) -> Meeting | None:
    """The meeting that `environment_of` wrote into an environment; None where there is none."""
    where = environment.get("SEATRIAL_LEAD")
    if not where:
        return None
    address, _, port = where.rpartition(":")
    return Meeting(
        address, int(port), environment["SEATRIAL_LINK_TOKEN"],
        tuple(name for name in environment.get("SEATRIAL_HOSTS", "").split(",") if name),
        float(environment.get("SEATRIAL_CHECK_IN_S") or CHECK_IN_S),
    )  # fmt: skip
