"""The job of an attempt, as each kind of object that a cluster may take; and what belongs to it. Pure."""

from __future__ import annotations

import copy
import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from seatrial.backends.kubernetes.api import SUBMISSION, Object
from seatrial.backends.kubernetes.names import RUN_ID
from seatrial.backends.kubernetes.targets import KINDS
from seatrial.backends.kubernetes.template import RESTART_CODE, TOKEN_KEY, Order, kept, pod_spec
from seatrial.errors import SpecError

_QUEUE = "kueue.x-k8s.io/queue-name"
_INDEX = "JOB_COMPLETION_INDEX"
_MANAGER = "seatrial/launcher"
_NOT_ESSENTIAL = {"enableServiceLinks", "activeDeadlineSeconds", "automountServiceAccountToken"}
"""Of a pod's spec, what a Trainer may be too old to take: nothing that is asked for gets lost with it."""


def job_of(order: Order) -> Object:
    """The object that is submitted: suspended, until all that it needs is there.

    Raises:
        SpecError: this kind of object can't be what the recipe asks for.
    """
    return {"job": _job, "jobset": _jobset, "trainjob": _trainjob, "pytorchjob": _pytorchjob}[
        order.target.kind
    ](order)


def objects_of(order: Order) -> list[Object]:
    """The job, and the service by which its pods find each other where the kind of job brings none of its own."""
    job = job_of(order)
    if order.target.kind != "job":
        return [job]
    metadata = order.metadata
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {
            "clusterIP": "None", "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": order.name},
        },
    }  # fmt: skip
    return [job, service]


