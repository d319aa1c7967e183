"""``releases.jsonl``: what became of a run's model. A run that has a row is kept by whatever cleans up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from seatrial.runs.clock import now
from seatrial.runs.files import append_json_line, read_json_lines

Kind = Literal["packaged", "promoting", "promoted"]


def path_of(run_dir: Path) -> Path:
    """Where a run keeps it."""
    return run_dir / "releases.jsonl"


def record(
    run_dir: Path, kind: Kind, *, target: str, name: str = "", version: str = "", sha256: str = ""
) -> None:
    """Adds a deed.

    Args:
        run_dir: the run's directory.
        kind: ``promoting`` before a version is made, so that a run whose promotion was killed is kept, too.
        target: where to: a directory or a URL.
        name: of the model there.
        version: such as ``v7``.
        sha256: of the release's files.
    """
    append_json_line(
        path_of(run_dir),
        {"kind": kind, "target": target, "name": name, "version": version, "sha256": sha256, "time": now()},
    )


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All deeds, oldest first."""
    return list(read_json_lines(path_of(run_dir)))
