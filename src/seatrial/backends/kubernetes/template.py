"""The pod that each node of an attempt is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from seatrial.backends.kubernetes.api import Object
from seatrial.backends.kubernetes.names import ATTEMPT, RUN, RUN_ID, Handle, job_name, labels
from seatrial.backends.kubernetes.nodes import HOSTNAME
from seatrial.backends.kubernetes.probe import tolerations_of
from seatrial.backends.kubernetes.targets import Target
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.kubernetes import KubernetesSpec

CARGO = "/etc/seatrial/run"
PARCELS = "/etc/seatrial/parcels"
"""Where the pod sees what was sent along: the run's own files, and the code."""
RESTART_CODE = 75
"""Exit code of a pod that is to be started again: the run was preempted, saved, and goes on."""
PYTORCHJOB_RESTART_CODE = 143
"""The same where the operator takes only 128 and more for worth another try."""
FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Below what the kernel hands out; a pod has its network to itself."""
_AFTER_GRACE_S = 60
"""For the record, the last of the log, and the mirror, once the ranks have saved."""
TOKEN_KEY = "token"  # noqa: S105 - the name of a key


@dataclass(frozen=True, slots=True)
class Order:
    """All that rendering goes by."""

    plan: LaunchPlan
    asked: KubernetesSpec
    target: Target
    native: dict[str, Any]
    """`Machine.native`."""
    parcels: tuple[str, ...] = ()
    """Names of the ConfigMaps with code and data."""

    @classmethod
    def of(cls, plan: LaunchPlan) -> Order:
        """From the plan's section for the platform."""
        native = plan.platform["native"]
        return cls(
            plan,
            KubernetesSpec.model_validate(plan.platform["spec"]),
            Target.from_dict(native["target"]),
            native,
            tuple(plan.platform.get("parcels", ())),
        )

    @property
    def name(self) -> str:
        """Of the job."""
        return job_name(self.plan.run_id, self.plan.attempt)

    @property
    def handle(self) -> str:
        """The job's, once it is there."""
        return (
            f"k8s://{Handle(self.native['namespace'], self.target.kind, self.name, self.native['context'])}"
        )

    @property
    def labels(self) -> dict[str, str]:
        """Of everything."""
        return labels(self.plan.run_id, self.plan.attempt)

    @property
    def metadata(self) -> Object:
        """Of a top-level object."""
        return {
            "name": self.name, "namespace": self.native["namespace"], "labels": self.labels,
            "annotations": {RUN_ID: self.plan.run_id},
        }  # fmt: skip

    @property
    def run_dir(self) -> PurePosixPath:
        """Where the pods have the run."""
        return PurePosixPath(self.asked.path, "runs", self.plan.run_id)

    @property
    def grace_s(self) -> int:
        """From the request to stop to the kill: more than the ranks may take to save."""
        return self.plan.grace_s + _AFTER_GRACE_S


def meeting_port(run_id: str) -> int:
    """Where the agents of a run meet: pods that share a network (hostNetwork, a rehearsal) rarely collide."""
    return FIRST_PORT + sum(run_id.encode()) * 37 % NUM_PORTS


def pod_spec(order: Order, *, container: str, rank_from: str, lead: str) -> Object:
    """The pod's spec.

    Args:
        order: what to run.
        container: its name, which some operators insist on.
        rank_from: environment variable with the node rank.
        lead: host name of the first pod.
    """
    asked, gpus = order.asked, order.native["gpus"]
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": order.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {} if asked.privileged else {
            "runAsNonRoot": True, "runAsUser": asked.user, "runAsGroup": asked.user, "fsGroup": asked.user,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(order, container, rank_from, lead)],
        "volumes": _volumes(order),
    }  # fmt: skip
    if order.plan.time_limit_s is not None:
        spec["activeDeadlineSeconds"] = order.plan.time_limit_s
    if asked.service_account is not None:
        spec["serviceAccountName"] = asked.service_account
    if asked.priority_class is not None:
        spec["priorityClassName"] = asked.priority_class
    if asked.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in asked.pull_secrets]
    if asked.node_selector:
        spec["nodeSelector"] = dict(asked.node_selector)
    tolerations = tolerations_of(asked, bool(gpus))
    if tolerations:
        spec["tolerations"] = tolerations
    affinity = _affinity(order)
    if affinity:
        spec["affinity"] = affinity
    return spec


