"""``seatrial prune``: room on the disk, without losing what counts."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from seatrial.errors import ExitCode, SpecError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@click.command()
@click.option(
    "--what",
    type=click.Choice(["checkpoints", "runs"]),
    default="checkpoints",
    show_default=True,
    help="Checkpoints and what was left of broken ones, or whole runs.",
)
@click.option("--older-than", metavar="TIME", help="Only what was last changed so long ago: 7d, 12h.")
@click.option("--larger-than", metavar="SIZE", help="Only what takes more: 500M, 2G.")
@click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Newest checkpoints of each run that stay.",
)
@click.option(
    "--keep-best",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Checkpoints with the least held-out loss that stay.",
)
@click.option("--runs", "pattern", default="*", metavar="GLOB", help="Only runs whose ids match.")
@click.option(
    "--archive", metavar="URL", help="Copy there and verify first; `runs pull RUN --from URL` brings it back."
)
@click.option("--dry-run", is_flag=True, help="Show what would go; touch nothing.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def prune(
    what: str, older_than: str | None, larger_than: str | None, keep_last: int, keep_best: int, pattern: str, archive: str | None,
    dry_run: bool, yes: bool, as_json: bool, runs_dir: Path | None,
) -> int:  # fmt: skip
    """Show what can go and what that frees, ask, and remove it.

    Never goes: a run's newest and best checkpoint, a run that is active, packaged or promoted, what its mirror does not have yet,
    what Seatrial did not write, what lies behind a link. Whole runs with a model go only to an archive.
    """
    from seatrial.runs.files import size_text
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.runs.stores import open_store
    from seatrial.ship import prune as ship

    root, now = default_runs_dir(runs_dir), time.time()
    rules = ship.Rules(
        what="runs" if what == "runs" else "checkpoints", older_than_s=_seconds(older_than), larger_than=_bytes(larger_than),
        keep_last=keep_last, keep_best=keep_best, runs=pattern,
    )  # fmt: skip
    store = open_store(archive) if archive else None
    plan = ship.plan(root, rules, now, archived=store is not None)
    if as_json and (dry_run or not plan.candidates):
        click.echo(
            json.dumps(
                {"candidates": [asdict(c) for c in plan.candidates], "bytes": plan.bytes, "kept": plan.kept},
                indent=2,
            )
        )
        return 0
    _show(plan)
    if dry_run or not plan.candidates:
        return 0
    if not yes:
        if not sys.stdin.isatty():
            raise SpecError(
                "nobody is here to be asked",
                evidence="stdin is not a terminal",
                remedy="seatrial prune … --yes",
            )
        click.confirm(
            "Copy all of that to the archive, and remove it here?"
            if store
            else "Remove all of that for ever?",
            abort=True,
            err=True,
        )
    freed, stayed = ship.prune(
        root, plan.candidates, rules, now, store=store, say=lambda text: click.echo(f"gone: {text}", err=True)
    )
    if as_json:
        click.echo(json.dumps({"freed_bytes": freed, "stayed": stayed}, indent=2))
    else:
        for line in stayed:
            click.echo(f"stays: {line}", err=True)
        click.echo(f"{size_text(freed)} freed")
    return int(ExitCode.PLATFORM) if stayed else 0


def _show(plan: object) -> None:
    from seatrial.runs.files import size_text
    from seatrial.ship.prune import Plan

    assert isinstance(plan, Plan)
    rows = [(f"{c.run_id}/{c.name}".rstrip("/"), size_text(c.bytes), c.why) for c in plan.candidates]
    width = max((len(row[0]) for row in rows), default=0)
    for name, size, why in rows:
        click.echo(f"{name:<{width}}  {size:>10}  {why}", err=True)
    for run_id, reason in plan.kept.items():
        click.echo(f"kept: {run_id}: {reason}", err=True)
    click.echo(f"{len(rows)} to remove, {size_text(plan.bytes)}" if rows else "nothing to remove", err=True)


def _seconds(text: str | None) -> float:
    from seatrial.spec.duration import seconds

    try:
        return 0.0 if text is None else float(seconds(text))
    except ValueError as error:
        raise SpecError(f"--older-than {text}", evidence=str(error), remedy="--older-than 7d") from None


def _bytes(text: str | None) -> int:
    if text is None:
        return 0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise SpecError(f"{text!r} is no size", remedy="--larger-than 2G")
    return int(float(found[1]) * _UNITS[found[2].upper()])
