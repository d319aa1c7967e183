"""Nodes, partitions, reservations and limits, as ``scontrol show`` and sacctmgr tell of them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from seatrial.backends.slurm import text as t

# `scontrol show node`: a reason is what an administrator typed.
_NODE_FREE = frozenset({"Reason"})
_AWAY = {
    "DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "NOT_RESPONDING", "NO_RESPOND", "MAINTENANCE", "MAINT", "FUTURE",
    "POWERED_DOWN", "POWERING_DOWN", "POWERING_UP", "REBOOT_ISSUED", "REBOOT_REQUESTED", "INVAL", "INVALID_REG", "UNKNOWN",
    "ERROR", "BLOCKED", "UNDRAIN",
}  # fmt: skip
# Nodes in these states come back by themselves when a job wants them.
_SLEEPING = {"POWERED_DOWN", "POWERING_UP", "POWERING_DOWN", "POWER_UP", "POWER_DOWN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node: what it has, what is taken, and whether it takes jobs."""

    name: str
    states: tuple[str, ...]
    """Base state and flags: ``("IDLE", "DRAIN")``."""
    cpus: int = 0
    cpus_used: int = 0
    memory_mib: int = 0
    memory_used_mib: int = 0
    gpus: int = 0
    gpus_used: int = 0
    gpu_types: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    reason: str = ""
    """Why it is down or drained, in the words of who did it."""

    @property
    def is_away(self) -> bool:
        """Whether no job can start on it now, whatever is free there."""
        return bool(_AWAY.intersection(self.states)) and not self.is_asleep

    @property
    def is_asleep(self) -> bool:
        """Whether it is switched off to save power, and comes back when a job wants it."""
        return bool(_SLEEPING.intersection(self.states)) and not {"DOWN", "DRAIN", "FAIL"}.intersection(
            self.states
        )

    @property
    def gpus_free(self) -> int:
        """GPUs that no job holds; none where the node is away."""
        return 0 if self.is_away else self.gpus - self.gpus_used

    @property
    def cpus_free(self) -> int:
        """Cores that no job holds; none where the node is away."""
        return 0 if self.is_away else self.cpus - self.cpus_used

    @property
    def memory_free_mib(self) -> int:
        """Memory that no job has been promised; none where the node is away."""
        return 0 if self.is_away else self.memory_mib - self.memory_used_mib

    def has(self, features: str) -> bool:
        """Whether it has the features of a constraint; counts and brackets are taken for granted."""
        if re.search(r"[\[\]()*]", features):
            return True
        return (
            any(all(word in self.features for word in part.split("&")) for part in features.split("|"))
            or not features
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition, with the limits that a request meets there. None is unlimited."""

    name: str
    state: str
    """``UP``, ``DOWN`` (takes jobs, starts none), ``DRAIN`` (takes none) or ``INACTIVE``."""
    is_default: bool = False
    max_time_s: int | None = None
    default_time_s: int | None = None
    max_nodes: int | None = None
    min_nodes: int = 0
    total_nodes: int = 0
    nodes: str = ""
    """Compressed: ``node[0-3,7]``."""
    allowed_accounts: tuple[str, ...] = ()
    """Empty: all of them; likewise `allowed_qos`."""
    allowed_qos: tuple[str, ...] = ()
    denied_accounts: tuple[str, ...] = ()
    denied_qos: tuple[str, ...] = ()
    qos: str = ""
    """Its own QOS, whose limits hold for all its jobs."""
    tier: int = 0
    """Jobs of a higher tier are looked at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Nodes kept for somebody, or for maintenance."""

    name: str
    start: int | None
    """Seconds since the epoch, like `end`."""
    end: int | None
    nodes: str = ""
    flags: tuple[str, ...] = ()
    users: str = ""
    accounts: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """One way in which a user may submit: an account, perhaps in one partition only, and the QOS it may use."""

    account: str
    user: str = ""
    partition: str = ""
    qos: tuple[str, ...] = ()
    default_qos: str = ""
    limits: tuple[tuple[str, str], ...] = ()
    """Name and value of each limit that is set, in sacctmgr's words: ``("GrpTRES", "gres/gpu=8")``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qos:
    """One QOS and the limits that are set in it."""

    name: str
    priority: int = 0
    limits: tuple[tuple[str, str], ...] = ()


def parse_nodes(text: str) -> list[Node]:
    """The nodes that ``scontrol -d show node`` printed; without ``-d`` it leaves out which GPUs are used."""
    return [_node(block) for block in t.blocks(text, "NodeName", free=_NODE_FREE)]


def _node(block: dict[str, str]) -> Node:
    gres, used = block.get("Gres", ""), block.get("GresUsed", "")
    types = tuple(
        dict.fromkeys(kind for part in gres.split(",") if "gpu" in part and (kind := t.gpus(part)[1]))
    )
    return Node(
        name=block["NodeName"],
        states=tuple(state.rstrip("*~#!%$@^-") for state in block.get("State", "").split("+"))
        + (("NOT_RESPONDING",) if "*" in block.get("State", "") else ()),
        cpus=t.number(block.get("CPUEfctv", "") or block.get("CPUTot", "")) or 0,
        cpus_used=t.number(block.get("CPUAlloc", "")) or 0,
        memory_mib=t.number(block.get("RealMemory", "")) or 0,
        memory_used_mib=t.number(block.get("AllocMem", "")) or 0,
        gpus=_gpus_of(gres),
        gpus_used=_gpus_of(used),
        gpu_types=types,
        features=_words(block.get("ActiveFeatures", "")) or _words(block.get("AvailableFeatures", "")),
        partitions=_words(block.get("Partitions", "")),
        reason=t.text_or_none(block.get("Reason", "")),
    )


def _gpus_of(gres: str) -> int:
    """GPUs in a node's gres, where several types may stand side by side: ``gpu:a100:4(S:0),gpu:v100:2``."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    return sum(t.gpus(part)[0] for part in plain.split(",") if re.match(r"\s*gpu\b", part))


def parse_partitions(text: str) -> list[Partition]:
    """The partitions that ``scontrol show partition`` printed."""
    return [_partition(block) for block in t.blocks(text, "PartitionName")]


def _partition(block: dict[str, str]) -> Partition:
    def several(key: str) -> tuple[str, ...]:
        return () if block.get(key, "ALL") == "ALL" else _words(block[key])

    return Partition(
        name=block["PartitionName"],
        state=block.get("State", ""),
        is_default=block.get("Default") == "YES",
        max_time_s=t.duration_s(block.get("MaxTime", "")),
        default_time_s=t.duration_s(block.get("DefaultTime", "")),
        max_nodes=t.number(block.get("MaxNodes", "")),
        min_nodes=t.number(block.get("MinNodes", "")) or 0,
        total_nodes=t.number(block.get("TotalNodes", "")) or 0,
        nodes=t.text_or_none(block.get("Nodes", "")),
        allowed_accounts=several("AllowAccounts"),
        allowed_qos=several("AllowQos"),
        denied_accounts=_words(block.get("DenyAccounts", "")),
        denied_qos=_words(block.get("DenyQos", "")),
        qos=t.text_or_none(block.get("QoS", "")),
        tier=t.number(block.get("PriorityTier", "")) or 0,
    )


def parse_reservations(text: str) -> list[Reservation]:
    """The reservations that ``scontrol show reservation`` printed."""
    return [
        Reservation(
            name=block["ReservationName"],
            start=t.epoch_s(block.get("StartTime", "")),
            end=t.epoch_s(block.get("EndTime", "")),
            nodes=t.text_or_none(block.get("Nodes", "")),
            flags=_words(block.get("Flags", "")),
            users=t.text_or_none(block.get("Users", "")),
            accounts=t.text_or_none(block.get("Accounts", "")),
            state=block.get("State", ""),
        )
        for block in t.blocks(text, "ReservationName")
    ]


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config`` as a dict; keys as Slurm writes them (``SlurmctldHost[0]``)."""
    found = {}
    for line in text.split("\n"):
        key, separator, value = line.partition("=")
        if separator and key.strip():
            found[key.strip()] = value.strip()
    return found


ASSOCIATION_FIELDS = (
    "Account", "User", "Partition", "QOS", "DefaultQOS", "GrpTRES", "GrpTRESRunMins", "GrpJobs", "GrpSubmit", "GrpWall",
    "MaxTRES", "MaxTRESPerNode", "MaxJobs", "MaxSubmit", "MaxWall",
)  # fmt: skip
QOS_FIELDS = (
    "Name", "Priority", "GrpTRES", "GrpTRESRunMins", "GrpJobs", "GrpSubmit", "GrpWall", "MaxTRES", "MaxTRESPerNode",
    "MaxTRESPU", "MaxTRESPA", "MaxJobsPU", "MaxJobsPA", "MaxSubmitPU", "MaxSubmitPA", "MaxWall", "MinTRES",
)  # fmt: skip


def parse_associations(text: str) -> list[Association]:
    """What ``sacctmgr -nP show assoc`` printed with `ASSOCIATION_FIELDS`."""
    return [
        Association(
            account=row["Account"],
            user=row["User"],
            partition=row["Partition"],
            qos=_words(row["QOS"]),
            default_qos=row["DefaultQOS"],
            limits=_limits(row, ASSOCIATION_FIELDS[5:]),
        )
        for row in _sacctmgr(text, ASSOCIATION_FIELDS)
    ]


def parse_qos(text: str) -> list[Qos]:
    """What ``sacctmgr -nP show qos`` printed with `QOS_FIELDS`."""
    return [
        Qos(
            name=row["Name"], priority=t.number(row["Priority"]) or 0, limits=_limits(row, QOS_FIELDS[2:])
        )
        for row in _sacctmgr(text, QOS_FIELDS)
    ]  # fmt: skip


def _sacctmgr(text: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    # sacctmgr takes no other delimiter; its names hold no `|`.
    lines = [line.split("|") for line in text.split("\n") if line]
    return [dict(zip(fields, values, strict=True)) for values in lines if len(values) == len(fields)]


def _limits(row: dict[str, str], names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name, row[name]) for name in names if row[name])


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in t.text_or_none(value).split(",") if word.strip())
