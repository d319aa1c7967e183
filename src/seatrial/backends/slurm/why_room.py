"""Why a job waits for room: who holds the nodes it may use, who comes first, what is away. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from seatrial.backends.slurm import reasons
from seatrial.backends.slurm.cluster import Node, Partition, Reservation
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.room import Ask, Snapshot, ahead, ask_of, holders, usable
from seatrial.backends.slurm.states import span
from seatrial.backends.slurm.text import hosts

SHOWN = 3
"""How many jobs are listed before the rest is counted."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits."""

    sentence: str
    evidence: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    """Commands and edits that the evidence shows to help; the nearest first."""


@dataclass(frozen=True, slots=True)
class _Room:
    """The nodes of a job's partitions, sorted by what they can do for it."""

    ask: Ask
    nodes: Sequence[Node]
    able: Sequence[Node]
    """Could hold its share when nothing else ran there."""
    away: Sequence[Node]
    """Could, and are down or drained."""
    free: Sequence[Node]
    """Can now."""
    first: Sequence[Job]
    reserved: Sequence[Reservation]
    """Keep some of the able nodes before the job could have ended."""


def explain_room(job: Job, snapshot: Snapshot) -> Explanation:
    """Why a job that waits for resources, for its turn or for named nodes has not started."""
    room = _look(job, snapshot)
    if not snapshot.nodes:
        return Explanation(f"waits: {reasons.sentence(job.reason)}", tuple(_expected(job, snapshot)))
    evidence = [
        *_counts(job, room), *away_lines(room.away), *_named(job), *_ahead_lines(room.first, snapshot),
        *_reserved_lines(room, snapshot), *_holder_lines(room, snapshot), *_expected(job, snapshot),
    ]  # fmt: skip
    return Explanation(_sentence(job, room), tuple(evidence), tuple(_helps(job, room, snapshot)))


def _look(job: Job, snapshot: Snapshot) -> _Room:
    ask, nodes = ask_of(job), usable(job, snapshot)
    able = [node for node in nodes if ask.fits(node)]
    end = snapshot.now + (job.time_limit_s or float("inf"))
    names = {node.name for node in able}
    return _Room(
        ask=ask,
        nodes=nodes,
        able=able,
        away=[node for node in able if node.is_away],
        free=[node for node in able if ask.fits_now(node)],
        first=ahead(job, snapshot),
        reserved=[
            held
            for held in snapshot.reservations
            if held.name != job.reservation
            and names.intersection(hosts(held.nodes))
            and (held.start or 0) < end
            and (held.end or end) > snapshot.now
        ],
    )


def _sentence(job: Job, room: _Room) -> str:
    needs = f"it needs {room.ask}"
    here = len(room.able) - len(room.away)
    if len(room.able) < room.ask.nodes:
        return f"can't start: {needs}, and {_can(len(room.able))} hold that in {where(job)}, busy or not"
    if here < room.ask.nodes:
        gone = f"{len(room.away)} of {count(len(room.able), 'node')} that could hold it"
        return f"can't start before nodes come back: {needs}, and {gone} {'is' if len(room.away) == 1 else 'are'} away"
    turn = f"{count(len(room.first), 'job')} {'comes' if len(room.first) == 1 else 'come'} first"
    if len(room.free) < room.ask.nodes:
        also = f", and {turn}" if room.first else ""
        return f"waits for room{also}: {needs}, and {_can(len(room.free))} hold that now"
    if room.first:
        return f"waits for its turn: {turn}"
    return f"waits: {reasons.sentence(job.reason)}"


def _counts(job: Job, room: _Room) -> list[str]:
    free, total = sum(node.gpus_free for node in room.nodes), sum(node.gpus for node in room.nodes)
    gpus = f", with {free} of {total} GPUs free" if room.ask.gpus else ""
    able = f"{len(room.able)} could hold it, {len(room.free)} can now"
    return [f"{count(len(room.nodes), 'node')} of {where(job)} may be used{gpus}: {able}"]


def away_lines(nodes: Sequence[Node]) -> list[str]:
    """A line for each of the first nodes that are away, with the administrators' reason."""
    lines = [
        f"{node.name} is {'+'.join(node.states)}{f': {node.reason}' if node.reason else ''}"
        for node in nodes[:SHOWN]
    ]
    return lines + _more(len(nodes) - SHOWN, "node is away", "nodes are away")


def _named(job: Job) -> list[str]:
    """Nodes that Slurm itself names, or that the job insists on."""
    told = re.search(r"UnavailableNodes:(\S+)", job.reason)
    lines = [f"Slurm names {told.group(1)} as not available"] if told else []
    return lines + ([f"it asks for {job.required_nodes} by name"] if job.required_nodes else [])


def _ahead_lines(first: Sequence[Job], snapshot: Snapshot) -> list[str]:
    lines = [
        f"job {job.job_id} of {job.user} comes first (priority {job.priority}): {ask_of(job)}"
        for job in first[:SHOWN]
    ]
    lines += _more(len(first) - SHOWN, "job comes first", "jobs come first")
    if snapshot.hides_jobs:
        lines.append("this site shows users no jobs of others (PrivateData=jobs): there may be more")
    return lines


