"""Which jobs start, which make room, and why the others wait. Pure.

Jobs are looked at by the tier of their partition, then by priority, then by number. The first of them that has to wait
for somebody else's share keeps its nodes from all after it; there is no backfilling by time limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from seatrial.testing.slurm.model import ENDED, Config, Job, Node, Partition, Share

_MISSING = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"


@dataclass
class Decision:
    """What a pass comes to."""

    starts: list[tuple[Job, str, dict[str, Share]]] = field(default_factory=list)
    """Jobs with their partition and their share of each node."""
    victims: list[Job] = field(default_factory=list)
    """Jobs that have to make room."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a job waits, by its number."""
    hopeless: list[Job] = field(default_factory=list)
    """Jobs whose dependency can't come true, and that asked to be cancelled then."""


def priority(config: Config, job: Job) -> int:
    """Of a job that is not held, as priority/multifactor makes it of QOS and partition alone."""
    qos = config.qos_named(job.request.qos)
    most = max((qos.priority for qos in config.qos), default=0)
    share = qos.priority / most if qos is not None and most else 0
    return max(1, 1000 + round(10000 * share) - job.request.nice)


def decide(config: Config, nodes: Sequence[Node], jobs: Mapping[int, Job], now: float) -> Decision:
    """One pass over all jobs that wait."""
    decision = Decision()
    free = {node.name: _free(config, node, jobs.values()) for node in nodes}
    kept: set[str] = set()
    for job in sorted(_waiting(jobs), key=lambda job: _turn(config, job)):
        reason = _own_reason(job, jobs, now)
        if reason == "DependencyNeverSatisfied" and job.request.kill_on_invalid_dependency:
            decision.hopeless.append(job)
        if reason:
            decision.reasons[job.job_id] = reason
            continue
        able = [node for node in nodes if not node.is_away and node.name not in job.request.excluded_nodes]
        if reason := _missing(job, nodes, able):
            decision.reasons[job.job_id] = reason
            continue
        if _throttled(job, jobs.values(), [other for other, _, _ in decision.starts]):
            decision.reasons[job.job_id] = "JobArrayTaskLimit"
            continue
        partition = _partitions(config, job)[0].name
        found = place(config, job, [node.name for node in able if node.name not in kept], free)
        if found is not None:
            decision.starts.append((job, partition, found))
            for name, share in found.items():
                free[name] = _less(free[name], share)
            continue
        decision.reasons[job.job_id] = "Priority" if kept else "Resources"
        if not kept:
            decision.victims += _victims(config, job, [node.name for node in able], free, jobs.values())
        kept |= set(job.request.required_nodes) or {node.name for node in able}
    return decision


def _turn(config: Config, job: Job) -> tuple[int, int, int, int]:
    """What jobs are looked at in order of."""
    return -_tier(config, job), -job.priority, job.array_id or job.job_id, job.array_index or 0


def place(
    config: Config, job: Job, names: Sequence[str], free: Mapping[str, Share]
) -> dict[str, Share] | None:
    """A share of each node for a job, or None where it does not fit."""
    asked = job.request
    if not set(asked.required_nodes) <= set(names):
        return None
    ordered = [*asked.required_nodes, *(name for name in names if name not in asked.required_nodes)]
    found: dict[str, Share] = {}
    gpus_left = asked.gpus
    for name in ordered:
        if len(found) == asked.nodes:
            break
        to_follow = asked.nodes - len(found) - 1
        wanted = min(gpus_left - to_follow, len(free[name].gpus)) if gpus_left else asked.gpus_per_node
        share = _share(config, job, len(found), free[name], wanted)
        if share is not None:
            found[name] = share
            gpus_left = max(0, gpus_left - wanted)
    if len(found) < asked.nodes or gpus_left or not set(asked.required_nodes) <= set(found):
        return None
    return {name: found[name] for name in sorted(found, key=list(free).index)}


def demand(config: Config, job: Job, index: int) -> tuple[int, int]:
    """CPUs and MiB that a job wants of its node number `index`."""
    asked = job.request
    cpus = config.cpus if asked.exclusive else asked.tasks_of(index) * asked.cpus_a_task
    memory = asked.memory_per_node_mib
    if memory is None:
        memory = cpus * (asked.memory_per_cpu_mib or config.memory_per_cpu_mib)
    return cpus, memory or config.memory_mib


def _share(config: Config, job: Job, index: int, free: Share, gpus: int) -> Share | None:
    cpus, memory = demand(config, job, index)
    gpus = config.gpus if job.request.exclusive else gpus
    if cpus > free.cpus or memory > free.memory_mib or not 0 <= gpus <= len(free.gpus):
        return None
    return Share(cpus, memory, free.gpus[:gpus])


def _free(config: Config, node: Node, jobs: Iterable[Job]) -> Share:
    free = Share(config.cpus, config.memory_mib, tuple(range(config.gpus)))
    for job in jobs:
        if job.holds_nodes and node.name in job.shares:
            free = _less(free, job.shares[node.name])
    return free


def free_now(config: Config, nodes: Sequence[Node], jobs: Iterable[Job]) -> dict[str, Share]:
    """What no job has, by node."""
    listed = list(jobs)
    return {node.name: _free(config, node, listed) for node in nodes}


def _less(free: Share, taken: Share) -> Share:
    rest = tuple(gpu for gpu in free.gpus if gpu not in taken.gpus)
    return Share(free.cpus - taken.cpus, free.memory_mib - taken.memory_mib, rest)


