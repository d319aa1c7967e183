"""The node agent: ``python -m seatrial.job.agent RUN_DIR --attempt K``. The same on every platform.

One runs on each node. The first node's holds the run directory, starts each stage's ranks on all nodes, watches them,
starts them again, passes on requests to stop, ends what was started, and writes how it went; the others do their part
of what it says. It imports no torch, and lives as long as the attempt.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from seatrial.errors import ExitCode, SeatrialError, SpecError
from seatrial.job import gather, mirror, track
from seatrial.job.exit import write_exit
from seatrial.job.gang import WarmProcess
from seatrial.job.hang import write_report
from seatrial.job.heartbeat import Frozen, Watch
from seatrial.job.link import Meeting, meeting_from
from seatrial.job.nodes import Nodes
from seatrial.job.processes import adopt_orphans
from seatrial.job.restarts import Restarts
from seatrial.job.unused import UseWatch
from seatrial.job.verdict import Account, first_failure, frozen_failure
from seatrial.runs import lock
from seatrial.runs.afterwards import run_afterwards
from seatrial.runs.clock import now
from seatrial.runs.files import append_json_line
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage, read_plan

DEADLINE = "SEATRIAL_DEADLINE"
"""When the platform will end the job: seconds since the epoch."""
_POLL_S = 0.1
_LOOK_EVERY_S = 1.0
_FORCE_MARGIN_S = 10
_TRACK_S = 20.0
_MIRROR_S = 60.0
_MIRROR_STOPPED_S = 3.0
_LOCK_PATIENCE_S = 60.0
"""Of an attempt that a scheduler has started: the kernel of a node that died may hold on to the lock for a while."""


def main() -> int:
    """Runs this node's part of the stages of one attempt; the exit code is the attempt's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument(
        "--node-rank-from", metavar="VARIABLE", help="environment variable with the node rank"
    )
    args = parser.parse_args()
    if args.node_rank_from is None:
        return run_attempt(args.run_dir, args.attempt)
    return run_node(args.run_dir, args.attempt, int(os.environ[args.node_rank_from]))


def run_attempt(run_dir: Path, attempt: int, warm: WarmProcess | None = None) -> int:
    """Runs one attempt on this node alone; the exit code is the attempt's.

    Args:
        run_dir: the run.
        attempt: its index.
        warm: a warm process of this agent's, where one was started ahead.
    """
    plan = read_plan(run_dir, attempt)
    try:
        with lock.hold(RunPaths(plan.run_dir).lock, f"attempt {plan.attempt}"):
            if plan.conducts == "checks":
                code = _conduct(plan, None)
            else:
                code = Agent(plan, lambda given_up: gather.alone(plan, warm)).run()
        return int(run_afterwards(plan, say) if code is ExitCode.OK else code)
    except SeatrialError as error:
        say(f"error: {error}")
        return int(error.exit_code)


def run_node(run_dir: Path, attempt: int, node_rank: int) -> int:
    """Runs this node's part of an attempt that a scheduler started; the exit code is the attempt's on the first node."""
    meeting = meeting_from(os.environ)
    adopt_orphans()
    try:
        if node_rank == 0:
            plan = read_plan(run_dir, attempt)
            with lock.hold(RunPaths(plan.run_dir).lock, f"attempt {attempt}", _LOCK_PATIENCE_S):
                if plan.conducts == "checks":
                    return int(_conduct(plan, meeting))
                lead = partial(gather.lead, plan, meeting, say)
                return int(Agent(plan, lead, scheduled=True).run())
        assert meeting is not None
        if _is_a_test(run_dir, attempt):
            from seatrial.job.checks import crew

            return int(crew.follow(run_dir, attempt, node_rank, meeting))
        return int(gather.follow(run_dir, attempt, node_rank, meeting))
    except SeatrialError as error:
        say(f"error: {error}")
        return int(error.exit_code)


def _conduct(plan: LaunchPlan, meeting: Meeting | None) -> ExitCode:
    from seatrial.job.checks.conductor import Conductor

    return Conductor(plan, meeting, say).run()


