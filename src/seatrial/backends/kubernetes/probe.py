"""What a recipe would be run on: the kind of job, the nodes that can take it, a pod's share of one."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from seatrial.backends.kubernetes.answers import ForbiddenError, NotFoundError
from seatrial.backends.kubernetes.api import Api
from seatrial.backends.kubernetes.nodes import HOSTNAME, Node, Share, read_nodes, share, shm_of, tolerates
from seatrial.backends.kubernetes.quantity import GIB, amount, cpu_text, memory_text, people
from seatrial.backends.kubernetes.targets import Groups, Target, check_rights, choose, rights
from seatrial.backends.machine import Machine
from seatrial.errors import SpecError
from seatrial.spec.checks import CheckSpec
from seatrial.spec.kinds import AnySpec
from seatrial.spec.kubernetes import KubernetesSpec

GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
_CPU_RANK_BYTES = 2 * GIB


def probe(api: Api, spec: AnySpec) -> Machine:
    """The share of each node that the spec asks for, on the nodes that can give it.

    Raises:
        SpecError: it could never start there.
        PlatformError: the account may not do what a run needs, or the cluster does not answer.
    """
    asked = spec.kubernetes
    _check_spec(spec)
    groups = Groups.read(api)
    target = choose(api, asked, groups)
    check_rights(api, list(rights(target, asked)))
    _check_namespace(api, asked, spec.resources.nodes)
    nodes = read_nodes(api)
    able, gpus = _able(nodes, spec) if nodes is not None else ([], _gpus_unseen(spec))
    found = _share(asked, spec, able, gpus)
    _check_quota(api, asked, found, spec.resources.nodes)
    seen = (
        f"{len(able)} of {len(nodes)} nodes can take it" if nodes is not None else "you may not see the nodes"
    )
    return Machine(
        hostname=f"a node of {api.context}",
        cpus=max(1, int(found.cpu)),
        gpus=tuple(able[0].product if able else "gpu" for _ in range(gpus)),
        evidence=f"{target.evidence}; {seen}",
        nodes=len(able) if nodes is not None else spec.resources.nodes,
        platform="k8s",
        native=_native(asked, target, found, api.context, api.namespace),
    )


def unseen(spec: AnySpec) -> Machine:
    """What the recipe says that a node has, for a plain Job; no cluster is asked.

    Raises:
        SpecError: it does not say enough.
    """
    _check_spec(spec)
    asked = spec.kubernetes
    gpus = _gpus_unseen(spec)
    found = _share(asked, spec, [], gpus)
    target = Target("job", "batch/v1", "jobs", "a plain Job, as asked for")
    native = _native(asked, target, found, asked.context or "none", asked.namespace or "default")
    names = tuple("gpu" for _ in range(gpus))
    return Machine("a node", max(1, int(found.cpu)), names, "the recipe", spec.resources.nodes, "k8s", native)


def _native(
    asked: KubernetesSpec, target: Target, found: Share, context: str, namespace: str
) -> dict[str, Any]:
    """What rendering needs beside the recipe, as plain data."""
    return {
        "target": target.to_dict(), "context": context, "namespace": namespace, "cpu": cpu_text(found.cpu),
        "memory": memory_text(found.memory), "shm": memory_text(found.shm),
        "rdma": None if found.rdma is None else list(found.rdma), "gpus": found.gpus,
    }  # fmt: skip


def _check_spec(spec: AnySpec) -> None:
    asked = spec.kubernetes
    if asked.image is None:
        raise SpecError(
            "there is no image for the pods", evidence="kubernetes.image is not set",
            remedy="kubernetes.image=REGISTRY/NAME:TAG    (deploy/Dockerfile makes one)",
        )  # fmt: skip
    if asked.privileged and not isinstance(spec, CheckSpec):
        raise SpecError(
            "only an acceptance test may run privileged", evidence="kubernetes.privileged is set",
            remedy="leave it out    (kubernetes.ipc_lock lets a run lock memory)",
        )  # fmt: skip
    if asked.claim is None and spec.resources.nodes > 1:
        raise SpecError(
            "several nodes need a volume that all of them see", evidence=f"resources.nodes is {spec.resources.nodes}, and kubernetes.claim is not set",
            remedy="kubernetes.claim=NAME of a PersistentVolumeClaim with access mode ReadWriteMany",
        )  # fmt: skip
    if asked.claim is None and not isinstance(spec, CheckSpec) and spec.artifacts is None:
        raise SpecError(
            "the run would be gone with its pod", evidence="neither kubernetes.claim nor artifacts is set",
            remedy="kubernetes.claim=NAME, or artifacts=s3://BUCKET/PREFIX to mirror it to",
        )  # fmt: skip


def _check_namespace(api: Api, asked: KubernetesSpec, nodes: int) -> None:
    """The claims are there and can be used, and so is the queue."""
    for claim in filter(None, (asked.claim, *asked.mounts)):
        name = asked.mounts.get(claim, claim)
        try:
            found = api.get(api.path("v1", "persistentvolumeclaims", name))
        except NotFoundError as error:
            raise SpecError(
                f"there is no volume claim {name} in namespace {api.namespace}", evidence=error.evidence,
                remedy=f"kubectl -n {api.namespace} get pvc",
            ) from error  # fmt: skip
        modes = found["spec"].get("accessModes") or []
        if name == asked.claim and nodes > 1 and "ReadWriteMany" not in modes:
            raise SpecError(
                f"the volume claim {name} can be written by one node at a time",
                evidence=f"its access modes: {', '.join(modes) or 'none'}; resources.nodes is {nodes}",
                remedy="a claim with ReadWriteMany, of a storage class that has it    (seatrial doctor --on k8s lists them)",
            )
        if found["metadata"].get("deletionTimestamp"):
            raise SpecError(
                f"the volume claim {name} is being deleted", evidence=found["metadata"]["deletionTimestamp"]
            )
    if asked.queue is not None:
        _check_queue(api, asked.queue)
    if asked.priority_class is not None:
        try:
            api.get(f"/apis/scheduling.k8s.io/v1/priorityclasses/{asked.priority_class}")
        except NotFoundError as error:
            raise SpecError(
                f"there is no priority class {asked.priority_class}",
                evidence=error.evidence,
                remedy="kubectl get priorityclass",
            ) from error
        except ForbiddenError:
            pass  # the server will tell


def _check_quota(api: Api, asked: KubernetesSpec, found: Share, nodes: int) -> None:
    """Refuses what the namespace's quota never lets in, whoever else is there."""
    try:
        quotas, _ = api.list(api.path("v1", "resourcequotas"))
    except (ForbiddenError, NotFoundError):
        return
    for quota in quotas:
        hard = quota["spec"].get("hard") or {}
        for name, value in found.requests(asked.gpu_resource).items():
            keys = [f"requests.{name}", *([name, f"limits.{name}"] if name in {"cpu", "memory"} else [])]
            for key in keys:
                if key in hard and nodes * value > amount(hard[key]):
                    raise SpecError(
                        f"this never fits into the namespace's quota {quota['metadata']['name']}",
                        evidence=f"{key}: asks {people(name, value)} for each of {nodes} nodes, the quota is {hard[key]}",
                        remedy="ask for less, or have the quota raised",
                    )


