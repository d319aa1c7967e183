"""Whether a request can ever start, before it is submitted. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from seatrial.backends.slurm.cluster import Node, Partition
from seatrial.backends.slurm.room import Ask, Snapshot
from seatrial.backends.slurm.states import span
from seatrial.backends.slurm.text import hosts, memory_mib, number, tres
from seatrial.backends.slurm.why_room import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is about to be submitted. "" and None: not named."""

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int = 1
    memory: str = ""
    """On each node: ``64G``."""
    time_limit_s: int | None = None
    partition: str = ""
    """One name, or several with commas."""
    gpu_type: str = ""
    constraint: str = ""
    account: str = ""
    qos: str = ""
    nodelist: str = ""
    exclude: str = ""
    reservation: str = ""


def never_fits(request: Request, snapshot: Snapshot) -> list[str]:
    """Why a request can't start in this cluster, however long it waits: a sentence each, each with what is there.

    [] says only that nothing seen here forbids it. What the snapshot lacks (no accounting, hidden nodes) is not judged,
    and neither is what runs now.
    """
    wrong = [*_names(request, snapshot), *_limits(request, snapshot)]
    partitions = _partitions(request, snapshot)
    if not partitions:
        return wrong
    # It starts in the first partition that can hold it, so only what all of them lack is in its way.
    for_each = [_in_partition(request, partition, snapshot.nodes) for partition in partitions]
    if all(for_each):
        wrong += [line for lines in for_each for line in lines]
    return wrong


def _partitions(request: Request, snapshot: Snapshot) -> list[Partition]:
    named = [name for name in request.partition.split(",") if name]
    if named:
        return [partition for name in named if (partition := snapshot.partition(name))]
    return [partition for partition in snapshot.partitions if partition.is_default]


def _names(request: Request, snapshot: Snapshot) -> list[str]:
    wrong = []
    known = [partition.name for partition in snapshot.partitions]
    for name in filter(None, request.partition.split(",")):
        if known and name not in known:
            wrong.append(f"there is no partition {name}; there are {', '.join(known)}")
    if known and not request.partition and not any(partition.is_default for partition in snapshot.partitions):
        wrong.append(f"no partition is named, and the site has no default; there are {', '.join(known)}")
    accounts = sorted({association.account for association in snapshot.associations})
    if accounts and request.account and request.account not in accounts:
        wrong.append(f"account {request.account} is not one of yours: {', '.join(accounts)}")
    mine = [a for a in snapshot.associations if not request.account or a.account == request.account]
    allowed = sorted({name for association in mine for name in association.qos})
    if allowed and request.qos and request.qos not in allowed:
        wrong.append(f"QOS {request.qos} is not one of yours: {', '.join(allowed)}")
    nodes = {node.name for node in snapshot.nodes}
    for what, value in (("nodelist", request.nodelist), ("exclude", request.exclude)):
        strange = [name for name in hosts(value) if nodes and name not in nodes]
        if strange:
            wrong.append(f"{what} names {', '.join(strange)}, which the cluster does not have")
    held = [reservation.name for reservation in snapshot.reservations]
    if request.reservation and request.reservation not in held:
        wrong.append(f"there is no reservation {request.reservation}; there are {', '.join(held) or 'none'}")
    return wrong


