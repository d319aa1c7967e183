"""``seatrial runs push`` and ``pull``: a run to its mirror, and back from there or from a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from seatrial.errors import ExitCode, SpecError

if TYPE_CHECKING:
    from seatrial.runs.paths import RunPaths

_PATIENCE_S = 5.0
_RUNS_DIR = click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)


@click.command()
@click.argument("run")
@click.option("--to", "url", metavar="URL", help="Where to [the recipe's 'artifacts'].")
@click.option(
    "--warn-only", is_flag=True, hidden=True, help="Exit code 0 whatever is left: a mirror fails no run."
)
@_RUNS_DIR
def push(run: str, url: str | None, warn_only: bool, runs_dir: Path | None) -> int:
    """Send to the mirror of RUN what is not there yet, each file verified there. Exit code 4 where something is left."""
    from seatrial.runs.manifest import find_run
    from seatrial.runs.mirror import Mirror, alone, describe, missing
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.runs.stores import open_store

    paths = find_run(run, default_runs_dir(runs_dir))
    todo, done = missing(paths), 0

    def say(name: str) -> None:
        nonlocal done
        done += 1
        click.echo(f"{done} of {max(done, len(todo))}: {name}", err=True)

    with alone(paths, "runs push", _PATIENCE_S):
        sender = Mirror(paths, open_store(url) if url else None)
        left = sender.conclude(say=lambda file: say(file.name))
    if not left:
        click.echo(f"{paths.run_id}: all is in {sender.url}")
        return 0
    click.echo(f"{paths.run_id}: {describe(left, sender.errors)}")
    for line in sender.errors[1:]:
        click.echo(f"  also: {line}", err=True)
    return 0 if warn_only else int(ExitCode.PLATFORM)


@click.command()
@click.argument("run")
@click.option(
    "--from", "url", metavar="URL", help="A mirror [the recipe's 'artifacts', where the run is known here]."
)
@click.option("--models", is_flag=True, help="Weights and checkpoints as well.")
@_RUNS_DIR
def pull(run: str, url: str | None, models: bool, runs_dir: Path | None) -> int:
    """Bring RUN here: from the cluster that it was sent to, or from its mirror, each file verified."""
    from seatrial.cli import outside
    from seatrial.launch import copies
    from seatrial.runs.manifest import find_run
    from seatrial.runs.mirror import url_of
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.runs.pull import pull as bring
    from seatrial.runs.stores import open_store

    root = default_runs_dir(runs_dir)
    if url is None:
        paths = find_run(run, root)
        if paths.remote.exists() and not copies.is_elsewhere(paths):
            return _tell(paths, models=models)
        if paths.remote.exists():
            outside.pull(paths, models=models)
            return 0
        run, root, url = paths.run_id, paths.root.parent, url_of(paths)
        if url is None:
            raise SpecError(
                f"the run {run} has no mirror",
                evidence="its recipe has no 'artifacts'",
                remedy=f"seatrial runs pull {run} --from URL",
            )
    came = bring(open_store(url), run, root, models=models, say=lambda text: click.echo(text, err=True))
    click.echo(f"{run}: {came.files} files came, {came.bytes / 1e6:.1f} MB, each as it was sent")
    for name in came.kept:
        click.echo(f"kept {name}: it is another here", err=True)
    return 0


def _tell(paths: RunPaths, *, models: bool) -> int:
    """What a run's pods have written, read from their volume once more."""
    from seatrial.backends import registry
    from seatrial.backends.base import JobHandle
    from seatrial.backends.kubernetes.backend import KubernetesBackend
    from seatrial.launch import launcher, outside
    from seatrial.runs.manifest import read_manifest

    if models:
        raise outside.not_here(paths, f"seatrial predict {paths.run_id}")
    handle = JobHandle.parse(read_manifest(paths).attempt.handle or "")
    backend = registry.get(handle.backend)
    assert isinstance(backend, KubernetesBackend)
    left = backend.tell(paths, handle)
    click.echo(f"{paths.run_id} is {launcher.settle(paths).state}", err=True)
    for name in left:
        click.echo(f"did not come: {name}", err=True)
    return 0