def _check_queue(api: Api, name: str) -> None:
    version = Groups.read(api).version("kueue.x-k8s.io")
    if version is None:
        raise SpecError(
            "the cluster has no Kueue", evidence="kubernetes.queue is set, and there is no API group kueue.x-k8s.io",
            remedy="leave kubernetes.queue out",
        )  # fmt: skip
    try:
        queues, _ = api.list(api.path(version, "localqueues"))
    except ForbiddenError:
        return
    names = [queue["metadata"]["name"] for queue in queues]
    if name not in names:
        raise SpecError(
            f"there is no LocalQueue {name} in namespace {api.namespace}", evidence=f"there are: {', '.join(names) or 'none'}",
            remedy="kubernetes.queue=NAME",
        )  # fmt: skip


def _gpus_unseen(spec: AnySpec) -> int:
    asked, gpus = spec.kubernetes, spec.resources.gpus_per_node
    if gpus == "auto" or (gpus and (asked.cpu is None or asked.memory is None)):
        raise SpecError(
            "what the nodes have can't be seen, so it must be said",
            evidence="no node was seen; resources.gpus_per_node, kubernetes.cpu and kubernetes.memory are not all set",
            remedy="resources.gpus_per_node=8 kubernetes.cpu=112 kubernetes.memory=1200Gi    (0 GPUs for a run on processors; or a ClusterRole that lets you list nodes)",
        )
    return int(gpus)


