"""What follows an acceptance test: the judgement, its reports, and what was asked for on top."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from seatrial.backends import registry
from seatrial.backends.base import JobHandle, NamesCluster
from seatrial.errors import SeatrialError, SpecError
from seatrial.launch import launcher
from seatrial.runs.acceptance import Acceptance
from seatrial.runs.files import write_text
from seatrial.runs.manifest import Manifest, find_run
from seatrial.runs.paths import RunPaths
from seatrial.runs.paths import runs_dir as default_runs_dir
from seatrial.spec.checks import CHECKS, PHASES, SUITES, CheckSpec
from seatrial.spec.load import read_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is to be done with the verdict."""

    baseline: str | None = None
    save_baseline: str | None = None
    strict: bool = False
    drain: bool = False
    junit: Path | None = None
    as_json: bool = False
    dry_run: bool = False
    """Only say what would be drained."""


def finish(paths: RunPaths, spec: CheckSpec, wishes: Wishes) -> int:
    """Judges a test that has ended, however it did; the exit code.

    Raises:
        SeatrialError: how it was broken off, after what there is was judged and shown.
    """
    manifest = launcher.settle(paths)
    failure = launcher.failure_of(manifest)
    try:
        code = _judge(paths, spec, manifest, wishes)
    except SeatrialError as error:
        raise failure or error from None
    if failure is not None:
        failure.remedy = f"seatrial check --judge {paths.run_id}    (what it did measure)"
        raise failure
    return code


def judge_again(run: str, runs_dir: Path | None, wishes: Wishes) -> int:
    """Judges what an earlier test has measured."""
    root = default_runs_dir(runs_dir)
    directory = Path(run)
    paths = RunPaths(directory.absolute()) if (directory / "manifest.json").is_file() else find_run(run, root)
    spec = read_spec(paths.spec)
    if not isinstance(spec, CheckSpec):
        raise SpecError(f"{paths.run_id} is no acceptance test", evidence=f"its task is {spec.task}")
    manifest = launcher.settle(paths)
    return _judge(paths, spec, manifest, wishes)


def list_checks() -> int:
    """What there is to check, and in which suites."""
    width = max(map(len, CHECKS))
    for phase, title in enumerate(PHASES):
        click.echo(f"phase {phase}: {title}")
        for name, check in CHECKS.items():
            if check.phase == phase:
                suites = " ".join(suite for suite in SUITES if name in SUITES[suite].checks)
                click.echo(f"  {name:<{width}}  {check.about}  [{suites}]")
    return 0


def _judge(paths: RunPaths, spec: CheckSpec, manifest: Manifest, wishes: Wishes) -> int:
    from seatrial.check.reports import junit, terminal
    from seatrial.check.run import baseline_path, judge_run, keep_baseline

    root = paths.root.parent
    baseline = baseline_path(wishes.baseline, root) if wishes.baseline else None
    judged = judge_run(
        paths, spec, manifest, cluster=cluster_of(manifest), baseline=baseline, strict=wishes.strict
    )
    result = judged.acceptance
    if wishes.as_json:
        click.echo(json.dumps(result.model_dump(mode="json", by_alias=True), indent=2))
    else:
        colour = terminal.wants_colour(sys.stdout, os.environ)
        text = terminal.render(result, width=shutil.get_terminal_size().columns, colour=colour)
        click.echo(text, nl=False, color=colour)
        click.echo(f"verdict  {paths.verdict}\npage     {paths.report}")
    if judged.unsigned is not None:
        click.echo(f"the verdict is not signed, so no launch goes by it: {judged.unsigned}", err=True)
    if wishes.junit is not None:
        write_text(wishes.junit, junit.render(result))
    if wishes.save_baseline is not None:
        path = baseline_path(wishes.save_baseline, root)
        keep_baseline(path, Path(wishes.save_baseline).stem, judged)
        click.echo(f"baseline {path}", err=True)
    if wishes.drain:
        _drain(result, dry_run=wishes.dry_run)
    return result.exit_code


def _drain(result: Acceptance, *, dry_run: bool) -> None:
    from seatrial.check.drain import drain

    for row in drain(result, dry_run=dry_run):
        said = shlex.join(row.argv) if dry_run else row.message
        click.echo(f"{'drained' if row.done else 'not drained'}  {row.node}: {said}", err=True)


def cluster_of(manifest: Manifest) -> str:
    """Which cluster a test was on; empty where its platform does not say."""
    backend = registry.get(JobHandle.parse(manifest.attempt.handle or "local://0").backend)
    return backend.cluster() if isinstance(backend, NamesCluster) else ""
