"""``cluster.yaml``: the cluster that a person wants, before any cloud or recipe is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from seatrial.errors import SpecError
from seatrial.spec.document import parse_yaml, read_text
from seatrial.spec.explain import validate
from seatrial.spec.section import Section

Positive = Annotated[int, Field(ge=1)]
DiskType = Literal["NETWORK_SSD", "NETWORK_SSD_NON_REPLICATED", "NETWORK_SSD_IO_M3"]
DiskFormat = Literal["ext4", "xfs"]
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")


class Cloud(Section):
    """Whose cluster, and where."""

    tenant: str = Field(min_length=1)
    """The tenant's id: tenant-…"""
    project: str = Field(min_length=1)
    """The project's id: project-…"""
    region: str = Field(min_length=1)
    """The project's region, such as eu-north1."""
    subnet: str | None = None
    """The subnet's id: vpcsubnet-… [default: the project's only one]."""


class NodeSet(Section):
    """Nodes of one kind."""

    platform: str = "cpu-d3"
    """Kind of machine: cpu-d3, gpu-h100-sxm."""
    preset: str = "8vcpu-32gb"
    """Size of the machine: 8vcpu-32gb, 8gpu-128vcpu-1600gb."""
    boot_disk_gib: Positive = 128
    """Size of each node's boot disk."""


class FixedSet(NodeSet):
    """A number of nodes that stays."""

    nodes: Positive = 2
    """How many."""


class SystemSet(NodeSet):
    """What runs the cluster's own services; grows by itself."""

    min: Positive = 3
    """Nodes at the least."""
    max: Positive = 9
    """Nodes at the most."""
    boot_disk_gib: Positive = 192


class WorkerSet(NodeSet):
    """Nodes that jobs run on."""

    name: str = "worker"
    """Of the set, and the first part of its nodes' names."""
    nodes: Positive
    """How many."""
    fabric: str | None = None
    """InfiniBand fabric, such as fabric-6; needed where jobs span several 8-GPU nodes."""
    preemptible: bool = False
    """Cheaper nodes that the cloud may take back (recipes from 1.22 on)."""
    nodes_per_group: Positive | None = None
    """Nodes that are maintained together (recipes before 1.22) [default: all]."""
    boot_disk_gib: Positive = 512


class Filesystem(Section):
    """A shared file system: one that is made (and destroyed with the cluster), or one that exists (and stays)."""

    size_gib: Positive | None = None
    """Its size; it can grow later, and never shrink."""
    existing: str | None = None
    """Id of one that exists: computefilesystem-…"""
    block_kib: Positive = 4
    """Its block size."""


class Submount(Filesystem):
    """A shared file system of its own inside the nodes' root."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)
    """Where nodes see it: /mnt/training."""


class LocalDisk(Section):
    """A disk that each worker has to itself."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)
    """Where the node sees it."""
    size_gib: Positive
    type: DiskType = "NETWORK_SSD"
    format: DiskFormat = "ext4"


class ImageDisk(Section):
    """Each worker's disk for container images."""

    enabled: bool = True
    size_gib: Positive = 930
    type: DiskType = "NETWORK_SSD_IO_M3"
    format: DiskFormat = "ext4"


class Storage(Section):
    """What is kept, and where."""

    jail: Filesystem
    """The root file system that all nodes share: homes, installed software."""
    submounts: tuple[Submount, ...] = ()
    """Further shared file systems, for data and results."""
    spool: Filesystem = Filesystem(size_gib=128)
    """The controller's."""
    accounting: Filesystem | None = Filesystem(size_gib=128)
    """The accounting database's."""
    local: tuple[LocalDisk, ...] = ()
    """Disks that each worker has to itself."""
    images: ImageDisk = ImageDisk()
    """Each worker's disk for container images."""

    @field_validator("submounts", "local", mode="before")
    @classmethod
    def _tuples(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Backups(Section):
    """Backups of the shared root."""

    enabled: Literal["auto", "force_enable", "force_disable"] = "auto"
    """auto: where the jail is smaller than 12 TiB."""
    schedule: str = "@daily-random"
    prune_schedule: str = "@daily-random"
    keep_daily: Positive = 7
    """Days of backups that are kept."""


class State(Section):
    """Where Terraform keeps what it knows of the cluster."""

    kind: Literal["s3", "local"] = "s3"
    """s3: a versioned bucket of the project, with locking; local: this machine only."""
    endpoint: str | None = None
    """The S3 service's [default: the region's]."""


class Prices(Section):
    """What a contract says, where it is not the list's."""

    gpu_hour: Annotated[float, Field(ge=0)] | None = None
    """$ for a GPU and hour [default: the price list's]."""


class ClusterSpec(Section):
    """A Slurm cluster on Nebius, as the Soperator recipe makes it."""

    name: str
    """Of the cluster, and in the names of all that is made."""
    recipe: str | None = None
    """The checkout of the solutions library, or of its soperator directory; --recipe says it, too."""
    cloud: Cloud
    ssh_keys: tuple[str, ...] = Field(min_length=1)
    """Public keys that may log in, or files with them."""
    workers: tuple[WorkerSet, ...] = Field(min_length=1)
    system: SystemSet = SystemSet()
    controller: FixedSet = FixedSet(preset="4vcpu-16gb")
    login: FixedSet = FixedSet(preset="32vcpu-128gb", boot_disk_gib=256)
    accounting: NodeSet | None = NodeSet()
    """Node for Slurm's accounting; null: there is none."""
    storage: Storage
    shared_memory_gib: Positive = 64
    """/dev/shm of Slurm's nodes."""
    drivers: Literal["preinstalled", "operator"] = "preinstalled"
    """Who brings the GPUs' drivers: the nodes' image (recipes from 1.22 on), or NVIDIA's operator."""
    public_o11y_enabled: bool = False
    """Send telemetry to the cloud's own; needs rights in a tenant of theirs."""
    kubernetes_version: str | None = None
    """Such as 1.31 [default: the recipe's]."""
    backups: Backups = Backups()
    state: State = State()
    prices: Prices = Prices()
    variables: dict[str, Any] = Field(default={})
    """Further variables of the recipe, by their own names; nothing secret."""

    @field_validator("workers", "ssh_keys", mode="before")
    @classmethod
    def _tuples(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


def load_cluster(path: Path) -> ClusterSpec:
    """The spec in a file.

    Raises:
        SpecError: no such file, not YAML, unknown keys (with the nearest), wrong types.
    """
    return parse_cluster(cluster_text(path), str(path))


def cluster_text(path: Path) -> str:
    """The text of a ``cluster.yaml``; `SpecError` where there is none."""
    try:
        return read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise SpecError(
            f"there is no {path}", evidence=f"{path.parent.absolute()} has no such file",
            remedy="seatrial cluster init NAME",
        ) from None  # fmt: skip


def parse_cluster(text: str, source: str) -> ClusterSpec:
    """As `load_cluster`, of a text; what looks like a private key is refused before anything could repeat it."""
    if "PRIVATE KEY" in text:
        line = next(n for n, words in enumerate(text.splitlines(), 1) if "PRIVATE KEY" in words)
        raise SpecError(
            f"{source} holds a private key", evidence=f"line {line} (not repeated here)",
            remedy="take it out; put the public one (ssh-…, from the .pub file) under ssh_keys; "
            "if the file was shared, make a new key pair",
        )  # fmt: skip
    data = parse_yaml(text, source)
    if not isinstance(data, dict):
        raise SpecError(f"{source} is not a mapping", evidence=f"its top level is {type(data).__name__}")
    return validate(ClusterSpec, data, source, noun="cluster")
