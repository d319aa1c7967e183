"""The recipe's ``kubernetes:`` section: what a cluster is asked for beyond nodes, GPUs, ranks and time."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from seatrial.spec.section import Section

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
Kind = Literal["auto", "trainjob", "pytorchjob", "jobset", "job"]


class Toleration(Section):
    """A taint that the pods may run beside."""

    key: str | None = None
    """The taint's; null is any."""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """null is any."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(
                "a toleration has a value where its operator is Equal, and none where it is Exists"
            )
        return self


class KubernetesSpec(Section):
    """What a Kubernetes cluster is asked for."""

    context: str | None = None
    """Context of the kubeconfig [default: its current one; in a pod, the pod's own account]."""
    namespace: str | None = None
    """Namespace of all that is made [default: the context's, else default]."""
    object: Kind = "auto"
    """What the cluster is given: trainjob, pytorchjob, jobset or job; auto takes the first of these that it has."""
    runtime: str | None = None
    """With a trainjob: the TrainingRuntime or ClusterTrainingRuntime [default: one that is for torch]."""
    image: str | None = None
    """Image with Python and Seatrial (deploy/Dockerfile makes one); needed."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes fetch the image."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets with the registry's credentials."""
    python: str = "python"
    """The image's interpreter that has Seatrial."""
    claim: str | None = None
    """PersistentVolumeClaim for runs, code and data; several nodes need one that all of them can write (ReadWriteMany). Without one, `artifacts` must say where the run is mirrored, and there is one node."""
    path: str = "/seatrial"
    """Where the pods see it."""
    mounts: dict[str, str] = Field(default={})
    """Further claims, by the path at which the pods see them."""
    cpu: str | None = None
    """CPUs of a pod [default: its share of a node, by GPUs; a CPU rank has one]."""
    memory: str | None = None
    """Memory of a pod, /dev/shm included [default: its share of a node, by GPUs; a CPU rank has 2Gi]."""
    shm: str | None = None
    """Size of /dev/shm, which counts as memory [default: a quarter of the memory]."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    rdma: str | None = None
    """Resource that gives a pod its RDMA devices: rdma/ib: 8, or rdma/ib for one; auto takes what the nodes offer [default: none]."""
    ipc_lock: bool = False
    """Let the pods lock memory (IPC_LOCK): RDMA often needs it, and Pod Security refuses it in baseline and restricted namespaces."""
    privileged: bool = False
    """For an acceptance test: pods that are root and see the node's devices and kernel log. Without it, what they can't see is unmeasured, and said."""
    queue: str | None = None
    """Kueue's LocalQueue: the job is suspended until it is admitted."""
    priority_class: str | None = None
    """PriorityClass of the pods."""
    service_account: str | None = None
    """ServiceAccount of the pods, which get no token of it [default: the namespace's]."""
    node_selector: dict[str, str] = Field(default={})
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints to run beside, further to the GPUs' own."""
    exclude: tuple[str, ...] = ()
    """Nodes that must not be used."""
    env: dict[str, str] = Field(default={})
    """Environment variables of the pods; nothing secret."""
    secrets: dict[str, str] = Field(default={})
    """Environment variables from Secrets of the namespace, as SECRET/KEY."""
    user: Annotated[int, Field(ge=1)] = 1001
    """User and group id that the pods run as; the claim must let them write."""
    max_requeues: Annotated[int, Field(ge=0)] = 20
    """How often the job may start again after a preemption or a drain."""
    ttl_hours: Annotated[float, Field(ge=0)] = 24
    """How long the cluster keeps a job that has ended, with its pods' logs."""
    max_code_mib: Annotated[float, Field(gt=0)] = 8
    """Largest size of the code, or of data, that is sent along in ConfigMaps."""

    @field_validator("mounts", "env", "secrets", "node_selector", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key, given in value.items():
                if not isinstance(given, str):
                    raise ValueError(f"{key}: {given!r} is not a text: put it in quotes")
        return value

    @field_validator("pull_secrets", "exclude", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("tolerations", mode="before")
    @classmethod
    def _tuple_from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("namespace", "runtime", "claim", "queue", "priority_class", "service_account")
    @classmethod
    def _names_are_names(cls, value: str | None) -> str | None:
        return None if value is None else object_name(value)

    @field_validator("pull_secrets", "exclude")
    @classmethod
    def _lists_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(object_name(item) for item in value)

    @field_validator("cpu", "memory", "shm", mode="before")
    @classmethod
    def _amounts_are_amounts(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if text is not None and (not isinstance(text, str) or not _QUANTITY.fullmatch(text)):
            raise ValueError(f"{value!r} is not an amount: 16, 500m, 64Gi")
        return text

    @field_validator("path")
    @classmethod
    def _path_is_whole(cls, value: str) -> str:
        if not re.fullmatch(r"(/[\w.-]+)+", value):
            raise ValueError(f"{value!r} is not a path such as /seatrial")
        return value

    @field_validator("image", "python")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and (not value or re.search(r"\s", value)):
            raise ValueError(f"{value!r} is not one word")
        return value

    @field_validator("rdma", mode="before")
    @classmethod
    def _rdma_is_a_resource(cls, value: Any) -> Any:
        if value is not None and not re.fullmatch(r"auto|[a-z0-9.-]+/[\w.-]+(: ?[1-9][0-9]*)?", str(value)):
            raise ValueError(f"{value!r} is not a resource: rdma/ib, or rdma/ib:8, or auto")
        return value

    @field_validator("secrets")
    @classmethod
    def _secrets_are_references(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reference in value.items():
            if not _ENV.fullmatch(name):
                raise ValueError(f"{name!r} is not a variable's name")
            secret, _, key = reference.partition("/")
            if not _NAME.fullmatch(secret) or not re.fullmatch(r"[\w.-]+", key):
                raise ValueError(
                    f"{name} is not SECRET/KEY: the value itself belongs into a Secret, never here"
                )
        return value

    @field_validator("env")
    @classmethod
    def _variables_have_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _ENV.fullmatch(name) or name.startswith("SEATRIAL_"):
                raise ValueError(f"{name!r} can't be set: it is no variable's name, or Seatrial's own")
        return value

    @property
    def rdma_devices(self) -> tuple[str, int] | None:
        """The resource and how many; None where none is asked for, or it is left to the nodes."""
        if self.rdma is None or self.rdma == "auto":
            return None
        name, _, count = self.rdma.partition(":")
        return name, int(count or 1)


def object_name(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: no object can be called so (RFC 1123, labels of at most 63 characters).
    """
    if not _NAME.fullmatch(text) or len(text) > 253:
        raise ValueError(
            f"{text!r} can't be an object's name: small letters, digits and '-', at most 63 between dots"
        )
    return text
