"""``seatrial rollback``: an earlier version becomes current again."""

from __future__ import annotations

import click

TARGET = click.option(
    "--target", envvar="SEATRIAL_RELEASES", required=True, metavar="TARGET",
    help="A directory, or s3://bucket/prefix [$SEATRIAL_RELEASES].",
)  # fmt: skip


@click.command()
@click.argument("name")
@TARGET
@click.option("--to", "version", metavar="VERSION", help="Such as v5 [the one that was current before].")
def rollback(name: str, target: str, version: str | None) -> int:
    """Make an earlier version of NAME current, after every file of it was verified."""
    from seatrial.ship.promote import rollback as ship
    from seatrial.ship.target import Target

    place = Target(target, name)
    now, was = ship(place, version)
    click.echo(f"{place.url}/{place.name} is {now}; it was {was}")
    return 0
