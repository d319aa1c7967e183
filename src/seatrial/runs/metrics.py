"""The training curve: ``metrics.jsonl``.

Rank 0 appends a row at every logging step: ``{"kind": "train", "step", "epoch", "loss", "learning_rate",
"grad_norm", "samples_per_s", "tokens_per_s", "elapsed_s", "attempt", "time"}``, and at every evaluation
``{"kind": "eval", "step", "loss", "accuracy"?, "attempt", "time"}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seatrial.runs.files import read_json_lines


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by kind, ``{"train": […], "eval": […]}``, each sorted by step with one row a step.

    A resumed attempt repeats the steps after its checkpoint; the row of the latest attempt holds.
    """
    by_kind: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "eval": {}}
    for row in read_json_lines(path):
        rows = by_kind.get(row.get("kind", ""))
        if rows is not None and isinstance(row.get("step"), int):
            rows[row["step"]] = row
    return {kind: [rows[step] for step in sorted(rows)] for kind, rows in by_kind.items()}
