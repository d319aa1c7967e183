"""Slurm: a batch job a run. What a person needs to have installed on the nodes is Seatrial, on a shared file system."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from seatrial.backends.base import JobHandle, JobRequest, JobState, ManyRequest, Why
from seatrial.backends.local import start_detached
from seatrial.backends.machine import Machine
from seatrial.backends.slurm.client import Client, UnansweredError
from seatrial.backends.slurm.find import find
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.probe import probe, refusal
from seatrial.backends.slurm.script import render, render_array
from seatrial.backends.slurm.states import run_state
from seatrial.backends.slurm.why import explain_pending
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.state import RunState
from seatrial.spec.kinds import AnySpec
from seatrial.spec.slurm import SlurmSpec

ALLOCATION = "SLURM_JOB_ID"
"""Set in a shell of an allocation (``salloc``), and in a batch script."""
_ONE_RUN_S = 2.5
_MANY_RUNS_S = 15.0
_UNANSWERED_S = 60.0
_MANY = 20
"""One query tells of all jobs of a user, however many are followed; for so many it is asked less often."""


class SlurmBackend:
    """Submits with sbatch, looks with squeue. A handle is ``slurm://<job>/<job's name>/<cluster>``: ids are used again.

    Args:
        client: talks to Slurm.
    """

    name = "slurm"
    keeps_jobs = True

    def __init__(self, client: Client | None = None) -> None:
        self._client = client or Client()
        self._jobs: dict[str, Job] = {}
        self._asked_at = float("-inf")
        self._unanswered: PlatformError | None = None
        self._followed: set[str] = set()
        self._ended: dict[JobHandle, JobState] = {}

    def probe(self, spec: AnySpec) -> Machine:
        """What each node of the partition has; refuses what it never will."""
        return probe(self._client, spec)

    def cluster(self) -> str:
        """ClusterName of the controller; asked once."""
        return self._client.home()

    def render(self, plan: LaunchPlan) -> JobRequest:
        """The batch script."""
        slurm = SlurmSpec.model_validate(plan.platform)
        return JobRequest("sh", render(plan, slurm, pythonpath=os.environ.get("PYTHONPATH")), plan)

    def submit(self, request: JobRequest) -> JobHandle:
        """Enqueues it; inside an allocation, starts it there. A refusal comes in Slurm's own words, with what is valid."""
        if ALLOCATION in os.environ:
            plan = request.plan
            log = RunPaths(plan.run_dir).attempt(plan.attempt).logs / "agent.log"
            argv = [plan.python, "-m", "seatrial.backends.slurm.batch", str(plan.run_dir)]
            return start_detached(
                [*argv, "--first-attempt", str(plan.attempt), "--in-allocation"], log, plan.cwd
            )
        return self._handle(self._submit(request.text, request.plan.run_id), request.plan.run_id)

    @property
    def takes_many(self) -> bool:
        """An allocation of a person's takes one after the other."""
        return ALLOCATION not in os.environ

    def render_all(self, plans: Sequence[LaunchPlan], name: str, directory: Path) -> ManyRequest:
        """The batch script of an array, with one element a plan."""
        slurm = SlurmSpec.model_validate(plans[0].platform)
        pythonpath = os.environ.get("PYTHONPATH")
        text = render_array(plans, slurm, name=name, directory=directory, pythonpath=pythonpath)
        return ManyRequest("sh", text, tuple(plans), name)

    def submit_all(self, request: ManyRequest) -> list[JobHandle]:
        """Enqueues the array. The name in each handle is the array's, which is what Slurm calls its jobs."""
        array = self._submit(request.text, request.name)
        return [self._handle(f"{array}_{i}", request.name) for i in range(len(request.plans))]

    def state(self, handle: JobHandle) -> JobState:
        """From one query for all jobs of the user, at most every 2.5 s; for a job that it doesn't tell of, whoever knows it."""
        job_id, name = split(handle)
        self._followed.add(job_id)
        self._look()
        job = self._jobs.get(job_id)
        if job is not None and job.name == name and not run_state(job).state.is_terminal:
            self._ended.pop(handle, None)
            return run_state(job)
        if handle not in self._ended:
            found = find(self._client, job_id, name, known=tuple(self._jobs.values()))
            if not found.state.state.is_terminal:
                return found.state
            if found.state.state is RunState.LOST:
                self._check_cluster(handle)
            self._ended[handle] = found.state
        return self._ended[handle]

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """SIGINT to the agents, which save and stop; a job that waits, or `force`, is cancelled at once."""
        job_id, name = split(handle)
        found = find(self._client, job_id, name)
        self._asked_at = float("-inf")
        if found.state.state is RunState.LOST:
            self._check_cluster(handle)
        if found.state.state.is_terminal:
            return
        if force or found.state.state is not RunState.RUNNING:
            if found.state.state is RunState.PENDING and "_" in job_id:
                with contextlib.suppress(PlatformError):  # it has just ended
                    self._client.split_off(job_id)
            self._client.cancel(job_id)
            return
        self._client.cancel(job_id, "INT")

    def why(self, handle: JobHandle) -> Why:
        """What a job waits for; a handful of queries."""
        job_id, name = split(handle)
        found = find(self._client, job_id, name)
        if found.job is None or found.state.state is not RunState.PENDING:
            return Why(found.state.state, found.state.reason, list(found.asked))
        told = explain_pending(found.job, self._client.snapshot())
        return Why(RunState.PENDING, told.sentence, list(told.evidence), list(told.helps))

    def logs(self, handle: JobHandle, run_dir: Path) -> Iterator[Path]:
        """The job's output, and the agents' own, one file an attempt."""
        job_id, name = split(handle)
        if "_" in job_id:
            yield run_dir.parent / name / f"slurm-{job_id}.out"
        yield from sorted(run_dir.glob("slurm-*.out"))
        yield from sorted(run_dir.glob("attempt-*/logs/agent.log"))

    def _handle(self, job_id: str, name: str) -> JobHandle:
        try:
            cluster = self._client.home()
        except PlatformError:  # the job is there; what it is called must not depend on one more answer
            cluster = ""
        return JobHandle(self.name, native(job_id, name, cluster))

    def _submit(self, script: str, name: str) -> str:
        """The id of the new job. A submission without an answer may have been taken: the job's name tells."""
        self._asked_at = float("-inf")
        try:
            return self._client.submit(script)[0]
        except SpecError as error:
            raise refusal(self._client, error) from error
        except UnansweredError:
            until = time.monotonic() + _UNANSWERED_S
            while time.monotonic() < until:
                with contextlib.suppress(PlatformError):
                    found = [job.job_id for job in self._client.my_jobs() if job.name == name]
                    if found:
                        return found[0].partition("_")[0]
                    break
                time.sleep(_ONE_RUN_S)
            raise

    def _check_cluster(self, handle: JobHandle) -> None:
        """Whether this cluster may say that a job is lost."""
        submitted, here = cluster_of(handle), self._client.home()
        if submitted and submitted != here:
            raise PlatformError(
                f"the job was submitted to the cluster {submitted}, and Slurm's clients ask another cluster here: {here}",
                evidence=f"{handle}; SLURM_CONF={os.environ.get('SLURM_CONF', 'is not set')}",
                remedy=f"run this on a login node of {submitted}, or set SLURM_CONF to its slurm.conf",
            )

    def _look(self) -> None:
        """Asks, or gives the last answer again; that none came is an answer, too."""
        every_s = _MANY_RUNS_S if len(self._followed) > _MANY else _ONE_RUN_S
        if time.monotonic() - self._asked_at > every_s:
            self._unanswered = None
            try:
                self._jobs = {job.job_id: job for job in self._client.my_jobs()}
            except PlatformError as error:
                self._unanswered = error
            self._asked_at = time.monotonic()
        if self._unanswered is not None:
            raise self._unanswered


def native(job_id: str, run_id: str, cluster: str) -> str:
    """What `split` and `cluster_of` read; `cluster` may be empty."""
    return f"{job_id}/{run_id}/{cluster}".removesuffix("/")


def split(handle: JobHandle) -> tuple[str, str]:
    """The job's id and its name: the run's id, or the name of the array that it is an element of.

    Raises:
        SpecError: it is no handle of a Slurm job.
    """
    job_id, _, rest = handle.native.partition("/")
    name = rest.partition("/")[0]
    if not job_id or not name:
        raise SpecError(
            f"{handle} is no Slurm job's handle", evidence="one looks like slurm://1234/run-id/cluster"
        )
    return job_id, name


def cluster_of(handle: JobHandle) -> str:
    """The name of the cluster that it was submitted to; "" where the handle has none."""
    return handle.native.partition("/")[2].partition("/")[2]