def _able(nodes: list[Node], spec: AnySpec) -> tuple[list[Node], int]:
    """The nodes that could take a pod were they empty, and the GPUs of a pod.

    Raises:
        SpecError: there are too few.
    """
    asked, resource = spec.kubernetes, spec.kubernetes.gpu_resource
    chosen = [node for node in nodes if _may_run(node, spec)]
    gpus = spec.resources.gpus_per_node
    if gpus == "auto":
        gpus = int(max((node.has(resource) for node in chosen), default=Decimal(0)))
    wanted = {resource: Decimal(gpus)} if gpus else {}
    wanted |= {
        name: amount(value)
        for name, value in (("cpu", asked.cpu), ("memory", asked.memory))
        if value is not None
    }
    able = [node for node in chosen if all(node.has(name) >= value for name, value in wanted.items())]
    if len(able) >= spec.resources.nodes:
        return able, gpus
    most = {name: max((node.has(name) for node in chosen), default=Decimal(0)) for name in wanted}
    lines = [
        f"{name}: asks {people(name, value)} a node, the largest node has {people(name, most[name])}"
        for name, value in wanted.items() if value > most[name]
    ]  # fmt: skip
    lines += [f"{len(able)} of {len(nodes)} nodes have it, {spec.resources.nodes} are asked for"]
    lines += [f"{node.name}: {why}" for node in nodes if (why := _why_out(node, spec))][:5]
    raise SpecError(
        "this can never start here", evidence="\n".join(lines),
        remedy="change the recipe's kubernetes and resources sections    (seatrial doctor --on k8s shows what there is)",
    )  # fmt: skip


def _may_run(node: Node, spec: AnySpec) -> bool:
    return not _why_out(node, spec)


def _why_out(node: Node, spec: AnySpec) -> str:
    """Why a node is not for this recipe; a cordon or a node that is down may pass, and does not count."""
    asked = spec.kubernetes
    if node.name in asked.exclude or node.labels.get(HOSTNAME) in asked.exclude:
        return "kubernetes.exclude names it"
    wrong = [f"{key}={value}" for key, value in asked.node_selector.items() if node.labels.get(key) != value]
    if wrong:
        return f"it lacks the label {wrong[0]}"
    tolerations = [*tolerations_of(asked, spec.resources.gpus_per_node != 0)]
    lasting = [taint for taint in node.taints if not taint.get("key", "").startswith("node.kubernetes.io/")]
    for taint in lasting:
        if taint.get("effect") in {"NoSchedule", "NoExecute"} and not tolerates(tolerations, taint):
            return f"taint {taint.get('key')}:{taint.get('effect')}, and kubernetes.tolerations has nothing for it"
    return ""


def tolerations_of(asked: KubernetesSpec, gpus: bool) -> list[dict[str, Any]]:
    """Of the pods: the GPUs' own taint, and what the recipe has."""
    own = [item.model_dump(exclude_none=True) for item in asked.tolerations]
    return [*([GPU_TAINT] if gpus else []), *own]


def _share(asked: KubernetesSpec, spec: AnySpec, able: list[Node], gpus: int) -> Share:
    """What a pod asks for; of nodes of several kinds, what all of them can give."""
    ranks = 1 if spec.resources.nproc == "auto" else spec.resources.nproc
    cpu, memory = Decimal(ranks), Decimal(ranks * _CPU_RANK_BYTES)
    if gpus and able:
        shares = [share(node, gpus, asked.gpu_resource) for node in able]
        cpu, memory = min(cpu for cpu, _ in shares), min(memory for _, memory in shares)
    cpu = amount(asked.cpu) if asked.cpu is not None else cpu
    memory = amount(asked.memory) if asked.memory is not None else memory
    shm = amount(asked.shm) if asked.shm is not None else shm_of(memory)
    if shm >= memory:
        raise SpecError(
            "/dev/shm would take all memory of the pod", evidence=f"kubernetes.shm is {people('memory', shm)}, of {people('memory', memory)} in all",
            remedy="a smaller kubernetes.shm, or a larger kubernetes.memory",
        )  # fmt: skip
    return Share(gpus, cpu, memory, shm, _rdma(asked, able, gpus))


def _rdma(asked: KubernetesSpec, able: list[Node], gpus: int) -> tuple[str, int] | None:
    """The devices that are asked for; with ``auto``, what every node offers, where all of its GPUs are taken."""
    if asked.rdma != "auto":
        return asked.rdma_devices
    common = set.intersection(*(set(node.rdma) for node in able)) if able else set()
    if not gpus or not common:
        return None
    name = sorted(common, key=lambda name: (not name.startswith("rdma/"), name))[0]
    return name, min(node.rdma[name] for node in able)
