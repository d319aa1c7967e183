"""``seatrial compare``: a run, or two prediction files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from seatrial.errors import ExitCode, IncompleteError, SpecError


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="RUN | ORIGINAL.parquet TRAINED.parquet")
@click.option("--metric", help="What the verdict rests on [the recipe's, else accuracy or nll].")
@click.option("--require", type=click.Choice(["better", "not worse"]), help="Exit with 1 unless it is so.")
@click.option("--min-improvement", type=float, help="Smallest improvement, in the metric's unit.")
@click.option("--confidence", type=float, help="Of intervals and verdict [0.95].")
@click.option("--output", type=click.Path(path_type=Path), help="Write the whole comparison there, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole comparison as JSON.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def compare(
    targets: tuple[str, ...], output: Path | None, as_json: bool, runs_dir: Path | None, **chosen: Any
) -> int:
    """Is the trained model better than the original, on the same samples?"""
    from seatrial.compare import write_comparison

    given = {key: value for key, value in chosen.items() if value is not None}
    result = _files(targets, given) if len(targets) == 2 else _run(targets, given, runs_dir)
    if output is not None:
        write_comparison(output, result)
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        verdict, gate = result["verdict"], result["gate"]
        click.echo(verdict["sentence"])
        click.echo(f"verdict: {verdict['verdict']} ({verdict['reason']})")
        for warning in result.get("warnings", []):
            click.echo(f"warning: {warning}", err=True)
        if gate["passed"] is not None:
            click.echo(f"gate: {'passed' if gate['passed'] else 'not met'} ({gate['reason']})")
    return int(ExitCode.FAILED if result["gate"]["passed"] is False else ExitCode.OK)


def _files(targets: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    from seatrial.compare import compare_files

    return compare_files(Path(targets[0]), Path(targets[1]), **given)


def _run(targets: tuple[str, ...], given: dict[str, Any], runs_dir: Path | None) -> dict[str, Any]:
    from seatrial.cli.outcome import compare_run
    from seatrial.runs.manifest import find_run
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.spec.load import read_spec
    from seatrial.spec.run import RunSpec

    if len(targets) != 1:
        raise SpecError(
            "compare takes one run or two prediction files", evidence=f"{len(targets)} were given"
        )
    paths = find_run(targets[0], default_runs_dir(runs_dir))
    spec = read_spec(paths.spec)
    if not isinstance(spec, RunSpec):
        raise SpecError(
            f"{paths.run_id} is a script's run", evidence="it has no predictions that Seatrial made"
        )
    for name in ("original", "trained"):
        if not paths.predictions(name).exists():
            raise IncompleteError(
                f"the run has no predictions of the {name} model",
                evidence=f"{paths.predictions(name)} does not exist",
                remedy=f"seatrial predict {paths.run_id}",
            )
    gate = type(spec.gates.compare).model_validate(spec.gates.compare.model_dump() | given)
    return compare_run(paths, gate)
