"""What a cluster takes from its quotas, and what it costs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from seatrial.provision.nebius.changes import Change
from seatrial.provision.nebius.rules.common import Case, Role, plain, whole
from seatrial.provision.nebius.tables import (
    DISK_GIB_MONTH,
    FILESYSTEM_GIB_MONTH,
    GIB,
    GPU_HOUR,
    GPU_HOUR_PREEMPTIBLE,
    GPU_QUOTAS,
    HOURS_A_MONTH,
    MEMORY_GIB_HOUR,
    PRICES_OF,
    VCPU_HOUR,
)

_DISK_QUOTA = {
    "NETWORK_SSD": "network-ssd",
    "NETWORK_SSD_NON_REPLICATED": "network-ssd-non-replicated",
    "NETWORK_SSD_IO_M3": "network-ssd-io-m3",
}


@dataclass(frozen=True, slots=True)
class Need:
    """Amounts by the names of the cloud's quotas; sizes in bytes."""

    amounts: dict[str, int]
    most: dict[str, int]
    """Once the system nodes have grown to their maximum."""
    parts: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """What an amount is made of: key of ``cluster.yaml``, amount."""


@dataclass(frozen=True, slots=True)
class Cost:
    """$ an hour, by what it is for."""

    lines: list[tuple[str, float]]
    unpriced: list[str]
    stays: float
    """What goes on to cost an hour for storage, were all nodes gone."""

    @property
    def hour(self) -> float:
        """All of it."""
        return sum(price for _, price in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "currency": "USD", "hour": round(self.hour, 2), "day": round(self.hour * 24, 2), "storage_hour": round(self.stays, 3),
            "prices_of": PRICES_OF, "lines": [{"what": what, "hour": round(price, 3)} for what, price in self.lines],
            "unpriced": self.unpriced,
        }  # fmt: skip


def need(case: Case) -> Need:
    """What all that is made takes."""
    amounts: dict[str, int] = {}
    parts: dict[str, list[tuple[str, int]]] = {}
    most: dict[str, int] = {}
    for name, place, amount, more in _amounts(case):
        if amount or more:
            amounts[name] = amounts.get(name, 0) + amount
            most[name] = most.get(name, 0) + amount + more
            parts.setdefault(name, []).append((place, amount))
    return Need(amounts, most, parts)


def need_of(changes: Collection[Change], case: Case) -> Need:
    """What a plan takes beyond what is there: of the roles whose node groups it makes, and of file systems made or grown."""
    made = {c.name for c in changes if c.action == "make" and c.type == "nebius_mk8s_v1_node_group"}
    fresh = {role.place for role in case.roles if any(name.startswith(role.name) for name in made)}
    amounts: dict[str, int] = {}
    parts: dict[str, list[tuple[str, int]]] = {}

    def take(name: str, place: str, amount: int) -> None:
        if amount > 0:
            amounts[name] = amounts.get(name, 0) + amount
            parts.setdefault(name, []).append((place, amount))

    for name, place, amount, _ in _amounts(case):
        if place in fresh and not name.startswith(("compute.filesystem", "compute.gpucluster")):
            take(name, place, amount)
    for change in changes:
        if change.type == "nebius_compute_v1_filesystem" and change.action in {"make", "change"}:
            take("compute.filesystem.size.network-ssd", change.name, (change.after_bytes or 0) - (change.before_bytes or 0))  # fmt: skip
        for kind, quota in _COUNTED.items():
            if change.type == kind and change.action == "make":
                take(quota, change.name, 1)
    return Need(amounts, dict(amounts), parts)


_COUNTED = {
    "nebius_compute_v1_filesystem": "compute.filesystem.count",
    "nebius_compute_v1_gpu_cluster": "compute.gpucluster.count",
    "nebius_mk8s_v1_cluster": "mk8s.cluster.count",
}


