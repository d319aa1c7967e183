"""The node agent: ``python -m seatrial.job.agent RUN_DIR --attempt K``. The same on every platform.

It holds the run directory, starts each stage's ranks, watches them, starts them again, passes on requests to stop,
ends what it started, and writes how it went. It imports no torch, and lives as long as the attempt.
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

from seatrial.errors import ExitCode, SeatrialError, SpecError
from seatrial.job.gang import Gang, WarmProcess, gang_of
from seatrial.job.heartbeat import Frozen, Watch
from seatrial.job.processes import adopt_orphans, end_descendants
from seatrial.job.restarts import Restarts
from seatrial.job.stack import ask_for_stack
from seatrial.job.verdict import first_failure, frozen_failure, missing_finishes
from seatrial.runs import lock
from seatrial.runs.files import append_json_line, write_json
from seatrial.runs.manifest import now
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage, read_plan

DEADLINE = "SEATRIAL_DEADLINE"
"""When the platform will end the job: seconds since the epoch."""
_POLL_S = 0.1
_LOOK_EVERY_S = 1.0
_FORCE_MARGIN_S = 10


def main() -> int:
    """Runs the stages of one attempt; the exit code is the attempt's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    args = parser.parse_args()
    return run_attempt(args.run_dir, args.attempt)


def run_attempt(run_dir: Path, attempt: int, warm: WarmProcess | None = None) -> int:
    """Runs one attempt; the exit code is the attempt's.

    Args:
        run_dir: the run.
        attempt: its index.
        warm: a warm process of this agent's, where one was started ahead.
    """
    plan = read_plan(run_dir, attempt)
    try:
        with lock.hold(RunPaths(plan.run_dir).lock, f"attempt {plan.attempt}"):
            return int(Agent(plan).run(warm))
    except SeatrialError as error:
        say(f"error: {error}")
        return int(error.exit_code)


def say(text: str) -> None:
    """One line of the agent's log."""
    print(f"{now()} {text}", flush=True)  # noqa: T201 - the agent's log


