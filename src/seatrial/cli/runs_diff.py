"""``seatrial runs diff``: what was different between two runs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def diff(first: str, second: str, as_json: bool, runs_dir: Path | None) -> int:
    """What differs between two runs: recipe, data, code, packages, hardware, how they went and what they came to."""
    from seatrial.runs.differences import differences
    from seatrial.runs.manifest import find_run
    from seatrial.runs.paths import runs_dir as default_runs_dir

    root = default_runs_dir(runs_dir)
    found = differences(find_run(first, root), find_run(second, root))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for section, rows in found.items():
        click.echo(section)
        for key, (before, after) in rows.items():
            click.echo(f"  {key}: {_text(before)} → {_text(after)}")
    if not found:
        click.echo("nothing that is recorded differs")
    return 0


def _text(value: object) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
