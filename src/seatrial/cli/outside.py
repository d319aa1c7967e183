"""Runs on a cluster that is reached over ssh, as the verbs of this machine see them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from seatrial.cli.outcome import conclude
from seatrial.cli.progress import Patience, follow
from seatrial.errors import PlatformError, SpecError
from seatrial.launch import launcher, outside
from seatrial.launch.admission import NONE
from seatrial.runs import commit
from seatrial.runs.manifest import find_run
from seatrial.runs.paths import RunPaths
from seatrial.spec.kinds import AnySpec
from seatrial.spec.load import read_spec
from seatrial.spec.run import ScriptSpec

_POLL_S = 0.3


def start(
    spec: AnySpec,
    *,
    argv: Sequence[str],
    runs_dir: Path,
    then: Collection[str],
    after: str | None,
    detach: bool,
    dry_run: bool,
    verdict: str | None = None,
) -> int:
    """A new run there, with a copy here that is followed to its end. Returns the exit code."""
    _check_verdict(verdict)
    run_id = launcher.new_run_id(spec.name)
    cwd = Path(spec.cwd) if isinstance(spec, ScriptSpec) else Path.cwd()
    connection = outside.connection_of(spec, _say)
    parcel = outside.pack(spec, cwd, runs_dir, outside.limits_of(spec))
    first = None if after is None else _on_the_same(find_run(after, runs_dir), spec)
    there = outside.send(parcel, connection, _say, dry_run=dry_run)
    given = outside.order(
        spec, parcel, there["root"], run_id=run_id, argv=argv, then=then, after=first, verdict=verdict
    )
    if dry_run:
        text, _ = connection.ask("dry_run", order=given, look=not there["missing"])
        click.echo(text, nl=False)
        return 0
    paths = RunPaths(runs_dir / run_id)
    outside.start(paths, spec, given)
    if detach:
        click.echo(run_id)
        return 0
    return _follow(paths, spec)


def resume(
    paths: RunPaths,
    overrides: Sequence[str],
    nproc: int | None,
    *,
    allow_change: bool,
    detach: bool,
    verdict: str | None = None,
) -> int:
    """One more attempt there, followed to its end. Returns the exit code."""
    _check_verdict(verdict)
    outside.resume(paths, overrides, nproc, allow_change=allow_change, verdict=verdict, say=_say)
    if detach:
        return 0
    spec = read_spec(paths.spec)
    return _follow(paths, spec)


def pull(paths: RunPaths, *, models: bool) -> None:
    """Brings the copy up to date, whatever it says; with `models`, the weights and checkpoints come, too.

    Raises:
        PlatformError: what came is not what was written there.
    """
    mirror = outside.mirror_of(paths)
    manifest = mirror.look(anyway=True)
    files = mirror.pull_models() if models else 0
    for directory in [
        *(paths.model(name) for name in ("original", "trained")),
        *sorted(paths.checkpoints.glob("*")),
    ]:
        found = commit.problems(directory) if models and commit.is_committed(directory) else []
        if found:
            raise PlatformError(
                f"{directory.name} did not come as it was written", evidence="\n".join(found),
                remedy=f"seatrial runs pull {paths.run_id} --models",
            )  # fmt: skip
    _say(
        f"{paths.run_id} is {manifest.state}"
        + (f"; {files} files of models and checkpoints came" if models else "")
    )


def _follow(paths: RunPaths, spec: AnySpec) -> int:
    follow(outside.submitted(paths), show_ranks=isinstance(spec, ScriptSpec))
    patience = Patience(_say)
    manifest = None
    while manifest is None or not manifest.state.is_terminal:
        if manifest is not None:
            time.sleep(_POLL_S)
        with patience:
            manifest = launcher.settle(paths)
    return conclude(paths, spec)


def _check_verdict(verdict: str | None) -> None:
    """A file here says nothing there: `SpecError`."""
    if verdict not in {None, NONE}:
        raise SpecError(
            "the verdict to go by is on the cluster, in its runs directory", evidence=f"--verdict {verdict}",
            remedy=f"leave it out, or --verdict {NONE}",
        )  # fmt: skip


def _on_the_same(first: RunPaths, spec: AnySpec) -> str:
    """The id of a run that another is to follow; `SpecError` unless both are on one cluster."""
    where = outside.mirror_of(first).remote.host if first.remote.exists() else "this machine"
    if f"ssh://{where}" != spec.resources.on:
        raise SpecError(
            f"nothing on {spec.resources.on} can follow {first.run_id}", evidence=f"it is on {where}",
            remedy=f"wait for it: seatrial runs logs -f {first.run_id}",
        )  # fmt: skip
    return first.run_id


def _say(text: str) -> None:
    click.echo(text, err=True)
