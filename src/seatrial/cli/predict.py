"""``seatrial predict RUN``: a run's models over held-out samples."""

from __future__ import annotations

from pathlib import Path

import click

from seatrial.errors import SpecError


@click.command()
@click.argument("run")
@click.option("--model", "models", multiple=True, type=click.Choice(["original", "trained"]), help="[both]")
@click.option("--data", help="Other data than the run's held-out samples: file or directory.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def predict(run: str, models: tuple[str, ...], data: str | None, runs_dir: Path | None) -> int:
    """Run the original or the trained model of RUN; prints the prediction files."""
    from seatrial.cli.start import start_attempt
    from seatrial.launch import launcher
    from seatrial.launch.plan import predict_stage
    from seatrial.runs.commit import is_committed
    from seatrial.runs.manifest import find_run, read_manifest
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.spec.load import read_spec
    from seatrial.spec.run import RunSpec

    paths = find_run(run, default_runs_dir(runs_dir))
    spec = read_spec(paths.spec)
    if not isinstance(spec, RunSpec):
        raise SpecError(f"{paths.run_id} is a script's run", evidence="it has no models that Seatrial made")
    chosen = models or ("original", "trained")
    absent = [name for name in chosen if not is_committed(paths.model(name))]
    if absent:
        raise SpecError(
            f"the run has no {absent[0]} model",
            evidence=f"{paths.model(absent[0])} was never committed",
            remedy=f"seatrial runs resume {paths.run_id}",
        )
    if data is not None and not Path(data).expanduser().exists() and (Path(data).suffix or data[0] in "/.~"):
        raise SpecError(
            f"there is no data at {data}", evidence=f"looked in {Path.cwd()}", remedy="--data FILE"
        )
    launcher.settle(paths)
    attempt = len(read_manifest(paths).attempts)
    suffix = f"-{Path(data).stem}" if data else ""
    arguments = ["--models", *chosen]
    if data is not None:
        local = Path(data).expanduser()
        where = str(local.absolute()) if local.exists() else data
        arguments += ["--data", where, f"--suffix={suffix}"]  # one word: the suffix starts with a dash
    start_attempt(paths, spec, (predict_stage(paths, attempt, *arguments),), attempt)
    failure = launcher.failure_of(launcher.settle(paths))
    if failure is not None:
        raise failure
    for name in chosen:
        click.echo(paths.predictions(name + suffix))
    return 0
