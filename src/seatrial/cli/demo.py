"""``seatrial demo``: the main job on what every machine has, without network and GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

_BUILD_TIMEOUT_S = 300


@click.command()
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of split, weights, order and dropout."
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def demo(seed: int, runs_dir: Path | None) -> int:
    """Train a small encoder to tell which standard library package a docstring comes from.

    Two ranks on the CPU, real text (the docstrings of this Python's own standard library, held out by module), both
    models on the same held-out samples, a verdict, a page.
    """
    from seatrial import command
    from seatrial.cli.start import say, start_training
    from seatrial.errors import PlatformError
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.spec.load import load

    root = default_runs_dir(runs_dir)
    directory = root / ".demo" / f"seed-{seed}"
    say("building the demo's data and model from the docstrings of Python's standard library")
    directory.parent.mkdir(parents=True, exist_ok=True)
    done = command.run(
        [sys.executable, "-m", "seatrial.job.demo", str(directory), "--seed", str(seed)],
        timeout_s=_BUILD_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise PlatformError(
            "the demo's data and model could not be built",
            evidence="\n".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}",
            remedy="pip install 'seatrial[train]'"
            if "ModuleNotFoundError" in done.stderr
            else "seatrial doctor",
        )
    built = json.loads(done.stdout.splitlines()[-1])
    loaded = load(
        Path(__file__).parents[1] / "recipes" / "demo.yaml",
        flags={
            "model": ("(built)", built["model"]),
            "data.path": ("(built)", built["data"]),
            "train.seed": ("--seed", seed),
        },
    )
    return start_training(loaded, argv=sys.argv, runs_dir=runs_dir, verdict="none")
