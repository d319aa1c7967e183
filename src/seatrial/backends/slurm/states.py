"""What each state of Slurm means for a run: one complete table, and the reading of how a job ended."""

from __future__ import annotations

import signal
import time

from seatrial.backends.base import JobState
from seatrial.backends.slurm import reasons
from seatrial.backends.slurm.jobs import Job, Step
from seatrial.runs.state import RunState

STATES: dict[str, tuple[RunState, str]] = {
    # Base states: slurm.h, JOB_STATES of squeue(1) and sacct(1).
    "PENDING": (RunState.PENDING, "waits in the queue"),
    "RUNNING": (RunState.RUNNING, "runs"),
    "SUSPENDED": (RunState.RUNNING, "is suspended: it keeps its nodes, and its processes are stopped"),
    "COMPLETED": (RunState.COMPLETED, "ended with exit code 0"),
    "CANCELLED": (RunState.INTERRUPTED, "was cancelled"),
    "FAILED": (RunState.FAILED, "failed"),
    "TIMEOUT": (RunState.PREEMPTED, "reached its time limit"),
    "NODE_FAIL": (RunState.FAILED, "lost a node"),
    "PREEMPTED": (RunState.PREEMPTED, "made room for a job that comes first"),
    "BOOT_FAIL": (RunState.FAILED, "got nodes that did not start"),
    "DEADLINE": (RunState.PREEMPTED, "reached its deadline"),
    "OUT_OF_MEMORY": (RunState.FAILED, "ran out of memory"),
    # Flags, which the clients print in the place of a base state.
    "COMPLETING": (RunState.RUNNING, "ends: some of its processes or the site's epilog still run"),
    "CONFIGURING": (RunState.PENDING, "has its nodes, and waits until they are ready"),
    "EXPEDITING": (RunState.PENDING, "is being queued again, ahead of others"),
    "LAUNCH_FAILED": (RunState.PENDING, "could not be launched, and is queued again"),
    "POWER_UP_NODE": (RunState.PENDING, "waits until its nodes are powered up"),
    "RECONFIG_FAIL": (RunState.FAILED, "got nodes that could not be set up as it asked"),
    "REQUEUED": (RunState.PENDING, "is being queued again"),
    "REQUEUE_FED": (RunState.PENDING, "is being queued again by the federation"),
    "REQUEUE_HOLD": (RunState.PENDING, "is being queued again, and will be held"),
    "RESIZING": (RunState.RUNNING, "changes its size"),
    "RESV_DEL_HOLD": (RunState.PENDING, "is held: its reservation was deleted"),
    "REVOKED": (RunState.LOST, "was taken by another cluster of the federation"),
    "SIGNALING": (RunState.RUNNING, "is being sent a signal"),
    "SPECIAL_EXIT": (RunState.PENDING, "was queued again and is held for its exit code"),
    "STAGE_OUT": (RunState.RUNNING, "moves its files out of the burst buffer"),
    "STOPPED": (RunState.RUNNING, "is stopped (SIGSTOP), and keeps its nodes"),
    "UPDATE_DB": (RunState.RUNNING, "is being written to the accounting"),
}
"""Every state that a client may print, with what it means for a run and a clause that follows "the job"."""

# Exit statuses that say more than their number. (code, signal) as Slurm prints them.
_ENDS = {
    (0, 53): "its output file could not be opened, or its directory not entered: the node may not see the run directory",
    (0, 125): "it ran out of memory",
    (0, 9): "it was killed (SIGKILL): by hand, by the kernel for want of memory, or by the site",
    (105, 0): "a node failed while it was launched",
    (126, 0): "a command can't be executed there (126)",
    (127, 0): "a command was not found there (127)",
}  # fmt: skip
# The batch script is Seatrial's own program: these are its words (seatrial.errors.ExitCode). Slurm before 25.11 turns
# 130 into 2:0, which is a bad request too; there only the run's own record tells them apart.
_OWN = {75: RunState.PREEMPTED, 130: RunState.INTERRUPTED}
# Reasons of jobs that did start, and say no more than the exit status.
_LAUNCHED = {"", "None", "NonZeroExitCode", "JobLaunchFailure", "RaisedSignal"}

# Reasons of jobs that did start, and say no more than the exit status.
_LAUNCHED = {"", "None", "NonZeroExitCode", "JobLaunchFailure", "RaisedSignal"}


