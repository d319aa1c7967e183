"""Why a job waits: the evidence, and what would help. Pure, and without guesses: no evidence is said to be none."""

from __future__ import annotations

import re
from collections.abc import Callable

from seatrial.backends.slurm import limits, reasons
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.room import Snapshot, ask_of, usable
from seatrial.backends.slurm.states import run_state, span
from seatrial.backends.slurm.why_room import (
    SHOWN,
    Explanation,
    admits,
    away_lines,
    count,
    explain_room,
    where,
)


def explain_pending(job: Job, snapshot: Snapshot) -> Explanation:
    """Why a job waits, from Slurm's own reason and what is seen of the cluster.

    Args:
        job: one whose state is PENDING.
        snapshot: the cluster; what is missing in it is left out of the evidence.
    """
    code = reasons.code_of(job.reason)
    explain = _BY_CODE.get(code)
    if explain is None and code.startswith("Nodes required for job"):
        explain = explain_room
    if explain is None and "held" in code:
        explain = _held_after_start
    if explain is None and reasons.limit_of(code):
        explain = _limit
    found = (explain or _plain)(job, snapshot)
    return Explanation(f"Job {job.job_id} {found.sentence}", found.evidence, found.helps)


def _plain(job: Job, snapshot: Snapshot) -> Explanation:
    said = job.reason or "nothing"
    return Explanation(
        f"waits: {reasons.sentence(job.reason)}",
        (f"Slurm says {said!r}, and no more",),
        (f"scontrol show job {job.job_id}",),
    )


def _dependency(job: Job, snapshot: Snapshot) -> Explanation:
    waits, never = [], "Never" in job.reason
    for kind, other_id, status in re.findall(
        r"(after\w*):(\d+(?:_\d+|_\*)?)(?:\+\d+)?(?:\((\w+)\))?", job.dependency
    ):
        other = snapshot.job(other_id.removesuffix("_*"))
        state = run_state(other, snapshot.now).reason if other else f"job {other_id} is not known any more"
        waits.append(f"{kind}:{other_id}{f' ({status})' if status else ''}: {state}")
    if "singleton" in job.dependency:
        waits.append("singleton: a job of the same name and user has not ended")
    if not waits:
        waits.append(f"Slurm gives no dependency: {job.dependency!r}")
    clear = f"scontrol update JobId={job.job_id} Dependency="
    if never:
        return Explanation(
            "can never start: what it waits for can't come true any more",
            tuple(waits),
            (f"scancel {job.job_id}", clear),
        )
    return Explanation("waits for another job", tuple(waits), (clear,))


def _held(job: Job, snapshot: Snapshot) -> Explanation:
    if "Admin" in job.reason:
        return Explanation(
            "is held by an administrator", (f"priority {job.priority}",), ("ask the administrators",)
        )
    return Explanation(
        "is held by its user",
        (f"priority {job.priority}",),
        (f"scontrol release {job.raw_id or job.job_id}",),
    )


def _held_after_start(job: Job, snapshot: Snapshot) -> Explanation:
    again = [f"it was queued again {count(job.restarts, 'time')}"] if job.restarts else []
    drained = [node for node in usable(job, snapshot) if "DRAIN" in node.states]
    return Explanation(
        f"is held: {reasons.sentence(job.reason).removesuffix(' and is held')}",
        (*again, *away_lines(drained)),
        (f"scontrol release {job.raw_id or job.job_id}",),
    )


def _begin_time(job: Job, snapshot: Snapshot) -> Explanation:
    evidence = []
    if job.restarts:
        evidence.append(
            f"it was queued again {count(job.restarts, 'time')}: Slurm waits before it starts one again"
        )
    now = f"scontrol update JobId={job.job_id} StartTime=now"
    if job.start and job.start > snapshot.now:
        return Explanation(f"may not start for {span(job.start - snapshot.now)} yet", tuple(evidence), (now,))
    return Explanation("waits for its begin time", (*evidence, "Slurm gives no time"), (now,))


def _partition(job: Job, snapshot: Snapshot) -> Explanation:
    evidence, helps = [], []
    for name in job.partition.split(","):
        partition = snapshot.partition(name)
        if partition is None:
            evidence.append(f"partition {name} is not visible to this user")
            continue
        most = "any time" if partition.max_time_s is None else span(partition.max_time_s)
        asked = "no time limit" if job.time_limit_s is None else span(job.time_limit_s)
        nodes = f"{partition.min_nodes} to {partition.max_nodes or partition.total_nodes} nodes"
        evidence.append(
            f"partition {name} is {partition.state}, allows {most} and {nodes}; it asks for {asked} and {job.num_nodes}"
        )
        if partition.max_time_s is not None and (
            job.time_limit_s is None or job.time_limit_s > partition.max_time_s
        ):
            helps.append(f"scontrol update JobId={job.job_id} TimeLimit={partition.max_time_s // 60}")
    others = [
        partition.name
        for partition in snapshot.partitions
        if partition.name not in job.partition.split(",")
        and admits(partition, job)
        and sum(partition.name in node.partitions and ask_of(job).fits(node) for node in snapshot.nodes)
        >= job.num_nodes
    ]
    helps += [f"scontrol update JobId={job.job_id} Partition={name}" for name in others[:SHOWN]]
    return Explanation(f"waits: {reasons.sentence(job.reason)}", tuple(evidence), tuple(helps))


