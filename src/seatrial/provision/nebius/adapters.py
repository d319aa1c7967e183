"""From ``cluster.yaml`` to the recipe's variables: one adapter for each series of the recipe that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from seatrial.provision.nebius.keys import PublicKey
from seatrial.spec.cluster import ClusterSpec, Filesystem, NodeSet, WorkerSet

SECRETS = frozenset(
    {"iam_token", "backups_password", "aws_access_key_id", "aws_secret_access_key", "nvidia_admin_conf_token"}
)
"""Variables that travel in the environment, and never in a file."""
FOREIGN = "none"
"""Stands where the recipe demands a value that it doesn't use while telemetry to the cloud's own is off."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The variables of an installation, and where in ``cluster.yaml`` each comes from."""

    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """The key of ``cluster.yaml`` that a variable comes from."""
        return self.places.get(name, f"variables.{name}" if name not in self.values else name)


def render(spec: ClusterSpec, version: str, keys: list[PublicKey], *, subnet: str | None = None) -> Rendered:
    """What the recipe of this version is given.

    Args:
        spec: the cluster.
        version: of the recipe, whole: 1.22.3.
        keys: the SSH keys, read.
        subnet: what the cloud says, where the spec is silent.
    """
    series = version.rpartition(".")[0]
    values: dict[str, Any] = {}
    places: dict[str, str] = {}

    def put(name: str, value: Any, place: str) -> None:
        values[name] = value
        places[name] = place

    put("company_name", spec.name, "name")
    put("region", spec.cloud.region, "cloud.region")
    put("iam_tenant_id", spec.cloud.tenant, "cloud.tenant")
    put("iam_project_id", spec.cloud.project, "cloud.project")
    put("vpc_subnet_id", spec.cloud.subnet or subnet or "", "cloud.subnet")
    put("slurm_operator_version", version, "variables.slurm_operator_version")
    put("slurm_login_ssh_root_public_keys", [key.line for key in keys], "ssh_keys")
    put("filestore_jail", _filesystem(spec.storage.jail), "storage.jail")
    put("filestore_controller_spool", _filesystem(spec.storage.spool), "storage.spool")
    put(
        "filestore_jail_submounts",
        [{"name": s.name, "mount_path": s.path, **_filesystem(s)} for s in spec.storage.submounts],
        "storage.submounts",
    )
    put(
        "node_local_jail_submounts",
        [
            {"name": d.name, "mount_path": d.path, "size_gibibytes": d.size_gib, "disk_type": d.type, "filesystem_type": d.format}
            for d in spec.storage.local
        ],
        "storage.local",
    )  # fmt: skip
    disk = spec.storage.images
    # The recipe looks at `spec` whether it is enabled or not; without one its plan crashes (1.20).
    put(
        "node_local_image_disk",
        {
            "enabled": disk.enabled,
            "spec": {"size_gibibytes": disk.size_gib, "disk_type": disk.type, "filesystem_type": disk.format},
        },
        "storage.images",
    )
    put("slurm_nodeset_system", {"min_size": spec.system.min, "max_size": spec.system.max, **_machine(spec.system)}, "system")  # fmt: skip
    put("slurm_nodeset_controller", {"size": spec.controller.nodes, **_machine(spec.controller)}, "controller")  # fmt: skip
    put("slurm_nodeset_login", {"size": spec.login.nodes, **_machine(spec.login)}, "login")
    put("accounting_enabled", spec.accounting is not None, "accounting")
    if spec.accounting is not None:
        put("slurm_nodeset_accounting", _machine(spec.accounting), "accounting")
        if spec.storage.accounting is not None:
            put("filestore_accounting", _filesystem(spec.storage.accounting), "storage.accounting")
    put("slurm_shared_memory_size_gibibytes", spec.shared_memory_gib, "shared_memory_gib")
    put("public_o11y_enabled", spec.public_o11y_enabled, "public_o11y_enabled")
    put("o11y_iam_tenant_id", spec.cloud.tenant, "cloud.tenant")
    put("o11y_profile", FOREIGN, "variables.o11y_profile")
    put("backups_enabled", spec.backups.enabled, "backups.enabled")
    put("backups_schedule", spec.backups.schedule, "backups.schedule")
    put("backups_prune_schedule", spec.backups.prune_schedule, "backups.prune_schedule")
    put("backups_retention", {"keepDaily": spec.backups.keep_daily}, "backups.keep_daily")
    if spec.kubernetes_version is not None:
        put("k8s_version", spec.kubernetes_version, "kubernetes_version")
    _BY_SERIES[series](spec, put)
    for name, value in spec.variables.items():
        put(name, value, f"variables.{name}")
    return Rendered(values, places)


Put = Callable[[str, Any, str], None]


def _of_1_20(spec: ClusterSpec, put: Put) -> None:
    put("o11y_iam_project_id", spec.cloud.project, "cloud.project")
    put("o11y_iam_group_id", f"group-{FOREIGN}", "variables.o11y_iam_group_id")
    put(
        "slurm_nodeset_workers",
        [
            {
                "size": w.nodes, "nodes_per_nodegroup": w.nodes_per_group or w.nodes, "max_unavailable_percent": 50,
                **_machine(w), **_fabric(w),
            }
            for w in spec.workers
        ],
        "workers",
    )  # fmt: skip


def _of_1_22(spec: ClusterSpec, put: Put) -> None:
    put("production", False, "variables.production")
    put("iam_merge_request_url", "", "variables.iam_merge_request_url")
    put("cleanup_bucket_on_destroy", False, "variables.cleanup_bucket_on_destroy")
    put("use_preinstalled_gpu_drivers", spec.drivers == "preinstalled", "drivers")
    put("slurm_nodesets_enabled", True, "variables.slurm_nodesets_enabled")
    if not spec.storage.submounts:
        put("allow_empty_jail_submounts", True, "storage.submounts")
    put(
        "slurm_nodesets_partitions",
        [
            {"name": "main", "is_all": True, "nodeset_refs": [], "config": "Default=YES PriorityTier=10 MaxTime=INFINITE State=UP OverSubscribe=YES"},
            {"name": "hidden", "is_all": True, "nodeset_refs": [], "config": "Default=NO PriorityTier=10 PreemptMode=OFF Hidden=YES MaxTime=INFINITE State=UP OverSubscribe=YES"},
        ],
        "variables.slurm_nodesets_partitions",
    )  # fmt: skip
    put(
        "slurm_nodeset_workers",
        [
            {"name": w.name, "size": w.nodes, **_machine(w), **_fabric(w), **({"preemptible": {}} if w.preemptible else {})}
            for w in spec.workers
        ],
        "workers",
    )  # fmt: skip


_BY_SERIES: Mapping[str, Callable[[ClusterSpec, Put], None]] = {"1.20": _of_1_20, "1.22": _of_1_22}


def _filesystem(spec: Filesystem) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if spec.existing is not None:
        found["existing"] = {"id": spec.existing}
    if spec.size_gib is not None:
        found["spec"] = {"size_gibibytes": spec.size_gib, "block_size_kibibytes": spec.block_kib}
    return found


def _machine(spec: NodeSet) -> dict[str, Any]:
    return {
        "resource": {"platform": spec.platform, "preset": spec.preset},
        "boot_disk": {
            "type": "NETWORK_SSD", "size_gibibytes": spec.boot_disk_gib, "block_size_kibibytes": 4,
        },
    }  # fmt: skip


def _fabric(spec: WorkerSet) -> dict[str, Any]:
    return {} if spec.fabric is None else {"gpu_cluster": {"infiniband_fabric": spec.fabric}}
