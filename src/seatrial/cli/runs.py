"""``seatrial runs``: what was run, how it went, and going on with it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seatrial.cli.runs_compare import compare_runs
from seatrial.cli.runs_diff import diff
from seatrial.cli.runs_list import list_runs, settled, stats
from seatrial.cli.runs_mirror import pull, push
from seatrial.cli.train import VERDICT
from seatrial.errors import SpecError

if TYPE_CHECKING:
    from seatrial.runs.paths import RunPaths
    from seatrial.runs.plan import Stage

_RUNS_DIR = click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)


@click.group()
def runs() -> None:
    """List, show, compare, follow, cancel, resume and mirror runs. RUN is an id, the beginning of one, a directory, or 'last'."""


runs.add_command(list_runs)
runs.add_command(stats)
runs.add_command(diff)
runs.add_command(compare_runs)
runs.add_command(push)
runs.add_command(pull)


@runs.command()
@click.argument("run")
@_RUNS_DIR
@click.option("--json", "as_json", is_flag=True, help="The manifest and the evidence as JSON.")
def show(run: str, runs_dir: Path | None, as_json: bool) -> int:
    """How a run stands: state, attempts, verdict, evidence."""
    from seatrial.launch import copies
    from seatrial.runs.evidence import read_evidence
    from seatrial.runs.files import read_json_lines
    from seatrial.runs.manifest import read_manifest
    from seatrial.runs.mirror import describe, missing, url_of

    paths = _find(run, runs_dir)
    manifest = settled(paths, read_manifest(paths), set())
    evidence = read_evidence(paths.evidence)
    if as_json:
        data = manifest.model_dump(mode="json", by_alias=True)
        click.echo(json.dumps(data | {"evidence": [e.model_dump(mode="json") for e in evidence]}, indent=2))
        return 0
    click.echo(f"{manifest.run_id}: {manifest.state}" + (f" ({manifest.reason})" if manifest.reason else ""))
    click.echo(f"directory  {paths.root}")
    for record in manifest.attempts:
        how = record.outcome or "going on"
        code = "" if record.exit_code is None else f", exit code {record.exit_code}"
        click.echo(f"attempt {record.index}  {', '.join(record.stages)}: {how}{code}  [{record.handle}]")
        for row in read_json_lines(paths.attempt(record.index).restarts):
            click.echo(
                f"           restart {row['restart']} ({row['stage']}, step {row['step']}): {row['what']}"
            )
        for key, (old, new) in record.changes.items():
            click.echo(f"           {key}: {old} → {new}")
        if record.failure is not None:
            click.echo(f"           {record.failure['what']}")
    sentence = (manifest.results.get("comparison") or manifest.results.get("check") or {}).get("sentence")
    if sentence:
        click.echo(f"result     {sentence}")
    for found in evidence:
        click.echo(f"{found.verdict:<10} {found.check}: {found.message}")
    if paths.report.exists():
        click.echo(f"page       {paths.report}")
    if url_of(paths) is not None and (copies.is_elsewhere(paths) or not paths.remote.exists()):
        click.echo(f"mirror     {url_of(paths)}: {describe(missing(paths), []) or 'all is there'}")
    return 0


@runs.command()
@click.argument("run")
@_RUNS_DIR
@click.option("--rank", type=int, help="Only this rank's output.")
@click.option("--attempt", type=int, help="[the latest]")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends; Ctrl-C leaves it running.")
@click.option("--tail", type=int, default=200, show_default=True, help="Lines of each log; 0 for all.")
def logs(
    run: str, runs_dir: Path | None, rank: int | None, attempt: int | None, follow: bool, tail: int
) -> int:
    """What the ranks printed, and what the platform wrote."""
    from seatrial.cli.progress import Patience
    from seatrial.launch import launcher
    from seatrial.launch.follow import Tail
    from seatrial.runs.manifest import read_manifest
    from seatrial.runs.paths import MERGED

    paths = _find(run, runs_dir)
    manifest = settled(paths, read_manifest(paths), set())
    index = len(manifest.attempts) - 1 if attempt is None else attempt
    directory = paths.attempt(index).logs
    pattern = "*.log" if rank is None else f"rank_{rank:05d}.log"
    # Of pods, the lines of all are there once more, by time.
    merged = directory / MERGED
    tails: dict[Path, Tail] = {}
    patience = Patience(lambda text: click.echo(text, err=True))
    while True:
        with patience:
            manifest = launcher.settle(paths)
        ended = manifest.state.is_terminal
        together = rank is None and merged.exists()
        for file in [merged] if together else sorted(directory.glob(pattern)):
            first = file not in tails
            lines = tails.setdefault(file, Tail(file)).lines()
            for line in lines[-tail:] if first and tail else lines:
                click.echo(_of_pods(line) if together else f"[{file.stem}] {line}")
        if not follow or ended:
            break
        time.sleep(0.3)
    if not tails:
        raise SpecError(
            f"attempt {index} has no such log", evidence=f"no {pattern} in {directory}",
            remedy=f"seatrial runs show {paths.run_id}",
        )  # fmt: skip
    return 0


def _of_pods(line: str) -> str:
    """``12:04:07 [1/12] text``: of the merged log of a run's pods, with node and rank."""
    when, _, rest = line.partition(" ")
    who, _, text = rest.partition(" ")
    return f"{when[11:19]} [{who}] {text}"


