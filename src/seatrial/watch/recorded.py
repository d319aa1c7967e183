"""All that a run's files say of the use of its devices, read once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seatrial.errors import SeatrialError
from seatrial.runs.files import last_json_lines, read_json, read_json_lines
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import AttemptPaths, RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan
from seatrial.runs.telemetry import NodeTelemetry, read_attempt
from seatrial.watch.timeline import Span, script_spans, seconds, spans


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt."""

    plan: LaunchPlan
    begin: float
    """Seconds since the epoch."""
    end: float
    """When it ended; of one that runs, the time of the look."""
    running: bool
    spans: tuple[Span, ...]
    nodes: tuple[NodeTelemetry, ...]
    phases: dict[int, list[dict[str, Any]]]
    """Rows of `job.phases` by rank."""
    facts: dict[str, Any]
    from_step: int | None
    """The step that it trained on from; None when it never trained."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run's attempts, and its training curve as it was written."""

    paths: RunPaths
    manifest: Manifest
    spec: dict[str, Any]
    metrics: list[dict[str, Any]]
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def is_script(self) -> bool:
        """Whether it is a run of somebody's own script, which tells neither steps nor phases."""
        return self.manifest.task == "script"


def read(paths: RunPaths, now: float | None = None, last_bytes: int | None = None) -> Recorded:
    """Reads a run; attempts that never began on a node are left out.

    Args:
        paths: the run's.
        now: seconds since the epoch.
        last_bytes: of each node's samples and each rank's phases no more than so much, and samples of the latest attempt
            alone: its spans then begin where the samples do.

    Raises:
        SpecError: there is no run.
    """
    manifest = read_manifest(paths)
    metrics = list(read_json_lines(paths.metrics))
    recorded = Recorded(paths, manifest, read_json(paths.spec) or {}, metrics)
    for index in range(len(manifest.attempts)):
        found = _attempt(
            paths.attempt(index), index, recorded, time.time() if now is None else now, last_bytes
        )
        if found is not None:
            recorded.attempts.append(found)
    return recorded


def _attempt(
    paths: AttemptPaths, index: int, run: Recorded, now: float, last_bytes: int | None
) -> Attempt | None:
    try:
        plan = read_plan(paths.root.parent, index)
    except SeatrialError:
        return None
    latest = index == len(run.manifest.attempts) - 1
    nodes = tuple(read_attempt(paths.root, last_bytes)) if latest or last_bytes is None else ()
    events = list(read_json_lines(paths.rank_events(0)))
    ended = read_json(paths.exit)
    begins = [node.header.started for node in nodes] + [
        t for row in events[:1] if (t := seconds(row.get("time")))
    ]
    began = seconds((ended or {}).get("started")) or min(begins, default=None)
    if began is None:
        return None
    last = [float(node.times[-1]) for node in nodes if len(node.times)]
    over = seconds((ended or {}).get("ended"))
    gone = run.manifest.state.is_terminal or not latest
    end = over or (max([began, *last]) if gone else now)
    found = next((row for row in reversed(events) if row.get("event") == "training"), None)
    evaluations = [row for row in run.metrics if row.get("kind") == "eval" and row.get("attempt") == index]
    parts = (
        script_spans(_busiest(nodes), began, _stages_end(ended) or end)
        if run.is_script
        else spans(events, evaluations, began, end)
    )
    if last_bytes is not None and nodes:
        since = max((float(n.times[0]) - n.header.every_s for n in nodes if len(n.times)), default=began)
        parts = [Span(s.name, max(s.begin, since), s.end) for s in parts if s.end > since]
    return Attempt(
        plan, began, end, ended is None and not gone, tuple(parts), nodes, _phases(paths.phases(0).parent, last_bytes),
        read_json(paths.facts) or {}, None if found is None else int(found["from_step"]),
    )  # fmt: skip


def _stages_end(ended: dict[str, Any] | None) -> float | None:
    """When the last stage ended: what follows is the agent's own."""
    stages = (ended or {}).get("stages") or []
    return seconds(stages[-1].get("ended")) if stages else None


def _busiest(nodes: tuple[NodeTelemetry, ...]) -> list[tuple[float, float]]:
    found = [
        (float(t), float(np.nanmax(row)))
        for node in nodes
        for t, row in zip(node.times, node.use, strict=True)
        if not np.isnan(row).all()
    ]
    return sorted(found)


def _phases(directory: Path, last_bytes: int | None) -> dict[int, list[dict[str, Any]]]:
    return {
        int(path.stem.removeprefix("rank_")): [
            row for row in last_json_lines(path, last_bytes) if row.get("steps")
        ]
        for path in sorted(directory.glob("rank_*.jsonl"))
    }