def _limit(job: Job, snapshot: Snapshot) -> Explanation:
    evidence, limit, asked = limits.limit_evidence(job, snapshot)
    other_qos = sorted(
        {q for a in snapshot.associations if a.account == job.account for q in a.qos} - {job.qos}
    )
    helps = [f"another QOS that {job.user} may use: {', '.join(other_qos)}"] if other_qos else []
    if limit is not None and asked is not None and asked > limit:
        unit = limits.unit_of(job.reason)
        sentence = f"can never start: it asks for {asked} {unit}, and the limit is {limit}"
        return Explanation(sentence, tuple(evidence), (f"ask for {limit} {unit} at most", *helps))
    return Explanation(f"waits: {reasons.sentence(job.reason)}", tuple(evidence), tuple(helps))


def _account(job: Job, snapshot: Snapshot) -> Explanation:
    evidence = [f"it names account {job.account or '(none)'} and QOS {job.qos or '(none)'}"]
    evidence += [
        f"{job.user} may use account {a.account} with QOS {', '.join(a.qos)}" for a in snapshot.associations
    ]
    for name in job.partition.split(","):
        found = snapshot.partition(name)
        if found and (found.allowed_accounts or found.allowed_qos):
            admitted = ", ".join(found.allowed_accounts or ("any",)), ", ".join(found.allowed_qos or ("any",))
            evidence.append(f"partition {name} admits accounts {admitted[0]} and QOS {admitted[1]}")
    return Explanation(
        f"can't start: {reasons.sentence(job.reason)}", tuple(evidence), ("sacctmgr show assoc user=$USER",)
    )


def _reservation(job: Job, snapshot: Snapshot) -> Explanation:
    held = next((r for r in snapshot.reservations if r.name == job.reservation), None)
    if held is None:
        return Explanation(
            f"can't start: reservation {job.reservation or '(none)'} does not exist, or not for this user",
            (f"Slurm says {job.reason!r}",),
            (f"scontrol update JobId={job.job_id} Reservation=",),
        )
    evidence = [
        f"reservation {held.name} is {held.state or 'in an unknown state'} and has {held.nodes or 'no nodes'}"
    ]
    if held.start and held.start > snapshot.now:
        return Explanation(
            f"waits for reservation {held.name}, which begins in {span(held.start - snapshot.now)}",
            tuple(evidence),
        )
    if held.end and job.time_limit_s and held.end - snapshot.now < job.time_limit_s:
        evidence.append(
            f"it ends in {span(held.end - snapshot.now)}, and the job asks for {span(job.time_limit_s)}"
        )
    return Explanation(f"waits for room in reservation {held.name}", tuple(evidence))


def _constraints(job: Job, snapshot: Snapshot) -> Explanation:
    nodes = usable(job, snapshot)
    offered = sorted({feature for node in nodes for feature in node.features})
    types = sorted({kind for node in nodes for kind in node.gpu_types})
    return Explanation(
        f"can't start: no node of {where(job)} is what it asks for",
        (
            f"it asks for {ask_of(job)}{f' and the features {job.features}' if job.features else ''}",
            f"nodes there have the features {', '.join(offered) or '(none)'} and GPUs of type {', '.join(types) or '(none)'}",
        ),
        (f"scancel {job.job_id}",),
    )  # fmt: skip


_Explainer = Callable[[Job, Snapshot], Explanation]
_BY_CODE: dict[str, _Explainer] = {
    **dict.fromkeys(("Resources", "Priority", "ReqNodeNotAvail", "NodeDown"), explain_room),
    **dict.fromkeys(("Dependency", "DependencyNeverSatisfied"), _dependency),
    **dict.fromkeys(("JobHeldUser", "JobHeldAdmin"), _held),
    **dict.fromkeys(("JobHoldMaxRequeue", "RequeueExitHold"), _held_after_start),
    "BeginTime": _begin_time,
    **dict.fromkeys(
        ("PartitionDown", "PartitionInactive", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig"),
        _partition,
    ),
    **dict.fromkeys(("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"), _account),
    **dict.fromkeys(("Reservation", "ReservationDeleted", "ReservationInvalid"), _reservation),
    "BadConstraints": _constraints,
}
