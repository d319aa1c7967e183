"""What `train`, `demo`, `run`, `predict` and `runs resume` share: a spec goes in, a followed run comes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from seatrial import command
from seatrial.backends import machine, registry
from seatrial.backends.base import StartsAhead
from seatrial.cli.outcome import conclude
from seatrial.cli.progress import follow
from seatrial.launch import launcher
from seatrial.launch.inspect import inspect
from seatrial.launch.plan import plan, stages_of
from seatrial.runs.files import write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.paths import runs_dir as default_runs_dir
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.spec import faults
from seatrial.spec.changes import Changes
from seatrial.spec.load import LoadedSpec
from seatrial.spec.run import RunSpec, ScriptSpec


def start_training(
    loaded: LoadedSpec,
    *,
    argv: Sequence[str],
    runs_dir: Path | None,
    train_only: bool = False,
    detach: bool = False,
    dry_run: bool = False,
) -> int:
    """Looks at data and model, then starts a new run of the recipe. Returns the exit code."""
    return start_new(
        loaded.spec,
        lambda paths: stages_of(loaded.spec, paths, 0, train_only=train_only),
        argv=argv, runs_dir=runs_dir, detach=detach, dry_run=dry_run, origins=loaded.origins,
    )  # fmt: skip


def start_new(
    spec: RunSpec | ScriptSpec,
    stages: Callable[[RunPaths], tuple[Stage, ...]],
    *,
    argv: Sequence[str],
    runs_dir: Path | None,
    detach: bool,
    dry_run: bool,
    origins: dict[str, str] | None = None,
) -> int:
    """A new run: checked first, written down second, started third."""
    faults.from_environment()  # one that can't be read is refused here, not by the ranks
    paths = RunPaths(default_runs_dir(runs_dir) / launcher.new_run_id(spec.name))
    here = machine.probe()
    cwd = Path(spec.cwd) if isinstance(spec, ScriptSpec) else Path.cwd()
    planned = plan(spec, paths, here, attempt=0, stages=stages(paths), python=sys.executable, cwd=cwd)
    backend = registry.get("local" if spec.resources.on == "auto" else spec.resources.on)
    if isinstance(spec, RunSpec):
        say("looking at data and model")
        runner = backend.prepare(planned, spec) if isinstance(backend, StartsAhead) else command.run
        found = inspect(spec, prepare=not dry_run, runner=runner)
        say(_found(found))
    if dry_run:
        _print_dry_run(spec, planned, backend.render(planned).text, origins or {})
        return 0
    launcher.create(paths, spec, argv)
    if isinstance(spec, RunSpec):
        write_json(paths.inputs, found["inputs"])
    say(
        f"run {paths.run_id} on {backend.name}: {planned.nproc} ranks on {planned.device.upper()} ({here.evidence})"
    )
    submitted = launcher.submit(planned, backend)
    if detach:
        click.echo(paths.run_id)
        say(
            f"follow it: seatrial runs logs -f {paths.run_id}    stop it: seatrial runs cancel {paths.run_id}"
        )
        return 0
    follow(submitted, show_ranks=isinstance(spec, ScriptSpec))
    return conclude(paths, spec)


def start_attempt(
    paths: RunPaths,
    spec: RunSpec | ScriptSpec,
    stages: tuple[Stage, ...],
    attempt: int,
    changes: Changes | None = None,
) -> None:
    """One more attempt of a run that exists, with `changes` of its recipe made already; followed to its end."""
    faults.from_environment()
    here = machine.probe()
    cwd = Path(spec.cwd) if isinstance(spec, ScriptSpec) else Path.cwd()
    planned = plan(spec, paths, here, attempt=attempt, stages=stages, python=sys.executable, cwd=cwd)
    backend = registry.get("local" if spec.resources.on == "auto" else spec.resources.on)
    say(f"run {paths.run_id}, attempt {attempt}: {', '.join(stage.name for stage in stages)}")
    if changes and isinstance(spec, RunSpec):
        launcher.change_recipe(paths, spec, changes, attempt)
    follow(launcher.submit(planned, backend, changes), show_ranks=isinstance(spec, ScriptSpec))


def say(text: str) -> None:
    """A line for people: stdout is for results."""
    click.echo(text, err=True)


def _found(facts: dict[str, dict[str, object]]) -> str:
    data, model = facts["data"], facts["model"]
    train, test = data["train"], data["test"]
    assert isinstance(train, dict) and isinstance(test, dict)
    labels = data["labels"]
    classes = f", {len(labels)} classes" if isinstance(labels, list) and labels else ""
    return f"data: {train['num_samples']} training, {test['num_samples']} held-out samples{classes}; model: {model['type']}"


def _print_dry_run(
    spec: RunSpec | ScriptSpec, planned: LaunchPlan, request: str, origins: dict[str, str]
) -> None:
    click.echo("# the spec\n" + spec.model_dump_json(indent=2, by_alias=True))
    click.echo("\n# the plan\n" + json.dumps(planned.to_dict(), indent=2))
    if origins:
        click.echo("\n# where its values come from; all others are defaults")
        for key, origin in sorted(origins.items()):
            click.echo(f"{key}: {origin}")
    click.echo("\n# the request\n" + request, nl=False)
