"""Where a job is: squeue, then scontrol, then the accounting, and never a guess."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from seatrial.backends.base import JobState
from seatrial.backends.slurm.client import Accounted, Client
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.states import STATES, run_state
from seatrial.errors import PlatformError
from seatrial.runs.state import RunState

# The accounting trails the controller by 1 to 2 s.
_LAG_TRIES = 4
_LAG_S = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a job, and from whom."""

    state: JobState
    source: str
    """``squeue``, ``scontrol``, ``sacct``, or "" when nobody knows."""
    job: Job | None
    asked: tuple[str, ...]
    """Each question with its answer, in order."""


def find(
    client: Client,
    job_id: str,
    name: str,
    *,
    known: Sequence[Job] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Found:
    """Looks a job up by its id, and makes sure by its name that it is ours.

    squeue first: one question serves all of a user's jobs. It forgets a job MinJobAge (300 s) after its end. scontrol
    has the same memory, but shows jobs of others too: whose id it is now. The accounting forgets nothing, where it is on,
    and alone knows the steps; but it trails behind, so of a job that the controller has forgotten it is asked again until
    it says how that ended.

    Args:
        client: of the cluster the job was submitted to.
        job_id: Slurm's id.
        name: the job's name, given at its submission. Ids are given again when a controller loses its state, and
            another cluster has the same ones.
        known: what `Client.my_jobs` has just answered, to save the question.
        sleep: waits.

    Raises:
        PlatformError: the controller does not answer; or it has forgotten the job, and the accounting, which would
            know, does not.
    """
    asked: list[str] = []
    job, source = _from_controller(client, job_id, name, known, asked)
    # A job that was never given a node has no steps that only the accounting could tell of.
    if job is not None and (not _is_over(job) or not job.nodelist):
        return Found(run_state(job), source, job, tuple(asked))
    accounted, answer = _ours_accounted(client, job_id, name, asked, sleep)
    if job is not None:
        if accounted is not None:
            job = replace(job, steps=accounted.steps)
        return Found(run_state(job), source, job, tuple(asked))
    if accounted is not None and not _is_over(accounted):
        said = f"the accounting has job {job_id} as {accounted.state}, but the controller does not know it"
        return Found(JobState(RunState.LOST, said), "sacct", accounted, tuple(asked))
    if accounted is not None:
        return Found(run_state(accounted), "sacct", accounted, tuple(asked))
    if answer.status == "away":
        raise PlatformError(
            f"how job {job_id} ended can't be told: Slurm's accounting does not answer",
            evidence="\n".join(asked),
            remedy=f"sacct -j {job_id}",
        )
    if "_" in job_id:
        asked.append("of an element of an array that scancel ends while it waits, Slurm keeps no record")
    return Found(
        JobState(RunState.LOST, f"nobody knows job {job_id}: " + "; ".join(asked)), "", None, tuple(asked)
    )


def _from_controller(
    client: Client, job_id: str, name: str, known: Sequence[Job] | None, asked: list[str]
) -> tuple[Job | None, str]:
    mine = client.my_jobs() if known is None else known
    for job in mine:
        if job_id in {job.job_id, job.raw_id} and job.name == name:
            asked.append(f"squeue: {job.state}")
            return job, "squeue"
    shown = client.job(job_id)
    if shown is None:
        asked.append("squeue and scontrol: no such job")
    elif shown.name != name:
        asked.append(
            f"scontrol: job {job_id} is {shown.name!r} of {shown.user} now, not {name!r}: "
            "this is another cluster, or its controller lost its state"
        )
    else:
        asked.append(f"scontrol: {shown.state}")
        return shown, "scontrol"
    return None, ""


def _ours_accounted(
    client: Client, job_id: str, name: str, asked: list[str], sleep: Callable[[float], None]
) -> tuple[Job | None, Accounted]:
    """The last start of ours that the accounting has, asked again while it lags; and its last answer."""
    for attempt in range(_LAG_TRIES):
        if attempt:
            sleep(_LAG_S)
        answer = client.accounted(job_id)
        ours = [job for job in answer.jobs if _is_accounted_as(name, job.name)]
        if answer.status in {"off", "away"} or (ours and _is_over(ours[-1])):
            break
    if ours:
        asked.append(f"sacct: {ours[-1].state}")
        return ours[-1], answer
    others = sorted({job.name for job in answer.jobs})
    asked.append(f"sacct: job {job_id} is {', '.join(map(repr, others))}" if others else answer.words)
    return None, answer


def _is_accounted_as(name: str, accounted: str) -> bool:
    """Whether a name is that of the accounting, whose database keeps no double quotes, and few letters but ASCII's."""
    return len(name) == len(accounted) and all(
        ours == theirs or (ours == '"' and theirs == "`") or (theirs == "?" and not ours.isascii())
        for ours, theirs in zip(name, accounted, strict=True)
    )


def _is_over(job: Job) -> bool:
    entry = STATES.get(job.state)
    return entry is None or entry[0].is_terminal