def _more(free: Share, given: Share) -> Share:
    gpus = tuple(sorted({*free.gpus, *given.gpus}))
    return Share(free.cpus + given.cpus, free.memory_mib + given.memory_mib, gpus)


def _waiting(jobs: Mapping[int, Job]) -> list[Job]:
    return [job for job in jobs.values() if job.state == "PENDING" and not job.is_pretended]


def _partitions(config: Config, job: Job) -> list[Partition]:
    """Of several that a job names, the one of the highest tier comes first."""
    found = [partition for name in job.request.partitions if (partition := config.partition(name))]
    return sorted(found, key=lambda partition: -partition.tier)


def _tier(config: Config, job: Job) -> int:
    return _partitions(config, job)[0].tier


def _own_reason(job: Job, jobs: Mapping[int, Job], now: float) -> str:
    if job.is_held:
        if job.restarts and job.reason == "job requeued in held state":
            return job.reason
        return "JobHeldAdmin" if job.held_by_admin else "JobHeldUser"
    if job.eligible > now:
        return "BeginTime"
    states = [state for _, _, state in dependencies(job, jobs)]
    met = [state == "met" for state in states]
    if not states or (any(met) if job.request.any_dependency else all(met)):
        return ""
    failed = [state == "failed" for state in states]
    hopeless = all(failed) if job.request.any_dependency else any(failed)
    return "DependencyNeverSatisfied" if hopeless else "Dependency"


def dependencies(job: Job, jobs: Mapping[int, Job]) -> list[tuple[str, int, str]]:
    """Each with its state: ``met``, ``unfulfilled`` or ``failed``. A job that is not known any more meets all."""
    return [(kind, number, _met(kind, number, job, jobs)) for kind, number in job.request.dependency]


def _met(kind: str, number: int, job: Job, jobs: Mapping[int, Job]) -> str:
    if kind == "singleton":
        same = [
            other
            for other in jobs.values()
            if other.request.name == job.request.name
            and other.job_id < job.job_id
            and other.state not in ENDED
        ]
        return "unfulfilled" if same else "met"
    others = [other for other in jobs.values() if other.array_id == number] or (
        [jobs[number]] if number in jobs else []
    )
    if kind == "after":
        return "unfulfilled" if any(other.state == "PENDING" for other in others) else "met"
    if any(other.state not in ENDED for other in others):
        return "unfulfilled"
    good = all(other.state == "COMPLETED" for other in others)
    return "met" if not others or kind == "afterany" or good == (kind == "afterok") else "failed"


def _throttled(job: Job, jobs: Iterable[Job], started: Iterable[Job]) -> bool:
    """Whether as many elements of the job's array run as may."""
    if not job.request.throttle:
        return False
    running = {other.job_id for other in jobs if other.holds_nodes and other.array_id == job.array_id}
    running |= {other.job_id for other in started if other.array_id == job.array_id}
    return len(running) >= job.request.throttle


def _missing(job: Job, nodes: Sequence[Node], able: Sequence[Node]) -> str:
    """The reason of a job whose nodes are away."""
    away = [node.name for node in nodes if node.is_away]
    if set(job.request.required_nodes) & set(away):
        return "ReqNodeNotAvail, UnavailableNodes:" + ",".join(away)
    return _MISSING if len(able) < job.request.nodes else ""


def _victims(
    config: Config, job: Job, names: Sequence[str], free: Mapping[str, Share], jobs: Iterable[Job]
) -> list[Job]:
    """The jobs that have to go, so that another one fits; [] also where those that go already are enough."""
    listed = list(jobs)
    soon = dict(free)
    for other in listed:
        if other.holds_nodes and (other.ending or other.preempted_at):
            _give_back(soon, other)
    if place(config, job, names, soon) is not None:
        return []
    chosen: list[Job] = []
    below = [other for other in listed if _may_preempt(config, job, other)]
    for other in sorted(below, key=lambda other: (other.priority, -(other.start or 0), -other.job_id)):
        chosen.append(other)
        _give_back(soon, other)
        found = place(config, job, names, soon)
        if found is not None:
            return [victim for victim in chosen if set(victim.shares) & set(found)]
    return []


def _give_back(free: dict[str, Share], job: Job) -> None:
    for name, share in job.shares.items():
        free[name] = _more(free[name], share)


def _may_preempt(config: Config, job: Job, other: Job) -> bool:
    if not other.holds_nodes or other.ending or other.preempted_at:
        return False
    if config.accounting:
        qos = config.qos_named(job.request.qos)
        return qos is not None and other.request.qos in qos.preempts
    mine, theirs = _partitions(config, job)[0], config.partition(other.partition)
    return theirs is not None and theirs.tier < mine.tier and theirs.preempt_mode != "OFF"


def manner(config: Config, job: Job) -> tuple[bool, float]:
    """How a job makes room: whether it is queued again, and how long it has before (seconds)."""
    owner: Partition | object | None = config.partition(job.partition)
    mode, grace_s = "REQUEUE", 0.0
    qos = config.qos_named(job.request.qos) if config.accounting else None
    if qos is not None:
        mode, grace_s = qos.preempt_mode, qos.grace_s
    elif isinstance(owner, Partition):
        mode, grace_s = owner.preempt_mode, owner.grace_s
    return mode != "CANCEL" and job.request.requeue, grace_s
