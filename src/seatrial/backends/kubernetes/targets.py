"""Which kind of job the cluster has, asked and not guessed; and whether this account may use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from seatrial.backends.kubernetes.answers import ForbiddenError, NotFoundError, rule
from seatrial.backends.kubernetes.api import Api, Object
from seatrial.errors import PlatformError, SpecError
from seatrial.spec.kubernetes import KubernetesSpec

_POD = ("trainingRuntimeSpec", "template", "spec", "replicatedJobs", "[]", "template", "spec", "template")
PATCHES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "runtimePatches": ((*_POD, "spec"), (*_POD, "metadata")),
    "podTemplateOverrides": (("spec",), ("metadata",)),
    "podSpecOverrides": ((), ("metadata",)),
}
"""Fields by which a TrainJob changes the pods of its runtime, newest first (Trainer 2.2, 2.1, 2.0), each with the way to
the pod's spec and metadata in an item."""
_NEEDED = ("volumes",)
_CONTAINER_NEEDS = ("volumeMounts",)


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of job that the cluster takes."""

    kind: str
    """As in ``kubernetes.object``."""
    api_version: str
    plural: str
    evidence: str
    runtime: tuple[str, str] | None = None
    """Of a trainjob: kind and name of its runtime."""
    patches: str | None = None
    """Of a trainjob: the field that changes its pods."""
    pod_fields: tuple[str, ...] = ()
    """What that field takes of a pod's spec."""
    container_fields: tuple[str, ...] = ()
    """And of a container."""
    labels_pods: bool = True
    """Whether the pods can be given labels."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, read back by `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Target:
        """What `to_dict` gave, also by way of JSON."""
        lists = {key: tuple(data[key]) for key in ("pod_fields", "container_fields")}
        runtime = None if data["runtime"] is None else (str(data["runtime"][0]), str(data["runtime"][1]))
        return cls(**{**data, **lists, "runtime": runtime})


KINDS = {
    "trainjob": ("trainer.kubeflow.org", "TrainJob", "trainjobs"),
    "pytorchjob": ("kubeflow.org", "PyTorchJob", "pytorchjobs"),
    "jobset": ("jobset.x-k8s.io", "JobSet", "jobsets"),
    "job": ("batch", "Job", "jobs"),
}
"""By kind, in the order in which they are chosen: API group, kind and plural."""


@dataclass(slots=True)
class Groups:
    """The API groups of a cluster, with their versions, the preferred one first."""

    versions: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, api: Api) -> Groups:
        """As the server's discovery tells."""
        found = {}
        for group in api.get("/apis").get("groups", []):
            preferred = group.get("preferredVersion", {}).get("version")
            every = [version["version"] for version in group["versions"]]
            found[group["name"]] = sorted(every, key=lambda version: version != preferred)
        return cls(found)

    def version(self, group: str) -> str | None:
        """The group's preferred version: ``batch/v1``."""
        found = self.versions.get(group)
        return f"{group}/{found[0]}" if found else None


def choose(api: Api, spec: KubernetesSpec, groups: Groups) -> Target:
    """The kind of job that is asked for, or the first that the cluster has and that can carry a training.

    Raises:
        SpecError: the one that was asked for is not there, or can't carry it.
    """
    passed_over = []
    for kind in KINDS if spec.object == "auto" else [spec.object]:
        try:
            found = _look(api, kind, spec, groups)
        except SpecError as error:
            if spec.object != "auto":
                raise
            passed_over.append(f"{kind}: {error.what}")
            continue
        if spec.object != "auto" or not passed_over:
            return found
        return Target.from_dict(
            {**found.to_dict(), "evidence": f"{found.evidence}; not used: {'; '.join(passed_over)}"}
        )
    raise SpecError("the cluster has no kind of job", evidence="; ".join(passed_over))


def _look(api: Api, kind: str, spec: KubernetesSpec, groups: Groups) -> Target:
    group, name, plural = KINDS[kind]
    version = groups.version(group)
    if version is None or not _serves(api, version, plural):
        have = [other for other, (its, _, _) in KINDS.items() if groups.version(its)]
        raise SpecError(
            f"the cluster has no {name}", evidence=f"no {plural} in API group {group}",
            remedy=f"kubernetes.object is one of: {', '.join(have) or 'none here'}; auto chooses",
        )  # fmt: skip
    if kind != "trainjob":
        return Target(kind, version, plural, f"the cluster serves {plural}.{version}")
    return _trainjob(api, version, plural, spec)


def _serves(api: Api, version: str, plural: str) -> bool:
    try:
        return any(
            resource["name"] == plural for resource in api.get(f"/apis/{version}").get("resources", [])
        )
    except NotFoundError:
        return False


