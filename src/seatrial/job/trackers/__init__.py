"""What an experiment tracker is told of a run, the same for each of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast


@dataclass(frozen=True, slots=True)
class About:
    """A run, as trackers know runs."""

    run_id: str
    name: str
    """The experiment, or project."""
    tags: tuple[str, ...]
    parameters: Mapping[str, Any]
    """The recipe, by dotted key."""
    directory: Path


class Tracker(Protocol):
    """One connection to a tracker. Whatever it raises is its own: the caller notes it and tries again later."""

    def begin(self, about: About, known: str | None) -> tuple[str, str]:
        """Starts a run there, or goes on with the one that is known. Returns its id, and its address for people."""

    def log(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
        """Metrics by step: ``(step, seconds since the epoch, values)``."""

    def finish(self, summary: Mapping[str, float], *, well: bool) -> None:
        """Last figures, and how it went; sends what is still here."""


def connect(name: str) -> Tracker:
    """The tracker of a name: a class ``Connection`` in the module of that name."""
    return cast(Tracker, importlib.import_module(f"seatrial.job.trackers.{name}").Connection())
