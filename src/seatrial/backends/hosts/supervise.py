"""What keeps an attempt on several machines together: ``python -m seatrial.backends.hosts.supervise RUN_DIR --attempt K``.

It holds as many machines as are needed, starts an agent on each through an anchor, passes signals on to the first one's, and
ends with its exit code. Where it dies, the connections are closed, and the anchors end what they have started.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from seatrial import __version__, command
from seatrial.backends.hosts.anchor import ALIVE_S, MARK, SILENCE_S
from seatrial.errors import ExitCode, InterruptedRunError, PlatformError, SeatrialError
from seatrial.runs.clock import now
from seatrial.runs.ends import end_failure, end_record
from seatrial.runs.files import write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan

KILL = signal.SIGQUIT
"""Asks for an end without patience on all machines."""
_POLL_S = 0.05
_CONNECT_S = 20.0
_OTHERS_S = 30.0
"""Once the first agent has ended, the others do, too."""


def say(text: str) -> None:
    """One line of the attempt's log."""
    print(f"{now()} hosts: {text}", flush=True)  # noqa: T201 - the attempt's log


@dataclass
class Link:
    """The connection to one machine's anchor."""

    host: str
    address: str
    talk: command.Conversation
    log: Path
    rest: bytes = b""
    lines: list[bytes] = field(default_factory=list)
    heard_at: float = field(default_factory=time.monotonic)
    ended: int | None = None

    def send(self, message: Mapping[str, Any]) -> None:
        """Says something; a connection that is gone is found out by reading."""
        try:
            self.talk.write(json.dumps(message).encode() + b"\n", 10)
        except (EOFError, TimeoutError, OSError):
            return

    def next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when none came in time.

        Raises:
            EOFError: the connection is gone.
        """
        until = time.monotonic() + timeout_s
        while True:
            while self.lines:
                line = self.lines.pop(0).decode(errors="replace")
                if line.startswith(MARK):  # a login shell may print what it likes
                    return dict(json.loads(line.removeprefix(MARK)))
            try:
                data = self.talk.read(1 << 16, max(until - time.monotonic(), 0.0))
            except TimeoutError:
                return None
            if not data:
                raise EOFError
            self.heard_at = time.monotonic()
            *self.lines, self.rest = (self.rest + data).split(b"\n")

    def said(self) -> str:
        """What ssh itself said, its last line."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"


