"""What slurmctld does: jobs come, start, are signalled, make room, and end."""

from __future__ import annotations

import copy
import re
import shutil
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace

from seatrial.testing.slurm import launch, processes, schedule, text
from seatrial.testing.slurm.model import ENDED, Config, Ending, Job, Node, Request, Share, Step, Task

NODE_FAILURE = "NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"
_KILL = signal.SIGKILL
_FATAL = {signal.SIGTERM, signal.SIGKILL}
_LAST_WORDS_S = 0.3
"""An srun whose script has ended still says what came of its tasks."""


class Controller:
    """One cluster's jobs and nodes.

    Args:
        config: what the cluster is.
        clock: seconds since the epoch.
    """

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self.config = config
        self.clock = clock
        self.nodes = [Node(f"node{index}") for index in range(config.nodes)]
        self.jobs: dict[int, Job] = {}
        self.accounted: dict[int, Job] = {}
        """What the accounting knows: jobs stay here when the controller forgets them."""
        self.away_s: float | None = None
        """How long clients wait for the controller before they give up; None while it answers."""
        self._next_id = 1

    # --- what happens by itself ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Everything that is due: ends, warnings, limits, starts. Nothing while the controller is away."""
        if self.away_s is not None:
            return
        now = self.clock()
        for job in list(self.jobs.values()):
            if job.state == "RUNNING":
                self._watch(job, now)
        self._schedule(now)
        for job in list(self.jobs.values()):
            if job.state in ENDED and job.end is not None and now > job.end + self.config.min_job_age_s:
                del self.jobs[job.job_id]
                shutil.rmtree(launch.spool(self.config, job), ignore_errors=True)

    def _watch(self, job: Job, now: float) -> None:
        for step in job.steps:
            self._watch_step(step, now)
        batch = job.batch
        if batch is not None and not batch.is_running and job.ending is None:
            self._ended_by_itself(job, batch, now)
        if job.ending is None:
            self._watch_time(job, now)
        if job.ending is None:
            return
        if job.kill_at is not None and now >= job.kill_at:
            for task in job.running_tasks():
                processes.kill(task)
        if job.running_tasks():
            return
        job.quiet_at = job.quiet_at or now
        left = processes.orphans(job)
        if left and now < job.quiet_at + _LAST_WORDS_S:
            return
        processes.kill_orphans(left)
        self._conclude(job, now)

    def _watch_step(self, step: Step, now: float) -> None:
        if step.end is not None:
            return
        ended = [task for task in step.tasks if processes.poll(task)]
        if not step.is_running:
            step.end = now
            return
        if ended and step.first_end is None:
            step.first_end = now
        if step.kill_bad_exit and not step.is_cancelled and any(task.status for task in ended):
            self.end_step(step, signal.SIGTERM)
        if step.wait_s and step.first_end is not None and now > step.first_end + step.wait_s:
            self.end_step(step, _KILL)

    def _watch_time(self, job: Job, now: float) -> None:
        warning = job.request.warning
        if warning is not None and job.limit_at is not None and not job.warned and not job.preempted_at:
            before_s = warning.before_s * self.config.minute_s / 60
            if now >= job.limit_at - before_s:
                job.warned = True
                self.signal(job, warning.number, steps=not warning.to_batch, batch=warning.to_batch)
        if job.grace_until is not None and now >= job.grace_until:
            self._make_room(job, now)
        elif job.limit_at is not None and now >= job.limit_at:
            job.reason = "TimeLimit"
            self.end(job, Ending("TIMEOUT", "TIME LIMIT"))

    def _ended_by_itself(self, job: Job, batch: Step, now: float) -> None:
        job.status = batch.status
        by_signal = bool(job.status & 0x7F)
        job.reason = "JobLaunchFailure" if by_signal else "NonZeroExitCode" if job.status else "None"
        self.end(job, Ending("FAILED" if job.status else "COMPLETED"))

    def _schedule(self, now: float) -> None:
        decision = schedule.decide(self.config, self.nodes, self.jobs, now)
        for number, reason in decision.reasons.items():
            self.jobs[number].reason = reason
        for job in decision.hopeless:
            self._end_waiting(job, "CANCELLED", now)
        for job, partition, shares in decision.starts:
            self._start(job, partition, shares, now)
        for job in decision.victims:
            self.preempt(job)

    def _start(self, job: Job, partition: str, shares: dict[str, Share], now: float) -> None:
        self.occupy(job, partition, shares, now)
        job.output = launch.output_of(job)
        job.steps.append(launch.batch(self.config, job, now))

    def occupy(self, job: Job, partition: str, shares: dict[str, Share], now: float) -> None:
        """Gives a job its nodes."""
        job.state, job.reason, job.partition, job.shares = "RUNNING", "None", partition, shares
        job.is_apart = True
        job.start, job.end, job.status, job.warned = now, None, 0, False
        limit = job.limit_min
        job.limit_at = None if limit is None else now + limit * self.config.minute_s

    # --- what is asked for ---------------------------------------------------------------------------------------

    def submit(self, request: Request, *, held: bool = False, number: int | None = None) -> Job:
        """Queues a job, under the next number or a given one."""
        now = self.clock()
        job = Job(number or self.take_number(), request, now, now, is_held=held, limit_min=request.limit_min)
        job.partition, job.comment = ",".join(request.partitions), request.comment
        job.priority = schedule.priority(self.config, job)
        job.output = launch.output_of(job)
        self.jobs[job.job_id] = self.accounted[job.job_id] = job
        return job

    def submit_array(self, request: Request, *, held: bool = False) -> int:
        """Queues one job for each element of an array; the array's number, which is the last element's own."""
        number = self.take_number()
        for index in request.array:
            job = self.submit(request, held=held, number=number if index == request.array[-1] else None)
            job.array_id, job.array_index = number, index
            job.output = launch.output_of(job)
        return number

    def find(self, word: str) -> list[Job]:
        """The jobs that a user means by ``12``, ``8_3``, ``8_[1-3]``, or ``8`` where that is an array; [] for none."""
        return found_by(word, self.jobs.values())

    def take_number(self) -> int:
        """The next job's."""
        self._next_id += 1
        return self._next_id - 1

    def refuse(self, request: Request) -> None:
        """Keeps a refused job, as slurmctld does when it finds that no node could ever have it."""
        job = self.submit(request)
        job.state, job.reason, job.start, job.end = "FAILED", "BadConstraints", job.submit, job.submit
        job.status = 1 << 8
        del self.accounted[job.job_id]

    def cancel(self, job: Job, uid: int, *, alone: bool = False) -> None:
        """Ends a job that waits or runs; `alone`, where an element of an array is named, and not the whole of it."""
        job.cancelled_by = uid
        if alone and job.state == "PENDING" and job.array_id is not None and not job.is_apart:
            # It never had a record of its own, and leaves no trace.
            del self.jobs[job.job_id], self.accounted[job.job_id]
            return
        if job.state == "PENDING":
            self._end_waiting(job, "CANCELLED", self.clock())
        elif job.state == "RUNNING" and job.ending is not None:
            job.ending = replace(job.ending, requeue=False, state="CANCELLED")
        elif job.state == "RUNNING":
            self.end(job, Ending("CANCELLED", ""))

    def signal(self, job: Job, number: int, *, steps: bool, batch: bool) -> None:
        """Signals the tasks of the steps, the script, or both; slurmstepd takes some signals for the end."""
        if number in _FATAL and job.ending is None:
            launch.tell_cancelled(job, "", self.clock(), steps=steps, batch=batch)
        for step in job.steps:
            if batch if step.step_id == "batch" else steps:
                self.signal_step(step, number)

    def signal_step(self, step: Step, number: int) -> None:
        """Signals the tasks of a step."""
        for task in step.tasks:
            if number == _KILL:
                processes.kill(task)
            else:
                processes.send(task, number)

    def end_step(self, step: Step, number: int) -> None:
        """Ends a step alone, as srun does."""
        step.is_cancelled = True
        self.signal_step(step, number)

    def requeue(self, job: Job, *, hold: bool = False) -> None:
        """Queues a job again that runs or has ended."""
        if job.state == "RUNNING":
            self.end(job, Ending("REQUEUED", "JOB REQUEUE", requeue=True, hold=hold))
        else:
            self._queue_again(job, job.state, hold=hold)

    def preempt(self, job: Job) -> None:
        """Lets a job make room, in the way of its QOS or partition; with a grace time its tasks are told first."""
        _, grace_s = schedule.manner(self.config, job)
        now = self.clock()
        job.preempted_at = now
        if not grace_s:
            self._make_room(job, now)
            return
        job.grace_until = now + grace_s
        self.signal(job, signal.SIGCONT, steps=True, batch=False)
        self.signal(job, signal.SIGTERM, steps=True, batch=False)

    def _make_room(self, job: Job, now: float) -> None:
        again, _ = schedule.manner(self.config, job)
        self.end(job, Ending("PREEMPTED", "PREEMPTION", requeue=again))

    def fail_node(self, node: Node) -> None:
        """The node is gone, and all that ran on it."""
        node.is_down, node.responds = True, False
        node.reason, node.reason_user, node.reason_at = "Not responding", self.config.user, self.clock()
        for job in self._on(node):
            for task in job.running_tasks():
                if task.node == node.name:
                    processes.kill(task)
                    _forget(task)
            self._lose(job)

    def down(self, node: Node, reason: str) -> None:
        """An administrator takes a node down; its jobs are ended in order."""
        node.is_down = True
        node.reason, node.reason_user, node.reason_at = reason, self.config.user, self.clock()
        for job in self._on(node):
            self._lose(job)

    def drain(self, node: Node, reason: str) -> None:
        """The node's jobs go on, and no other starts there."""
        node.is_drained = True
        node.reason, node.reason_user, node.reason_at = reason, self.config.user, self.clock()

    def resume(self, node: Node) -> None:
        """The node takes jobs again, whatever it was away for."""
        node.is_down = node.is_drained = False
        node.responds, node.reason = True, ""

    def _on(self, node: Node) -> list[Job]:
        return [job for job in self.jobs.values() if job.holds_nodes and node.name in job.shares]

    def _lose(self, job: Job) -> None:
        if not job.request.requeue:
            job.reason = "NodeDown"
        self.end(job, Ending("NODE_FAIL", NODE_FAILURE, requeue=job.request.requeue))

    # --- ends ----------------------------------------------------------------------------------------------------

    def end(self, job: Job, ending: Ending) -> None:
        """Begins to end a job that runs: what of it still does is asked to, and killed KillWait later."""
        if job.ending is not None:
            return
        now = self.clock()
        job.ending, job.end, job.kill_at = ending, now, now + self.config.kill_wait_s
        if ending.why is not None:
            launch.tell_cancelled(job, ending.why, now)
        for step in job.steps:
            step.is_cancelled = step.is_cancelled or (step.is_running and step.step_id != "batch")
        self.signal(job, signal.SIGCONT, steps=True, batch=True)
        self.signal(job, signal.SIGTERM, steps=True, batch=True)
        if job.is_pretended:
            self._conclude(job, now)

    def _conclude(self, job: Job, now: float) -> None:
        """Nothing of the job runs any more."""
        ending, batch = job.ending, job.batch
        assert ending is not None
        job.ending = job.kill_at = job.grace_until = job.limit_at = job.quiet_at = None
        if batch is not None:
            job.status = batch.status
        if ending.requeue:
            self._queue_again(job, ending.state, hold=ending.hold)
        else:
            job.state = ending.state
            job.end = job.end or now

    def _end_waiting(self, job: Job, state: str, now: float) -> None:
        job.state, job.end = state, now
        if state == "CANCELLED" and job.reason != "DependencyNeverSatisfied":
            job.start = now

    def _queue_again(self, job: Job, state: str, *, hold: bool) -> None:
        now = self.clock()
        record = copy.copy(job)
        record.state, record.earlier = state, []
        job.earlier.append(record)
        job.state, job.submit, job.eligible = "PENDING", now, now + self.config.requeue_wait_s
        job.reason = "job requeued in held state" if hold else "BeginTime"
        job.is_held, job.held_by_admin = hold, hold
        job.start = job.end = job.preempted_at = job.cancelled_by = job.grace_until = None
        job.shares, job.steps, job.next_step = {}, [], 0
        job.restarts += 1
        job.status = job.status if state in ENDED - {"PREEMPTED", "NODE_FAIL"} else 0
        job.partition = ",".join(job.request.partitions)


def found_by(word: str, jobs: Iterable[Job]) -> list[Job]:
    """Those of some jobs that a user means; see `Controller.find`."""
    match = re.fullmatch(r"(\d+)(?:_(?:(\d+)|\[([\d,-]+)(?:%\d+)?\]))?", word)
    if not match:
        return []
    number, one, several = int(match[1]), match[2], match[3]
    wanted = {int(index) for index in text.expand(f"[{several or one}]")} if several or one else None
    listed = list(jobs)
    elements = [
        job for job in listed if job.array_id == number and (wanted is None or job.array_index in wanted)
    ]
    return elements or [job for job in listed if job.job_id == number and wanted is None]


def _forget(task: Task) -> None:
    """A node that is gone reports nothing: its task counts as killed."""
    if task.status is None and task.process is not None:
        task.process.wait(5)
        processes.poll(task)
