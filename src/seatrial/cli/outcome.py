"""What follows a run that was attached: settle, compare, draw the page, say it in five lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from seatrial.errors import ExitCode
from seatrial.launch import launcher
from seatrial.runs.evidence import Evidence, Verdict, record
from seatrial.runs.files import read_json
from seatrial.runs.manifest import Manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.spec.run import CompareGate, RunSpec, ScriptSpec

if TYPE_CHECKING:
    from pathlib import Path

_VERDICTS = {"better": Verdict.PASS, "no evidence": Verdict.WARN, "worse": Verdict.FAIL}


def conclude(paths: RunPaths, spec: RunSpec | ScriptSpec, *, quiet: bool = False) -> ExitCode:
    """The end of an attached run: comparison and page where there are predictions, five lines, the exit code.

    Args:
        paths: the run's.
        spec: the run's.
        quiet: leave out the lines.

    Raises:
        SeatrialError: how the attempt failed, after the page was written.
    """
    manifest = launcher.settle(paths)
    failure = launcher.failure_of(manifest)
    comparison = None
    if paths.remote.exists():
        comparison = read_json(paths.comparison)  # made where it ran
    elif failure is None and isinstance(spec, RunSpec) and paths.predictions("trained").exists():
        comparison = compare_run(paths, spec.gates.compare)
        manifest = launcher.settle(paths)
    page = paths.report if comparison and paths.remote.exists() and paths.report.exists() else _page(paths)
    if failure is not None:
        if page is not None and not quiet:
            click.echo(f"page: {page}", err=True)
        raise failure
    for line in [] if quiet else summary(paths, manifest, comparison, page):
        click.echo(line)
    passed = (comparison or {}).get("gate", {}).get("passed")
    return ExitCode.FAILED if passed is False else ExitCode.OK


def compare_run(paths: RunPaths, gate: CompareGate) -> dict[str, Any]:
    """Compares a run's two prediction files, and keeps the verdict with the run."""
    from seatrial.compare import compare_files, write_comparison

    result = compare_files(
        paths.predictions("original"),
        paths.predictions("trained"),
        metric=gate.metric,
        require=gate.require,
        min_improvement=gate.min_improvement,
        confidence=gate.confidence,
    )
    write_comparison(paths.comparison, result)
    manifest = launcher.settle(paths)
    verdict, judged = result["verdict"], result["gate"]
    index = manifest.attempt.index if manifest.attempts else 0
    record(
        paths.evidence,
        Evidence(
            check="comparison", verdict=_VERDICTS[verdict["verdict"]], measured=verdict["difference"],
            expected="better", unit=verdict["metric"], source=paths.comparison.name, message=verdict["sentence"],
            attempt=index,
        ),
    )  # fmt: skip
    gate_verdict = {True: Verdict.PASS, False: Verdict.FAIL, None: Verdict.SKIP}[judged["passed"]]
    record(
        paths.evidence,
        Evidence(
            check="gate_compare", verdict=gate_verdict, measured=verdict["verdict"], expected=judged["require"],
            source=paths.comparison.name, message=judged["reason"], attempt=index,
        ),
    )  # fmt: skip
    manifest.results["comparison"] = {
        key: verdict[key] for key in ("metric", "verdict", "difference", "interval", "p_value", "sentence")
    } | {"gate_passed": judged["passed"]}
    write_manifest(paths, manifest)
    return result


def summary(
    paths: RunPaths, manifest: Manifest, comparison: dict[str, Any] | None, page: Path | None
) -> list[str]:
    """Five lines: what was run, before and after, the verdict, the page, the way to do it again."""
    record = manifest.attempt
    training = manifest.results.get("training", {})
    what = f"{training['steps']} steps" if training else ", ".join(record.stages)
    ranks = f"{record.nproc * record.nodes} ranks on {record.device.upper()}"
    lines = [f"run      {manifest.run_id}: {what}, {ranks}, {manifest.state}"]
    if comparison is not None:
        verdict = comparison["verdict"]
        lines.append(f"result   {verdict['sentence']}")
        gate = comparison["gate"]
        judged = "" if gate["passed"] is None else f"; gate {'passed' if gate['passed'] else 'NOT MET'}"
        lines.append(f"verdict  {verdict['verdict']}{judged} ({gate['reason'] or verdict['reason']})")
    elif manifest.task != "script":
        lines.append(
            "verdict  not measured: no predictions were made    (seatrial predict, seatrial compare)"
        )
    lines.append(f"page     {page}" if page is not None else f"files    {paths.root}")
    lines.append(f"again    seatrial runs show {manifest.run_id}")
    return lines


def _page(paths: RunPaths) -> Path | None:
    from seatrial.report import build_report

    return build_report(paths)