def cargo_of(order: Order, files: dict[str, str]) -> Object:
    """The ConfigMap with the run's own files: plan, recipe, manifest."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": order.metadata,
        "immutable": True,
        "data": files,
    }


def token_of(order: Order, token: str) -> Object:
    """The Secret by which the agents of this attempt know each other."""
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": order.metadata, "immutable": True, "type": "Opaque",
        "stringData": {TOKEN_KEY: token},
    }  # fmt: skip


def released(objects: list[Object]) -> list[Object]:
    """All of them, with a job that does not wait for anybody but its queue."""
    *others, job = objects
    kind = next(kind for kind, (_, name, _) in KINDS.items() if name == job["kind"])
    if _QUEUE in job["metadata"]["labels"]:
        return objects
    *way, last = path_suspend(kind)
    job = copy.deepcopy(job)
    section = job
    for part in way:
        section = section[part]
    section[last] = False
    return [*others, job]


def path_suspend(kind: str) -> tuple[str, ...]:
    """Where an object says that it waits."""
    return ("spec", "runPolicy", "suspend") if kind == "pytorchjob" else ("spec", "suspend")


def _head(order: Order) -> Object:
    _, kind, _ = KINDS[order.target.kind]
    metadata = order.metadata
    if order.asked.queue is not None:
        metadata = {**metadata, "labels": {**metadata["labels"], _QUEUE: order.asked.queue}}
    return {"apiVersion": order.target.api_version, "kind": kind, "metadata": metadata}


def _template(order: Order, spec: Object) -> Object:
    annotations = {RUN_ID: order.plan.run_id}
    return {"metadata": {"labels": order.labels, "annotations": annotations}, "spec": spec}


def _batch_spec(order: Order, template: Object) -> Object:
    """Of a batch/v1 Job: whoever fails ends all; who was asked to leave is started again, and counts for nothing."""
    return {
        "completionMode": "Indexed",
        "completions": order.plan.nodes,
        "parallelism": order.plan.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [RESTART_CODE]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": template,
    }


def _ttl(order: Order) -> int:
    return int(order.asked.ttl_hours * 3600)


def _job(order: Order) -> Object:
    spec = pod_spec(order, container="seatrial", rank_from=_INDEX, lead=f"{order.name}-0.{order.name}")
    spec = {"subdomain": order.name, **spec}
    batch = {
        "suspend": True,
        "ttlSecondsAfterFinished": _ttl(order),
        **_batch_spec(order, _template(order, spec)),
    }
    return {**_head(order), "spec": batch}


def _jobset(order: Order) -> Object:
    spec = pod_spec(order, container="seatrial", rank_from=_INDEX, lead=f"{order.name}-node-0-0.{order.name}")
    job = {"metadata": {"labels": order.labels}, "spec": _batch_spec(order, _template(order, spec))}
    return {
        **_head(order),
        "spec": {
            "suspend": True,
            "ttlSecondsAfterFinished": _ttl(order),
            "network": {
                "enableDNSHostnames": True,
                "publishNotReadyAddresses": True,
                "subdomain": order.name,
            },
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": job}],
        },
    }


def _trainjob(order: Order) -> Object:
    target = order.target
    assert target.runtime is not None and target.patches is not None
    spec = pod_spec(order, container="node", rank_from=_INDEX, lead=f"{order.name}-node-0-0.{order.name}")
    [container] = spec.pop("containers")
    spec.pop("restartPolicy")
    trainer = {
        "image": container.pop("image"), "command": container.pop("command"), "args": [],
        "env": container.pop("env"), "numNodes": order.plan.nodes, "resourcesPerNode": container.pop("resources"),
    }  # fmt: skip
    container.pop("imagePullPolicy")
    limit_s = spec.pop("activeDeadlineSeconds", None)
    inner, lost = kept(target.container_fields, container)
    outer, lost_too = kept(target.pod_fields, spec)
    missing = [name for name in (*lost, *lost_too) if name not in _NOT_ESSENTIAL]
    if missing:
        raise SpecError(
            "the cluster's Trainer can't run pods as they have to be run",
            evidence=f"its {target.patches} has no {', '.join(missing)}",
            remedy="kubernetes.object=job    (or pytorchjob, jobset)",
        )
    head = _head(order)
    body: Object = {
        "suspend": True,
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": target.runtime[0],
            "name": target.runtime[1],
        },
        "trainer": trainer,
        target.patches: [_patch(target.patches, {**outer, "containers": [inner]}, order)],
    }
    if limit_s is not None:
        body["activeDeadlineSeconds"] = limit_s
    return {**head, "spec": body}


def _patch(field: str, spec: Object, order: Order) -> Object:
    metadata = {"labels": order.labels} if order.target.labels_pods else {}
    if field == "runtimePatches":
        pod = {**({"metadata": metadata} if metadata else {}), "spec": spec}
        jobs = [{"name": "node", "template": {"spec": {"template": pod}}}]
        return {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
    targets = {"targetJobs": [{"name": "node"}]}
    if field == "podTemplateOverrides":
        return {**targets, **({"metadata": metadata} if metadata else {}), "spec": spec}
    return {**targets, **spec}


def _pytorchjob(order: Order) -> Object:
    spec = pod_spec(order, container="pytorch", rank_from="RANK", lead=f"{order.name}-master-0")
    spec.pop("restartPolicy")
    replica = {"restartPolicy": "ExitCode", "template": _template(order, spec)}
    replicas: Object = {"Master": {"replicas": 1, **replica}}
    if order.plan.nodes > 1:
        replicas["Worker"] = {"replicas": order.plan.nodes - 1, **replica}
    policy = {
        "suspend": True, "cleanPodPolicy": "None", "backoffLimit": order.asked.max_requeues,
        "ttlSecondsAfterFinished": _ttl(order),
    }  # fmt: skip
    return {**_head(order), "spec": {"runPolicy": policy, "pytorchReplicaSpecs": replicas}}


def marked(body: Object, submission: str) -> Object:
    """An object that is known as one of this submission."""
    metadata = body["metadata"]
    return {
        **body,
        "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), SUBMISSION: submission}},
    }


def owned(body: Object, owner: Object) -> Object:
    """An object that goes when its owner goes."""
    return {**body, "metadata": {**body["metadata"], "ownerReferences": [reference(owner)]}}


def reference(owner: Object) -> Object:
    """To an object that the server has made."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }


def yaml_text(objects: list[Object]) -> str:
    """All of them as one stream of YAML documents, as ``kubectl apply -f`` takes it."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda *_: True
    text = io.StringIO()
    yaml.dump_all([_literal(body) for body in objects], text)
    return text.getvalue()


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value
