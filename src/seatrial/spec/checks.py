"""The acceptance test as data: which checks there are, which a suite runs, and what is asked of the cluster."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from seatrial.spec import injections
from seatrial.spec.kubernetes import KubernetesSpec
from seatrial.spec.run import ResourcesSpec
from seatrial.spec.section import Section
from seatrial.spec.slurm import SlurmSpec

Scope = Literal["node", "gpu", "link", "cluster"]
"""What a check measures, and so what can be at fault."""
PHASES = ("each node alone", "each GPU's speed", "each node's links", "between nodes", "real work")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that can be found out."""

    phase: int
    """Index into `PHASES`."""
    scope: Scope
    about: str
    """For people, in a few words."""
    gpu: bool = False
    """Whether it means nothing without GPUs."""
    nodes: int = 1
    """How many nodes it takes."""
    ranks: int = 1
    """How many ranks (GPUs) on a node it takes."""


CHECKS: dict[str, Check] = {
    "report": Check(0, "node", "the node answers, and its probes end in time"),
    "gpus": Check(0, "node", "as many GPUs of the model as asked for, none lost", gpu=True),
    "gpu_idle": Check(0, "gpu", "memory free, no process of somebody else", gpu=True),
    "versions": Check(0, "node", "driver, CUDA, NCCL, torch, Python: the same on every node"),
    "shared_memory": Check(0, "node", "size of /dev/shm inside the job"),
    "locked_memory": Check(0, "node", "limit of locked memory inside the job"),
    "open_files": Check(0, "node", "limit of open files inside the job"),
    "cpu": Check(0, "node", "governor, and cores for each GPU"),
    "clock": Check(0, "node", "the node's clock against the first node's"),
    "ecc": Check(0, "gpu", "memory errors that could not be corrected", gpu=True),
    "row_remap": Check(0, "gpu", "rows of memory remapped, pending or failed", gpu=True),
    "xid": Check(0, "node", "errors that the GPU driver logged since boot", gpu=True),
    "pcie": Check(0, "gpu", "PCIe generation and width", gpu=True),
    "infiniband": Check(0, "node", "InfiniBand ports: state, rate, times that the link went down"),
    "rdma": Check(0, "node", "RDMA devices visible in the job, peer memory, PCIe access control"),
    "local_disk": Check(0, "node", "throughput and free space of the local disk"),
    "shared_disk": Check(0, "node", "the run directory: written here, read on every other node; throughput, free space"),
    "gemm": Check(1, "gpu", "matrix products by precision, all GPUs of a node at once"),
    "gemm_result": Check(1, "gpu", "the same product gives the same bits, every time and on every GPU"),
    "throttle": Check(1, "gpu", "clocks held back while at work", gpu=True),
    "memory": Check(1, "gpu", "copy and triad in the device's memory"),
    "host_copy": Check(1, "gpu", "copies to the device and back, pinned memory", gpu=True),
    "peer_copy": Check(1, "gpu", "copies between the GPUs of a node", gpu=True, ranks=2),
    "node_collectives": Check(2, "node", "collectives inside a node, by size", ranks=2),
    "node_data": Check(2, "node", "collectives inside a node give the right numbers", ranks=2),
    "transport": Check(2, "node", "which transport carried the collectives", ranks=2),
    "pairs": Check(3, "link", "every node with others, two by two", nodes=2),
    "cluster_collectives": Check(3, "cluster", "collectives over all nodes, by size", nodes=2),
    "cluster_data": Check(3, "cluster", "collectives over all nodes give the right numbers", nodes=2),
    "cluster_transport": Check(3, "node", "which transport carried them, and that the network did", nodes=2),
    "scaling": Check(3, "cluster", "all_reduce over 1, 2, 4 … nodes", nodes=2),
    "train_resnet18": Check(4, "cluster", "training ResNet-18 on made-up images"),
    "train_resnet50": Check(4, "cluster", "training ResNet-50 on made-up images"),
    "train_transformer": Check(4, "cluster", "training a Transformer on made-up tokens"),
}  # fmt: skip
"""Every check by name, in the order in which they run."""