def _reserved_lines(room: _Room, snapshot: Snapshot) -> list[str]:
    return [
        f"reservation {held.name} keeps {held.nodes} "
        + (
            f"in {span(held.start - snapshot.now)}"
            if (held.start or 0) > snapshot.now and held.start
            else "now"
        )
        for held in room.reserved
    ]


def _holder_lines(room: _Room, snapshot: Snapshot) -> list[str]:
    jobs = holders([n for n in room.able if not n.is_away and n not in room.free], snapshot)
    lines = []
    for job in jobs[:SHOWN]:
        left = (job.end or 0) - snapshot.now
        end = f"for {span(left)} at most" if left > 0 else "without an end"
        gpus = f" ({count(job.gpus, 'GPU')})" if job.gpus else ""
        lines.append(f"job {job.job_id} of {job.user} holds {job.nodelist}{gpus} {end}")
    return lines + _more(len(jobs) - SHOWN, "job holds nodes there", "jobs hold nodes there")


def _expected(job: Job, snapshot: Snapshot) -> list[str]:
    if job.start and job.start > snapshot.now:
        on = f" on {job.planned_nodes}" if job.planned_nodes else ""
        return [f"Slurm means to start it in {span(job.start - snapshot.now)}{on}"]
    return []


def _helps(job: Job, room: _Room, snapshot: Snapshot) -> list[str]:
    here = len(room.able) - len(room.away)
    helps = [*_other_nodes(job, room, snapshot), *_elsewhere(job, room, snapshot)]
    if len(room.able) < room.ask.nodes:
        most = max((node.gpus for node in room.nodes), default=0)
        if room.ask.gpus > most:
            helps.append(f"resources.gpus_per_node={most}: no node there has more")
        elif room.able:
            helps.append(f"resources.nodes={len(room.able)}: no more are there")
    elif here < room.ask.nodes:
        helps += [f"resources.nodes={here} does without the nodes that are away"] if here else []
        helps.append("ask the administrators about the nodes that are away: sinfo -R")
    else:
        begins = [
            held.start - snapshot.now for held in room.reserved if held.start and held.start > snapshot.now
        ]
        if begins and min(begins) >= 60:
            helps.append(f"resources.time under {span(min(begins))} ends before the reservation begins")
        elif room.first:
            helps.append(
                "a shorter resources.time, which Slurm may fit in before the jobs that come first (backfill)"
            )
    return helps


def _other_nodes(job: Job, room: _Room, snapshot: Snapshot) -> list[str]:
    """Whether it is only the nodes that it names, or shuts out, which keep it."""
    if not job.required_nodes and not job.excluded_nodes:
        return []
    open_to_all = usable(replace(job, required_nodes="", excluded_nodes=""), snapshot)
    free = [node for node in open_to_all if room.ask.fits_now(node)]
    if len(free) < room.ask.nodes or len(room.free) >= room.ask.nodes:
        return []
    names = [
        key for key, value in (("nodelist", job.required_nodes), ("exclude", job.excluded_nodes)) if value
    ]
    return [
        f"without slurm.{' and slurm.'.join(names)}: {count(len(free), 'node')} of {where(job)} can hold it now"
    ]


def _elsewhere(job: Job, room: _Room, snapshot: Snapshot) -> list[str]:
    """Other partitions where it would fit this moment, on nodes that its own partitions do not have."""
    own = set(job.partition.split(","))
    found = []
    for partition in snapshot.partitions:
        free = [n for n in snapshot.nodes if partition.name in n.partitions and room.ask.fits_now(n)]
        others = [node for node in free if not own.intersection(node.partitions)]
        if others and len(free) >= room.ask.nodes and admits(partition, job):
            found.append(
                f"slurm.partition={partition.name}: {count(len(free), 'node')} there can hold it now"
            )
    return found


def admits(partition: Partition, job: Job) -> bool:
    """Whether a partition takes and starts such a job."""
    most = partition.max_nodes if partition.max_nodes is not None else job.num_nodes
    in_time = partition.max_time_s is None or 0 < (job.time_limit_s or 0) <= partition.max_time_s
    account = not partition.allowed_accounts or job.account in partition.allowed_accounts
    qos = not partition.allowed_qos or job.qos in partition.allowed_qos
    denied = job.account in partition.denied_accounts or job.qos in partition.denied_qos
    in_size = partition.min_nodes <= job.num_nodes <= most
    return partition.state == "UP" and in_time and account and qos and not denied and in_size


def where(job: Job) -> str:
    """``partition main``, or ``partitions main,low`` of a job that takes the first that is free."""
    return f"partition{'s' if ',' in job.partition else ''} {job.partition}"


def count(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _can(number: int) -> str:
    return f"{'no' if number == 0 else number} node{'' if number < 2 else 's'} can"


def _more(number: int, one: str, several: str) -> list[str]:
    return [f"{number} more {one if number == 1 else several}"] if number > 0 else []
