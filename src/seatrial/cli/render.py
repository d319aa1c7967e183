"""``seatrial render``: what a platform would be given, for whoever submits it in another way, or keeps it in git."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from seatrial.errors import SpecError


@click.command()
@click.argument("platform", type=click.Choice(["slurm", "k8s"]))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--profile", help="Profile of the site's config.yaml [its own choice].")
@click.option(
    "--offline", is_flag=True, help="Ask no cluster: the recipe says what a node has. A plain Job, with k8s."
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def render(
    platform: str,
    recipe: Path,
    overrides: tuple[str, ...],
    profile: str | None,
    offline: bool,
    runs_dir: Path | None,
) -> int:
    """Print the batch script of RECIPE, or all objects that make it a run on Kubernetes, as `kubectl apply -f -` takes them.

    Nothing is submitted, and no run is kept here: what is submitted by hand is followed by the platform's own tools.
    """
    from seatrial.backends import registry
    from seatrial.backends.kubernetes.backend import KubernetesBackend, cargo_files
    from seatrial.backends.kubernetes.objects import released, yaml_text
    from seatrial.backends.kubernetes.probe import unseen
    from seatrial.launch import launcher, pods
    from seatrial.launch.places import at_home
    from seatrial.launch.plan import afterwards, plan, stages_of
    from seatrial.runs.paths import RunPaths
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.spec.load import load
    from seatrial.spec.run import RunSpec
    from seatrial.spec.site import site_layers

    if offline and platform != "k8s":
        raise SpecError(
            "only Kubernetes objects are rendered without a cluster", evidence=f"--offline {platform}"
        )
    spec = load(recipe, overrides=[*overrides, f"resources.on={platform}"], under=site_layers(profile)).spec
    root = default_runs_dir(runs_dir)
    run_id = launcher.new_run_id(spec.name)
    backend = registry.get(platform)
    then = ("compare", "report", "use", *(("push",) if spec.artifacts else ()))
    if not isinstance(backend, KubernetesBackend):
        spec = at_home(spec, platform, keeps_jobs=True)
        paths = RunPaths(root / run_id)
        planned = plan(
            spec, paths, backend.probe(spec), attempt=0, stages=stages_of(spec, paths), python=sys.executable, cwd=Path.cwd(),
            afterwards=afterwards(paths, then),
        )  # fmt: skip
        click.echo(backend.render(planned).text, nl=False)
        return 0
    machine = unseen(spec) if offline else backend.probe(spec)
    there = pods.send(spec, run_id, backend, Path.cwd(), root, is_new=True)
    assert isinstance(there.spec, RunSpec)
    with tempfile.TemporaryDirectory(prefix="seatrial-") as directory:
        paths = RunPaths(Path(directory) / run_id)
        planned = plan(
            there.spec, paths, machine, attempt=0, stages=stages_of(there.spec, there.paths), python=there.python,
            cwd=there.cwd, parcels=there.parcels, afterwards=afterwards(there.paths, then),
        )  # fmt: skip
        launcher.create(paths, there.spec, sys.argv, beside=there.source)
        launcher.announce(planned, "yaml", "")
        text = yaml_text(released(backend.complete(planned, cargo_files(planned, paths))))
    click.echo(text, nl=False)
    return 0
