"""How much of the allocated devices was used: means, coverage, idle ones. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seatrial.runs.telemetry import CLOCK_REASONS, IDLE_PCT, METRICS, Device, NodeTelemetry
from seatrial.watch.recorded import Attempt
from seatrial.watch.timeline import STEADY


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """One device over the window; None is not told."""

    node: str
    node_rank: int
    device: Device
    mean_pct: float | None
    coverage: float
    """Samples over those that there should be."""
    means: dict[str, float]
    """Of each column that it told."""
    memory_bytes_max: float | None
    throttled: dict[str, float]
    """By reason, the part of the samples in which it held the clock back."""

    @property
    def label(self) -> str:
        """``node-1 gpu 5``."""
        return f"{self.node} gpu {self.device.index}" if self.device.kind == "gpu" else self.node

    def to_dict(self) -> dict[str, Any]:
        """A row of ``utilisation.json``."""
        return {
            "node": self.node, "node_rank": self.node_rank, "index": self.device.index, "name": self.device.name,
            "mean_pct": rounded(self.mean_pct), "coverage": rounded(self.coverage, 3), "memory_bytes_max": self.memory_bytes_max,
            "power_w_mean": rounded(self.means.get("power_w")), "processes": rounded(self.means.get("processes")),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Use:
    """All devices of the allocation over the window."""

    metric: str
    """The weakest that any node has: a mean of different things would be none."""
    source: str
    missing: str
    seconds: float
    """Length of the window."""
    num_expected: int
    """Devices that were allocated; those that nothing was heard of count with coverage 0."""
    num_samples: int
    devices: tuple[DeviceUse, ...]

    @property
    def mean_pct(self) -> float | None:
        """Over all devices that told, each weighing the same."""
        told = [d.mean_pct for d in self.devices if d.mean_pct is not None]
        return sum(told) / len(told) if told else None

    @property
    def coverage(self) -> float:
        """Over all devices that were allocated."""
        return sum(d.coverage for d in self.devices) / max(1, self.num_expected)

    @property
    def idle(self) -> list[DeviceUse]:
        """Devices that did nothing."""
        return [d for d in self.devices if d.mean_pct is not None and d.mean_pct < IDLE_PCT]


def measure(attempts: Sequence[Attempt], window: str = "steady") -> Use:
    """Use in the window: ``steady`` is training without start-up, evaluation and predicting; ``all`` is everything."""
    parts: dict[tuple[str, str], list[tuple[NodeTelemetry, int]]] = defaultdict(list)
    due: dict[str, int] = defaultdict(int)
    ranks: dict[str, int] = {}
    total, expected = 0.0, 0
    nodes_seen: list[NodeTelemetry] = []
    for attempt in attempts:
        pieces = [(s.begin, s.end) for s in attempt.spans if window == "all" or s.name == STEADY]
        length = sum(end - begin for begin, end in pieces)
        total += length
        expected = max(expected, num_allocated(attempt))
        for node in attempt.nodes:
            nodes_seen.append(node)
            # What begins and ends between two samples has one fewer than its seconds.
            due[node.header.host] += sum(int((end - begin) // node.header.every_s) for begin, end in pieces)
            ranks[node.header.host] = node.header.node_rank
            for begin, end in pieces:
                piece = node.between(begin, end)
                for i, device in enumerate(node.header.devices):
                    parts[node.header.host, device.uuid or str(device.index)].append((piece, i))
    metric = _weakest([node.header.metric for node in nodes_seen])
    devices = tuple(
        _device(host, ranks[host], pieces, due[host], METRICS[metric][0])
        for (host, _), pieces in parts.items()
    )
    return Use(
        metric,
        ", ".join(sorted({node.header.source for node in nodes_seen})),
        next((node.header.missing for node in nodes_seen if node.header.missing), ""),
        total,
        expected,
        max((int(sum(p.counts.sum() for p, _ in pieces)) for pieces in parts.values()), default=0),
        tuple(sorted(devices, key=lambda d: (d.node_rank, d.node, d.device.index))),
    )


def num_allocated(attempt: Attempt) -> int:
    """Devices of an attempt: what was asked for on each node, else the most that a node shows."""
    shown = max((len(node.header.devices) for node in attempt.nodes), default=0)
    wanted = (attempt.plan.gpus_per_node or shown) if attempt.plan.device == "cuda" else 1
    return attempt.plan.nodes * wanted


def _device(
    host: str, node_rank: int, pieces: list[tuple[NodeTelemetry, int]], due: int, column: str
) -> DeviceUse:
    means: dict[str, float] = {}
    throttled: dict[str, float] = {}
    counts = np.concatenate([p.counts for p, _ in pieces])
    for name in {name for p, _ in pieces for name in p.columns}:
        values = np.concatenate([p.column(name)[:, i] for p, i in pieces])
        told = ~np.isnan(values)
        if not told.any():
            continue
        if name == "reasons":
            bits, weights = values[told].astype(int), counts[told]
            for bit, reason in CLOCK_REASONS.items():
                part = float(weights[(bits & bit) != 0].sum() / weights.sum())
                if part:
                    throttled[reason] = part
        else:
            means[name] = float(np.average(values[told], weights=counts[told]))
    use = np.concatenate([p.column(column)[:, i] for p, i in pieces])
    covered = float(counts[~np.isnan(use)].sum()) / due if due > 0 else 0.0
    memory = np.concatenate([p.column("memory_bytes")[:, i] for p, i in pieces])
    return DeviceUse(
        host, node_rank, pieces[-1][0].header.devices[pieces[-1][1]], means.get(column),
        min(1.0, covered), means, None if np.isnan(memory).all() else float(np.nanmax(memory)), throttled,
    )  # fmt: skip


def _weakest(metrics: Sequence[str]) -> str:
    order = list(METRICS)
    return max(metrics, key=order.index, default="gpu_busy")


def rounded(value: float | None, digits: int = 2) -> float | None:
    """For a file."""
    return None if value is None or math.isnan(value) else round(value, digits)