def run_state(job: Job, now: float | None = None) -> JobState:
    """What a job's record says of the run, with a sentence that gives the evidence.

    Args:
        job: with its steps where the accounting told them: a step's end can hide behind the job's.
        now: seconds since the epoch, for how long a job has waited.
    """
    entry = STATES.get(job.state)
    if entry is None:
        return JobState(
            RunState.LOST, f"job {job.job_id} is in a state that is not known here: {job.state!r}"
        )
    state, clause = entry
    if state is RunState.PENDING:
        return JobState(state, _waits(job, clause, time.time() if now is None else now))
    if job.state in {"FAILED", "COMPLETED", "OUT_OF_MEMORY"}:
        return _ended(job, clause)
    where = f" on {job.nodelist}" if job.nodelist and state is not RunState.INTERRUPTED else ""
    if job.state == "TIMEOUT" and job.time_limit_s:
        clause += f" of {span(job.time_limit_s)}"
    if job.state == "NODE_FAIL" and job.nodelist:
        where = f"; it ran on {job.nodelist}"
    return JobState(state, f"job {job.job_id} {clause}{where}")


def _waits(job: Job, clause: str, now: float) -> str:
    since = f" for {span(now - job.submit)}" if job.submit and now > job.submit else ""
    again = f", after {job.restarts} earlier starts" if (job.restarts or 0) > 1 else ""
    again = ", after an earlier start" if job.restarts == 1 else again
    if job.state != "PENDING":
        return f"job {job.job_id} {clause}{again}"
    return f"job {job.job_id} {clause}{since}{again}: {reasons.sentence(job.reason)}"


def _ended(job: Job, clause: str) -> JobState:
    out_of_memory = [step for step in job.steps if _out_of_memory(step)]
    tasks = [step for step in job.steps if step.step_id.isdigit()]
    last = tasks[-1] if tasks else None
    if job.state == "COMPLETED":
        if last is not None and _went_wrong(last):
            return JobState(
                RunState.FAILED,
                f"Slurm says COMPLETED of job {job.job_id}, but the last, {_how(last)}",
            )
        earlier = f"; step {out_of_memory[0].step_id} had run out of memory" if out_of_memory else ""
        return JobState(RunState.COMPLETED, f"job {job.job_id} {clause}{earlier}")
    if out_of_memory:
        return JobState(RunState.FAILED, f"job {job.job_id} ran out of memory: {_how(out_of_memory[-1])}")
    if job.signal == 0 and job.exit_code in _OWN:
        return JobState(_OWN[job.exit_code], f"job {job.job_id} ended with exit code {job.exit_code}")
    launched = reasons.code_of(job.reason) in _LAUNCHED
    if job.state == "FAILED" and not job.nodelist and not launched:
        return JobState(RunState.FAILED, f"job {job.job_id} never started: {reasons.sentence(job.reason)}")
    said = "" if launched or job.state == "OUT_OF_MEMORY" else job.reason
    told = f" (Slurm: {said.replace('_', ' ')})" if said else ""
    where = f" on {job.nodelist}" if job.nodelist else ""
    if job.state == "OUT_OF_MEMORY":
        return JobState(RunState.FAILED, f"job {job.job_id} {clause}{where}")
    meaning = end_sentence(job.exit_code, job.signal)
    if last is not None and _went_wrong(last) and job.exit_code in {1, 2} and not job.signal:
        meaning += f"; {_how(last)}"
    return JobState(RunState.FAILED, f"job {job.job_id} {clause}{where}: {meaning}{told}")


def end_sentence(code: int, number: int) -> str:
    """What an exit status says: ``3:0``, ``0:53``, …"""
    if (code, number) in _ENDS:
        return _ENDS[code, number]
    if number:
        return f"it was ended by {signal_name(number)}"
    if 128 < code < 128 + 65:
        return f"a process was ended by {signal_name(code - 128)} (exit code {code})"
    return f"exit code {code}"


def signal_name(number: int) -> str:
    """``SIGTERM`` for 15; numbers without a name stay numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _out_of_memory(step: Step) -> bool:
    return step.state == "OUT_OF_MEMORY" or (step.exit_code, step.signal) == (0, 125)


def _went_wrong(step: Step) -> bool:
    return STATES.get(step.state, (RunState.LOST, ""))[0] not in {
        RunState.COMPLETED,
        RunState.RUNNING,
        RunState.PENDING,
    }


def _how(step: Step) -> str:
    where = f" on {step.nodelist}" if step.nodelist else ""
    clause = STATES.get(step.state, (RunState.LOST, f"is {step.state}"))[1]
    if _out_of_memory(step):
        return f"step {step.step_id} ({step.name}) ran out of memory{where}"
    return f"step {step.step_id} ({step.name}) {clause}{where}: {end_sentence(step.exit_code, step.signal)}"


def span(seconds: float) -> str:
    """``45 s``, ``4 min``, ``2 h 30 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(hours, 24)
    return f"{days} d {rest} h" if rest else f"{days} d"
