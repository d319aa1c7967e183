"""``seatrial promote``: a release becomes what others load, when the evidence says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("what", metavar="RUN|RELEASE")
@click.option("--to", "target", required=True, metavar="TARGET", help="A directory, or s3://bucket/prefix.")
@click.option("--as", "name", required=True, metavar="NAME", help="What the model is called there.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="YAML: require: {compare: better, check: pass} [compare: better].",
)
@click.option(
    "--override",
    default="",
    metavar="REASON",
    help="Promote although the policy refuses; on record for ever.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check the evidence and say what would be done; touch nothing there."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def promote(
    what: str,
    target: str,
    name: str,
    policy: Path | None,
    override: str,
    dry_run: bool,
    as_json: bool,
    runs_dir: Path | None,
) -> int:
    """Copy a release to TARGET under the next version of NAME, verify it there, and make it current in one step.

    A RUN is packaged first. Exit code 1: something was measured and did not pass; 3: required evidence is missing.
    """
    from seatrial.ship import chain
    from seatrial.ship.promote import promote as ship
    from seatrial.ship.target import Target

    required = chain.DEFAULT if policy is None else chain.read_policy(policy)
    place = Target(target, name)
    release, run = _release(what, runs_dir)
    done = ship(
        release,
        place,
        required,
        override=override,
        run=run,
        dry_run=dry_run,
        say=lambda text: click.echo(text, err=True),
    )
    if as_json:
        facts: dict[str, Any] = {
            "name": place.name, "target": place.url, "version": done.version, "previous": done.previous,
            "sha256": release.sha256, "override": done.overridden, "links": [link.to_dict() for link in done.links],
        }  # fmt: skip
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    for link in done.links:
        click.echo(f"{'✓' if link.standing == 'shown' else '✗'} {link}", err=True)
    if done.overridden:
        click.echo(f"overridden: {done.overridden}", err=True)
    if done.version is not None:
        was = f"; it was {done.previous}" if done.previous else ""
        click.echo(f"{place.url}/{place.name} is {done.version}{was}")
        click.echo(f"back     seatrial rollback {place.name} --target {place.url}", err=True)
    elif dry_run:
        click.echo(f"would be promoted to {place.url}/{place.name}; nothing was changed")
    else:
        click.echo(f"{place.url}/{place.name} is {done.previous} already: the same release")
    return 0


def _release(what: str, runs_dir: Path | None) -> tuple[Any, Any]:
    """A release by its directory, or a run's, which is packaged where that was not done."""
    from seatrial.runs.manifest import find_run
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.ship import package

    path = Path(what)
    if path.is_dir() and not (path / "manifest.json").is_file():
        return package.open_release(path), None
    paths = find_run(what, default_runs_dir(runs_dir))
    return package.package(paths), paths
