"""``tracking.json``: by tracker, its run's id and address, how many rows it was told, and what went wrong last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seatrial.runs.files import read_json, write_json

LIBRARIES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}
"""By tracker, the package that it takes; each is an extra of the same name."""


def path_of(run_dir: Path) -> Path:
    """Where a run keeps it."""
    return run_dir / "tracking.json"


def read(run_dir: Path) -> dict[str, dict[str, Any]]:
    """By tracker ``{id, url, rows, error}``; empty where nothing was tracked, or the file can't be read."""
    try:
        found = read_json(path_of(run_dir))
        return dict(found["trackers"]) if found else {}
    except (ValueError, KeyError, TypeError):
        return {}


def write(run_dir: Path, trackers: dict[str, dict[str, Any]]) -> None:
    """Replaces it."""
    write_json(path_of(run_dir), {"schema": 1, "trackers": trackers})
