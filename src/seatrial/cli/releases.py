"""``seatrial releases``: what was promoted, by whom, on which evidence, and whether it is sound."""

from __future__ import annotations

import json

import click

from seatrial.cli.rollback import TARGET

_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group()
def releases() -> None:
    """List, show and verify what was promoted to a target."""


@releases.command("list")
@TARGET
@_JSON
def list_releases(target: str, as_json: bool) -> int:
    """Each name, its current version, and how many are kept."""
    from seatrial.ship.target import Target, names_at

    rows = []
    for name in names_at(target):
        place = Target(target, name)
        versions, (current, _) = place.versions(), place.current()
        record = versions.get(current or "", {})
        rows.append(
            {"name": name, "current": current, "versions": sum(r["complete"] for r in versions.values()),
             "run_id": record.get("run_id"), "time": (record.get("by") or {}).get("time"), "override": record.get("override", "")}
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    if not rows:
        click.echo(f"nothing was promoted to {target}", err=True)
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        over = "  overridden" if row["override"] else ""
        click.echo(
            f"{row['name']:<{width}}  {row['current'] or 'none':<5}  {row['versions']} kept  {row['run_id'] or ''}  "
            f"{(row['time'] or '')[:10]}{over}".rstrip()
        )
    return 0


@releases.command()
@click.argument("name")
@TARGET
@_JSON
def show(name: str, target: str, as_json: bool) -> int:
    """Every version of NAME with its evidence, and every switch."""
    from seatrial.errors import SpecError
    from seatrial.ship.promote import standing
    from seatrial.ship.target import Target

    place = Target(target, name)
    versions, (current, _), history = place.versions(), place.current(), place.history()
    if not versions:
        raise SpecError(
            f"nothing was promoted as {name!r}",
            evidence=target,
            remedy=f"seatrial releases list --target {target}",
        )
    if as_json:
        facts = {
            "name": place.name,
            "current": current,
            "versions": list(versions.values()),
            "history": history,
        }
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    for version, record in versions.items():
        by = record.get("by") or {}
        click.echo(f"{version}  {standing(record, version, current)}: {record.get('run_id')}")
        click.echo(
            f"    by {by.get('user')} on {by.get('host')}, {by.get('time')}, SHA-256 {str(record.get('sha256'))[:16]}…"
        )
        for link in record.get("links", ()):
            click.echo(
                f"    {link['name']}: {link['found']} (required {link['required']}): {link['message']}"
            )
        if record.get("override"):
            click.echo(f"    overridden: {record['override']}")
    for row in history:
        why = f" ({row['override']})" if row.get("override") else ""
        click.echo(
            f"{row.get('time')}  {row['kind']}: {row.get('previous') or 'none'} → {row['version']}{why}"
        )
    return 0


@releases.command()
@click.argument("name")
@click.argument("version", required=False)
@TARGET
@_JSON
def verify(name: str, version: str | None, target: str, as_json: bool) -> int:
    """Read and hash every file of a version [the current one]. Exit code 1 where something is wrong."""
    from seatrial.errors import SpecError
    from seatrial.ship.promote import damage
    from seatrial.ship.target import Target

    place = Target(target, name)
    version = version or place.current()[0]
    if version is None:
        raise SpecError(f"{name!r} has no current version", evidence=target)
    wrong = damage(place, version)
    if as_json:
        click.echo(
            json.dumps({"name": place.name, "version": version, "wrong": wrong}, indent=2, ensure_ascii=False)
        )
    else:
        for line in wrong:
            click.echo(f"✗ {line}")
        files = (place.marker(version) or {}).get("files", {})
        click.echo(
            f"{place.name}/{version}: "
            + (f"{len(wrong)} problems" if wrong else f"all {len(files)} files are sound")
        )
    return 1 if wrong else 0
