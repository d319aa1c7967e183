"""``seatrial run -- SCRIPT ARGS``: any torchrun-compatible script, launched and recorded like a training run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from seatrial.cli.train import VERDICT, NumberOrAuto, default_name, given_flags, platform_options
from seatrial.errors import SpecError


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--name", help="Short name [the script's].")
@platform_options()
@VERDICT
@click.option("--nproc", type=NumberOrAuto(), help="Ranks a node [auto: one a GPU, else 1].")
@click.option("--gpus", type=NumberOrAuto(), help="GPUs a node; 0 for CPU [auto].")
@click.option(
    "--launcher",
    type=click.Choice(["torchrun", "warm"]),
    help="What starts the ranks; warm forks them from a process that has imported torch before the script begins [torchrun].",
)
@click.option(
    "--min-utilisation", type=float, metavar="PERCENT", help="Exit with 1 unless the GPUs are used that much."
)
@click.option(
    "--artifacts",
    metavar="URL",
    help="Mirror the run there while it goes on: s3://bucket/prefix, a directory.",
)
@click.option("--tags", help="Words to find the run by, separated by commas.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
@click.option("--detach", "-d", is_flag=True, help="Start it and return; print its id.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, exactly; touch nothing.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- SCRIPT.py [ARGS]...")
def run(
    name: str | None, runs_dir: Path | None, detach: bool, dry_run: bool, command: tuple[str, ...],
    profile: str | None, verdict: str | None, **flags: Any,
) -> int:  # fmt: skip
    """Launch any torchrun-compatible script: same ranks, same logs, same record."""
    from seatrial.cli.start import start_new
    from seatrial.launch.plan import stages_of
    from seatrial.spec.load import load_script
    from seatrial.spec.site import named, site_layers

    flags["platform"], profile = named(flags["platform"], profile)
    if command[0] != "-m" and not Path(command[0]).is_file():
        raise SpecError(
            f"there is no script {command[0]}",
            evidence=f"looked in {Path.cwd()}",
            remedy="seatrial run --nproc 2 -- path/to/script.py ARGS    (or: -- -m package.module ARGS)",
        )
    script = {
        "name": name or default_name(None, command[1] if command[0] == "-m" else command[0]),
        "command": command,
        "cwd": str(Path.cwd()),
        "resources": {"launcher": "torchrun"},
    }
    loaded = load_script(script, flags=given_flags(flags), under=site_layers(profile))
    spec = loaded.spec
    return start_new(
        spec,
        lambda paths: stages_of(spec, paths),
        argv=sys.argv,
        runs_dir=runs_dir,
        detach=detach,
        dry_run=dry_run,
        origins=loaded.origins,
        verdict=verdict,
    )
