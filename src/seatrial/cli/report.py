"""``seatrial report RUN``: the page."""

from __future__ import annotations

from pathlib import Path

import click

from seatrial.errors import SpecError


@click.command()
@click.argument("run")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def report(run: str, runs_dir: Path | None) -> int:
    """Write the page of RUN again, from what its directory holds; prints where it is."""
    from seatrial.launch import launcher
    from seatrial.report import build_report
    from seatrial.runs.manifest import find_run
    from seatrial.runs.paths import runs_dir as default_runs_dir

    paths = find_run(run, default_runs_dir(runs_dir))
    manifest = launcher.settle(paths)
    if manifest.task == "check":
        raise SpecError(
            f"{paths.run_id} is an acceptance test", evidence="its page is drawn with its verdict",
            remedy=f"seatrial check --judge {paths.run_id}",
        )  # fmt: skip
    click.echo(build_report(paths))
    return 0
