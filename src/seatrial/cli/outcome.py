"""What follows a run that was attached: settle, compare, draw the page, say it in six lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from seatrial import command
from seatrial.errors import ExitCode, PlatformError, SeatrialError
from seatrial.launch import launcher
from seatrial.runs import tracking
from seatrial.runs.evidence import Evidence, Verdict, record
from seatrial.runs.files import read_json
from seatrial.runs.manifest import Manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.spec.checks import CheckSpec
from seatrial.spec.gates import CompareGate
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec

if TYPE_CHECKING:
    from pathlib import Path

_MIRROR_PATIENCE_S = 90.0
_TRACK_PATIENCE_S = 60.0
_VERDICTS = {"better": Verdict.PASS, "no evidence": Verdict.WARN, "worse": Verdict.FAIL}


def conclude(paths: RunPaths, spec: AnySpec, *, quiet: bool = False) -> ExitCode:
    """The end of an attached run: comparison and page where there are predictions, six lines, the exit code.

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
    use = use_of(paths, spec)
    page = paths.report if comparison and paths.remote.exists() and paths.report.exists() else _page(paths)
    if not paths.remote.exists():
        if isinstance(spec, RunSpec) and spec.track:
            manifest = tell_trackers(paths)
        bring_to_mirror(paths)
    if failure is not None:
        if page is not None and not quiet:
            click.echo(f"page: {page}", err=True)
        raise failure
    for line in [] if quiet else summary(paths, manifest, comparison, page, use):
        click.echo(line)
    passed = (comparison or {}).get("gate", {}).get("passed")
    gates = getattr(spec, "gates", None)
    required = gates is not None and gates.utilisation.min is not None
    return worse(ExitCode.FAILED if passed is False else ExitCode.OK, use_code(use, required=required))


def use_of(paths: RunPaths, spec: AnySpec) -> dict[str, Any] | None:
    """How the devices were used, kept with the run; of a run that was made elsewhere, what is known of it."""
    if paths.remote.exists() or isinstance(spec, CheckSpec):
        known: dict[str, Any] | None = read_json(paths.utilisation)
        return known
    from seatrial.check.floors import peak_tflops
    from seatrial.watch.utilisation import conclude as conclude_use

    try:
        return conclude_use(paths, spec.gates.utilisation, peak_tflops)
    except OSError as error:
        # A full disk, most likely: the failure that is told next is of the run.
        click.echo(f"warning: the use of the devices was not kept: {error}", err=True)
        return None


def use_code(use: dict[str, Any] | None, *, required: bool) -> ExitCode:
    """1 where the gate was not met, 3 where it was not measured or not kept, 0 where nothing was required."""
    if not required:
        return ExitCode.OK
    if use is None:
        return ExitCode.INCOMPLETE
    return {"FAIL": ExitCode.FAILED, "UNMEASURED": ExitCode.INCOMPLETE}.get(use["verdict"], ExitCode.OK)


def worse(one: ExitCode, other: ExitCode) -> ExitCode:
    """What was measured and failed comes before what is missing."""
    return next(
        (code for code in (ExitCode.FAILED, ExitCode.INCOMPLETE) if code in (one, other)), ExitCode.OK
    )


def tell_trackers(paths: RunPaths) -> Manifest:
    """Tells trackers what is left and how it ended, for a while; one that is down is a warning, never a failed run."""
    try:
        command.run(
            [sys.executable, "-m", "seatrial.job.track", str(paths.root), "--once"],
            timeout_s=_TRACK_PATIENCE_S,
        )
    except PlatformError as error:
        click.echo(f"warning: trackers were not told all: {error.what}", err=True)
    manifest = launcher.settle(paths)
    manifest.trackers = tracking.read(paths.root)
    write_manifest(paths, manifest)
    for name, state in manifest.trackers.items():
        if state.get("error"):
            click.echo(f"warning: {name} was not told all: {state['error']}", err=True)
        else:
            click.echo(f"{name}: {state['url']}", err=True)
    return manifest


def bring_to_mirror(paths: RunPaths) -> None:
    """The last pass of a run's mirror, where its recipe has one; what does not arrive is a warning, never a failed run."""
    from seatrial.runs import mirror

    if mirror.url_of(paths) is None:
        return
    try:
        # The attempt's own mirror may still be at its last pass.
        with mirror.alone(paths, "the command's mirror", _MIRROR_PATIENCE_S):
            sender = mirror.Mirror(paths)
            if pending := mirror.missing(paths):
                click.echo(f"mirroring to {sender.url}: {len(pending)} files", err=True)
            text = mirror.describe(sender.conclude(), sender.errors)
    except SeatrialError as error:
        text = f"not mirrored: {error.what} ({error.evidence})"
    if text:
        click.echo(f"warning: {text}\n  next:     seatrial runs push {paths.run_id}", err=True)


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
    paths: RunPaths,
    manifest: Manifest,
    comparison: dict[str, Any] | None,
    page: Path | None,
    use: dict[str, Any] | None = None,
) -> list[str]:
    """Six lines: what was run, before and after, the verdict, the use of the devices, the page, the way to do it again."""
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
    lines += [f"use      {line}" for line in use_lines(use)]
    lines.append(f"page     {page}" if page is not None else f"files    {paths.root}")
    lines.append(f"again    seatrial runs show {manifest.run_id}")
    return lines


def use_lines(use: dict[str, Any] | None) -> list[str]:
    """The use of the devices in a line, with what held it up; none where nothing was sampled and nothing asked for."""
    if use is None or (use["mean_pct"] is None and use["required_pct"] is None):
        return []
    verdict = "" if use["verdict"] == "SKIP" else f"{use['verdict']}: "
    message = use["message"].removesuffix(": nothing was required")
    cause = f"; {use['causes'][0]['sentence']}" if use["causes"] else ""
    return [f"{verdict}{message}{cause}"]


def _page(paths: RunPaths) -> Path | None:
    from seatrial.report import build_report

    try:
        return build_report(paths)
    except OSError as error:
        click.echo(f"warning: the page could not be written: {error}", err=True)
        return None
