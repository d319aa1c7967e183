"""``seatrial runs compare``: several runs in one table, with what can be said between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seatrial.errors import ExitCode, SeatrialError, SpecError

if TYPE_CHECKING:
    from seatrial.compare.several import RunFacts
    from seatrial.runs.paths import RunPaths


@click.command("compare")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--tag", help="All runs with this tag, such as those of a sweep.")
@click.option("--metric", help="What they are compared by [the recipes', else accuracy or nll].")
@click.option(
    "--sort",
    metavar="FIELD",
    help="In the table: by a field of `runs list`, such as -eval.accuracy [as given].",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def compare_runs(
    names: tuple[str, ...],
    tag: str | None,
    metric: str | None,
    sort: str | None,
    as_json: bool,
    runs_dir: Path | None,
) -> int:
    """Runs side by side: where their recipes differ, what came out, the best against each other one.

    Of a run that has predictions but no comparison with the original yet, that is made first and kept with the run.
    """
    from seatrial.runs.manifest import Manifest, find_run, iter_manifests
    from seatrial.runs.paths import runs_dir as default_runs_dir

    root = default_runs_dir(runs_dir)
    chosen = {paths.run_id: paths for paths in (find_run(name, root) for name in names)}
    if tag is not None:
        for paths, found in iter_manifests(root):
            if isinstance(found, Manifest) and tag in found.tags:
                chosen.setdefault(paths.run_id, paths)
    if not chosen:
        raise SpecError(
            "there is nothing to compare",
            evidence=f"no run in {root} has the tag {tag!r}" if tag else "neither a RUN nor --tag was given",
            remedy="seatrial runs list    (the tags are in its last column)",
        )
    runs = list(chosen.values())
    result = gather(in_order(runs, root, sort) if sort else runs, metric)
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print_table(result)
    return int(ExitCode.OK if result["best"] is not None else ExitCode.INCOMPLETE)


def in_order(runs: Sequence[RunPaths], root: Path, sort: str) -> list[RunPaths]:
    """Runs by a field of the index; those outside of the runs directory last."""
    from seatrial.runs.index import Index
    from seatrial.runs.where import order

    marks = ", ".join("?" * len(runs))
    by_id = {paths.run_id: paths for paths in runs}
    found = [
        by_id[row["run_id"]] for row in Index(root).rows(f"run_id IN ({marks})", list(by_id), order(sort))
    ]
    return found + [paths for paths in runs if paths not in found]


def gather(runs: Sequence[RunPaths], metric: str | None = None) -> dict[str, Any]:
    """Everything about some runs that stands in the table.

    Raises:
        SpecError: they are of different tasks, or there is no such metric.
    """
    from seatrial.compare.metrics import choose_metric
    from seatrial.compare.several import compare_runs
    from seatrial.spec.load import read_spec
    from seatrial.spec.run import RunSpec

    specs = [read_spec(paths.spec) for paths in runs]
    tasks = {spec.task for spec in specs}
    if len(tasks) > 1 or tasks == {"script"}:
        raise SpecError(
            "these runs can't be compared",
            evidence=f"they are of the task {' and '.join(sorted(tasks))}",
            remedy="name runs of one task, which Seatrial trained",
        )
    gates = [spec.gates.compare for spec in specs if isinstance(spec, RunSpec)]
    named = {gate.metric for gate in gates}
    chosen = choose_metric(metric or (named.pop() if len(named) == 1 else None), tasks.pop())
    confidence = max(gate.confidence for gate in gates)
    facts = [
        _facts(paths, spec) for paths, spec in zip(runs, specs, strict=True) if isinstance(spec, RunSpec)
    ]
    return compare_runs(facts, chosen, confidence=confidence)


def _facts(paths: RunPaths, spec: Any) -> RunFacts:
    from seatrial.cli.outcome import compare_run
    from seatrial.compare.several import RunFacts
    from seatrial.launch import launcher
    from seatrial.runs.files import read_json
    from seatrial.spec.changes import leaves

    manifest = launcher.settle(paths)
    why, comparison = "", None
    missing = [name for name in ("original", "trained") if not paths.predictions(name).exists()]
    if not manifest.state.is_terminal:
        why = "it has not ended"
    elif missing:
        why = f"it has no predictions of the {' and the '.join(missing)} model"
    else:
        try:
            stale = not paths.comparison.exists() or any(
                paths.predictions(name).stat().st_mtime > paths.comparison.stat().st_mtime
                for name in ("original", "trained")
            )
            comparison = compare_run(paths, spec.gates.compare) if stale else read_json(paths.comparison)
        except SeatrialError as error:
            why = error.what
    return RunFacts(
        run_id=paths.run_id, state=str(manifest.state), recipe=leaves(spec.model_dump(mode="json", by_alias=True)),
        comparison=comparison, predictions=paths.predictions("trained"), why=why,
    )  # fmt: skip


def print_table(result: dict[str, Any]) -> None:
    """The result for people."""
    from seatrial.compare.table import lines

    for line in lines(result):
        click.echo(line)
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
