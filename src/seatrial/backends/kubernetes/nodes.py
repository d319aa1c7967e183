"""What the cluster's nodes have, what of it is asked for, and what a pod's share of one is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from seatrial.backends.kubernetes.answers import ForbiddenError
from seatrial.backends.kubernetes.api import Api, Object
from seatrial.backends.kubernetes.quantity import GIB, amount, people

HOSTNAME = "kubernetes.io/hostname"
_CPU_SHARE, _MEMORY_SHARE = Decimal("0.9"), Decimal("0.75")
"""Of a node's allocatable, for whoever takes all of its GPUs: the rest is for what runs on every node, and for the page cache.
On 128 CPUs, 1600 GiB and 8 GPUs this gives 14 CPUs and 150 GiB a GPU."""
_SHM_SHARE = 4
_MOST_SHM = 128 * GIB
_RDMA_PREFIXES = ("rdma/", "nvidia.com/mlnxnics", "nvidia.com/hostdev", "vpc.amazonaws.com/efa")
_ENDED = {"Succeeded", "Failed"}


@dataclass(frozen=True, slots=True)
class Node:
    """One node."""

    name: str
    allocatable: Mapping[str, Decimal]
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    ready: bool = True
    unschedulable: bool = False

    @classmethod
    def of(cls, item: Object) -> Node:
        """As the API has it."""
        status, spec = item.get("status", {}), item.get("spec", {})
        ready = next((c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"), "Unknown")
        return cls(
            item["metadata"]["name"],
            {name: amount(value) for name, value in status.get("allocatable", {}).items()},
            item["metadata"].get("labels") or {},
            tuple(spec.get("taints") or ()),
            ready == "True",
            bool(spec.get("unschedulable")),
        )

    def has(self, resource: str) -> Decimal:
        """How much of a resource it gives to pods."""
        return self.allocatable.get(resource, Decimal(0))

    @property
    def product(self) -> str:
        """What its GPUs are called, by GPU feature discovery."""
        return self.labels.get("nvidia.com/gpu.product", "gpu")

    @property
    def rdma(self) -> dict[str, int]:
        """Its resources for RDMA."""
        return {
            name: int(value)
            for name, value in self.allocatable.items()
            if name.startswith(_RDMA_PREFIXES) and value
        }


@dataclass(frozen=True, slots=True)
class Share:
    """What a pod asks for."""

    gpus: int
    cpu: Decimal
    memory: Decimal
    shm: Decimal
    rdma: tuple[str, int] | None = None

    def requests(self, gpu_resource: str) -> dict[str, Decimal]:
        """By resource."""
        found = {"cpu": self.cpu, "memory": self.memory}
        if self.gpus:
            found[gpu_resource] = Decimal(self.gpus)
        if self.rdma is not None:
            found[self.rdma[0]] = Decimal(self.rdma[1])
        return found


def read_nodes(api: Api) -> list[Node] | None:
    """All nodes; None for an account that may not see them."""
    try:
        items, _ = api.list("/api/v1/nodes")
    except ForbiddenError:
        return None
    return [Node.of(item) for item in items]


def read_pods(api: Api) -> tuple[list[Object], bool]:
    """The pods that have not ended, and whether these are all; else those of the namespace."""
    selector = "status.phase!=Succeeded,status.phase!=Failed"
    try:
        return api.list("/api/v1/pods", field_selector=selector, keep=_counted)[0], True
    except ForbiddenError:
        return api.list(api.path("v1", "pods"), field_selector=selector, keep=_counted)[0], False


def _counted(pod: Object) -> Object:
    """What of a pod is counted: a tenth of what it is."""
    spec = pod.get("spec", {})
    kept: Object = {"nodeName": spec.get("nodeName"), "overhead": spec.get("overhead")}
    for name in ("containers", "initContainers"):
        kept[name] = [
            {"resources": c.get("resources"), "restartPolicy": c.get("restartPolicy")}
            for c in spec.get(name) or []
        ]
    return {
        "metadata": {"name": pod["metadata"]["name"]},
        "spec": kept,
        "status": {"phase": pod.get("status", {}).get("phase")},
    }


def requests_of(spec: Object) -> dict[str, Decimal]:
    """What the scheduler counts for a pod: the sum of its containers, or its largest init container."""
    total: dict[str, Decimal] = defaultdict(Decimal)
    for container in spec.get("containers", []):
        for name, value in _asked(container).items():
            total[name] += value
    for container in spec.get("initContainers", []):
        for name, value in _asked(container).items():
            if container.get("restartPolicy") == "Always":
                total[name] += value
            else:
                total[name] = max(total[name], value)
    for name, value in (spec.get("overhead") or {}).items():
        total[name] += amount(value)
    return dict(total)


def _asked(container: Object) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    # Without a request, the limit is one.
    return {
        name: amount(value)
        for name, value in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items()
    }


def used(pods: Iterable[Object]) -> dict[str, dict[str, Decimal]]:
    """By node and resource, what its pods ask for."""
    total: dict[str, dict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for pod in pods:
        node = pod.get("spec", {}).get("nodeName")
        if node and pod.get("status", {}).get("phase") not in _ENDED:
            for name, value in requests_of(pod["spec"]).items():
                total[node][name] += value
    return total


def share(node: Node, gpus: int, gpu_resource: str) -> tuple[Decimal, Decimal]:
    """CPUs and memory (bytes) for so many of a node's GPUs."""
    there = int(node.has(gpu_resource))
    each_cpu = int(node.has("cpu") * _CPU_SHARE / there)
    each_gib = int(node.has("memory") * _MEMORY_SHARE / there / GIB)
    return Decimal(max(1, each_cpu * gpus)), Decimal(max(1, each_gib * gpus) * GIB)