def known(name: str) -> str:
    """The name of a check; `ValueError`, with the nearest, where there is none."""
    if name not in CHECKS:
        near = difflib.get_close_matches(name, list(CHECKS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f": {', '.join(CHECKS)}"
        raise ValueError(f"{name!r} is not a check{hint}")
    return name


_NODE_ALONE = tuple(name for name, check in CHECKS.items() if check.phase == 0)
_QUICK = (*_NODE_ALONE, "gemm", "gemm_result", "throttle", "memory", "node_collectives", "node_data", "transport",
          "cluster_collectives", "cluster_data", "cluster_transport")  # fmt: skip
_STANDARD = (*_QUICK, "host_copy", "peer_copy", "pairs", "train_resnet18", "train_transformer")


class SuiteSpec(Section):
    """Which checks are run, and for how long."""

    model_config = ConfigDict(populate_by_name=True, strict=True)

    name: str
    checks: tuple[str, ...]
    """Names of checks."""
    required: tuple[str, ...] = ()
    """Checks without which the test is incomplete (exit code 3), where the hardware has a use for them [all of `checks`]."""
    pairs: Literal["adaptive", "full"] = "adaptive"
    """Pairs of nodes: two rounds, suspects paired anew with the fastest; or every pair, in nodes - 1 rounds."""
    dtypes: tuple[str, ...] = ("fp32", "tf32", "bf16", "fp16", "fp8")
    """Precisions of matrix products; those that the device lacks are left out, and said."""
    gemm_s: Annotated[float, Field(gt=0)] = 5.0
    """At most so long for each precision; it ends sooner once the rate is steady."""
    sizes_mib: tuple[float, ...] = (1, 16, 256, 1024)
    """Sizes of collectives; on the CPU a 64th of each."""
    pair_mib: Annotated[float, Field(gt=0)] = 256
    """What two nodes send to each other at a time, for each GPU; on the CPU a 64th of it."""
    train_s: Annotated[float, Field(gt=0)] = 20.0
    """How long each network trains, for each of its repetitions."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A probe of a node or a GPU that takes longer is ended, and failed."""
    limit_s: Annotated[float, Field(gt=0)] = 600.0
    """What the whole may take: what has not begun by then is left out, and said."""

    @field_validator("checks", "required", "dtypes", "sizes_mib", mode="before")
    @classmethod
    def _tuple_from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("sizes_mib", mode="before")
    @classmethod
    def _floats(cls, value: Any) -> Any:
        return (
            tuple(float(v) if isinstance(v, int) else v for v in value) if isinstance(value, tuple) else value
        )

    @field_validator("checks", "required")
    @classmethod
    def _checks_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            known(name)
        return tuple(name for name in CHECKS if name in names)

    @field_validator("dtypes")
    @classmethod
    def _dtypes_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        every = ("fp32", "tf32", "bf16", "fp16", "fp8")
        for name in names:
            if name not in every:
                raise ValueError(f"{name!r} is not a precision: {', '.join(every)}")
        return names

    @model_validator(mode="after")
    def _required_are_run(self) -> SuiteSpec:
        left_out = [name for name in self.required if name not in self.checks]
        if left_out:
            raise ValueError(f"required, but not among checks: {', '.join(left_out)}")
        return self


SUITES = {
    "quick": SuiteSpec(
        name="quick", checks=_QUICK, dtypes=("tf32", "bf16"), gemm_s=3.0, sizes_mib=(16.0, 256.0), limit_s=120.0,
        probe_timeout_s=30.0,
    ),
    "standard": SuiteSpec(name="standard", checks=_STANDARD, gemm_s=20.0, limit_s=600.0),
    "full": SuiteSpec(
        name="full", checks=tuple(CHECKS), pairs="full", gemm_s=60.0, sizes_mib=(1.0, 16.0, 256.0, 1024.0, 8192.0),
        train_s=60.0, limit_s=6 * 3600.0, probe_timeout_s=120.0,
    ),
}  # fmt: skip
"""The suites that come with Seatrial."""


class CheckSpec(Section):
    """An acceptance test of a cluster, or of this machine."""

    model_config = ConfigDict(populate_by_name=True, strict=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str = "check"
    task: Literal["check"] = "check"
    suite: SuiteSpec
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often the phases with measurements are run."""
    rehearse: bool = False
    """Pretend nodes: processes on this machine, CPU ranks."""
    inject: tuple[str, ...] = ()
    """Faults on purpose, as `spec.injections` reads them."""
    gpu_model: str | None = None
    """Part of the name that every GPU must have, such as H100."""
    resources: ResourcesSpec = ResourcesSpec()
    slurm: SlurmSpec = SlurmSpec()
    kubernetes: KubernetesSpec = KubernetesSpec()
    tags: tuple[str, ...] = ()

    @field_validator("tags", "inject", mode="before")
    @classmethod
    def _tuple_from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("inject")
    @classmethod
    def _injections_can_be_read(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            injections.parse(word)
        return words
