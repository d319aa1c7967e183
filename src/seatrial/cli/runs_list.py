"""``seatrial runs list`` and ``stats``: many runs at once, by way of the index."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seatrial.errors import PlatformError, SpecError

if TYPE_CHECKING:
    from seatrial.runs.index import Index

_RUNS_DIR = click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
_WHERE = click.option(
    "--where",
    metavar="FILTER",
    help="Such as: state = completed and tags contains infra and eval.accuracy > 0.9",
)
_ENDED = ("completed", "failed", "interrupted", "preempted", "lost")
_BY = ("task", "model", "platform", "tag", "month", "name", "gpu", "version")


@click.command("list")
@_RUNS_DIR
@click.option("--tag", help="Only runs with this tag.")
@_WHERE
@click.option("--sort", metavar="FIELD", help="By a field, -FIELD for the largest first [oldest first].")
@click.option("--limit", type=click.IntRange(min=1), help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_runs(
    runs_dir: Path | None,
    tag: str | None,
    where: str | None,
    sort: str | None,
    limit: int | None,
    as_json: bool,
) -> int:
    """The runs, oldest first."""
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.runs.where import field, order

    root = default_runs_dir(runs_dir)
    sql, values = _condition(where, tag)
    sorting = order(sort) if sort else "run_id"
    index = _index(root)
    rows = list(index.rows(sql, values, sorting, limit or -1))
    if as_json:
        click.echo(json.dumps(_documents(root, rows), indent=2))
        return 0
    if not rows:
        some = f" with the tag {tag!r}" if tag else " that fit" if where else ""
        click.echo(f"no runs in {root}{some}", err=True)
    tags = index.tags(sql, values)
    width = max((len(row["run_id"]) for row in rows), default=0)
    lines = []
    for row in rows:
        verdict = row["verdict"] or ("" if row["task"] in {"script", "check"} else "not compared")
        shown = f"  {_number(index.value(row['run_id'], field(sort.lstrip('-'))))}" if sort else ""
        its = ",".join(tags.get(row["run_id"], ()))
        lines.append(
            f"{row['run_id']:<{width}}  {row['state']:<11}  {verdict:<12}  {its}{shown}".rstrip() + "\n"
        )
    click.echo("".join(lines), nl=False)
    return 0


@click.command()
@_RUNS_DIR
@_WHERE
@click.option("--tag", help="Only runs with this tag.")
@click.option("--by", type=click.Choice(_BY), help="A row for each of these instead of one for all.")
@click.option("--price", type=click.FloatRange(min=0), help="Of a GPU-hour.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--csv", "as_csv", is_flag=True, help="A table for spreadsheets on stdout.")
def stats(
    runs_dir: Path | None,
    where: str | None,
    tag: str | None,
    by: str | None,
    price: float | None,
    as_json: bool,
    as_csv: bool,
) -> int:
    """How many runs, how long, how good, at what cost, and what they failed of."""
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.runs.stats import collect

    root = default_runs_dir(runs_dir)
    sql, values = _condition(where, tag)
    index = _index(root)
    rows = collect(index, sql, values, by=by, price=price)
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif as_csv:
        writer = csv.DictWriter(
            sys.stdout,
            [key for key in rows[0] if key != "failures"],
            extrasaction="ignore",
            lineterminator="\n",
        )
        writer.writeheader()
        writer.writerows(rows)
    else:
        for row in rows:
            _print(row, by)
    return 0


def _documents(root: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The manifests of some runs; one that this version can't read is said and left out."""
    from seatrial.runs.manifest import read_manifest
    from seatrial.runs.paths import RunPaths

    found = []
    for row in rows:
        try:
            found.append(read_manifest(RunPaths(root / row["run_id"])).model_dump(mode="json", by_alias=True))
        except (SpecError, OSError) as error:
            click.echo(f"skipped {row['run_id']}: {error}", err=True)
    return found


def _print(row: dict[str, Any], by: str | None) -> None:
    if by is not None:
        click.echo(f"{by} {row[by] if row[by] is not None else 'unknown'}")
    states = ", ".join(f"{row[state]} {state}" for state in _ENDED if row[state])
    click.echo(f"  runs         {row['runs']}" + (f": {states}" if states else ""))
    click.echo(
        f"  run time     {row['run_time_h']:.1f} h, {row['gpu_hours']:.1f} GPU-hours"
        + (f", {row['cost']:.2f} at that price" if row["cost"] is not None else "")
    )
    click.echo(f"  loss         mean {_number(row['mean_loss'])}, best {_number(row['best_loss'])}")
    click.echo(
        f"  verdicts     {row['better']} better, {row['no_evidence']} no evidence, {row['worse']} worse"
    )
    click.echo(
        f"  utilisation  {'UNMEASURED' if row['utilisation'] is None else _number(row['utilisation'])}"
    )
    for what, count in row["failures"].items():
        click.echo(f"  failed {count} ×  {what}")


def _number(value: Any) -> str:
    return "not measured" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _condition(where: str | None, tag: str | None) -> tuple[str, tuple[Any, ...]]:
    from seatrial.runs.where import parse

    parts: list[str] = []
    values: list[Any] = []
    if where is not None:
        query = parse(where)
        parts.append(query.sql)
        values += query.values
    if tag is not None:
        try:
            tag.encode()
        except UnicodeEncodeError as error:
            raise SpecError("the tag is not UTF-8", evidence=ascii(tag)) from error
        parts.append("EXISTS (SELECT 1 FROM tags t WHERE t.run_id = runs.run_id AND t.tag = ?)")
        values.append(tag)
    return " AND ".join(parts) or "1", tuple(values)


def _index(root: Path) -> Index:
    """The index, after runs that may have moved on were asked about."""
    from seatrial.runs.index import Index

    def say(text: str) -> None:
        click.echo(text, err=True)

    index = Index(root, say=say)
    active = [row["run_id"] for row in index.rows(f"state NOT IN ({', '.join('?' * len(_ENDED))})", _ENDED)]
    if active:
        _settle_all(root, active)
        index.close()
        index = Index(root, say=say)
    for run_id, error in index.unreadable().items():
        click.echo(f"skipped {run_id}: its manifest can't be read: {error}", err=True)
    return index


def _settle_all(root: Path, run_ids: list[str]) -> None:
    from seatrial.launch import launcher
    from seatrial.runs.manifest import read_manifest
    from seatrial.runs.paths import RunPaths

    away: set[str] = set()
    unheard = []
    for run_id in run_ids:
        paths = RunPaths(root / run_id)
        try:
            manifest = settled(paths, read_manifest(paths), away)
        except (SpecError, OSError, ValueError) as error:
            click.echo(f"skipped {run_id}: {error}", err=True)
            continue
        if manifest.reason.endswith(launcher.LAST_HEARD):
            unheard.append(manifest)
    if unheard:
        click.echo(
            f"{len(unheard)} runs are listed as they were last heard of: {unheard[0].reason}", err=True
        )


def settled(paths: Any, found: Any, away: set[str]) -> Any:
    """A run's state as it is now; as it was last seen where its platform does not answer, which is asked once only."""
    from seatrial.launch import launcher

    handle = (found.attempt.handle if found.attempts else None) or ""
    platform = handle.partition(":")[0]
    if platform in away:
        return found
    try:
        return launcher.settle(paths)
    except PlatformError as error:
        away.add(platform)
        click.echo(f"{error.what} ({error.evidence}): this is what was last seen of runs there", err=True)
        return found