def _is_a_test(run_dir: Path, attempt: int) -> bool:
    """Whether an attempt is an acceptance test; one whose plan can't be read here, its first node is told of."""
    try:
        return read_plan(run_dir, attempt).conducts == "checks"
    except (SeatrialError, OSError):
        return False


def say(text: str) -> None:
    """One line of the agent's log."""
    print(f"{now()} {text}", flush=True)  # noqa: T201 - the agent's log


@dataclass
class Agent:
    """One attempt, led from this node."""

    plan: LaunchPlan
    gather: Callable[[Callable[[], bool]], Nodes]
    """Brings the nodes together, or gives up once what it is given says so."""
    scheduled: bool = False
    """Whether a scheduler started it, which sends its signals more than once."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    nodes: Nodes | None = None
    stop_signal: int | None = None
    stop_asked_at: float = 0.0
    stop_reason: str = ""
    passed_on: bool = False
    unused: dict[str, Any] | None = None
    """The failure that devices without use are, once that has stopped the ranks."""
    started: str = field(default_factory=now)

    def run(self) -> ExitCode:
        """All stages in order, to the first that does not end well."""
        paths = RunPaths(self.plan.run_dir)
        self.attempt = paths.attempt(self.plan.attempt)
        self.attempt.logs.mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        self.stop_at = stop_time(self.plan, os.environ.get(DEADLINE), limited=not self.scheduled)
        failure = None
        sender, teller = mirror.start_if_wanted(self.plan), track.start_if_wanted(self.plan)
        try:
            self.nodes = self.gather(lambda: self.stop_signal is not None)
            for stage in self.plan.stages:
                failure = self._run_stage(stage)
                if failure is not None or self.stop_signal is not None:
                    break
        except gather.GivenUpError:
            say("asked to stop before all nodes were here")
        except SeatrialError as error:
            say(f"error: {error}")
            failure = error.to_dict() | {"rank": None, "last_lines": [], "told": True}
        finally:
            if self.nodes is not None:
                self.nodes.end(0.5)
                self.nodes.close()
        code = self._write_exit(failure)
        if teller is not None:
            teller.finish(_TRACK_S if self.stop_signal is None else _MIRROR_STOPPED_S)
        if sender is not None:
            # Who was asked to go may be killed half a minute later, and has more to do: the next attempt sends the rest.
            sender.finish(_MIRROR_S if self.stop_signal is None else _MIRROR_STOPPED_S)
        return code

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
        assert self.nodes is not None
        what = f"{self.plan.nproc} ranks on {self.plan.nodes} nodes" if self.plan.nodes > 1 else (
            f"{self.plan.nproc} ranks on {socket.gethostname()}")  # fmt: skip
        say(f"stage {stage.name}: {what} by {self.plan.launcher}")
        self.nodes.start(stage, restart)
        watch = Watch(self.nodes, self.plan.world_size, self.plan.hang_timeout_s or float("inf"))
        self.passed_on = False
        accounts, frozen = self._wait(watch)
        left = [process for account in accounts for process in account.left_behind]
        if left:
            say(f"ended what stage {stage.name} left behind: {left}")
        record |= {"returncode": max(account.returncode for account in accounts), "left_behind": left}
        if frozen is not None:
            return frozen_failure(self.attempt, frozen, self.stack), watch.step
        return first_failure(self.attempt, stage, accounts), watch.step

    def _wait(self, watch: Watch) -> tuple[list[Account], Frozen | None]:
        """To the end of the ranks, which a frozen rank or impatience brings about."""
        assert self.nodes is not None
        frozen, look_at, use = None, 0.0, UseWatch(self.plan)
        while (accounts := self.nodes.wait(_POLL_S)) is None:
            self._keep_deadline()
            self._pass_on()
            self._enforce_grace()
            if time.monotonic() < look_at or frozen is not None:
                continue
            look_at = time.monotonic() + _LOOK_EVERY_S
            frozen = watch.look()
            self._keep_use(use, watch.step)
            if frozen is not None:
                say(f"rank {frozen.rank} is frozen: {frozen}")
                self.stack = self._report_hang(frozen, watch)
                self.nodes.end(0.5)
        watch.look()
        return accounts, frozen

    def _report_hang(self, frozen: Frozen, watch: Watch) -> str:
        """Writes what is found of a hang; what the frozen rank was doing, in one clause."""
        assert self.nodes is not None
        stack, found = self.nodes.autopsy(frozen)
        restarts = bool(self.plan.max_restarts)
        say(write_report(self.attempt, self.plan, frozen, watch.beats, stack, found, restarts=restarts))
        return stack.text

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
        if self.stop_signal is None:
            self._ask_to_stop(number, "signal")
        elif number == signal.SIGINT or not self.scheduled:
            # Asked twice: no more patience. A scheduler repeats itself, and kills when its own patience ends.
            self.stop_asked_at = 0.0

    def _ask_to_stop(self, number: int, reason: str) -> None:
        self.stop_signal = number
        self.stop_asked_at = time.monotonic()
        self.stop_reason = reason

    def _pass_on(self) -> None:
        """Not in the signal's handler: a message to another node may be half sent."""
        if self.stop_signal is None or self.passed_on or self.nodes is None:
            return
        self.passed_on = True
        name = signal.Signals(self.stop_signal).name
        self.nodes.ask({"schema": 1, "signal": name, "reason": self.stop_reason, "time": now()})

    def _keep_deadline(self) -> None:
        if self.stop_signal is not None:
            return
        if self.nodes is not None and self.nodes.wish is not None:
            self._ask_to_stop(self.nodes.wish, "signal to another node")
        elif time.monotonic() > self.stop_at:
            say("the deadline is near: asking the ranks to save and stop")
            self._ask_to_stop(signal.SIGTERM, "deadline")

    def _keep_use(self, use: UseWatch, step: int) -> None:
        if self.stop_signal is None and (failure := use.look(step)) is not None:
            say(f"{failure['what']}: asking the ranks to save and stop")
            self.unused = failure
            self._ask_to_stop(signal.SIGTERM, "unused")

    def _enforce_grace(self) -> None:
        if self.stop_signal is not None and self.nodes is not None:
            patience = self.plan.grace_s + _FORCE_MARGIN_S if self.stop_asked_at else 0
            if time.monotonic() - self.stop_asked_at > patience:
                self.nodes.end(0.5)

    def _write_exit(self, failure: dict[str, Any] | None) -> ExitCode:
        # Ranks that were asked to stop end with codes and signals of their own; only what one of them tells
        # (a checkpoint that could not be saved) makes it a failure.
        failure = self.unused or failure
        if self.stop_signal is not None and not (failure or {}).get("told"):
            by_user = self.stop_signal == signal.SIGINT
            outcome = "interrupted" if by_user else "preempted"
            code = ExitCode.INTERRUPTED if by_user else ExitCode.PREEMPTED
            failure = None
        elif failure is not None:
            outcome, code = "failed", ExitCode(failure["exit_code"])
        else:
            outcome, code = "completed", ExitCode.OK
        write_exit(
            self.attempt, self.plan, outcome, code, started=self.started, stages=self.stages, failure=failure
        )
        return code


def stop_time(plan: LaunchPlan, deadline: str | None, *, limited: bool = False) -> float:
    """When to ask the ranks to stop, by the monotonic clock; infinity where no deadline is known.

    The wall clock is read once, here: a jump later on changes nothing.

    Args:
        plan: its deadline comes first.
        deadline: the environment's.
        limited: whether the plan's time limit is to be kept here, since no scheduler keeps it.

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
    if limited and plan.time_limit_s is not None:
        found = min(found or float("inf"), time.time() + plan.time_limit_s)
    if found is None:
        return float("inf")
    return time.monotonic() + found - time.time() - plan.stop_before_s


if __name__ == "__main__":
    sys.exit(main())
