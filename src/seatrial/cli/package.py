"""``seatrial package``: a run's model as a directory that others can load and check."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The directory to make [release/ in the run]."
)
@click.option(
    "--tar", type=click.Path(path_type=Path), help="Also write it as one file, the same bytes each time."
)
@click.option(
    "--hub-folder",
    type=click.Path(path_type=Path),
    help="Instead: as the folder of a repository on a model hub.",
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def package(
    run: str, output: Path | None, tar: Path | None, hub_folder: Path | None, runs_dir: Path | None
) -> int:
    """Pack the trained model of RUN: weights, tokenizer, card, evidence, checksums. The same run packs to the same bytes."""
    from seatrial.errors import SpecError
    from seatrial.runs.manifest import find_run
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.ship import package as ship

    if output is not None and hub_folder is not None:
        raise SpecError("--output and --hub-folder are two releases", remedy="pack twice")
    paths = find_run(run, default_runs_dir(runs_dir))
    release = ship.package(paths, hub_folder or output, hub=hub_folder is not None)
    files = release.marker["files"]
    size = sum(entry["bytes"] for entry in files.values())
    click.echo(
        f"release  {release.root}: {len(files)} files, {size / 1e6:.1f} MB, SHA-256 {release.sha256[:16]}…"
    )
    if tar is not None:
        click.echo(f"archive  {tar}: SHA-256 {ship.write_tar(release, tar)}")
    click.echo(f"next     seatrial promote {paths.run_id} --to TARGET --as NAME", err=True)
    return 0
