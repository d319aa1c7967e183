"""Watching an attempt through the files that it writes; the same on every platform."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan

_PHASES = {
    "loading": "loading data and model",
    "training": "training",
    "saving": "saving the trained model",
    "predicting": "predicting",
    "stopped": "stopped",
}


class Tail:
    """The lines that were added to a file since the last look; a file that is not there yet has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def lines(self) -> list[str]:
        """Whole lines only; the rest waits for its end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(added)
        *whole, self._rest = (self._rest + added).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


@dataclass
class Progress:
    """Where an attempt is, as its files tell it."""

    phase: str = "starting the ranks"
    num_steps: int | None = None
    from_step: int = 0
    step: int = 0
    loss: float | None = None
    samples_per_s: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    notes: list[str] = field(default_factory=list)
    """Things to say once: a checkpoint that was damaged."""


class Follower:
    """Reads rank 0's events and metrics as they grow."""

    def __init__(self, plan: LaunchPlan) -> None:
        paths = RunPaths(plan.run_dir)
        attempt = paths.attempt(plan.attempt)
        self._attempt = plan.attempt
        self._events = Tail(attempt.rank_events(0))
        self._metrics = Tail(paths.metrics)
        self._evidence = Tail(paths.evidence)
        self.progress = Progress()
        self.rank_logs = {rank: Tail(attempt.rank_log(rank)) for rank in range(plan.world_size)}

    def poll(self) -> Progress:
        """Reads what is new."""
        progress = self.progress
        for row in _rows(self._events):
            progress.phase = _PHASES.get(row["event"], progress.phase)
            if row["event"] == "started":
                progress.phase = f"starting to {row['stage']}"
            if row["event"] == "training":
                progress.num_steps, progress.from_step = row["num_steps"], row["from_step"]
                progress.step = row["from_step"]
            if row["event"] == "checking":
                progress.phase = row["text"]
            if row["event"] == "note":
                progress.notes.append(row["text"])
            if row["event"] == "predicting":
                progress.phase = (
                    f"predicting {row['num_samples']} held-out samples with the {row['model']} model"
                )
        for row in _rows(self._metrics):
            if row.get("attempt") == self._attempt:
                self._on_metric(row)
        for row in _rows(self._evidence):
            if (
                row.get("attempt") == self._attempt
                and row["verdict"] == "WARN"
                and row["check"].startswith(("checkpoint_", "loss_finite", "loss_steady"))
            ):
                progress.notes.append(row["message"])
        return progress

    def _on_metric(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            self.progress.step, self.progress.loss = row["step"], row["loss"]
            self.progress.samples_per_s = row["samples_per_s"]
        elif row["kind"] == "eval":
            self.progress.eval_loss, self.progress.eval_accuracy = row["loss"], row["accuracy"]


def _rows(tail: Tail) -> list[dict[str, Any]]:
    rows = []
    for line in tail.lines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
