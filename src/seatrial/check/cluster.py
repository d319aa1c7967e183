"""What was measured, sorted so that judges find it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from seatrial.runs.acceptance import Profile
from seatrial.runs.samples import Sample
from seatrial.spec.checks import CheckSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All samples of an acceptance test, and what was asked for."""

    spec: CheckSpec
    profile: Profile
    nodes: tuple[str, ...]
    """Names of all nodes that were asked, whether or not they answer."""
    by_metric: Mapping[tuple[str, str], list[Sample]]
    gpu_models: Mapping[tuple[str, int], str]
    """Name of each GPU as its driver gives it, by node and index."""

    @classmethod
    def of(
        cls, samples: Iterable[Sample], spec: CheckSpec, profile: Profile, nodes: Iterable[str]
    ) -> Cluster:
        """Sorts samples; their order says nothing."""
        by_metric: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        samples = list(samples)
        models: dict[tuple[str, int], str] = {}
        for sample in sorted(samples, key=_order):
            by_metric[sample.check, sample.metric].append(sample)
            if sample.gpu is None or sample.check != "gpus" or profile != "gpu":
                continue
            if sample.metric == "gpu_model" and isinstance(sample.value, str):
                models[sample.node, sample.gpu] = sample.value
            elif sample.metric == "gpu_opens" and "name" in sample.detail:
                models.setdefault((sample.node, sample.gpu), str(sample.detail["name"]))
        if profile == "gpu":
            for sample in samples:
                # What each node said when it checked in, for tests that don't ask for GPUs by themselves.
                if sample.metric == "hardware" and isinstance(sample.value, dict):
                    for gpu, name in enumerate(sample.value.get("gpus", {}).values()):
                        models.setdefault((sample.node, gpu), str(name))
        return cls(
            spec=spec, profile=profile, nodes=tuple(nodes), by_metric=dict(by_metric), gpu_models=models
        )

    def all(self, check: str, *metrics: str) -> list[Sample]:
        """Samples of metrics of a check; of all its metrics where none is named."""
        keys = (
            [(check, name) for name in metrics] if metrics else [k for k in self.by_metric if k[0] == check]
        )
        return [sample for key in keys for sample in self.by_metric.get(key, [])]

    def read(self, check: str, *metrics: str) -> list[Sample]:
        """As `all`, those that have a value."""
        return [sample for sample in self.all(check, *metrics) if sample.value is not None]

    def model(self, node: str | None, gpu: int | None) -> str:
        """Name of a GPU, or of the GPUs of a node where they are alike; empty where it is not known."""
        if node is not None and gpu is not None and (node, gpu) in self.gpu_models:
            return self.gpu_models[node, gpu]
        names = {name for (where, _), name in self.gpu_models.items() if node is None or where == node}
        return names.pop() if len(names) == 1 else ""

    @property
    def infiniband(self) -> dict[str, list[dict[str, Any]]]:
        """By node, its active InfiniBand ports."""
        return {
            sample.node: ports
            for sample in self.read("infiniband", "ib_ports")
            if (ports := [port for port in sample.value if active(port) and port.get("link_layer", "InfiniBand") == "InfiniBand"])
        }  # fmt: skip


def active(port: Mapping[str, Any]) -> bool:
    """Whether a port carries traffic: sysfs gives ``4: ACTIVE``."""
    return "ACTIVE" in str(port.get("state", "")).upper()


def _order(sample: Sample) -> tuple[Any, ...]:
    return (
        sample.check, sample.metric, sample.node, -1 if sample.gpu is None else sample.gpu, sample.peer or "",
        -1 if sample.peer_gpu is None else sample.peer_gpu, sample.repeat, str(sample.value), str(sample.detail),
    )  # fmt: skip
