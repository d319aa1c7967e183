"""One node's part of an acceptance test: ``python -m seatrial.job.checks.crew RUN_DIR --attempt K --node-rank N``.

It starts the processes that the conductor orders, each with a time limit, ends those that are late or no longer wanted, and
says how each ended. It judges nothing, and lives as long as the conductor does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from seatrial import command
from seatrial.errors import ExitCode, PlatformError, SeatrialError
from seatrial.job import gather
from seatrial.job.environment import Place, rank_environment
from seatrial.job.link import Meeting, Wire, connect, interface_of, listen, meeting_from, own_address
from seatrial.job.processes import adopt_orphans, die_with_parent, end_descendants
from seatrial.runs import hardware
from seatrial.runs.files import read_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan
from seatrial.spec import injections

_POLL_S = 0.05
_ALIVE_EVERY_S = 1.0
_END_GRACE_S = 1.0
_LAST_LINES = 5
_FIRST_PORT, _NUM_PORTS = 22_000, 8_000
"""Where ranks meet: below what the kernel hands out (32768 to 60999 on Linux), above what the agents meet at."""


@dataclass
class _Process:
    index: int
    process: command.Process
    log: Path
    log_start: int
    began: float
    until: float
    late: bool = False
    ended: bool = False


def main() -> int:
    """Serves the conductor of an attempt to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--node-rank", type=int, required=True)
    args = parser.parse_args()
    die_with_parent()
    meeting = meeting_from(os.environ)
    assert meeting is not None, "the conductor says where to meet"
    return int(follow(args.run_dir, args.attempt, args.node_rank, meeting))


def follow(run_dir: Path, attempt: int, node_rank: int, meeting: Meeting) -> ExitCode:
    """Says hello to the conductor, and does what it orders until it lets go."""
    adopt_orphans()
    if _is_dead(run_dir, node_rank):
        return ExitCode.PLATFORM
    host = socket.gethostname()
    hello = {"node_rank": node_rank, "host": host}
    address = own_address(meeting)
    try:
        plan = read_plan(run_dir, attempt)
        gather.check_paths(plan)
    except (SeatrialError, OSError) as error:
        known = error if isinstance(error, SeatrialError) else PlatformError(str(error))
        connect(meeting, {**hello, "error": known.to_dict()})
        return ExitCode.PLATFORM
    wire = connect(
        meeting,
        {
            **hello,
            "address": address,
            "hardware": hardware.read(),
            "run_id": plan.run_id,
            "attempt": plan.attempt,
        },
    )
    return Crew(plan, Place(node_rank, meeting.address, interface_of(address)), wire).run()


def _is_dead(run_dir: Path, node_rank: int) -> bool:
    """Whether the test wants this node never to answer."""
    words = (read_json(RunPaths(run_dir).spec) or {}).get("inject", [])
    faults = [injections.parse(word) for word in words]
    return any(fault.kind == "dead-node" and fault.node == node_rank for fault in faults)


class Crew:
    """What a node does in an acceptance test.

    Args:
        plan: the attempt's.
        place: which node this is.
        wire: the connection to the conductor.
    """

    def __init__(self, plan: LaunchPlan, place: Place, wire: Wire) -> None:
        self._plan = plan
        self._place = place
        self._wire = wire
        self._ports = free_ports(f"{plan.run_id} {place.node_rank}")
        self._order = 0
        self._running: list[_Process] = []
        self._asked: int | None = None
        self._said_at = 0.0

    def run(self) -> ExitCode:
        """Until the conductor lets go, or is gone."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        try:
            while self._do(self._wire.receive(_POLL_S)):
                self._look()
        except EOFError:
            return ExitCode.PLATFORM
        finally:
            end_descendants(grace_s=0.5)
        return ExitCode.OK

    def _do(self, message: dict[str, Any] | None) -> bool:
        match (message or {}).get("do"):
            case "close":
                return False
            case "run":
                assert message is not None
                self._start(message)
            case "end":
                assert message is not None
                if message["order"] == self._order:
                    self._end(self._running)
            case "time":
                assert message is not None
                self._wire.send({"say": "time", "sent": message["sent"], "here": time.time()})
            case "port":
                self._wire.send({"say": "port", "port": next(self._ports)})
        return True

    def _start(self, message: Mapping[str, Any]) -> None:
        self._order = message["order"]
        now = time.monotonic()
        base = rank_environment(self._plan, os.environ, place=self._place)
        for index, given in enumerate(message["processes"]):
            log = Path(given["log"])
            log.parent.mkdir(parents=True, exist_ok=True)
            start = log.stat().st_size if log.exists() else 0
            try:
                process = command.start(
                    [self._plan.python, "-m", f"seatrial.job.checks.{given['program']}"],
                    log=log, env=base | given["env"], cwd=self._plan.cwd,
                )  # fmt: skip
            except PlatformError as error:
                self._say_ended(index, None, 0.0, late=False, ended=False, lines=[str(error)])
                continue
            self._running.append(_Process(index, process, log, start, now, now + message["timeout_s"]))

    def _look(self) -> None:
        now = time.monotonic()
        for running in list(self._running):
            code = running.process.poll()
            if code is None and now > running.until:
                running.late = True
                self._end([running])
                code = running.process.poll()
            if code is not None:
                self._running.remove(running)
                self._say_ended(
                    running.index, code, now - running.began, late=running.late, ended=running.ended,
                    lines=_last_lines(running.log, running.log_start),
                )  # fmt: skip
        if self._asked is not None:
            self._wire.send({"say": "stop", "signal": self._asked})
            self._asked = None
        if now - self._said_at > _ALIVE_EVERY_S:
            self._said_at = now
            self._wire.send({"say": "alive"})

    def _say_ended(
        self, index: int, code: int | None, seconds: float, *, late: bool, ended: bool, lines: list[str]
    ) -> None:
        self._wire.send(
            {"say": "ended", "order": self._order, "index": index, "returncode": code, "seconds": round(seconds, 3),
             "late": late, "ended": ended, "last_lines": lines, "time": time.time()}
        )  # fmt: skip

    def _end(self, processes: list[_Process]) -> None:
        """Ends processes with all that descends from them, by pid."""
        below: list[psutil.Process] = []
        for running in processes:
            running.ended = True
            with contextlib.suppress(psutil.NoSuchProcess):
                below += psutil.Process(running.process.pid).children(recursive=True)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for running in processes:
                running.process.send_signal(number)
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            until = time.monotonic() + _END_GRACE_S
            # psutil would reap the children that their exit codes are asked of below.
            while time.monotonic() < until and any(p.process.poll() is None for p in processes):
                time.sleep(_POLL_S)
            _, below = psutil.wait_procs(below, timeout=max(0.0, until - time.monotonic()))
            if not below and all(p.process.poll() is not None for p in processes):
                return

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = number  # the conductor decides for all


def free_ports(salt: str) -> Iterator[int]:
    """Ports of this machine where ranks can meet, each once; nodes and tests that share a machine look in different places."""
    first = zlib.crc32(salt.encode()) % _NUM_PORTS
    for offset in range(_NUM_PORTS):
        port = _FIRST_PORT + (first + offset) % _NUM_PORTS
        try:
            listen(port).close()
        except PlatformError:
            continue
        yield port
    raise PlatformError(
        f"no free port on {socket.gethostname()}", evidence=f"{_NUM_PORTS} from {_FIRST_PORT}"
    )


def _last_lines(log: Path, start: int) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
    except OSError as error:
        return [str(error)]
    return [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]


if __name__ == "__main__":
    sys.exit(main())
