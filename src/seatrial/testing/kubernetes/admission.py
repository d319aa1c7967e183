"""What the pretend server lets in: known fields, sound values, quota and Pod Security. The words are those of 1.36."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any

from seatrial.backends.kubernetes import preflight
from seatrial.backends.kubernetes.nodes import requests_of
from seatrial.backends.kubernetes.quantity import amount
from seatrial.testing.kubernetes.kinds import LIMIT_RANGES, NAMESPACES, PODS, PRIORITIES, QUOTAS
from seatrial.testing.kubernetes.store import Object, Resource, StatusError, Store

_ENDED = {"Succeeded", "Failed"}
_ENFORCE = "pod-security.kubernetes.io/enforce"


def check_schema(resource: Resource, body: Object, version: str) -> None:
    """Unknown fields and wrong types are 400, where the schemas are installed (``kubernetes-validate``); custom kinds pass."""
    try:
        import kubernetes_validate
    except ModuleNotFoundError:
        return
    try:
        kubernetes_validate.validate(body, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        unknown = "Additional properties" in error.message and error.message.split("'")[1]
        said = (
            f'unknown field "{where}{"." if where else ""}{unknown}"'
            if unknown
            else f"{where}: {error.message}"
        )
        raise StatusError(
            400, "BadRequest",
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: strict decoding error: {said}',
        ) from None  # fmt: skip


def check_sense(resource: Resource, body: Object) -> None:
    """What is well formed and makes no sense is 422."""
    wrong = preflight.problems(body)
    if wrong:
        name = body.get("metadata", {}).get("name", "")
        raise StatusError(
            422, "Invalid", f'{resource.kind}.{resource.group or "core"} "{name}" is invalid: {"; ".join(wrong)}',
            {"name": name, "group": resource.group, "kind": resource.kind},
        )  # fmt: skip


def admit_pod(store: Store, pod: Object) -> None:
    """Defaults, priority, Pod Security and quota of a pod that is about to be made; 403 where one refuses it."""
    namespace, name = (
        pod["metadata"]["namespace"],
        pod["metadata"].get("name") or pod["metadata"].get("generateName", ""),
    )
    _defaults(store, pod, namespace)
    wanted = pod["spec"].get("priorityClassName")
    if wanted and store.find(PRIORITIES, "", wanted) is None:
        raise _forbidden(name, f"no PriorityClass with name {wanted} was found")
    home = store.find(NAMESPACES, "", namespace) or {"metadata": {}}
    level = (home["metadata"].get("labels") or {}).get(_ENFORCE, "privileged")
    violations = _violations(pod["spec"], level)
    if violations:
        raise _forbidden(name, f'violates PodSecurity "{level}:latest": {", ".join(violations)}')
    for quota in store.every(QUOTAS, namespace):
        _check_quota(store, quota, pod, namespace, name)


def _defaults(store: Store, pod: Object, namespace: str) -> None:
    for item in store.every(LIMIT_RANGES, namespace):
        for limit in item["spec"].get("limits", []):
            if limit.get("type") != "Container":
                continue
            for container in pod["spec"]["containers"]:
                resources = container.setdefault("resources", {})
                for part, key in (("limits", "default"), ("requests", "defaultRequest")):
                    for name, value in (limit.get(key) or {}).items():
                        resources.setdefault(part, {}).setdefault(name, value)


def _check_quota(store: Store, quota: Object, pod: Object, namespace: str, name: str) -> None:
    hard = {key: amount(value) for key, value in quota["spec"].get("hard", {}).items()}
    used: dict[str, Decimal] = defaultdict(Decimal)
    for other in store.every(PODS, namespace):
        if other.get("status", {}).get("phase") not in _ENDED:
            for key, value in _counted(other["spec"]).items():
                used[key] += value
    asked = {key: value for key, value in _counted(pod["spec"]).items() if key in hard}
    missing = [
        key
        for key in hard
        if key in {"requests.cpu", "requests.memory", "limits.cpu", "limits.memory"} and key not in asked
    ]
    if missing:
        raise _forbidden(name, f"failed quota: {quota['metadata']['name']}: must specify {','.join(missing)}")
    over = [key for key, value in asked.items() if used[key] + value > hard[key]]
    if over:
        text = [",".join(f"{key}={_plain(amounts[key])}" for key in over) for amounts in (asked, used, hard)]
        raise _forbidden(
            name,
            f"exceeded quota: {quota['metadata']['name']}, requested: {text[0]}, used: {text[1]}, limited: {text[2]}",
        )


def _counted(spec: Object) -> dict[str, Decimal]:
    """What a quota counts. ``limits.nvidia.com/gpu`` and ``nvidia.com/gpu`` it does not know, and ignores (seen on 1.36)."""
    found = {"pods": Decimal(1), "count/pods": Decimal(1)}
    for key, value in requests_of(spec).items():
        found[f"requests.{key}"] = value
        if key in {"cpu", "memory"}:
            found[key] = value
    for container in spec["containers"]:
        for key, text in ((container.get("resources") or {}).get("limits") or {}).items():
            if key in {"cpu", "memory"}:
                found[f"limits.{key}"] = found.get(f"limits.{key}", Decimal(0)) + amount(text)
    return found


def _plain(value: Decimal) -> str:
    return str(int(value)) if value == int(value) else f"{int(value * 1000)}m"


def _violations(spec: Object, level: str) -> list[str]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, as far as Seatrial's pods go."""
    if level == "privileged":
        return []
    found = []
    pod = spec.get("securityContext") or {}
    for container in spec["containers"]:
        its: dict[str, Any] = container.get("securityContext") or {}
        name = container["name"]
        capabilities = its.get("capabilities") or {}
        added = set(capabilities.get("add") or [])
        if its.get("privileged"):
            found.append(f'privileged (container "{name}" must not set securityContext.privileged=true)')
        if added - {"NET_BIND_SERVICE"}:
            found.append(
                f'{"unrestricted" if level == "restricted" else "non-default"} capabilities (container "{name}" must not include'
                f" {', '.join(sorted(added))} in securityContext.capabilities.add)"
            )
        if level != "restricted":
            continue
        if its.get("allowPrivilegeEscalation") is not False:
            found.append(
                f'allowPrivilegeEscalation != false (container "{name}" must set securityContext.allowPrivilegeEscalation=false)'
            )
        if "ALL" not in (capabilities.get("drop") or []):
            found.append(
                f'unrestricted capabilities (container "{name}" must set securityContext.capabilities.drop=["ALL"])'
            )
        if not (its.get("runAsNonRoot") or pod.get("runAsNonRoot")):
            found.append(
                f'runAsNonRoot != true (pod or container "{name}" must set securityContext.runAsNonRoot=true)'
            )
        if not (its.get("seccompProfile") or pod.get("seccompProfile")):
            found.append(
                f'seccompProfile (pod or container "{name}" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")'
            )
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            found.append(f"host namespaces ({key}=true)")
    if any("hostPath" in volume for volume in spec.get("volumes") or []):
        found.append("hostPath volumes")
    return found


def _forbidden(name: str, why: str) -> StatusError:
    return StatusError(403, "Forbidden", f'pods "{name}" is forbidden: {why}', {"name": name, "kind": "pods"})
