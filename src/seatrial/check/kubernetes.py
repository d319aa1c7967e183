"""What a Kubernetes cluster has for runs, what is missing, and what to do about it: ``seatrial doctor --on k8s``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from seatrial.backends.kubernetes.answers import ForbiddenError, NotFoundError
from seatrial.backends.kubernetes.api import Api, Object
from seatrial.backends.kubernetes.nodes import Node, read_nodes, read_pods, used
from seatrial.backends.kubernetes.quantity import amount, people
from seatrial.backends.kubernetes.targets import Groups, check_rights, choose, rights
from seatrial.errors import PlatformError, SeatrialError, SpecError
from seatrial.runs.evidence import Evidence, Verdict
from seatrial.spec.kubernetes import KubernetesSpec

_SHARED = ("nfs", "cephfs", "efs", "filestore", "azurefile", "azure.file", "lustre", "weka", "vast", "juicefs", "beegfs", "gpfs",
           "spectrum", "wekafs", "mounted-fs", "glusterfs", "netapp", "trident")  # fmt: skip
"""In the names of provisioners that give volumes to several nodes at once. The API does not tell which do."""
_BESIDE = {
    "Kueue": "kueue.x-k8s.io", "Trainer": "trainer.kubeflow.org", "JobSet": "jobset.x-k8s.io", "training operator": "kubeflow.org",
}  # fmt: skip
_SHOWN = 6


def survey(api: Api, asked: KubernetesSpec) -> list[Evidence]:
    """One finding for each thing that a run needs or can use.

    Raises:
        PlatformError: the cluster does not answer.
    """
    groups = Groups.read(api)
    nodes = read_nodes(api)
    looks: tuple[Callable[[], Iterator[Evidence]], ...] = (
        lambda: _job(api, asked, groups),
        lambda: _gpus(api, asked, nodes),
        lambda: _plugin(api, asked, nodes),
        lambda: _rdma(nodes),
        lambda: _beside(groups),
        lambda: _storage(api, asked),
        lambda: _quota(api, asked),
        lambda: _security(api, asked),
        lambda: _metrics(api, groups),
    )
    found = [
        _of(
            "cluster",
            Verdict.PASS,
            f"{api.context}: {_version(api)}, namespace {api.namespace}, at {api.host}",
        )
    ]
    for look in looks:
        found += look()
    return found


def _job(api: Api, asked: KubernetesSpec, groups: Groups) -> Iterator[Evidence]:
    try:
        target = choose(api, asked, groups)
    except SpecError as error:
        yield _of("job", Verdict.FAIL, f"{error.what}: {error.evidence}; {error.remedy}")
        return
    yield _of("job", Verdict.PASS, f"runs are submitted as a {target.kind}: {target.evidence}")
    try:
        check_rights(api, list(rights(target, asked)))
    except PlatformError as error:
        yield _of(
            "rights",
            Verdict.FAIL,
            f"you may not {error.evidence}; {error.remedy.splitlines()[0]} {' '.join(error.remedy.splitlines()[1:])}",
        )
    else:
        yield _of("rights", Verdict.PASS, f"you may do in {api.namespace} what a run needs")


def _gpus(api: Api, asked: KubernetesSpec, nodes: list[Node] | None) -> Iterator[Evidence]:
    if nodes is None:
        yield _of(
            "gpus",
            Verdict.UNMEASURED,
            "you may not list nodes: say resources.gpus_per_node, kubernetes.cpu and kubernetes.memory in the recipe",
        )
        return
    resource = asked.gpu_resource
    with_gpus = [node for node in nodes if node.has(resource)]
    if not with_gpus:
        yield _of("gpus", Verdict.WARN, f"no node of {len(nodes)} offers {resource}: runs on processors only")
        return
    pods, sees_all = read_pods(api)
    taken = used(pods)
    rows, free = [], Decimal(0)
    for node in with_gpus:
        left = node.has(resource) - taken.get(node.name, {}).get(resource, Decimal(0))
        away = "cordoned" if node.unschedulable else "" if node.ready else "not ready"
        free += 0 if away else left
        rows.append(
            f"{node.name}: {people(resource, left)} of {people(resource, node.has(resource))} {node.product} free{f', {away}' if away else ''}"
        )
    whole = sum(node.has(resource) for node in with_gpus)
    shown = "; ".join(rows[:_SHOWN]) + (f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
    limited = "" if sees_all else " (others' pods may not be seen: less may be free)"
    yield _of(
        "gpus",
        Verdict.PASS if free else Verdict.WARN,
        f"{people(resource, free)} of {people(resource, Decimal(whole))} GPUs free{limited}: {shown}",
        int(free),
    )


def _plugin(api: Api, asked: KubernetesSpec, nodes: list[Node] | None) -> Iterator[Evidence]:
    """Nodes that are known to have GPUs and offer none: the device plugin is not there, or not well."""
    if nodes is None:
        return
    silent = [
        n.name
        for n in nodes
        if n.labels.get("nvidia.com/gpu.present") == "true" and not n.has(asked.gpu_resource)
    ]
    if silent:
        yield _of(
            "device_plugin", Verdict.FAIL,
            f"nodes have GPUs and offer none: {', '.join(silent[:_SHOWN])}; is the GPU Operator, or the device plugin, well there?",
        )  # fmt: skip
        return
    sets = _all(api, "/apis/apps/v1/daemonsets")
    if sets is None:
        if any(node.has(asked.gpu_resource) for node in nodes):
            yield _of(
                "device_plugin", Verdict.PASS, "nodes offer GPUs; who sees to that, you may not look at"
            )
        return
    names = [
        f"{s['metadata']['namespace']}/{s['metadata']['name']}"
        for s in sets
        if "device-plugin" in s["metadata"]["name"]
    ]
    if len(names) > 1 and sum("nvidia" in name for name in names) > 1:
        yield _of(
            "device_plugin", Verdict.WARN, f"more than one NVIDIA device plugin: {', '.join(names)}; keep one"
        )
    elif names:
        yield _of("device_plugin", Verdict.PASS, ", ".join(names))
    elif any(node.has(asked.gpu_resource) for node in nodes):
        yield _of(
            "device_plugin", Verdict.PASS, "nodes offer GPUs, by something that is not called a device plugin"
        )
    else:
        yield _of(
            "device_plugin",
            Verdict.SKIP,
            "none, and no node is known to have GPUs    (deploy/kubernetes/overlays/device-plugin)",
        )


def _rdma(nodes: list[Node] | None) -> Iterator[Evidence]:
    if nodes is None:
        return
    offers = {name: sum(1 for node in nodes if name in node.rdma) for node in nodes for name in node.rdma}
    if offers:
        told = ", ".join(
            f"{name} on {count} node{'s' if count > 1 else ''}" for name, count in sorted(offers.items())
        )
        yield _of("rdma", Verdict.PASS, f"{told}    (kubernetes.rdma=auto asks for it)")
    else:
        yield _of("rdma", Verdict.SKIP, "no node offers RDMA devices: several nodes talk over TCP")


def _beside(groups: Groups) -> Iterator[Evidence]:
    found = [f"{name} {groups.version(group)}" for name, group in _BESIDE.items() if groups.version(group)]
    missing = [name for name, group in _BESIDE.items() if not groups.version(group)]
    text = "; ".join([*found, f"not there: {', '.join(missing)}"] if missing else found)
    yield _of("beside", Verdict.PASS if found else Verdict.SKIP, text)


def _storage(api: Api, asked: KubernetesSpec) -> Iterator[Evidence]:
    claims = _all(api, api.path("v1", "persistentvolumeclaims")) or []
    shared = [
        c["metadata"]["name"] for c in claims if "ReadWriteMany" in (c["spec"].get("accessModes") or [])
    ]
    classes = _all(api, "/apis/storage.k8s.io/v1/storageclasses")
    likely = [
        c["metadata"]["name"]
        for c in classes or []
        if any(word in str(c.get("provisioner", "")).lower() for word in _SHARED)
    ]
    others = [c["metadata"]["name"] for c in classes or [] if c["metadata"]["name"] not in likely]
    told = [f"claims for many nodes: {', '.join(shared) or 'none'}"]
    if classes is None:
        told.append("you may not list storage classes")
    else:
        told.append(
            f"storage classes that by their provisioner give such: {', '.join(likely) or 'none'}; others: {', '.join(others) or 'none'}"
        )
    if asked.claim is not None and asked.claim not in [c["metadata"]["name"] for c in claims]:
        yield _of(
            "storage",
            Verdict.FAIL,
            f"kubernetes.claim is {asked.claim}, which is not there; {'; '.join(told)}",
        )
    else:
        yield _of("storage", Verdict.PASS if shared else Verdict.WARN, "; ".join(told))


def _quota(api: Api, asked: KubernetesSpec) -> Iterator[Evidence]:
    quotas = _all(api, api.path("v1", "resourcequotas"))
    if quotas is None:
        yield _of("quota", Verdict.UNMEASURED, "you may not list quotas")
        return
    rows, worst = [], Verdict.PASS
    for quota in quotas:
        hard, status = quota["spec"].get("hard") or {}, (quota.get("status") or {}).get("used") or {}
        name = quota["metadata"]["name"]
        ignored = [key for key in hard if key in {asked.gpu_resource, f"limits.{asked.gpu_resource}"}]
        if ignored:
            worst = Verdict.WARN
            rows.append(f"{name}: {ignored[0]} is taken and ignored; requests.{asked.gpu_resource} counts")
        for key, limit in hard.items():
            left = amount(limit) - amount(status.get(key, "0"))
            rows.append(f"{name}: {people(key.rpartition('.')[2], left)} of {limit} {key} left")
    yield _of("quota", worst, "; ".join(rows) or "none")


def _security(api: Api, asked: KubernetesSpec) -> Iterator[Evidence]:
    try:
        home = api.get(f"/api/v1/namespaces/{api.namespace}")
    except NotFoundError:
        yield _of("pod_security", Verdict.FAIL, f"there is no namespace {api.namespace}")
        return
    except ForbiddenError:
        yield _of("pod_security", Verdict.UNMEASURED, f"you may not look at namespace {api.namespace}")
        return
    level = (home["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce", "privileged")
    if asked.ipc_lock and level != "privileged":
        yield _of(
            "pod_security",
            Verdict.FAIL,
            f"kubernetes.ipc_lock is set, and {api.namespace} enforces {level}, which refuses it    (deploy/kubernetes/overlays/rdma)",
        )
    else:
        lock = (
            ""
            if level == "privileged"
            else "; memory can't be locked there (kubernetes.ipc_lock), which RDMA often needs"
        )
        yield _of("pod_security", Verdict.PASS, f"{api.namespace} enforces {level}{lock}")


def _metrics(api: Api, groups: Groups) -> Iterator[Evidence]:
    sets = _all(api, "/apis/apps/v1/daemonsets")
    exporters = [
        f"{s['metadata']['namespace']}/{s['metadata']['name']}"
        for s in sets or []
        if "dcgm-exporter" in s["metadata"]["name"]
    ]
    operator = groups.version("monitoring.coreos.com")
    if exporters:
        yield _of(
            "metrics",
            Verdict.PASS,
            f"{', '.join(exporters)}{f'; Prometheus operator {operator}' if operator else ''}",
        )
    elif sets is None:
        yield _of(
            "metrics", Verdict.UNMEASURED, "you may not look for dcgm-exporter; a run samples its GPUs itself"
        )
    else:
        yield _of(
            "metrics", Verdict.SKIP, "no dcgm-exporter: a run samples its GPUs itself    (docs/monitoring.md)"
        )


def _all(api: Api, path: str) -> list[Object] | None:
    """A list; None for an account that may not see it, empty for a kind that is not there."""
    try:
        return api.list(path)[0]
    except ForbiddenError:
        return None
    except NotFoundError:
        return []


def _version(api: Api) -> str:
    try:
        return f"Kubernetes {api.get('/version').get('gitVersion', 'of an unknown version')}"
    except SeatrialError:
        return "Kubernetes of an unknown version"


def _of(check: str, verdict: Verdict, message: str, measured: Any = None) -> Evidence:
    return Evidence(
        check=check, verdict=verdict, measured=measured, source="the cluster's API", message=message
    )