@runs.command("why")
@click.argument("run")
@_RUNS_DIR
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def why_run(run: str, runs_dir: Path | None, as_json: bool) -> int:
    """Why a run waits or failed: the reason, the evidence, what would help."""
    from dataclasses import asdict

    from seatrial.launch import launcher
    from seatrial.launch.why import why

    paths = _find(run, runs_dir)
    answer = why(paths, launcher.settle(paths))
    if as_json:
        click.echo(json.dumps({"run_id": paths.run_id, **asdict(answer)}, indent=2, ensure_ascii=False))
        return 0
    click.echo(f"{paths.run_id}: {answer.state}: {answer.sentence}")
    for line in answer.evidence:
        click.echo(f"  evidence: {line}")
    for line in answer.helps:
        click.echo(f"  next:     {line}")
    return 0


@runs.command()
@click.argument("run")
@_RUNS_DIR
@click.option("--force", is_flag=True, help="Kill it, without a checkpoint.")
def cancel(run: str, runs_dir: Path | None, force: bool) -> int:
    """Ask a run to save and stop."""
    from seatrial.backends import registry
    from seatrial.backends.base import JobHandle
    from seatrial.launch import launcher

    paths = _find(run, runs_dir)
    manifest = launcher.settle(paths)
    if manifest.state.is_terminal:
        click.echo(f"{manifest.run_id} is {manifest.state} already", err=True)
        return 0
    handle = JobHandle.parse(manifest.attempt.handle or "")
    backend = registry.get(handle.backend)
    backend.cancel(handle, force=force)
    while not launcher.settle(paths).state.is_terminal:
        time.sleep(0.3)
    click.echo(f"{manifest.run_id} is {launcher.settle(paths).state}", err=True)
    return 0


@runs.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_RUNS_DIR
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks of this attempt; the global batch stays.")
@click.option(
    "--allow-change", is_flag=True, help="Go on with another recipe, though it is another training."
)
@click.option("--detach", "-d", is_flag=True, help="Start it and return.")
@VERDICT
def resume(
    run: str,
    overrides: tuple[str, ...],
    runs_dir: Path | None,
    nproc: int | None,
    allow_change: bool,
    detach: bool,
    verdict: str | None,
) -> int:
    """Go on from the newest sound checkpoint: the same run, one more attempt.

    KEY=VALUE changes the recipe: freely how it is watched, saved and kept, and how long it lasts; anything else only with
    --allow-change.
    """
    from seatrial.cli.outcome import conclude
    from seatrial.cli.start import start_attempt
    from seatrial.launch import copies, launcher
    from seatrial.launch.inspect import inspect
    from seatrial.launch.plan import stages_of
    from seatrial.runs import lock
    from seatrial.runs.files import write_json
    from seatrial.runs.state import RunState
    from seatrial.spec import changes as changes_of
    from seatrial.spec.checks import CheckSpec
    from seatrial.spec.load import read_spec
    from seatrial.spec.run import RunSpec, ScriptSpec

    paths = _find(run, runs_dir)
    if paths.remote.exists() and copies.is_elsewhere(paths):
        from seatrial.cli import outside

        return outside.resume(
            paths, overrides, nproc, allow_change=allow_change, detach=detach, verdict=verdict
        )
    manifest = launcher.settle(paths)
    lock.check_free(paths.lock)
    if not manifest.state.is_terminal:
        raise SpecError(
            f"the run {manifest.run_id} is {manifest.state}",
            evidence=f"attempt {manifest.attempt.index}: {manifest.attempt.handle}",
            remedy=f"seatrial runs cancel {manifest.run_id}",
        )
    if manifest.state is RunState.COMPLETED:
        raise SpecError(
            f"the run {manifest.run_id} is completed: there is nothing to resume",
            evidence=f"{manifest.attempt.ended}, exit code {manifest.attempt.exit_code}",
            remedy=f"seatrial runs show {manifest.run_id}",
        )
    spec = read_spec(paths.spec)
    if isinstance(spec, CheckSpec):
        raise SpecError(
            "an acceptance test is not resumed", evidence="half of it from another hour proves nothing",
            remedy=f"seatrial check {spec.suite.name}    (judge what there is: seatrial check --judge {manifest.run_id})",
        )  # fmt: skip
    words = [*overrides, *([] if nproc is None else [f"resources.nproc={nproc}"])]
    changes: changes_of.Changes = {}
    if isinstance(spec, ScriptSpec) and words:
        raise SpecError("a script's run has no recipe to change", evidence=" ".join(words))
    if isinstance(spec, RunSpec):
        spec, changes = changes_of.changed(spec, words)
        changes_of.check(changes, allowed=allow_change, run_id=manifest.run_id)
        if any(key.startswith("data.") for key in changes) and not paths.remote.exists():
            write_json(paths.inputs, inspect(spec, prepare=True)["inputs"])
    if changes:
        click.echo(changes_of.render(changes), err=True)
    attempt = len(manifest.attempts)
    train_only = bool(manifest.attempts) and manifest.attempts[0].stages == ["train"]

    def stages(there: RunPaths) -> tuple[Stage, ...]:
        return stages_of(spec, there, train_only=train_only)

    start_attempt(paths, spec, stages, attempt, changes, detach, verdict)
    return 0 if detach else conclude(paths, spec)


def _find(run: str, runs_dir: Path | None) -> Any:
    from seatrial.runs.manifest import find_run
    from seatrial.runs.paths import runs_dir as default_runs_dir

    return find_run(run, default_runs_dir(runs_dir))
