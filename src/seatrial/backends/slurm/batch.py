"""What runs in the batch script's place: ``python -m seatrial.backends.slurm.batch RUN_DIR --first-attempt K``.

It runs on the job's first node, outside of any container: finds out where the nodes are, starts one agent on each by
one ``srun``, and when they have ended, sees to it that a preempted run is queued again. It decides nothing about ranks.

What Slurm sends, as tried on 22.05: a preemption with a grace time, and ``--signal``, reach the agents alone;
``scancel``, and a preemption without grace, reach this process as well, and KillWait later everything is killed. Only
the line that slurmstepd then writes into the job's output says why.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from seatrial import command
from seatrial.backends.slurm.client import Client, UnansweredError
from seatrial.backends.slurm.script import render
from seatrial.backends.slurm.step import (
    EarlyEnds,
    LeftOver,
    answers,
    check_time,
    free_ports,
    job_id_of,
    node_gone,
    open_file,
    patiently,
    say,
    srun_argv,
    why_cancelled,
)
from seatrial.errors import ExitCode, PlatformError, SeatrialError
from seatrial.runs.afterwards import run_afterwards
from seatrial.runs.clock import now
from seatrial.runs.ends import end_failure, end_record
from seatrial.runs.files import read_json, write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, plan_path, read_plan, write_plan
from seatrial.spec.slurm import SlurmSpec

_POLL_S = 0.5
_DRAIN_EVERY_S = 60.0
_LINGER_S = 120.0
"""After ``scontrol requeue``: Slurm ends this process. One that ends by itself first may count as failed."""
_SAVED_S = 15.0
"""Beyond the ranks' grace: the leading agent ends them by force, and writes its record."""
_LAST_LINES = 20


