"""The states of a run, one set for every platform."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run is. Each backend maps its scheduler's states to these, in one complete table."""

    SUBMITTING = "submitting"
    """Written before the scheduler is asked, so that a crash in between leaves a record."""
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    """Every stage ended well and no post-condition failed."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Stopped by its user; can be resumed."""
    PREEMPTED = "preempted"
    """Stopped by its platform; can be resumed."""
    LOST = "lost"
    """Its processes are gone and left no record of how they ended."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing of the run is running or waiting any more."""
        return self not in {RunState.SUBMITTING, RunState.PENDING, RunState.RUNNING}