def _in_partition(request: Request, partition: Partition, everywhere: Sequence[Node]) -> list[str]:
    where, wrong = f"partition {partition.name}", []
    if partition.state not in ("UP", "DOWN"):  # one that is down takes jobs, and may come back
        wrong.append(f"{where} is {partition.state}: it takes no jobs")
    if partition.max_time_s is not None and (request.time_limit_s or 0) > partition.max_time_s:
        asked = span(request.time_limit_s or 0)
        wrong.append(f"{where} allows {span(partition.max_time_s)}, and {asked} is asked")
    if partition.max_nodes is not None and request.nodes > partition.max_nodes:
        wrong.append(
            f"{where} allows {count(partition.max_nodes, 'node')} a job, and {request.nodes} are asked"
        )
    if request.nodes < partition.min_nodes:
        wrong.append(
            f"{where} wants at least {count(partition.min_nodes, 'node')} a job, and {request.nodes} is asked"
        )
    for what, value, allowed, denied in (
        ("account", request.account, partition.allowed_accounts, partition.denied_accounts),
        ("QOS", request.qos, partition.allowed_qos, partition.denied_qos),
    ):
        if value and ((allowed and value not in allowed) or value in denied):
            wrong.append(
                f"{where} does not admit {what} {value}; it admits {', '.join(allowed) or 'all but it'}"
            )
    there = [node for node in everywhere if partition.name in node.partitions]
    return wrong + (_on_nodes(request, there, where) if there else [])


def _on_nodes(request: Request, there: Sequence[Node], where: str) -> list[str]:
    """What the nodes lack, one property after the other, so that the line names the one to change."""
    excluded = set(hosts(request.exclude))
    left = [node for node in there if node.name not in excluded]
    wrong = []
    if request.nodes > len(left):
        less = f", {len(there) - len(left)} of them excluded" if len(left) < len(there) else ""
        wrong.append(f"{where} has {count(len(there), 'node')}{less}, and {request.nodes} are asked")
    ask = Ask(
        nodes=request.nodes,
        gpus=request.gpus_per_node,
        cpus=request.cpus_per_node,
        memory_mib=memory_mib(request.memory) or 0,
        gpu_type=request.gpu_type,
        features=request.constraint,
    )
    types = sorted({kind for node in left for kind in node.gpu_types})
    if ask.gpu_type and ask.gpu_type not in types:
        wrong.append(
            f"{where} has no GPUs of type {ask.gpu_type}; it has {', '.join(types) or 'none with a type'}"
        )
    features = sorted({feature for node in left for feature in node.features})
    unknown = [
        word for word in re.findall(r"[\w.+-]+", re.sub(r"\*\d+", "", ask.features)) if word not in features
    ]
    if unknown:
        wrong.append(
            f"no node of {where} has the feature {unknown[0]}; there are {', '.join(features) or 'none'}"
        )
    for what, asked, most, unit in (
        ("GPUs", ask.gpus, max((node.gpus for node in left), default=0), ""),
        ("cores", ask.cpus, max((node.cpus for node in left), default=0), ""),
        ("memory", ask.memory_mib, max((node.memory_mib for node in left), default=0), " MiB"),
    ):
        if asked > most:
            wrong.append(
                f"no node of {where} has more than {most}{unit} {what}, and {asked}{unit} are asked on each"
            )
    able = [node for node in left if ask.fits(node)]
    if not wrong and len(able) < ask.nodes:
        wrong.append(
            f"only {count(len(able), 'node')} of {where} could hold the request, and {ask.nodes} are asked"
        )
    return wrong


def _limits(request: Request, snapshot: Snapshot) -> list[str]:
    """Limits that one such job breaks by itself, with no other job of the user's running."""
    mine = [a for a in snapshot.associations if request.account in {"", a.account}]
    qos = request.qos or next((a.default_qos for a in mine if a.default_qos), "")
    limits = [
        (f"QOS {q.name}", name, value) for q in snapshot.qos if q.name == qos for name, value in q.limits
    ]
    if len(mine) == 1:
        limits += [(f"account {mine[0].account}", name, value) for name, value in mine[0].limits]
    asked = {
        "gres/gpu": request.nodes * request.gpus_per_node,
        "cpu": request.nodes * request.cpus_per_node,
        "node": request.nodes,
    }
    wrong = []
    for owner, name, value in limits:
        if name.startswith("MinTRES") or "Mins" in name:
            continue
        share = request.nodes if name == "MaxTRESPerNode" else 1
        for key, amount in tres(value).items():
            most = number(amount)
            if key in asked and most is not None and asked[key] > most * share:
                wrong.append(f"{owner} allows {key}={most} ({name}), and {asked[key] // share} are asked")
    return wrong
