"""The judgement of a test that was carried out, or broken off: from its samples to a signed verdict and its reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from seatrial.check.baseline import load_baseline, save_baseline
from seatrial.check.judge import coverage, judge
from seatrial.check.reports import files
from seatrial.check.verdict import ceilings, conclude
from seatrial.errors import IncompleteError, PlatformError, SpecError
from seatrial.runs import samples as stored
from seatrial.runs.acceptance import Acceptance, Profile
from seatrial.runs.files import write_text
from seatrial.runs.manifest import Manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan
from seatrial.runs.samples import Sample
from seatrial.spec.checks import CheckSpec
from seatrial.spec.document import read_text

_SOFTWARE = ("driver", "cuda", "nccl", "torch")
"""Versions that rates hang on."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A test's verdict, and what it rests on."""

    acceptance: Acceptance
    samples: list[Sample]
    unsigned: PlatformError | None
    """Why the verdict could not be signed; None: it is."""


def judge_run(
    paths: RunPaths,
    spec: CheckSpec,
    manifest: Manifest,
    *,
    cluster: str,
    baseline: Path | None = None,
    strict: bool = False,
) -> Judged:
    """Judges what the latest attempt measured, and leaves the verdict and its reports in the run directory.

    Args:
        paths: the test's.
        spec: the test's.
        manifest: settled; it is told the verdict.
        cluster: which one of its platform was tested.
        baseline: a file of `check.baseline`, to hold the figures against.
        strict: a warning fails the test.

    Raises:
        IncompleteError: nothing was measured.
        SpecError: the baseline is not valid.
    """
    record = manifest.attempt
    plan = read_plan(paths.root, record.index)
    found = list(stored.read_all(paths.attempt(record.index).samples))
    if not found:
        raise IncompleteError(
            "nothing was measured", evidence=f"{paths.attempt(record.index).samples} has no samples",
            remedy=f"seatrial runs logs {paths.run_id}",
        )  # fmt: skip
    profile = profile_of(spec, plan)
    history = None if baseline is None else load_baseline(_text_of(baseline), str(baseline))
    findings = judge(found, spec, profile=profile, baseline=history, expected_nodes=nodes_of(found))
    acceptance = conclude(
        findings, coverage(findings, spec, profile), run_id=paths.run_id, suite=spec.suite,
        platform=(record.handle or "local").partition("://")[0], cluster=cluster, profile=profile,
        tested=datetime.fromisoformat(record.started), hardware=hardware_of(found), gpus=gpus_of(found),
        ceilings=ceilings(found), strict=strict,
    )  # fmt: skip
    acceptance, unsigned = files.write(paths, acceptance, found)
    manifest.results["check"] = {
        "verdict": str(acceptance.verdict), "sentence": acceptance.sentence, "exit_code": acceptance.exit_code,
    }  # fmt: skip
    write_manifest(paths, manifest)
    return Judged(acceptance, found, unsigned)


def keep_baseline(path: Path, name: str, judged: Judged) -> None:
    """Writes what a test measured as a baseline.

    Raises:
        SpecError: there is such a file already; a rate was read too seldom.
    """
    if path.exists():
        raise SpecError(
            f"the baseline {name} exists", evidence=str(path),
            remedy="a baseline is not learnt anew in silence: give another name, or remove the file",
        )  # fmt: skip
    software = {
        s.metric: str(s.value) for s in judged.samples if s.metric in _SOFTWARE and s.value is not None
    }
    text = save_baseline(
        judged.samples, name, date=judged.acceptance.tested.date(), software=software,
        fingerprints={node.name: node.fingerprint for node in judged.acceptance.nodes if node.fingerprint},
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def baseline_path(name: str, runs_dir: Path) -> Path:
    """Where a baseline lies: a file as it was named, or ``baselines/NAME.yaml`` beside the runs."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    return runs_dir / "baselines" / f"{name}.yaml"


def profile_of(spec: CheckSpec, plan: LaunchPlan) -> Profile:
    """What was tested."""
    if spec.rehearse:
        return "rehearsal"
    return "gpu" if plan.device == "cuda" else "cpu"


def nodes_of(samples: Iterable[Sample]) -> list[str]:
    """Every node that should have answered: the conductor says of each whether it did."""
    return list(dict.fromkeys(s.node for s in samples if s.check == "report" and s.metric == "answers"))


def hardware_of(samples: Iterable[Sample]) -> dict[str, dict[str, Any]]:
    """What each node is made of."""
    return {s.node: dict(s.value) for s in samples if s.metric == "hardware" and s.value}


def gpus_of(samples: Iterable[Sample]) -> dict[str, list[str]]:
    """The models of each node's GPUs, as it said when it checked in."""
    return {node: list(made_of.get("gpus", {}).values()) for node, made_of in hardware_of(samples).items()}


def _text_of(path: Path) -> str:
    try:
        return read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise SpecError(
            f"there is no baseline {path}", evidence="--baseline names it",
            remedy=f"seatrial check --repeat 8 --save-baseline {path.stem}",
        ) from None  # fmt: skip
