"""What the nodes of a partition have for a request, and what is valid where Slurm refuses one."""

from __future__ import annotations

import time

from seatrial.backends.machine import Machine
from seatrial.backends.slurm.client import Client
from seatrial.backends.slurm.cluster import Node
from seatrial.backends.slurm.fits import Request, never_fits
from seatrial.backends.slurm.room import Snapshot
from seatrial.errors import PlatformError, SpecError
from seatrial.spec.kinds import AnySpec

OLDEST = (22, 5)
"""The oldest release that this was tried on."""


def probe(client: Client, spec: AnySpec) -> Machine:
    """The share of each node that the spec asks for, on the nodes that can give it.

    Args:
        client: asks the cluster.
        spec: what is to run; its ``slurm`` and ``resources`` sections count.

    Raises:
        SpecError: it could never start, however long it waited.
        PlatformError: the controller does not answer, or is too old.
    """
    _check_version(client.version())
    snapshot = Snapshot(
        now=time.time(),
        nodes=client.nodes(),
        partitions=client.partitions(),
        associations=client.associations(),
    )
    wanted = [name for name in (spec.slurm.partition or "").split(",") if name]
    chosen = [p.name for p in snapshot.partitions if (p.name in wanted if wanted else p.is_default)]
    nodes = [node for node in snapshot.nodes if set(chosen) & set(node.partitions)]
    asked = spec.resources.gpus_per_node
    gpus = max((node.gpus for node in nodes), default=0) if asked == "auto" else asked
    request = request_of(spec, gpus)
    wrong = never_fits(request, snapshot)
    if wrong:
        raise SpecError(
            "this can never start here", evidence="\n".join(wrong),
            remedy="change the recipe's slurm and resources sections; sinfo -o '%P %l %D %c %m %G' shows what there is",
        )  # fmt: skip
    able = [
        node
        for node in nodes
        if node.gpus >= gpus and (not gpus or request.gpu_type in ("", *node.gpu_types))
    ]
    return Machine(
        hostname=f"a node of {','.join(chosen)}",
        cpus=spec.slurm.cpus_per_task or _cpus(spec, able, gpus),
        gpus=tuple((able[0].gpu_types or ("gpu",))[0] for _ in range(gpus)),
        evidence=f"partition {','.join(chosen)}: {_describe(nodes)}",
        nodes=len(able),
        platform="slurm",
    )


def request_of(spec: AnySpec, gpus: int) -> Request:
    """What will be submitted for a spec, as far as it can be judged beforehand."""
    slurm = spec.slurm
    cpus = slurm.cpus_per_task or (1 if gpus or spec.resources.nproc == "auto" else spec.resources.nproc)
    return Request(
        nodes=spec.resources.nodes, gpus_per_node=gpus, cpus_per_node=cpus, memory=slurm.mem or "",
        time_limit_s=spec.resources.time_s, partition=slurm.partition or "", gpu_type=slurm.gpu_type or "",
        constraint=slurm.constraint or "", account=slurm.account or "", qos=slurm.qos or "",
        nodelist=",".join(slurm.nodelist), exclude=",".join(slurm.exclude), reservation="",
    )  # fmt: skip


def refusal(client: Client, error: SpecError) -> SpecError:
    """What Slurm said of a request, with what it would take.

    Args:
        client: asks the cluster.
        error: as `Client.submit` raised it.
    """
    said = error.evidence.lower()
    try:
        # sbatch names the partition, too, when it means the account.
        if "account" in said or "association" in said or "qos" in said:
            found = client.associations()
            accounts = ", ".join(sorted({a.account for a in found})) or "none that the accounting knows"
            qos = ", ".join(sorted({name for a in found for name in a.qos})) or "none"
            remedy = f"your accounts: {accounts}; your qos: {qos}    (slurm.account=…, slurm.qos=…)"
        elif "partition" in said:
            remedy = f"slurm.partition is one of: {', '.join(p.name for p in client.partitions())}"
        elif "time limit" in said:
            limits = [f"{p.name}: {_span(p.max_time_s)}" for p in client.partitions()]
            remedy = f"resources.time within the partition's limit: {', '.join(limits)}"
        else:
            remedy = error.remedy
    except PlatformError:
        remedy = error.remedy
    return SpecError(error.what, evidence=error.evidence, remedy=remedy)


def _check_version(version: str) -> None:
    parts = version.split(".")
    try:
        found = (int(parts[0]), int(parts[1]))
    except (IndexError, ValueError):
        return
    if found < OLDEST:
        raise PlatformError(
            f"Slurm {version} is too old",
            evidence=f"the oldest that is supported is {OLDEST[0]}.{OLDEST[1]:02d}",
        )


def _cpus(spec: AnySpec, nodes: list[Node], gpus: int) -> int:
    """CPUs of a node's share: as many as its share of the GPUs, or one a CPU rank."""
    if not gpus:
        return 1 if spec.resources.nproc == "auto" else spec.resources.nproc
    return max(1, min(node.cpus * gpus // node.gpus for node in nodes))


def _describe(nodes: list[Node]) -> str:
    """``2 nodes of 8 h100 GPUs and 64 CPUs``, one part for each kind."""
    kinds: dict[tuple[int, str, int], int] = {}
    for node in nodes:
        key = (node.gpus, "/".join(node.gpu_types), node.cpus)
        kinds[key] = kinds.get(key, 0) + 1
    parts = [
        f"{count} nodes with {gpus} {kind + ' ' if kind else ''}GPUs and {cpus} CPUs"
        for (gpus, kind, cpus), count in kinds.items()
    ]
    return ", ".join(parts) or "no nodes"


def _span(seconds: int | None) -> str:
    return "no limit" if seconds is None else f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
