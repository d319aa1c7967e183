"""All ranks of a stage on this node, started and ended as one: by the warm process, or by torchrun."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from seatrial import command
from seatrial.errors import PlatformError, from_dict
from seatrial.job.environment import Place, rank_environment, warm_environment
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage

_LAST_WAIT_S = 5.0


class Gang(Protocol):
    """Starts the ranks of one stage after the other; each start is waited for to its end before the next."""

    log: Path
    """What the launcher of the ranks itself printed."""

    def start(self, stage: Stage, restart: int, port: int) -> None:
        """Starts this node's ranks of a stage of the plan; those of all nodes meet at `port` of the first."""

    def wait(self, timeout_s: float) -> int | None:
        """0 when every rank has ended with 0, another number when one has not; None while they run.

        Raises:
            SeatrialError: they could not be started.
        """

    def ask(self) -> None:
        """SIGTERM to every rank; those that live on after the plan's grace are killed."""

    def spared(self) -> set[int]:
        """Processes that serve the next stage too."""

    def close(self) -> None:
        """No more stages will come."""


def gang_of(plan: LaunchPlan, place: Place, warm: WarmProcess | None = None) -> Gang:
    """The launcher that the plan names; `warm` is its warm process where one was started ahead."""
    return TorchrunGang(plan, place) if plan.launcher == "torchrun" else WarmGang(plan, place, warm)


class TorchrunGang:
    """One torchrun for each start."""

    def __init__(self, plan: LaunchPlan, place: Place) -> None:
        self._plan = plan
        self._place = place
        self._attempt = RunPaths(plan.run_dir).attempt(plan.attempt)
        self._process: command.Process | None = None
        self.log = self._attempt.launcher_log("torchrun", place.node_rank)

    def start(self, stage: Stage, restart: int, port: int) -> None:  # noqa: D102
        failures = self._attempt.launcher_failures(self._place.node_rank)
        self._process = command.start(
            torchrun_argv(self._plan, self._place, stage, failures, port),
            log=self.log,
            env=rank_environment(self._plan, os.environ, restart, self._place),
            cwd=self._plan.cwd,
        )

    def wait(self, timeout_s: float) -> int | None:  # noqa: D102
        assert self._process is not None
        return self._process.wait(timeout_s)

    def ask(self) -> None:  # noqa: D102
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def spared(self) -> set[int]:  # noqa: D102
        return set()

    def close(self) -> None:  # noqa: D102
        return


class WarmProcess:
    """A process of `job.warm` and the way to talk to it."""

    def __init__(self, python: str, kind: str, threads: int, log: Path | None = None) -> None:
        self.channel, theirs = command.Channel.pair()
        self.process = command.start(
            [python, "-m", "seatrial.job.warm", str(theirs.fileno()), kind],
            log=log or Path("/dev/stderr"), env=warm_environment(os.environ, threads), channel=theirs,
        )  # fmt: skip


class WarmGang:
    """Forks of one warm process, which is started at once and imports while nothing is asked of it yet."""

    def __init__(self, plan: LaunchPlan, place: Place, warm: WarmProcess | None = None) -> None:
        self._plan = plan
        self._place = place
        self.log = RunPaths(plan.run_dir).attempt(plan.attempt).launcher_log("warm", place.node_rank)
        self._number = 0
        self._warm = warm or self._new()

    def start(self, stage: Stage, restart: int, port: int) -> None:  # noqa: D102
        self._number += 1
        if self._warm.process.poll() is not None:
            self._warm = self._new()
        self._send(
            {"do": "gang", "number": self._number, "run_dir": str(self._plan.run_dir), "attempt": self._plan.attempt,
             "stage": self._plan.stages.index(stage), "restart": restart, "port": port, "place": asdict(self._place)}
        )  # fmt: skip

    def wait(self, timeout_s: float) -> int | None:  # noqa: D102
        try:
            message = self._warm.channel.receive(timeout_s)
        except EOFError:
            return self._warm.process.wait(timeout_s) or 1
        if message is None or message["ended"] != self._number:
            return None
        if "error" in message:
            raise from_dict(message["error"])
        return int(message["returncode"])

    def ask(self) -> None:  # noqa: D102
        self._send({"do": "signal", "signal": int(signal.SIGTERM)})

    def spared(self) -> set[int]:  # noqa: D102
        return {self._warm.process.pid}

    def close(self) -> None:  # noqa: D102
        self._warm.process.send_signal(signal.SIGKILL)  # it has nothing to write, and no ranks any more
        self._warm.process.wait(_LAST_WAIT_S)

    def _new(self) -> WarmProcess:
        kind = "training" if any(stage.reports for stage in self._plan.stages) else "script"
        return WarmProcess(self._plan.python, kind, self._plan.threads, self.log)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._warm.channel.send(message)
        except EOFError:
            return  # it has died, and `wait` says so


def torchrun_argv(plan: LaunchPlan, place: Place, stage: Stage, failures: Path, port: int) -> list[str]:
    """torchrun with a static rendezvous: no guess at who is the host, one known port."""
    return [
        plan.python, "-m", "seatrial.job.torchrun", str(failures),
        f"--nnodes={plan.nodes}", f"--nproc-per-node={plan.nproc}", f"--node-rank={place.node_rank}",
        f"--master-addr={place.address}", f"--master-port={port}", "--max-restarts=0",
        f"--log-dir={failures.parent / f'torchrun_{place.node_rank}'}",  # else it leaves a directory in /tmp at each start
        "-m", "seatrial.job.rank", str(RunPaths(plan.run_dir).attempt(plan.attempt).root), "--", *stage.argv,
    ]  # fmt: skip


def free_port() -> int:
    """A port that is free on the loopback now."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            raise PlatformError("no free port on 127.0.0.1", evidence=str(error)) from error
        return int(probe.getsockname()[1])
