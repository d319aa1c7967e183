"""One self-contained HTML page per run."""

from __future__ import annotations

from pathlib import Path

from seatrial.report.data import load
from seatrial.report.page import render
from seatrial.runs.files import write_text
from seatrial.runs.paths import RunPaths

__all__ = ["build_report"]


def build_report(paths: RunPaths) -> Path:
    """Draws what the run directory holds, and says what it lacks; returns where the page is.

    Raises:
        SpecError: it is not a run directory.
    """
    write_text(paths.report, render(load(paths)))
    return paths.report
