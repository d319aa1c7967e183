"""The processes of jobs: started by `seatrial.command`, signalled by who started them, ended with all that descends from them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from seatrial.testing.slurm.model import Job, Task

_PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)"""


def adopt_orphans() -> None:
    """What loses its parent becomes a child of this process, so that no process of a job gets lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def poll(task: Task) -> bool:
    """Whether a task has ended; then its status is known."""
    if task.status is None and task.process is not None and (code := task.process.poll()) is not None:
        task.status = -code if code < 0 else code << 8
    return task.status is not None


def send(task: Task, number: int) -> None:
    """Signals the task's own process, not its children, as slurmstepd does it where cgroups hold the tasks."""
    if task.status is None and task.process is not None:
        task.process.send_signal(number)


def kill(task: Task) -> None:
    """Ends a task and all below it."""
    if task.process is None or task.status is not None:
        return
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(task.process.pid).children(recursive=True)
        task.process.send_signal(signal.SIGKILL)
        _kill_all(below)


def orphans(job: Job) -> list[psutil.Process]:
    """What the processes of a job have left behind: it is below this process, and has the job's environment."""
    own = {task.process.pid for step in job.steps for task in step.tasks if task.process}
    return [process for process in _adopted(own) if _job_of(process) == str(job.job_id)]


def kill_orphans(found: list[psutil.Process]) -> None:
    """Ends them with all below them."""
    for process in found:
        with contextlib.suppress(psutil.Error):
            _kill_all([*process.children(recursive=True), process])


def reap_orphans(own: set[int]) -> None:
    """Lets ended processes go that nobody else waits for; `own` are those of tasks."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in own:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            return


def _adopted(own: set[int]) -> Iterator[psutil.Process]:
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if process.pid not in own:
                yield process


def _job_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("SLURM_JOB_ID", "")
    return ""


def _kill_all(found: list[psutil.Process]) -> None:
    for process in found:
        with contextlib.suppress(
            psutil.Error
        ):  # psutil leaves a number alone that has another process by now
            process.kill()


def kill_below() -> None:
    """Ends everything below this process, also what is started meanwhile."""
    for _ in range(50):
        found = [p for p in psutil.Process().children(recursive=True) if _is_alive(p)]
        if not found:
            return
        _kill_all(found)
        psutil.wait_procs(found, timeout=0.2)


def kill_users_of(conf: Path) -> None:
    """Ends the processes of jobs whose owner was killed: they name the cluster and a job in their environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            environ = process.environ()
            if environ.get("SLURM_CONF") == str(conf) and "SLURM_JOB_ID" in environ:
                process.kill()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