def shm_of(memory: Decimal) -> Decimal:
    """Size of /dev/shm where none is asked for, in whole MiB."""
    return Decimal(min(int(memory) // _SHM_SHARE, _MOST_SHM) >> 20 << 20)


def tolerates(tolerations: Iterable[Mapping[str, Any]], taint: Mapping[str, str]) -> bool:
    """Whether a pod may run beside a taint (core/v1 ``Toleration.ToleratesTaint``)."""
    for toleration in tolerations:
        if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
            continue
        if toleration.get("key") and toleration["key"] != taint.get("key"):
            continue
        operator = toleration.get("operator") or "Equal"
        if operator == "Exists" or toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def why_not(
    node: Node, spec: Object, taken: Mapping[str, Decimal], requests: Mapping[str, Decimal] | None = None
) -> tuple[list[str], bool]:
    """Why a pod can't run on a node now, and whether it never could.

    Args:
        node: it.
        spec: the pod's.
        taken: what other pods ask for there.
        requests: the pod's, where they are known already.
    """
    reasons, never = [], False
    if node.unschedulable:
        reasons.append("cordoned")
    elif not node.ready:
        reasons.append("not ready")
    kept_out = [
        taint for taint in node.taints
        if taint.get("effect") in {"NoSchedule", "NoExecute"} and not tolerates(spec.get("tolerations") or [], taint)
        and not (node.unschedulable and taint.get("key") == "node.kubernetes.io/unschedulable")
    ]  # fmt: skip
    for taint in kept_out:
        of = f"={taint['value']}" if taint.get("value") else ""
        reasons.append(f"taint {taint.get('key')}{of}:{taint.get('effect')}")
    wrong = {
        key: value for key, value in (spec.get("nodeSelector") or {}).items() if node.labels.get(key) != value
    }
    reasons += [f"no label {key}={label}" for key, label in wrong.items()]
    if not _matches(spec, node):
        reasons.append("left out by the affinity")
    for name, value in (requests or requests_of(spec)).items():
        there, free = node.has(name), node.has(name) - taken.get(name, Decimal(0))
        if value > there:
            never = True
            reasons.append(f"{name}: asks {people(name, value)}, the node has {people(name, there)}")
        elif value > free:
            reasons.append(
                f"{name}: asks {people(name, value)}, {people(name, free)} of {people(name, there)} free"
            )
    return reasons, never


def _matches(spec: Object, node: Node) -> bool:
    required = (
        (spec.get("affinity") or {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution")
    )
    if not required:
        return True
    return any(
        all(_expression(rule, node.labels) for rule in term.get("matchExpressions") or [])
        and all(_expression(rule, {"metadata.name": node.name}) for rule in term.get("matchFields") or [])
        for term in required.get("nodeSelectorTerms", [])
    )


def _expression(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(rule["key"]), rule.get("values") or []
    match rule["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and value.isdigit() and int(value) > int(values[0])
        case "Lt":
            return value is not None and value.isdigit() and int(value) < int(values[0])
    return False