def main() -> int:
    """Runs the attempt that this start of the job is; the exit code is the attempt's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--first-attempt", type=int, required=True)
    parser.add_argument(
        "--in-allocation", action="store_true", help="of a person's, which is not ours to queue again"
    )
    args = parser.parse_args()
    try:
        return int(
            Supervisor(
                args.run_dir,
                args.first_attempt,
                os.environ,
                allocated=args.in_allocation,
                output=open_file(1),
            ).run()
        )
    except SeatrialError as error:
        say(f"error: {error}")
        return int(error.exit_code)


class Supervisor:
    """One start of a job.

    Args:
        run_dir: the run.
        first_attempt: the attempt that the job's first start is; each further start is the one after it.
        environment: what Slurm gave the batch script.
        allocated: whether the job is a person's own allocation, in which this is only a guest.
        output: the job's output, where slurmstepd writes too; None is the run's own.
        client: talks to Slurm.
    """

    def __init__(
        self,
        run_dir: Path,
        first_attempt: int,
        environment: Any,
        *,
        allocated: bool = False,
        output: Path | None = None,
        client: Client | None = None,
    ) -> None:
        self._allocated = allocated
        self._env = dict(environment)
        self._client = client or Client()
        self._paths = RunPaths(run_dir)
        self._first = first_attempt
        self.raw_id: str = self._env["SLURM_JOB_ID"]
        self.job_id = job_id_of(self._env)
        self.restarts = 0 if allocated else int(self._env.get("SLURM_RESTART_COUNT") or 0)
        self._attempt = self._paths.attempt(first_attempt + self.restarts)
        self._signals: list[int] = []
        self._left_for_drain = False
        self._output = output or run_dir / f"slurm-{self.job_id}.out"
        self._said_before = self._output.stat().st_size if self._output.exists() else 0

    def run(self) -> ExitCode:
        """The attempt, from its plan to its record."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        plan = self._begin()
        started = now()
        code: int | None = None
        failure: dict[str, Any] | None = None
        try:
            self._check_restarts(plan)
            if not self._signals:
                code = self._run_agents(plan)
        except SeatrialError as error:
            failure = error.to_dict() | {"rank": None, "last_lines": [], "told": True}
        record = read_json(self._attempt.exit)
        if record is None or failure is not None:
            record = self._own_record(plan, started, code, failure)
        return self._conclude(plan, record)

    # --- before the agents ---------------------------------------------------------------------------------------

    def _begin(self) -> LaunchPlan:
        """The plan of this start, written down; and a record for earlier ones that left none."""
        plan = read_plan(self._paths.root, self._first)
        for index in range(self._first, plan.attempt + self.restarts):
            earlier = self._paths.attempt(index)
            if not plan_path(self._paths.root, index).exists():
                earlier.logs.mkdir(parents=True, exist_ok=True)
                write_plan(plan.for_attempt(index))  # of a start that never came to be: there is no gap
            if not earlier.exit.exists():
                what = "Slurm queued the job again before the attempt could say anything: a node failed, or time was short"
                write_json(
                    earlier.exit, end_record(index, "lost", ExitCode.PLATFORM, now(), end_failure(what))
                )
        if self.restarts:
            plan = plan.for_attempt(self._first + self.restarts)
            self._attempt.logs.mkdir(parents=True, exist_ok=True)
            write_plan(plan)
        self._attempt.logs.mkdir(parents=True, exist_ok=True)
        log = os.open(self._attempt.logs / "agent.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        say(f"{self.job_id} on {socket.gethostname()}: run {plan.run_id}, attempt {plan.attempt}")
        return plan

    def _check_restarts(self, plan: LaunchPlan) -> None:
        most = SlurmSpec.model_validate(plan.platform).max_requeues
        if self.restarts > most:
            raise PlatformError(
                f"the job was queued again {self.restarts} times",
                evidence=f"slurm.max_requeues is {most}",
                remedy="seatrial runs resume RUN    (goes on from the newest checkpoint)",
            )

    def _run_agents(self, plan: LaunchPlan) -> int:
        """One srun, to its end; its exit code."""
        slurm = SlurmSpec.model_validate(plan.platform)
        job = patiently(lambda: self._client.job(self.job_id))
        environment = dict(self._env)
        if job is not None and job.end is not None:
            if not self._allocated:
                check_time(plan, self.job_id, job.end - time.time())
            environment["SEATRIAL_DEADLINE"] = str(job.end)
        hosts = self._hosts(plan)
        if plan.nodes > 1:
            environment |= self._meeting(hosts)
        argv = srun_argv(plan, slurm, hosts if self._allocated else [])
        say(shlex.join(argv))
        process = command.start(argv, log=self._attempt.logs / "agent.log", env=environment, cwd=plan.cwd)
        drain_at = time.monotonic() + _DRAIN_EVERY_S
        asked = len(self._signals)
        early = EarlyEnds(self._attempt.logs / "agent.log", hosts, environment)
        left = LeftOver(process, lambda: self._signal_own_step(plan, "KILL"), say)
        while (code := process.wait(_POLL_S)) is None:
            early.tell()
            left.look(early.lead_ended or self._attempt.exit.exists())
            if self._allocated and len(self._signals) > asked:
                asked = len(self._signals)
                # Nobody else signals one step of a person's allocation.
                self._signal_own_step(plan, signal.Signals(self._signals[-1]).name.removeprefix("SIG"))
            if slurm.on_drain == "requeue" and not self._left_for_drain and time.monotonic() > drain_at:
                drain_at = time.monotonic() + _DRAIN_EVERY_S
                self._leave_drained_nodes()
        say(f"srun ended with {code}")
        if code < 0 and not early.lead_ended and not self._attempt.exit.exists():
            self._end_without_srun(plan, code)
        return code

    def _end_without_srun(self, plan: LaunchPlan, code: int) -> None:
        """srun was killed, and its step goes on without it: its agents save what they have, and this attempt has failed.

        They must have ended before this job does: Slurm asks whoever is left then to leave, and that is what a preemption
        looks like to them.

        Raises:
            PlatformError: always, so that no record of theirs counts.
        """
        say("its agents are asked to save and stop")
        self._signal_own_step(plan, "TERM")
        self._wait(plan.grace_s + _SAVED_S, self._attempt.exit.exists)
        saved = "saved and stopped" if self._attempt.exit.exists() else "did not answer"
        raise PlatformError(
            f"srun ended with {code}: something has killed it",
            evidence=f"the agents were asked to leave, and {saved}; {self._attempt.logs / 'agent.log'}",
            remedy="seatrial runs resume RUN    (goes on from the newest checkpoint)",
        )

    def _hosts(self, plan: LaunchPlan) -> list[str]:
        """The nodes that the plan's agents run on.

        Raises:
            PlatformError: the job does not have what the plan asked for.
        """
        hosts = self._client.hostnames(self._env["SLURM_JOB_NODELIST"])
        if len(hosts) < plan.nodes or (len(hosts) > plan.nodes and not self._allocated):
            raise PlatformError(
                f"{plan.nodes} nodes were asked for, the job has {len(hosts)}", evidence=", ".join(hosts)
            )
        return hosts[: plan.nodes]

    def _signal_own_step(self, plan: LaunchPlan, name: str) -> None:
        for step_id, step_name in self._client.steps(self.job_id):
            if step_name == plan.run_id:
                self._client.cancel(step_id, name)

    def _meeting(self, hosts: list[str]) -> dict[str, str]:
        """Where the agents meet: the first node, at a port that no other job there asks for first."""
        address = patiently(lambda: self._client.address(hosts[0]))
        return {
            "SEATRIAL_LEAD": f"{address}:{free_ports(int(self.raw_id))}",
            "SEATRIAL_LINK_TOKEN": secrets.token_hex(16),
            "SEATRIAL_HOSTS": ",".join(hosts),
        }

    def _leave_drained_nodes(self) -> None:
        """Asks the agents to save and stop when a node of the job is drained."""
        try:
            drained = self._client.drained(self._client.hostnames(self._env["SLURM_JOB_NODELIST"]))
        except PlatformError as error:
            say(f"can't look for drained nodes: {error.what}")
            return
        if drained:
            self._left_for_drain = True
            say(f"leaving, since nodes are drained: {'; '.join(drained)}")
            self._client.cancel(self.job_id, "USR2")

    # --- after the agents ----------------------------------------------------------------------------------------

    def _own_record(
        self, plan: LaunchPlan, started: str, code: int | None, failure: dict[str, Any] | None
    ) -> dict[str, Any]:
        """For agents that left none: they were never started, or killed."""
        if failure is None and (self._signals or self._why_cancelled() is not None):
            return end_record(plan.attempt, "preempted", ExitCode.PREEMPTED, started, None)
        if failure is None:
            log = self._attempt.logs / "agent.log"
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
            failure = end_failure(f"srun ended with {code}, and the agents left no record", str(log), lines)
        return end_record(plan.attempt, "failed", ExitCode(failure["exit_code"]), started, failure)

    def _conclude(self, plan: LaunchPlan, record: dict[str, Any]) -> ExitCode:
        """Queues the run again where it was preempted, and writes its last word."""
        if record["outcome"] == "preempted" and signal.SIGINT in self._signals:
            record |= {"outcome": "interrupted", "exit_code": int(ExitCode.INTERRUPTED)}
        reason = self._why_cancelled()
        if record["outcome"] == "preempted" and reason == "":
            record |= {"outcome": "interrupted", "exit_code": int(ExitCode.INTERRUPTED), "reason": "scancel"}
        if not self._allocated:
            record["job"] = {"handle": self._handle(self.job_id, plan), "restarts": self.restarts}
        if reason:
            record["reason"] = reason.lower()
        goes_on = (record["outcome"] == "preempted" or self._lost_a_node(record)) and self._may_go_on(plan)
        if goes_on:
            # In the first record already: whoever reads one without takes it for the run's last word.
            record["continues"] = {"handle": self._handle(self.job_id, plan), "how": "scontrol requeue"}
        write_json(self._attempt.exit, record)
        if goes_on:
            self._go_on(plan, record)
        say(f"{record['outcome']}, exit code {record['exit_code']}")
        return (
            run_afterwards(plan, say) if record["outcome"] == "completed" else ExitCode(record["exit_code"])
        )

    def _lost_a_node(self, record: dict[str, Any]) -> bool:
        """Whether a node is gone with its agent. Slurm notices minutes later (SlurmdTimeout), when this job has ended."""
        node = node_gone(record["failure"])
        if node is None or self._allocated:
            return False
        log = self._attempt.logs / "agent.log"
        try:
            # It may be back by now: then srun has said so.
            told = f"Node failure on {node}" in log.read_text(errors="replace")
            lost = told or not answers(*self._client.slurmd(node))
        except PlatformError as error:
            say(f"whether {node} lives can't be told: {error.what}")
            return False
        say(f"{node} {'is lost' if lost else 'answers'}")
        return lost

    def _may_go_on(self, plan: LaunchPlan) -> bool:
        slurm = SlurmSpec.model_validate(plan.platform)
        if self._allocated or not slurm.requeue:
            return False
        if self.restarts >= slurm.max_requeues:
            say(f"not queued again: it was {self.restarts} times")
        return self.restarts < slurm.max_requeues

    def _go_on(self, plan: LaunchPlan, record: dict[str, Any]) -> None:
        """The same job again, or, where that is forbidden, another one after it."""
        try:
            patiently(lambda: self._client.requeue(self.job_id))
        except PlatformError as error:
            say(f"{error}; submitting another job after this one")
            self._submit_successor(plan, record)
            return
        say("queued again")
        self._wait(_LINGER_S)

    def _submit_successor(self, plan: LaunchPlan, record: dict[str, Any]) -> None:
        following = plan.for_attempt(plan.attempt + 1)
        script = render(
            following, SlurmSpec.model_validate(plan.platform), pythonpath=self._env.get("PYTHONPATH")
        )
        try:
            job_id = self._successor(script, plan)
        except SeatrialError as error:
            say(f"the run does not go on by itself: {error}")
            del record["continues"]
            write_json(self._attempt.exit, record)
            return
        record["continues"] = {"handle": self._handle(job_id, plan), "how": "sbatch --dependency"}
        # Before the plan: whoever finds that takes the next attempt's handle from here.
        write_json(self._attempt.exit, record)
        self._paths.attempt(following.attempt).logs.mkdir(parents=True, exist_ok=True)
        write_plan(following)

    def _successor(self, script: str, plan: LaunchPlan) -> str:
        """Its id. Of a submission without an answer, the queue tells: a job of the run's name that waits for this one."""
        try:
            return patiently(lambda: self._client.submit(script, [f"--dependency=afterany:{self.job_id}"]))[0]
        except UnansweredError:
            jobs = patiently(self._client.my_jobs)
            found = [job.job_id for job in jobs if job.name == plan.run_id and job.state == "PENDING"]
            if not found:
                raise
            return found[0]

    def _wait(self, most_s: float, done: Callable[[], bool] = lambda: False) -> None:
        until = time.monotonic() + most_s
        while not done() and time.monotonic() < until:
            time.sleep(_POLL_S)

    def _why_cancelled(self) -> str | None:
        return None if self._allocated else why_cancelled(self._output, self.raw_id, self._said_before)

    def _handle(self, job_id: str, plan: LaunchPlan) -> str:
        """An element of an array has the array's name."""
        name = self._env.get("SLURM_JOB_NAME") if job_id == self.job_id and "_" in job_id else None
        cluster = self._env.get("SLURM_CLUSTER_NAME", "")
        return f"slurm://{job_id}/{name or plan.run_id}/{cluster}".removesuffix("/")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)


if __name__ == "__main__":
    sys.exit(main())
