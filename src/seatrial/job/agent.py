"""The node agent: ``python -m seatrial.job.agent RUN_DIR --attempt K``. The same on every platform.

It holds the run directory, starts each stage's ranks under torchrun, passes on requests to stop, ends what it
started, and writes how it went. It imports no torch, and lives as long as the attempt.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from seatrial import command
from seatrial.errors import ExitCode, PlatformError, SeatrialError
from seatrial.job.processes import adopt_orphans, end_descendants
from seatrial.job.verdict import first_failure, missing_finishes
from seatrial.runs import lock
from seatrial.runs.files import write_json
from seatrial.runs.manifest import now
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage, read_plan

_POLL_S = 0.1
_FORCE_MARGIN_S = 10
# What an outer job or launcher may have left in the environment; torchrun sets its own.
_STALE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "ROLE_RANK",
          "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
_STALE_PREFIXES = ("PET_", "TORCHELASTIC_")


def main() -> int:
    """Runs the stages of one attempt; the exit code is the attempt's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    args = parser.parse_args()
    plan = read_plan(args.run_dir, args.attempt)
    try:
        with lock.hold(RunPaths(plan.run_dir).lock, f"attempt {plan.attempt}"):
            return int(Agent(plan).run())
    except SeatrialError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the agent's log
        return int(error.exit_code)


@dataclass
class Agent:
    """One attempt on this node."""

    plan: LaunchPlan
    stages: list[dict[str, Any]] = field(default_factory=list)
    process: command.Process | None = None
    stop_signal: int | None = None
    stop_asked_at: float = 0.0
    started: str = field(default_factory=now)

    def run(self) -> ExitCode:
        """All stages in order, to the first that does not end well."""
        paths = RunPaths(self.plan.run_dir)
        self.attempt = paths.attempt(self.plan.attempt)
        self.attempt.logs.mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        failure = None
        for stage in self.plan.stages:
            failure = self._run_stage(stage)
            if failure is not None or self.stop_signal is not None:
                break
        return self._write_exit(failure)

    def _run_stage(self, stage: Stage) -> dict[str, Any] | None:
        record: dict[str, Any] = {"name": stage.name, "started": now()}
        self.stages.append(record)
        failures = self.attempt.launcher_failures(0)
        failures.parent.mkdir(exist_ok=True)
        print(f"{now()} stage {stage.name}: {self.plan.nproc} ranks on {socket.gethostname()}", flush=True)  # noqa: T201
        self.process = command.start(
            torchrun_argv(self.plan, stage, failures, free_port()),
            log=self.attempt.logs / "torchrun.log",
            env=rank_environment(self.plan, os.environ),
            cwd=self.plan.cwd,
        )
        while (code := self.process.wait(_POLL_S)) is None:
            self._enforce_grace()
        left = end_descendants()
        if left:
            print(f"{now()} ended what stage {stage.name} left behind: {left}", flush=True)  # noqa: T201
        record |= {"ended": now(), "returncode": code, "left_behind": left}
        if code != 0:
            return first_failure(self.attempt, stage.name, code)
        return missing_finishes(self.attempt, stage, self.plan.world_size)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal is not None:
            # Asked twice: no more patience.
            self.stop_asked_at = 0.0
            return
        self.stop_signal = number
        self.stop_asked_at = time.monotonic()
        # The ranks look for this file: with it they save and stop together, without it a peer has died.
        write_json(
            self.attempt.stop_request, {"schema": 1, "signal": signal.Signals(number).name, "time": now()}
        )
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def _enforce_grace(self) -> None:
        if self.stop_signal is not None and self.process is not None:
            patience = self.plan.grace_s + _FORCE_MARGIN_S if self.stop_asked_at else 0
            if time.monotonic() - self.stop_asked_at > patience:
                end_descendants(grace_s=0.5)

    def _write_exit(self, failure: dict[str, Any] | None) -> ExitCode:
        # Ranks that were asked to stop end with codes and signals of their own; only what one of them tells
        # (a checkpoint that could not be saved) makes it a failure.
        if self.stop_signal is not None and not (failure or {}).get("told"):
            by_user = self.stop_signal == signal.SIGINT
            outcome = "interrupted" if by_user else "preempted"
            code = ExitCode.INTERRUPTED if by_user else ExitCode.PREEMPTED
            failure = None
        elif failure is not None:
            outcome, code = "failed", ExitCode(failure["exit_code"])
        else:
            outcome, code = "completed", ExitCode.OK
        write_json(
            self.attempt.exit,
            {
                "schema": 1,
                "attempt": self.plan.attempt,
                "outcome": outcome,
                "exit_code": int(code),
                "started": self.started,
                "ended": now(),
                "host": socket.gethostname(),
                "stages": self.stages,
                "failure": failure,
            },
        )
        return code


def torchrun_argv(plan: LaunchPlan, stage: Stage, failures: Path, port: int) -> list[str]:
    """torchrun with a static rendezvous: no guess at who is the host, one known port."""
    return [
        plan.python, "-m", "seatrial.job.torchrun", str(failures),
        f"--nnodes={plan.nodes}", f"--nproc-per-node={plan.nproc}", "--node-rank=0",
        "--master-addr=127.0.0.1", f"--master-port={port}", "--max-restarts=0",
        f"--log-dir={failures.parent / 'torchrun'}",  # else it leaves a directory in /tmp at each start
        "-m", "seatrial.job.rank", str(RunPaths(plan.run_dir).attempt(plan.attempt).root), "--", *stage.argv,
    ]  # fmt: skip


def rank_environment(plan: LaunchPlan, outer: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """The environment of torchrun and the ranks: the agent's, without what another launcher left in it."""
    env = {k: v for k, v in outer.items() if k not in _STALE and not k.startswith(_STALE_PREFIXES)}
    return env | {
        "OMP_NUM_THREADS": str(plan.threads),
        # Newer torchrun reads the first, all read the second.
        "PET_SHUTDOWN_TIMEOUT": str(plan.grace_s),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(plan.grace_s),
        "PYTHONUNBUFFERED": "1",
        "SEATRIAL_RUN_ID": plan.run_id,
        "SEATRIAL_RUN_DIR": str(plan.run_dir),
        "SEATRIAL_ATTEMPT": str(plan.attempt),
    }


def free_port() -> int:
    """A port that is free on the loopback now."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            raise PlatformError("no free port on 127.0.0.1", evidence=str(error)) from error
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
