"""What `train`, `demo`, `run`, `predict` and `runs resume` share: a spec goes in, a followed run comes out."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seatrial import command
from seatrial.backends import registry
from seatrial.backends.base import Backend, JobHandle, NamesCluster, StartsAhead
from seatrial.backends.detect import detect
from seatrial.backends.machine import Machine
from seatrial.cli.outcome import conclude
from seatrial.cli.progress import follow
from seatrial.errors import SpecError
from seatrial.launch import launcher
from seatrial.launch.admission import Admission, admit, apply, record
from seatrial.launch.inspect import inspect
from seatrial.launch.places import at_home
from seatrial.launch.plan import afterwards, plan, ranks, stages_of
from seatrial.launch.source import Source
from seatrial.runs.files import write_json
from seatrial.runs.manifest import find_run
from seatrial.runs.paths import RunPaths
from seatrial.runs.paths import runs_dir as default_runs_dir
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.runs.state import RunState
from seatrial.runs.stores import open_store
from seatrial.runs.tracking import LIBRARIES
from seatrial.spec import faults
from seatrial.spec.changes import Changes
from seatrial.spec.checks import CheckSpec
from seatrial.spec.kinds import AnySpec
from seatrial.spec.load import LoadedSpec
from seatrial.spec.run import RunSpec, ScriptSpec

if TYPE_CHECKING:
    from seatrial.launch.pods import There

THEN = ("predict", "compare", "report")
"""What follows the training, unless told otherwise."""


def start_training(
    loaded: LoadedSpec,
    *,
    argv: Sequence[str],
    runs_dir: Path | None,
    then: Collection[str] = THEN,
    after: str | None = None,
    detach: bool = False,
    dry_run: bool = False,
    **more: Any,
) -> int:
    """Looks at data and model, then starts a new run of the recipe. Returns the exit code."""
    return start_new(
        loaded.spec,
        lambda paths: stages_of(loaded.spec, paths, train_only="predict" not in then),
        then=then, after=after,
        argv=argv, runs_dir=runs_dir, detach=detach, dry_run=dry_run, origins=loaded.origins, **more,
    )  # fmt: skip


def start_new(
    spec: AnySpec,
    stages: Callable[[RunPaths], tuple[Stage, ...]],
    *,
    argv: Sequence[str],
    runs_dir: Path | None,
    detach: bool,
    dry_run: bool,
    origins: dict[str, str] | None = None,
    then: Collection[str] = (),
    after: str | None = None,
    run_id: str = "",
    source: Source | None = None,
    look: bool = True,
    finish: Callable[[RunPaths], int] | None = None,
    verdict: str | None = None,
) -> int:
    """A new run: checked first, written down second, started third.

    With `run_id`, `source` and `look` (false: not at the data, which is not there yet) it was asked for from outside.
    `finish` is what follows the end of an attached run, in the place of comparison and page; its exit code is returned.
    """
    faults.from_environment()  # one that can't be read is refused here, not by the ranks
    if not isinstance(spec, CheckSpec) and spec.artifacts is not None:
        open_store(spec.artifacts)  # so is a URL that nothing here can open
    for tracker in spec.track if isinstance(spec, RunSpec) else ():
        check_tracker(tracker)
    if spec.resources.on.startswith("ssh://"):
        from seatrial.cli import outside

        return outside.start(
            spec,
            argv=argv,
            runs_dir=default_runs_dir(runs_dir),
            then=then,
            after=after,
            detach=detach,
            dry_run=dry_run,
            verdict=verdict,
        )
    paths = RunPaths(default_runs_dir(runs_dir) / (run_id or launcher.new_run_id(spec.name)))
    backend, evidence = platform_of(spec)
    if isinstance(spec, RunSpec) and backend.name != "k8s":
        spec = at_home(spec, backend.name, keeps_jobs=backend.keeps_jobs)
    allowed, machine, admission = admitted(spec, backend, paths.root.parent, verdict)
    there = _there(allowed, paths, backend, is_new=True)
    if there is not None:
        allowed = spec = there.spec
        source, look = there.source, False
    at = paths if there is None else there.paths
    planned = _plan(
        allowed, paths, machine, 0, stages(at),
        after=handle_of(after, paths.root.parent, backend) if after else "",
        afterwards=afterwards(at, (*then, *mirrored(spec))) if _by_itself(spec, detach, there) else (), there=there,
    )  # fmt: skip
    if isinstance(spec, RunSpec) and look:
        say("looking at data and model")
        runner = backend.prepare(planned, spec) if isinstance(backend, StartsAhead) else command.run
        found = inspect(spec, prepare=not dry_run, runner=runner)
        say(findings(found))
    if dry_run:
        _print_dry_run(spec, planned, backend.render(planned).text, origins or {})
        return 0
    if there is not None:
        backend.render(planned)  # refuses what can't be a job of the cluster's before there is a run
    launcher.create(paths, spec, argv, beside=source)
    if admission is not None:
        record(paths, admission, 0)
    if isinstance(spec, RunSpec) and there is None:
        write_json(paths.inputs, found["inputs"])
    nodes = f" on {planned.nodes} nodes" if planned.nodes > 1 else ""
    say(
        f"run {paths.run_id} on {backend.name} ({evidence}): {planned.world_size} ranks on {planned.device.upper()}{nodes}"
    )
    submitted = launcher.submit(planned, backend)
    if submitted.backend.keeps_jobs:
        say(f"submitted: {submitted.handle}    (Ctrl-C leaves it running)")
    if detach:
        click.echo(paths.run_id)
        say(
            f"follow it: seatrial runs logs -f {paths.run_id}    stop it: seatrial runs cancel {paths.run_id}"
        )
        return 0
    follow(submitted, show_ranks=isinstance(spec, ScriptSpec))
    return conclude(paths, spec) if finish is None else finish(paths)


def start_attempt(
    paths: RunPaths,
    spec: AnySpec,
    stages: Callable[[RunPaths], tuple[Stage, ...]],
    attempt: int,
    changes: Changes | None = None,
    detach: bool = False,
    verdict: str | None = None,
) -> None:
    """One more attempt of a run that exists, with `changes` of its recipe made already; followed to its end.

    With `detach`, the job itself compares and draws the page.
    """
    faults.from_environment()
    backend, _ = platform_of(spec)
    then = (*(THEN if len(stages(paths)) > 1 else ()), *mirrored(spec))
    allowed, machine, admission = admitted(spec, backend, paths.root.parent, verdict)
    there = _there(allowed, paths, backend, is_new=False)
    follows = afterwards(paths if there is None else there.paths, then) if detach or there is not None else ()
    planned = _plan(
        allowed if there is None else there.spec, paths, machine, attempt, stages(paths if there is None else there.paths),
        afterwards=follows, there=there,
    )  # fmt: skip
    if admission is not None:
        record(paths, admission, attempt)
    say(f"run {paths.run_id}, attempt {attempt}: {', '.join(stage.name for stage in planned.stages)}")
    if changes and isinstance(spec, RunSpec):
        launcher.change_recipe(paths, spec, changes, attempt)
    submitted = launcher.submit(planned, backend, changes)
    if not detach:
        follow(submitted, show_ranks=isinstance(spec, ScriptSpec))


def _by_itself(spec: AnySpec, detach: bool, there: There | None) -> bool:
    """Whether the job itself does what follows it. A test's verdict is signed by whoever asked for it, where its pods can't."""
    return (detach and there is None) or (there is not None and not isinstance(spec, CheckSpec))


def _there(spec: AnySpec, paths: RunPaths, backend: Backend, *, is_new: bool) -> There | None:
    """Where the run is in its pods, with what goes along packed; None where it is run where this machine can look."""
    if backend.name != "k8s":
        return None
    from seatrial.backends.kubernetes.backend import KubernetesBackend
    from seatrial.launch import pods

    assert isinstance(backend, KubernetesBackend)
    cwd = Path(spec.cwd) if isinstance(spec, ScriptSpec) and Path(spec.cwd).is_dir() else Path.cwd()
    return pods.send(spec, paths.run_id, backend, cwd, paths.root.parent, is_new=is_new)


def check_tracker(name: str) -> None:
    """Raises `SpecError` where the library of a tracker is not installed."""
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        raise SpecError(
            f"{name} is not installed", evidence=f"track: {name}", remedy=f"pip install 'seatrial[{name}]'"
        )


def mirrored(spec: AnySpec) -> tuple[str, ...]:
    """What follows a run that nobody waits for: how its devices were used, and trackers and mirror where it has some."""
    if isinstance(spec, CheckSpec):
        return ()
    told = ("track",) if isinstance(spec, RunSpec) and spec.track else ()
    return ("use", *told) if spec.artifacts is None else ("use", *told, "push")


def platform_of(spec: AnySpec) -> tuple[Backend, str]:
    """The platform that the spec runs on, and why that one."""
    if spec.resources.on != "auto":
        return registry.get(spec.resources.on), "as asked for"
    name, evidence = detect(os.environ)
    return registry.get(name), evidence


def admitted(
    spec: AnySpec, backend: Backend, runs_dir: Path, verdict: str | None
) -> tuple[AnySpec, Machine, Admission | None]:
    """The spec without nodes that failed their acceptance test, what there is to run it on, and what that rests on.

    `verdict` is a file to go by, or ``none``; by default it is what the runs directory has. A test goes by no other.
    """
    machine = backend.probe(spec)
    if isinstance(spec, CheckSpec):
        if spec.rehearse:
            machine = replace(machine, nodes=spec.resources.nodes, gpus=(), evidence="a rehearsal")
        return spec, machine, None
    named = backend.cluster if isinstance(backend, NamesCluster) else str
    device, _ = ranks(spec.resources, machine)
    admission = admit(backend.name, named, device, runs_dir, datetime.now(UTC), verdict)
    for note in admission.notes:
        say(note)
    allowed = apply(spec, admission, backend.name)
    return allowed, machine if allowed == spec else backend.probe(allowed), admission


def handle_of(run: str, runs_dir: Path, backend: Backend) -> str:
    """The job of a run that another is to follow; empty when it has ended well already."""
    paths = find_run(run, runs_dir)
    manifest = launcher.settle(paths)
    if manifest.state is RunState.COMPLETED:
        return ""
    handle = (manifest.attempt.handle or "") if manifest.attempts else ""
    if manifest.state.is_terminal or not handle:
        raise SpecError(
            f"nothing can follow {paths.run_id}: it is {manifest.state}", evidence=manifest.reason,
            remedy=f"seatrial runs resume {paths.run_id}",
        )  # fmt: skip
    if not backend.keeps_jobs or JobHandle.parse(handle).backend != backend.name:
        raise SpecError(
            f"the platform {backend.name!r} can't wait for {paths.run_id}", evidence=f"it is {manifest.state}: {handle}",
            remedy=f"wait for it: seatrial runs logs -f {paths.run_id}",
        )  # fmt: skip
    return handle


def _plan(
    spec: AnySpec,
    paths: RunPaths,
    machine: Machine,
    attempt: int,
    stages: tuple[Stage, ...],
    there: There | None = None,
    **more: Any,
) -> LaunchPlan:
    cwd = Path(spec.cwd) if isinstance(spec, ScriptSpec) else Path.cwd()
    if there is not None:
        return plan(
            spec, paths, machine, attempt=attempt, stages=stages, python=there.python, cwd=there.cwd,
            parcels=there.parcels, **more,
        )  # fmt: skip
    return plan(
        spec,
        paths,
        machine,
        attempt=attempt,
        stages=stages,
        python=sys.executable,
        cwd=cwd,
        **more,
    )


def say(text: str) -> None:
    """A line for people: stdout is for results."""
    click.echo(text, err=True)


def findings(facts: dict[str, dict[str, object]]) -> str:
    """What was found of data and model, in one line."""
    data, model = facts["data"], facts["model"]
    train, test = data["train"], data["test"]
    assert isinstance(train, dict) and isinstance(test, dict)
    labels = data["labels"]
    classes = f", {len(labels)} classes" if isinstance(labels, list) and labels else ""
    return f"data: {train['num_samples']} training, {test['num_samples']} held-out samples{classes}; model: {model['type']}"


def _print_dry_run(spec: AnySpec, planned: LaunchPlan, request: str, origins: dict[str, str]) -> None:
    click.echo("# the spec\n" + spec.model_dump_json(indent=2, by_alias=True))
    click.echo("\n# the plan\n" + json.dumps(planned.to_dict(), indent=2))
    if origins:
        click.echo("\n# where its values come from; all others are defaults")
        for key, origin in sorted(origins.items()):
            click.echo(f"{key}: {origin}")
    click.echo("\n# the request\n" + request, nl=False)
