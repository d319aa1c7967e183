"""How a cluster is: its nodes, its login address, Slurm, what it has cost so far."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from seatrial.command import run
from seatrial.errors import IncompleteError, PlatformError
from seatrial.provision.nebius import make, preflight
from seatrial.provision.nebius.cloud import Cloud, NodeGroup
from seatrial.provision.nebius.need import Cost
from seatrial.provision.nebius.work import Work

_SSH_S = 15


@dataclass(frozen=True, slots=True)
class Status:
    """One look."""

    name: str
    groups: list[NodeGroup]
    address: str | None
    slurm: list[str] | None
    """What sinfo says, a line a partition and state; None: not asked, or no answer."""
    slurm_said: str
    hours: float
    cost: Cost | None

    @property
    def is_ready(self) -> bool:
        """All nodes are there and ready."""
        return bool(self.groups) and all(g.ready >= g.nodes for g in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "schema": 1, "cluster": self.name, "ready": self.is_ready, "login": self.address,
            "groups": [{"name": g.name, "nodes": g.nodes, "ready": g.ready, "events": list(g.events)} for g in self.groups],
            "slurm": self.slurm, "hours": round(self.hours, 2),
            "cost": None if self.cost is None else {**self.cost.to_dict(), "so_far": round(self.cost.hour * self.hours, 2)},
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.name}: {'ready' if self.is_ready else 'not ready' if self.groups else 'no cluster is there'}"
        ]
        for g in self.groups:
            lines.append(f"  {g.name}: {g.ready} of {g.nodes} nodes ready" + (f"; {g.events[0]}" if g.events and g.ready < g.nodes else ""))  # fmt: skip
        lines.append(f"  login: {self.address or 'no address yet'}")
        lines += [f"  slurm: {line}" for line in self.slurm or []] or [f"  slurm: {self.slurm_said}"]
        if self.cost is not None:
            lines.append(
                f"  cost: about ${self.cost.hour * self.hours:,.2f} in {self.hours:.1f} hours since it was begun, ${self.cost.hour:,.2f} an hour "
                f"(list prices of {self.cost.to_dict()['prices_of']}; the bill is the console's)"
            )  # fmt: skip
        return "\n".join(lines)


def look(work: Work, cloud: Cloud) -> Status:
    """Asks the cloud, and the login node where it answers.

    Raises:
        SpecError: this machine made no such cluster.
        PlatformError: the cloud doesn't answer.
    """
    record = work.require()
    groups = make.node_groups(cloud, record["project"], work.name)
    found = _address(work, cloud)
    slurm, said = (None, "not asked: there is no address") if found is None else _slurm(found)
    cost: Cost | None = None
    path = work.root / "cluster.yaml"
    if path.exists():
        cost = preflight.look(path, work.root / "recipe" / "soperator").cost
    return Status(work.name, groups, found, slurm, said, (time.time() - record["begun"]) / 3600, cost)


def address(work: Work, cloud: Cloud) -> str:
    """Where to log in.

    Raises:
        SpecError: this machine made no such cluster.
        IncompleteError: it has no address yet.
    """
    work.require()
    found = _address(work, cloud)
    if found is None:
        raise IncompleteError(f"{work.name} has no login address yet", evidence="no address is reserved for it", remedy=f"seatrial cluster status {work.name}")  # fmt: skip
    return found


def cluster_id(work: Work, cloud: Cloud) -> str:
    """Of the Kubernetes cluster."""
    for thing in cloud.things("nebius_mk8s_v1_cluster", work.require()["project"]):
        if thing.name == f"soperator-{work.name}":
            return thing.id
    raise IncompleteError(f"there is no cluster soperator-{work.name}", remedy="seatrial cluster up")


def _address(work: Work, cloud: Cloud) -> str | None:
    """Of the allocation that Terraform made for it: a name alone could be another cluster's."""
    record = work.record
    return cloud.address(record["project"], record["allocation"]) if record.get("allocation") else None


def _slurm(host: str) -> tuple[list[str] | None, str]:
    words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SSH_S // 2}", "--", f"root@{host}", "sinfo -h -o '%P %D %T'"]  # fmt: skip
    try:
        done = run(words, timeout_s=_SSH_S)
    except PlatformError as error:
        return None, error.what
    if done.returncode != 0:
        return None, f"root@{host} did not say: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}"
    return done.stdout.strip().splitlines(), ""