@dataclass
class Agent:
    """One attempt on this node."""

    plan: LaunchPlan
    stages: list[dict[str, Any]] = field(default_factory=list)
    gang: Gang | None = None
    stop_signal: int | None = None
    stop_asked_at: float = 0.0
    started: str = field(default_factory=now)

    def run(self, warm: WarmProcess | None = None) -> ExitCode:
        """All stages in order, to the first that does not end well."""
        paths = RunPaths(self.plan.run_dir)
        self.attempt = paths.attempt(self.plan.attempt)
        self.attempt.logs.mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        self.stop_at = stop_time(self.plan, os.environ.get(DEADLINE))
        self.gang = gang_of(self.plan, warm)
        failure = None
        for stage in self.plan.stages:
            failure = self._run_stage(stage)
            if failure is not None or self.stop_signal is not None:
                break
        self.gang.close()
        end_descendants()
        return self._write_exit(failure)

    def _run_stage(self, stage: Stage) -> dict[str, Any] | None:
        """One stage, with as many starts of its ranks as the plan allows; the failure that was the last."""
        record: dict[str, Any] = {"name": stage.name, "started": now()}
        self.stages.append(record)
        restarts = Restarts(self.plan.max_restarts)
        while True:
            failure, step = self._run_ranks(stage, len(restarts.rows), record)
            record |= {"ended": now(), "restarts": restarts.rows}
            if failure is None or self.stop_signal is not None:
                return failure
            wait_s = restarts.wait_s(failure, step)
            if wait_s is None:
                if restarts.reason:
                    failure["evidence"] += f"\nnot started again: {restarts.reason}"
                return failure
            self._note_restart(stage, restarts.rows[-1], len(restarts.rows))
            if self._stopped_within(wait_s):
                return None

    def _run_ranks(
        self, stage: Stage, restart: int, record: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, int]:
        """One start of all ranks. Returns the failure, and the highest step that a rank had begun."""
        assert self.gang is not None
        self.attempt.failures.mkdir(exist_ok=True)
        say(f"stage {stage.name}: {self.plan.nproc} ranks on {socket.gethostname()} by {self.plan.launcher}")
        watch = Watch(
            [self.attempt.heartbeat(rank) for rank in range(self.plan.world_size)],
            self.plan.hang_timeout_s or float("inf"),
        )
        self.gang.start(stage, restart)
        if self.stop_signal is not None:
            self.gang.ask()  # asked while there was nobody to pass it on to
        code, frozen = self._wait(watch)
        left = end_descendants(spare=self.gang.spared())
        if left:
            say(f"ended what stage {stage.name} left behind: {left}")
        record |= {"returncode": code, "left_behind": left}
        if frozen is not None:
            return frozen_failure(self.attempt, frozen, self.stack), watch.step
        if code != 0:
            return first_failure(self.attempt, stage.name, code, self.gang.log), watch.step
        return missing_finishes(self.attempt, stage, self.plan.world_size), watch.step

    def _wait(self, watch: Watch) -> tuple[int, Frozen | None]:
        """To the end of the ranks, which a frozen rank or impatience brings about."""
        assert self.gang is not None
        frozen, look_at = None, 0.0
        while (code := self.gang.wait(_POLL_S)) is None:
            self._keep_deadline()
            self._enforce_grace()
            if time.monotonic() < look_at or frozen is not None:
                continue
            look_at = time.monotonic() + _LOOK_EVERY_S
            frozen = watch.look()
            if frozen is not None:
                say(f"rank {frozen.rank} is frozen: {frozen}")
                self.stack = ask_for_stack(self.attempt.rank_log(frozen.rank), frozen)
                end_descendants(grace_s=0.5, spare=self.gang.spared())
        watch.look()
        return code, frozen

    def _note_restart(self, stage: Stage, row: dict[str, Any], restart: int) -> None:
        """The failure goes on record, and out of the way of the next one."""
        row |= {"time": now(), "restart": restart, "stage": stage.name}
        append_json_line(self.attempt.restarts, row)
        say(
            f"stage {stage.name}: {row['what']} at step {row['step']}; restart {restart} in {row['wait_s']} s"
        )
        aside = self.attempt.failures / f"restart_{restart - 1}"
        aside.mkdir()
        for path in self.attempt.failures.iterdir():
            if not path.name.startswith("restart_"):
                path.rename(aside / path.name)

    def _stopped_within(self, wait_s: float) -> bool:
        until = time.monotonic() + wait_s
        while time.monotonic() < until and self.stop_signal is None:
            self._keep_deadline()
            time.sleep(_POLL_S)
        return self.stop_signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal is not None:
            # Asked twice: no more patience.
            self.stop_asked_at = 0.0
            return
        self._ask_to_stop(number, "signal")

    def _ask_to_stop(self, number: int, reason: str) -> None:
        self.stop_signal = number
        self.stop_asked_at = time.monotonic()
        # The ranks look for this file: with it they save and stop together, without it a peer has died.
        write_json(
            self.attempt.stop_request,
            {"schema": 1, "signal": signal.Signals(number).name, "reason": reason, "time": now()},
        )
        if self.gang is not None:
            self.gang.ask()

    def _keep_deadline(self) -> None:
        if self.stop_signal is None and time.monotonic() > self.stop_at:
            say("the deadline is near: asking the ranks to save and stop")
            self._ask_to_stop(signal.SIGTERM, "deadline")

    def _enforce_grace(self) -> None:
        if self.stop_signal is not None:
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


def stop_time(plan: LaunchPlan, deadline: str | None) -> float:
    """When to ask the ranks to stop, by the monotonic clock; infinity where no deadline is known.

    The wall clock is read once, here: a jump later on changes nothing.

    Args:
        plan: its deadline comes first.
        deadline: the environment's.

    Raises:
        SpecError: `deadline` is not a number.
    """
    try:
        found = plan.deadline if plan.deadline is not None else float(deadline) if deadline else None
    except ValueError as error:
        raise SpecError(
            f"{DEADLINE}={deadline!r} can't be read",
            evidence=str(error),
            remedy=f"{DEADLINE}=$(date -d '+1 hour' +%s)",
        ) from error
    if found is None:
        return float("inf")
    return time.monotonic() + found - time.time() - plan.stop_before_s


if __name__ == "__main__":
    sys.exit(main())
