"""This machine: the agent is started as a process of its own, and the run directory is its memory."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from seatrial import command
from seatrial.backends import machine
from seatrial.backends.base import JobHandle, JobRequest, JobState
from seatrial.backends.standby import Standby
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.state import RunState
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec

_KILL_WAIT_S = 10


class LocalBackend:
    """Runs the node agent here. A handle is ``local://<pid>:<start time>``: pids are used again."""

    name = "local"
    keeps_jobs = False

    def __init__(self) -> None:
        self._standby: Standby | None = None

    def probe(self, spec: AnySpec) -> machine.Machine:
        """This machine, whatever the spec asks for."""
        return machine.probe()

    def cluster(self) -> str:
        """This machine's name."""
        return socket.gethostname()

    def prepare(self, plan: LaunchPlan, spec: RunSpec) -> command.CommandRunner:
        """Starts the agent ahead of its run, where its ranks are to be forks of a warm process."""
        if plan.launcher != "warm":
            return command.run
        self._standby = Standby(plan, spec.model, spec.task)
        return self._standby.run

    def render(self, plan: LaunchPlan) -> JobRequest:
        """The agent's argv, as JSON."""
        argv = [plan.python, "-m", "seatrial.job.agent", str(plan.run_dir), "--attempt", str(plan.attempt)]
        return JobRequest(
            "json", json.dumps({"schema": 1, "cwd": str(plan.cwd), "argv": argv}, indent=2) + "\n", plan
        )

    def submit(self, request: JobRequest) -> JobHandle:
        """Starts the agent in a session of its own, out of reach of the terminal's Ctrl-C."""
        rendered = json.loads(request.text)
        attempt = RunPaths(request.plan.run_dir).attempt(request.plan.attempt)
        attempt.logs.mkdir(parents=True, exist_ok=True)
        if self._standby is not None:
            pid = self._standby.take(request.plan, rendered["argv"], attempt.logs / "agent.log")
            self._standby = None
            return _handle(pid)
        return start_detached(rendered["argv"], attempt.logs / "agent.log", Path(rendered["cwd"]))

    def state(self, handle: JobHandle) -> JobState:
        """RUNNING while the process lives. How it ended, its exit record says; this only says that it did."""
        if self._process(handle) is not None:
            return JobState(RunState.RUNNING)
        return JobState(RunState.LOST, f"process {handle.native.partition(':')[0]} is gone")

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """SIGINT to the agent, which saves and stops; `force` kills it and every process it started."""
        process = self._process(handle)
        if process is None:
            return
        if not force:
            process.send_signal(signal.SIGINT)
            return
        family = [*process.children(recursive=True), process]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=_KILL_WAIT_S)

    def logs(self, handle: JobHandle, run_dir: Path) -> Iterator[Path]:
        """The agent's own output, one file an attempt."""
        yield from sorted(run_dir.glob("attempt-*/logs/agent.log"))

    def _process(self, handle: JobHandle) -> psutil.Process | None:
        pid, _, started = handle.native.partition(":")
        try:
            process = psutil.Process(int(pid))
            gone = process.status() == psutil.STATUS_ZOMBIE or str(_start_time(int(pid))) != started
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return None
        return None if gone else process


def start_detached(argv: list[str], log: Path, cwd: Path) -> JobHandle:
    """Starts a program in a session of its own, which `LocalBackend` then looks after."""
    process = command.start(argv, log=log, env=os.environ, cwd=cwd, new_session=True)
    return _handle(process.pid)


def _handle(pid: int) -> JobHandle:
    return JobHandle(LocalBackend.name, f"{pid}:{_start_time(pid)}")


def _start_time(pid: int) -> int:
    """Clock ticks since boot at which a process started: with the pid, it names one process for ever.

    Field 22 of ``/proc/<pid>/stat`` (proc(5)); the second field may contain spaces and brackets.
    """
    for _ in range(50):
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        except FileNotFoundError:
            time.sleep(0.01)
    raise ProcessLookupError(pid)