def _trainjob(api: Api, version: str, plural: str, spec: KubernetesSpec) -> Target:
    runtime = _runtime(api, version, spec)
    schema = _schema(api, version, plural)
    known = schema.get("properties", {}).get("spec", {}).get("properties", {})
    patches = next((name for name in PATCHES if name in known), None)
    if patches is None:
        raise SpecError(
            "the cluster's Trainer is one that Seatrial does not know",
            evidence=f"TrainJob {version} has none of: {', '.join(PATCHES)}",
            remedy="kubernetes.object=job    (or pytorchjob, jobset)",
        )
    to_spec, to_metadata = PATCHES[patches]
    pod = _below(known[patches].get("items", {}), to_spec)
    container = _below(pod, ("containers", "[]"))
    missing = [name for name in _NEEDED if name not in pod.get("properties", {})]
    missing += [name for name in _CONTAINER_NEEDS if name not in container.get("properties", {})]
    if missing:
        raise SpecError(
            "the cluster's Trainer is too old", evidence=f"its {patches} can't give a pod {', '.join(missing)}",
            remedy="kubernetes.object=job    (or pytorchjob, jobset)",
        )  # fmt: skip
    labels = bool(_below(known[patches].get("items", {}), to_metadata).get("properties"))
    return Target(
        "trainjob", version, plural, f"the cluster serves {plural}.{version} with {patches}, and has the runtime {runtime[1]}",
        runtime=runtime, patches=patches, pod_fields=tuple(sorted(pod["properties"])),
        container_fields=tuple(sorted(container["properties"])), labels_pods=labels,
    )  # fmt: skip


def _runtime(api: Api, version: str, spec: KubernetesSpec) -> tuple[str, str]:
    """The runtime that is named, or one for torch: the namespace's own before the cluster's."""
    found: list[tuple[str, Object]] = []
    for kind, plural, namespaced in (
        ("TrainingRuntime", "trainingruntimes", True),
        ("ClusterTrainingRuntime", "clustertrainingruntimes", False),
    ):
        try:
            items, _ = api.list(api.path(version, plural, namespaced=namespaced))
        except (ForbiddenError, NotFoundError):
            continue
        found += [(kind, item) for item in items]
    names = [item["metadata"]["name"] for _, item in found]
    if spec.runtime is not None:
        match = next(
            ((kind, spec.runtime) for kind, item in found if item["metadata"]["name"] == spec.runtime), None
        )
        if match is None:
            raise SpecError(
                f"there is no training runtime {spec.runtime}",
                evidence=f"there are: {', '.join(names) or 'none that you may see'}",
            )
        return match
    for kind, item in found:
        policy = item.get("spec", {}).get("mlPolicy") or {}
        framework = item["metadata"].get("labels", {}).get("trainer.kubeflow.org/framework")
        if "torch" in policy and framework in {None, "torch"}:
            return kind, item["metadata"]["name"]
    raise SpecError(
        "the cluster has no training runtime for torch", evidence=f"there are: {', '.join(names) or 'none that you may see'}",
        remedy="kubernetes.runtime=NAME, or kubernetes.object=job",
    )  # fmt: skip


def _schema(api: Api, version: str, plural: str) -> Object:
    """Of a custom resource: from its definition, or, for those who may not read that, from what the server publishes."""
    group, _, name = version.partition("/")
    try:
        definition = api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{group}")
        for served in definition["spec"]["versions"]:
            if served["name"] == name:
                return dict(served.get("schema", {}).get("openAPIV3Schema", {}))
    except (ForbiddenError, NotFoundError):
        pass
    try:
        published = api.get(f"/openapi/v3/apis/{version}")["components"]["schemas"]
    except PlatformError:
        return {}
    kind = next(kind for its, kind, of in KINDS.values() if (its, of) == (group, plural))
    return next((dict(schema) for schema in published.values() if _is_of(schema, kind)), {})


def _is_of(schema: Object, kind: str) -> bool:
    return any(entry.get("kind") == kind for entry in schema.get("x-kubernetes-group-version-kind", []))


def _below(schema: Object, way: tuple[str, ...]) -> Object:
    for part in way:
        schema = schema.get("items", {}) if part == "[]" else schema.get("properties", {}).get(part, {})
    return schema


def rights(target: Target, spec: KubernetesSpec) -> Iterator[tuple[str, str, str]]:
    """What an account must be allowed in the namespace: verb, resource and API group."""
    group = target.api_version.partition("/")[0]
    yield from ((verb, target.plural, group) for verb in ("create", "get", "watch", "delete", "patch"))
    yield from ((verb, "pods", "") for verb in ("list", "watch"))
    yield from (("get", "pods/log", ""), ("list", "events", ""))
    yield from ((verb, "configmaps", "") for verb in ("create", "get", "patch"))
    yield "create", "secrets", ""
    if target.kind == "job":
        yield "create", "services", ""
    if spec.claim is not None or spec.mounts:
        yield "get", "persistentvolumeclaims", ""


def check_rights(api: Api, wanted: list[tuple[str, str, str]]) -> None:
    """Asks the cluster what this account may do (SelfSubjectAccessReview).

    Raises:
        PlatformError: something that is needed is not allowed: which, and the Role that would help.
    """

    def allowed(right: tuple[str, str, str]) -> bool:
        verb, resource, group = right
        name, _, sub = resource.partition("/")
        asked = {
            "namespace": api.namespace,
            "verb": verb,
            "group": group,
            "resource": name,
            "subresource": sub,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "metadata": {"name": ""},
        }
        review = api.create(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {**body, "spec": {"resourceAttributes": asked}},
        )
        return bool(review["status"].get("allowed"))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(allowed, wanted))
    refused = [right for right, answer in zip(wanted, answers, strict=True) if not answer]
    if refused:
        told = ", ".join(f"{verb} {resource}" for verb, resource, _ in refused)
        rules = "\n".join(f"- {rule(verb, resource, group)}" for verb, resource, group in refused)
        raise PlatformError(
            f"you may not do in namespace {api.namespace} what a run needs", evidence=told,
            remedy=f"a Role there with these rules (deploy/kubernetes/base has one):\n{rules}",
        )  # fmt: skip
