"""``seatrial snapshot``: what this machine is, in a file; and what has changed since."""

from __future__ import annotations

import json
from pathlib import Path

import click

from seatrial.errors import SpecError


@click.group(invoke_without_command=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("infra_report.json"),
    show_default=True,
    help="The file.",
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
@click.pass_context
def snapshot(ctx: click.Context, output: Path, runs_dir: Path | None) -> int:
    """Write down OS, packages, torch, GPUs, network, git state and runs; without secrets. `snapshot diff A B` compares two."""
    if ctx.invoked_subcommand is not None:
        return 0
    from seatrial.launch.infrastructure import collect
    from seatrial.runs.files import write_json
    from seatrial.runs.paths import runs_dir as default_runs_dir

    document = collect(default_runs_dir(runs_dir), Path.cwd())
    try:
        write_json(output, document)
    except OSError as error:
        raise SpecError(f"{output} can't be written", evidence=str(error), remedy="-o FILE") from error
    gpus = document["gpus"]
    click.echo(
        f"{output}: {document['os']['release']}, {len(document.get('packages', ()))} packages, "
        + (f"{len(gpus)} GPUs" if isinstance(gpus, list) else "no GPU that nvidia-smi tells of")
    )
    return 0


@snapshot.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def diff(first: Path, second: Path, as_json: bool) -> int:
    """What changed from one snapshot to another, in words."""
    from seatrial.launch.infrastructure import differences

    lines = differences(_read(first), _read(second))
    if as_json:
        click.echo(json.dumps(lines, indent=2, ensure_ascii=False))
        return 0
    for line in lines or ["nothing has changed"]:
        click.echo(line)
    return 0


def _read(path: Path) -> dict[str, object]:
    from seatrial.runs.files import read_json

    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path} can't be read", evidence=str(error), remedy="seatrial snapshot -o FILE makes one"
        ) from error
    if not isinstance(found, dict) or "taken" not in found:
        raise SpecError(
            f"{path} is no snapshot" if found is not None else f"there is no {path}",
            remedy="seatrial snapshot -o FILE makes one",
        )
    return found