def _amounts(case: Case) -> Iterator[tuple[str, str, int, int]]:
    """Quota, place, amount, and how much more it may grow."""
    for role in case.roles:
        more = max(role.max_size - role.size, 0)
        yield "compute.instance.count", role.place, role.size, more
        yield "compute.disk.count", role.place, role.size, more
        yield (
            "compute.disk.size.network-ssd",
            role.place,
            role.size * role.boot_gib * GIB,
            more * role.boot_gib * GIB,
        )
        if role.preset is None:
            continue
        if role.preset.gpus:
            quota = GPU_QUOTAS.get(role.platform, f"compute.instance.gpu.{role.platform}")
            yield quota, role.place, role.gpus, 0
        else:
            yield (
                "compute.instance.non-gpu.vcpu",
                role.place,
                role.size * role.preset.vcpus,
                more * role.preset.vcpus,
            )
        if role.fabric:
            yield "compute.gpucluster.count", f"{role.place}.fabric", 1, 0
    for store in case.stores:
        if store.size_gib is not None:
            yield "compute.filesystem.count", store.place, 1, 0
            yield "compute.filesystem.size.network-ssd", f"{store.place}.size_gib", store.size_gib * GIB, 0
    for place, kind, size in _disks(case):
        quota = f"compute.disk.size.{_DISK_QUOTA.get(kind, kind)}"
        yield quota, place, size * GIB, 0
    yield "mk8s.cluster.count", "name", 1, 0
    yield "vpc.ipv4-address.public.count", "name", 1, 0


def _disks(case: Case) -> Iterator[tuple[str, str, int]]:
    """Place, type, GiB of the disks that all workers have to themselves, and of NFS."""
    workers = sum(role.size for role in case.workers)
    for i, disk in enumerate(case.values.get("node_local_jail_submounts") or []):
        yield (
            f"storage.local.{i}",
            str(plain(disk, "disk_type")),
            workers * whole(plain(disk, "size_gibibytes")),
        )
    image = case.values.get("node_local_image_disk")
    if plain(image, "enabled"):
        yield (
            "storage.images",
            str(plain(image, "spec", "disk_type")),
            workers * whole(plain(image, "spec", "size_gibibytes")),
        )
    nfs = case.values.get("nfs")
    if plain(nfs, "enabled"):
        yield "variables.nfs", "NETWORK_SSD_IO_M3", whole(plain(nfs, "size_gibibytes"))


def cost(case: Case) -> Cost:
    """By the price list (`tables.PRICES_OF`); billing is by the second, taxes come on top."""
    lines: list[tuple[str, float]] = []
    unpriced: list[str] = []
    for role in case.roles:
        price = _machine_hour(role, case.spec.prices.gpu_hour)
        if price is None:
            unpriced.append(f"{role.size} × {role.platform} {role.preset_name}")
        else:
            lines.append(
                (f"{role.size} × {role.platform} {role.preset_name} ({role.name})", role.size * price)
            )
    storage = sum(s.size_gib for s in case.stores if s.size_gib is not None)
    stays = storage * FILESYSTEM_GIB_MONTH / HOURS_A_MONTH
    lines.append((f"{storage} GiB of shared file systems", stays))
    sizes: dict[str, int] = {"NETWORK_SSD": sum(role.size * role.boot_gib for role in case.roles)}
    for _, kind, size in _disks(case):
        sizes[kind] = sizes.get(kind, 0) + size
    for kind, size in sizes.items():
        if kind in DISK_GIB_MONTH:
            lines.append((f"{size} GiB of disks, {kind}", size * DISK_GIB_MONTH[kind] / HOURS_A_MONTH))
        else:
            unpriced.append(f"{size} GiB of disks, {kind}")
    return Cost(lines, unpriced, stays)


def _machine_hour(role: Role, gpu_hour: float | None) -> float | None:
    if role.preset is None:
        return None
    if role.preset.gpus:
        listed = (GPU_HOUR_PREEMPTIBLE if role.preemptible else GPU_HOUR).get(role.platform)
        price = listed if gpu_hour is None else gpu_hour
        return None if price is None else price * role.preset.gpus
    return role.preset.vcpus * VCPU_HOUR + role.preset.memory_gib * MEMORY_GIB_HOUR
