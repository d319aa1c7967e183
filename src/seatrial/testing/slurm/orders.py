"""What the owner of the pretend Slurm makes happen, beside what clients can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from seatrial.errors import SpecError
from seatrial.testing.slurm import schedule
from seatrial.testing.slurm.controller import Controller
from seatrial.testing.slurm.model import ENDED, Job, Node, Request


def obey(ctl: Controller, what: str, arguments: Mapping[str, Any]) -> Any:
    """Does one of `_ORDERS`.

    Raises:
        SpecError: it can't be done: there is no such job or node.
    """
    return _ORDERS[what](ctl, **arguments)


def _job(ctl: Controller, job: str) -> Job:
    found = ctl.find(job)
    if len(found) == 1:
        return found[0]
    known = ", ".join(each.shown_id for each in ctl.jobs.values()) or "none"
    raise SpecError(
        f"the pretend Slurm has no job {job}", evidence=f"its jobs: {known}", remedy="squeue -t all"
    )


def _node(ctl: Controller, node: str) -> Node:
    for found in ctl.nodes:
        if found.name == node:
            return found
    names = ", ".join(each.name for each in ctl.nodes)
    raise SpecError(
        f"the pretend Slurm has no node {node}", evidence=f"its nodes: {names}", remedy="sinfo -N"
    )


def _preempt(ctl: Controller, job: str) -> None:
    found = _job(ctl, job)
    if found.state != "RUNNING":
        raise SpecError(
            f"job {job} can't be preempted: it is {found.state}", evidence="only jobs that run make room", remedy="squeue -t all"
        )  # fmt: skip
    ctl.preempt(found)


def _fail_node(ctl: Controller, node: str) -> None:
    ctl.fail_node(_node(ctl, node))


def _drain(ctl: Controller, node: str, reason: str) -> None:
    ctl.drain(_node(ctl, node), reason)


def _resume(ctl: Controller, node: str) -> None:
    ctl.resume(_node(ctl, node))


def _away(ctl: Controller, after_s: float | None) -> None:
    ctl.away_s = after_s


def _add(
    ctl: Controller,
    state: str,
    name: str,
    user: str,
    partition: str,
    account: str,
    qos: str,
    nodes: int,
    gpus_per_node: int,
    reason: str,
    exit_code: int,
    signal: int,
    comment: str,
    age_s: float,
) -> int:
    config = ctl.config
    asked = Request(
        name=name, user=user or config.user, partitions=(partition or next(p.name for p in config.partitions if p.is_default),),
        account=(account or config.account) if config.accounting else "", qos=(qos or config.qos[0].name) if config.accounting else "",
        nodes=nodes, tasks=nodes, gpus_per_node=gpus_per_node, gres_words=str(gpus_per_node), comment=comment, limit_min=60,
    )  # fmt: skip
    job = ctl.submit(asked)
    job.is_pretended = True
    now = ctl.clock()
    job.submit = job.eligible = now - age_s
    if state == "RUNNING":
        free = schedule.free_now(config, ctl.nodes, ctl.jobs.values())
        shares = schedule.place(config, job, [node.name for node in ctl.nodes if not node.is_away], free)
        if shares is None:
            del ctl.jobs[job.job_id], ctl.accounted[job.job_id]
            raise SpecError(
                "the pretend job does not fit", evidence=f"{nodes} nodes with {gpus_per_node} GPUs are not free", remedy="sinfo -N"
            )  # fmt: skip
        ctl.occupy(job, asked.partitions[0], shares, now - age_s)
        return job.job_id
    job.state, job.reason = state, reason
    job.status = exit_code << 8 | signal
    if state in ENDED:
        job.start, job.end = job.submit, now
    return job.job_id


_ORDERS: Mapping[str, Callable[..., Any]] = {
    "preempt": _preempt, "fail_node": _fail_node, "drain": _drain, "resume": _resume, "away": _away, "add_job": _add,
}  # fmt: skip