def _container(order: Order, name: str, rank_from: str, lead: str) -> Object:
    asked, native = order.asked, order.native
    amounts = {"cpu": native["cpu"], "memory": native["memory"]}
    if native["gpus"]:
        amounts[asked.gpu_resource] = str(native["gpus"])
    if native["rdma"] is not None:
        amounts[native["rdma"][0]] = str(native["rdma"][1])
    capabilities: Object = {"drop": ["ALL"]}
    if asked.ipc_lock:
        capabilities["add"] = ["IPC_LOCK"]
    restart = PYTORCHJOB_RESTART_CODE if order.target.kind == "pytorchjob" else RESTART_CODE
    return {
        "name": name,
        "image": asked.image,
        "imagePullPolicy": asked.pull_policy,
        "command": [
            asked.python, "-m", "seatrial.backends.kubernetes.inside", str(order.run_dir),
            "--first-attempt", str(order.plan.attempt), "--node-rank-from", rank_from,
            "--lead", f"{lead}:{meeting_port(order.plan.run_id)}", "--restart-code", str(restart), "--handle", order.handle,
        ],
        "env": _environment(order),
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "volumeMounts": [
            {"name": "seatrial", "mountPath": asked.path},
            {"name": "cargo", "mountPath": CARGO, "readOnly": True},
            *([{"name": "parcels", "mountPath": PARCELS, "readOnly": True}] if order.parcels else []),
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
            *({"name": f"mount-{i}", "mountPath": path} for i, path in enumerate(sorted(asked.mounts))),
        ],
        "securityContext": {"privileged": True, "runAsUser": 0} if asked.privileged else {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": capabilities,
        },
    }  # fmt: skip


def _environment(order: Order) -> list[Object]:
    asked = order.asked
    plain = {
        "SEATRIAL_CARGO": CARGO,
        "SEATRIAL_PARCELS": PARCELS,
        "HOME": "/tmp",
        "HF_HOME": f"{asked.path}/cache/huggingface",
        "SEATRIAL_CACHE": f"{asked.path}/cache/seatrial",
        **asked.env,
    }
    found: list[Object] = [{"name": name, "value": value} for name, value in plain.items()]
    if not order.native["gpus"]:
        # An image with CUDA on a node with GPUs sees them all, unless told otherwise.
        found.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    found.append({"name": "SEATRIAL_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    found.append({"name": "SEATRIAL_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    found.append({"name": "SEATRIAL_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    secrets = {"SEATRIAL_LINK_TOKEN": f"{order.name}/{TOKEN_KEY}", **asked.secrets}
    for name, reference in secrets.items():
        secret, _, key = reference.partition("/")
        found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return found


def _volumes(order: Order) -> list[Object]:
    asked = order.asked
    home: Object = (
        {"emptyDir": {}} if asked.claim is None else {"persistentVolumeClaim": {"claimName": asked.claim}}
    )
    volumes: list[Object] = [
        {"name": "seatrial", **home},
        {"name": "cargo", "configMap": {"name": order.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": order.native["shm"]}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if order.parcels:
        sources = [{"configMap": {"name": name}} for name in order.parcels]
        volumes.insert(2, {"name": "parcels", "projected": {"sources": sources}})
    for i, path in enumerate(sorted(asked.mounts)):
        volumes.append({"name": f"mount-{i}", "persistentVolumeClaim": {"claimName": asked.mounts[path]}})
    return volumes


def _affinity(order: Order) -> Object:
    affinity: Object = {}
    if order.asked.exclude:
        rule = {"key": HOSTNAME, "operator": "NotIn", "values": list(order.asked.exclude)}
        required = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": required}
    if order.plan.nodes > 1 and order.target.labels_pods:
        # Nodes are machines, not shares of one.
        mine = {key: order.labels[key] for key in (RUN, ATTEMPT)}
        term = {"labelSelector": {"matchLabels": mine}, "topologyKey": HOSTNAME}
        affinity["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return affinity


def kept(fields: Sequence[str], spec: Object) -> tuple[Object, list[str]]:
    """What of a mapping a kind of object takes, and the names of what it does not."""
    return {key: value for key, value in spec.items() if key in fields}, sorted(
        key for key in spec if key not in fields
    )