class Supervisor:
    """One attempt.

    Args:
        plan: the attempt's.
        directory: for what ssh says.
    """

    def __init__(self, plan: LaunchPlan, directory: Path) -> None:
        self._plan, self._directory = plan, directory
        self._links: list[Link] = []
        self._signals: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, KILL):
            signal.signal(number, self._on_signal)

    def run(self) -> int:
        """The exit code of the attempt's first agent."""
        try:
            ports = self._gather()
            if self._signals:
                raise InterruptedRunError("stopped before any agent was started")
            self._start(ports[0])
            return self._follow()
        finally:
            for link in self._links:
                link.talk.close(self._plan.grace_s if link.ended is None else 5)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _gather(self) -> list[int]:
        """Holds as many machines as the plan needs, in the fleet's order; the free ports that they name.

        Raises:
            PlatformError: there aren't enough that can be had.
        """
        ports: list[int] = []
        why: list[str] = []
        for node in self._plan.platform["native"]["nodes"]:
            if len(ports) == self._plan.nodes or self._signals:
                break
            link = self._connect(node["host"], node["address"])
            try:
                answer = self._hold(link)
            except EOFError:
                answer = {"gone": link.said()}
            if "held" in answer:
                self._links.append(link)
                ports.append(int(answer["port"]))
                say(f"holding {link.host}")
                continue
            link.talk.close()
            reason = f"in use by {answer['busy']}" if "busy" in answer else answer.get("gone", "it did not answer")  # fmt: skip
            why.append(f"{link.host}: {reason}")
            say(why[-1])
        if len(ports) < self._plan.nodes and not self._signals:
            raise PlatformError(
                f"{len(ports)} of {self._plan.nodes} machines can be had", evidence="\n".join(why) or "the fleet has no more",
                remedy="wait for the others, ask for fewer nodes, or seatrial node verify",
            )  # fmt: skip
        return ports

    def _connect(self, host: str, address: str) -> Link:
        log = self._directory / f"ssh-{len(list(self._directory.iterdir()))}.log"
        python = self._plan.platform["native"]["python"]
        argv = [
            "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6",
            "--", host, f"exec {python} -m seatrial.backends.hosts.anchor",
        ]  # fmt: skip
        return Link(host, address, command.converse(argv, log=log), log)

    def _hold(self, link: Link) -> dict[str, Any]:
        hello = link.next(_CONNECT_S)
        if hello is None:
            return {"gone": f"no answer within {_CONNECT_S:g} s"}
        if hello.get("hello") != __version__:
            return {"gone": f"it has Seatrial {hello.get('hello')}, here is {__version__}"}
        link.send({"run_id": self._plan.run_id})
        return link.next(_CONNECT_S) or {"gone": "no answer"}

    def _start(self, port: int) -> None:
        plan = self._plan
        lead, token = self._links[0], secrets.token_hex(16)
        address = lead.address
        hosts = ",".join(link.host for link in self._links)
        for rank, link in enumerate(self._links):
            env = {
                "SEATRIAL_NODE_RANK": str(rank), "SEATRIAL_LEAD": f"{address}:{port}", "SEATRIAL_LINK_TOKEN": token, "SEATRIAL_HOSTS": hosts,
            }  # fmt: skip
            link.send(
                {
                    "start": {
                        "run_dir": str(plan.run_dir), "cwd": str(plan.cwd), "attempt": plan.attempt, "node_rank": rank, "env": env,
                        "grace_s": plan.grace_s,
                    }
                }
            )  # fmt: skip
        say(f"{len(self._links)} agents on {hosts}; they meet at {address}:{port}")

    def _follow(self) -> int:
        """To the end of the first agent; the others' ends are waited for."""
        lead = self._links[0]
        told = time.monotonic()
        over: float | None = None
        while True:
            if time.monotonic() - told > ALIVE_S:
                told = time.monotonic()
                for link in self._links:
                    link.send({"alive": True})
            while self._signals:
                number = self._signals.pop(0)
                # The first agent passes it on: all ranks stop at the same step. What is to be killed is killed everywhere.
                for link in self._links if number == KILL else [lead]:
                    link.send({"kill": True} if number == KILL else {"signal": number})
            for link in self._links:
                if link.ended is None:
                    self._hear(link)
            time.sleep(_POLL_S)
            if lead.ended is not None and over is None:
                over = time.monotonic()
            waiting = [link.host for link in self._links if link.ended is None]
            if over is not None and (not waiting or time.monotonic() - over > _OTHERS_S):
                if waiting:
                    say(f"still not ended on {', '.join(waiting)}: the connection is closed, which ends it")
                return lead.ended if lead.ended is not None else int(ExitCode.PLATFORM)

    def _hear(self, link: Link) -> None:
        try:
            message = link.next(0.0)
            if message is None:
                if time.monotonic() - link.heard_at > SILENCE_S:
                    raise EOFError
                return
        except EOFError:
            say(f"the connection to {link.host} is gone: {link.said()}; its anchor ends what runs there")
            link.ended = int(ExitCode.PLATFORM)
            return
        if "lines" in message:
            for line in message["lines"]:
                print(f"{link.host}: {line}", flush=True)  # noqa: T201 - the attempt's log
        elif "error" in message:
            say(f"{link.host}: {message['error']}")
            link.ended = int(ExitCode.PLATFORM)
        elif "ended" in message:
            link.ended = int(message["ended"])
            if link.ended < 0:
                say(f"the agent on {link.host} was killed by signal {-link.ended}")


def main() -> int:
    """Supervises one attempt; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    args = parser.parse_args()
    started = now()
    try:
        plan = read_plan(args.run_dir, args.attempt)
        with tempfile.TemporaryDirectory(prefix="seatrial-hosts-") as directory:
            return Supervisor(plan, Path(directory)).run()
    except SeatrialError as error:
        say(f"error: {error}")
        _record(args.run_dir, args.attempt, started, error)
        return int(error.exit_code)


def _record(run_dir: Path, attempt: int, started: str, error: SeatrialError) -> None:
    """What no agent can tell, because none was started."""
    path = RunPaths(run_dir).attempt(attempt).exit
    if not path.exists():
        stopped = isinstance(error, InterruptedRunError)
        failure = end_failure(error.what, error.evidence) | {"remedy": error.remedy, "told": True}
        record = end_record(
            attempt,
            "interrupted" if stopped else "failed",
            error.exit_code,
            started,
            None if stopped else failure,
        )
        write_json(path, record)


if __name__ == "__main__":
    sys.exit(main())
