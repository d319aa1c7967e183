"""What the page is drawn from, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seatrial.runs.evidence import Evidence, read_evidence
from seatrial.runs.files import read_json
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.metrics import read_metrics
from seatrial.runs.paths import RunPaths


@dataclass(frozen=True, slots=True)
class ReportData:
    """The contents of a run directory; what is not there is None or empty."""

    manifest: Manifest
    spec: dict[str, Any] | None
    spec_path: str
    comparison: dict[str, Any] | None
    evidence: list[Evidence]
    train: list[dict[str, Any]]
    """Rows of the training curve, by step."""
    evaluations: list[dict[str, Any]]
    utilisation: dict[str, Any] | None = None
    """How the devices were used, where that was assessed."""


def load(paths: RunPaths) -> ReportData:
    """Reads the run directory.

    Raises:
        SpecError: there is no manifest.
    """
    metrics = read_metrics(paths.metrics)
    return ReportData(
        manifest=read_manifest(paths),
        spec=read_json(paths.spec),
        spec_path=str(paths.spec),
        comparison=read_json(paths.comparison),
        evidence=read_evidence(paths.evidence),
        train=metrics["train"],
        evaluations=metrics["eval"],
        utilisation=read_json(paths.utilisation),
    )
