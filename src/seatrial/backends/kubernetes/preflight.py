"""What a schema does not catch, and a server does only when it is asked: looked at before that. Pure.

A JSON schema refuses 3 of 18 broken Jobs that were tried on Kubernetes 1.36; the server refused 17 of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from seatrial.backends.kubernetes.api import Object
from seatrial.backends.kubernetes.quantity import amount

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_LABEL_NAME = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?)")
_SHARED = {"cpu", "memory", "ephemeral-storage"}
_MOST_INDEXES = 100_000
_PROTOCOLS = {"TCP", "UDP", "SCTP"}


def problems(body: Object) -> list[str]:
    """What is wrong with an object, each with where: an empty list is what a server should take."""
    return list(_problems(body))


def _problems(body: Object) -> Iterator[str]:
    yield from _metadata(body.get("metadata") or {}, "metadata")
    match body.get("kind"):
        case "Job":
            yield from _batch(body.get("spec") or {}, "spec", body["metadata"].get("name", ""))
        case "JobSet":
            for i, job in enumerate(body["spec"].get("replicatedJobs") or []):
                where = f"spec.replicatedJobs[{i}].template.spec"
                yield from _batch(
                    job["template"].get("spec") or {},
                    where,
                    f"{body['metadata'].get('name', '')}-{job.get('name')}",
                )
        case "PyTorchJob":
            replicas = body["spec"].get("pytorchReplicaSpecs") or {}
            for name, replica in replicas.items():
                yield from _template(replica["template"], f"spec.pytorchReplicaSpecs.{name}.template")
            if (replicas.get("Master") or {}).get("replicas") != 1:
                yield "spec.pytorchReplicaSpecs.Master.replicas: there is one master"
        case "TrainJob":
            trainer = body["spec"].get("trainer") or {}
            where = "spec.trainer"
            yield from _resources(trainer.get("resourcesPerNode") or {}, f"{where}.resourcesPerNode")
            yield from _variables(trainer.get("env") or [], f"{where}.env")
            if not trainer:
                yield f"{where}: without it no rank is told where to meet"


def _metadata(metadata: Object, where: str) -> Iterator[str]:
    name = metadata.get("name", "")
    if name and (not _SUBDOMAIN.fullmatch(name) or len(name) > 253):
        yield f"{where}.name: {name!r} is not small letters, digits, '-' and '.', at most 63 between dots"
    yield from _labels(metadata.get("labels") or {}, f"{where}.labels")


def _labels(labels: Object, where: str) -> Iterator[str]:
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not _SUBDOMAIN.fullmatch(prefix)):
            yield f"{where}: {key!r} is not a label's key"
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            yield f"{where}.{key}: {value!r} is not a label's value: at most 63 letters, digits, '-', '_' and '.'"


def _batch(spec: Object, where: str, name: str) -> Iterator[str]:
    indexed = spec.get("completionMode") == "Indexed"
    if indexed and (spec.get("parallelism") or 0) > _MOST_INDEXES:
        yield f"{where}.parallelism: {spec['parallelism']} pods with an index; {_MOST_INDEXES} at most"
    if spec.get("successPolicy") and not indexed:
        yield f"{where}.successPolicy: only with completionMode Indexed"
    if indexed and spec.get("completions") is None:
        yield f"{where}.completions: has to be said with completionMode Indexed"
    if len(f"{name}-{max(0, (spec.get('completions') or 1) - 1)}") > 63:
        yield f"{where}: the pods' host names, {name}-INDEX, have more than 63 letters"
    for key in ("ttlSecondsAfterFinished", "backoffLimit", "activeDeadlineSeconds"):
        if isinstance(spec.get(key), int) and spec[key] < 0:
            yield f"{where}.{key}: {spec[key]} is negative"
    template = spec.get("template") or {}
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy not in {"Never", "OnFailure"}:
        yield f"{where}.template.spec.restartPolicy: {policy} is not for jobs: Never or OnFailure"
    if spec.get("podFailurePolicy") and policy != "Never":
        yield f"{where}.podFailurePolicy: only with restartPolicy Never"
    yield from _template(template, f"{where}.template")


def _template(template: Object, where: str) -> Iterator[str]:
    yield from _metadata(template.get("metadata") or {}, f"{where}.metadata")
    spec = template.get("spec") or {}
    volumes = [volume.get("name", "") for volume in spec.get("volumes") or []]
    for name in sorted({name for name in volumes if volumes.count(name) > 1}):
        yield f"{where}.spec.volumes: {name!r} is there twice"
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    if not spec.get("containers"):
        yield f"{where}.spec.containers: there is none"
    for i, container in enumerate(containers):
        yield from _container(container, volumes, f"{where}.spec.containers[{i}]")
    memory = sum(_memory(container) for container in spec.get("containers") or [])
    for volume in spec.get("volumes") or []:
        medium = volume.get("emptyDir") or {}
        if medium.get("medium") == "Memory" and memory:
            if "sizeLimit" not in medium:
                yield f"{where}.spec.volumes.{volume['name']}: in memory, and without a limit"
            elif _safe(medium["sizeLimit"]) >= memory:
                yield f"{where}.spec.volumes.{volume['name']}: takes all of the pod's memory ({medium['sizeLimit']})"


def _container(container: Object, volumes: list[str], where: str) -> Iterator[str]:
    name = container.get("name", "")
    if not _LABEL.fullmatch(name):
        yield f"{where}.name: {name!r} is not a container's name"
    if not container.get("image"):
        yield f"{where}.image: there is none"
    paths = [mount.get("mountPath") for mount in container.get("volumeMounts") or []]
    for mount in container.get("volumeMounts") or []:
        if mount.get("name") not in volumes:
            yield f"{where}.volumeMounts: there is no volume {mount.get('name')!r}"
    for path in sorted({str(path) for path in paths if paths.count(path) > 1}):
        yield f"{where}.volumeMounts: two volumes at {path}"
    for port in container.get("ports") or []:
        if port.get("protocol", "TCP") not in _PROTOCOLS:
            yield f"{where}.ports: {port['protocol']!r} is not TCP, UDP or SCTP"
    yield from _variables(container.get("env") or [], f"{where}.env")
    yield from _resources(container.get("resources") or {}, f"{where}.resources")


def _variables(variables: list[Object], where: str) -> Iterator[str]:
    names = [variable.get("name", "") for variable in variables]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{where}: {name} is set twice"


def _resources(resources: Object, where: str) -> Iterator[str]:
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for part, amounts in (("requests", requests), ("limits", limits)):
        for name, value in amounts.items():
            try:
                number = amount(value)
            except ValueError:
                yield f"{where}.{part}.{name}: {value!r} is not an amount"
                continue
            if number < 0:
                yield f"{where}.{part}.{name}: {value} is negative"
            if name not in _SHARED and not name.startswith("hugepages-") and number != int(number):
                yield f"{where}.{part}.{name}: {value} is not a whole number, and {name} can't be shared"
    for name in {**requests, **limits}:
        request, limit = _safe(requests.get(name)), _safe(limits.get(name))
        if name in _SHARED:
            if name in requests and name in limits and request > limit:
                yield f"{where}: asks for more {name} ({requests[name]}) than its limit ({limits[name]})"
        elif name in requests and name not in limits:
            yield f"{where}.limits.{name}: has to be said, and be what is asked for"
        elif name in requests and request != limit:
            yield f"{where}.limits.{name}: {limits[name]} is not what is asked for, {requests[name]}"


def _memory(container: Object) -> Decimal:
    return _safe(((container.get("resources") or {}).get("limits") or {}).get("memory"))


def _safe(value: Any) -> Decimal:
    try:
        return amount(value)
    except (ValueError, TypeError):
        return Decimal(0)
