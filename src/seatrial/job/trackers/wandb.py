"""Weights & Biases, by its own library; `WANDB_MODE=offline` keeps all in the run directory for ``wandb sync``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seatrial.job.trackers import About


class Connection:
    """See `trackers.Tracker`."""

    def __init__(self) -> None:
        import wandb

        self._library: Any = wandb
        self._run: Any = None

    def begin(self, about: About, known: str | None) -> tuple[str, str]:
        """The project is `WANDB_PROJECT`, or the run's name."""
        import os

        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT") or about.name, id=known or about.run_id, name=about.run_id, resume="allow",
            tags=list(about.tags) or None, config=dict(about.parameters), dir=str(about.directory),
            settings=self._library.Settings(silent=True, init_timeout=30, disable_git=True, disable_code=True, x_disable_stats=True),
        )  # fmt: skip
        return str(self._run.id), str(self._run.url or self._run.dir)

    def log(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
        """By step; W&B takes none that is earlier than the latest."""
        for step, _, values in rows:
            self._run.log({**values, "step": step})

    def finish(self, summary: Mapping[str, float], *, well: bool) -> None:
        """As the run's summary."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if well else 1)
