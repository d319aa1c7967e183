"""Which checkpoints stay: the last N, the best K by held-out loss, and one every M steps for ever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """A committed checkpoint, as the policy sees it."""

    step: int
    held_out_loss: float | None = None
    """Of an evaluation at this very step; None where there was none."""


@dataclass(frozen=True, slots=True)
class Retention:
    """A checkpoint stays when one of the three rules wants it."""

    last: int
    best: int = 0
    every: int | None = None

    def superfluous(self, checkpoints: Iterable[Kept]) -> list[int]:
        """The steps of the checkpoints that no rule wants, oldest first. The newest always stays."""
        by_step = sorted(checkpoints, key=lambda c: c.step)
        by_loss = sorted(
            (c for c in by_step if c.held_out_loss is not None),
            key=lambda c: (c.held_out_loss, -c.step),
        )
        wanted = {c.step for c in by_step[-max(1, self.last) :]} | {c.step for c in by_loss[: self.best]}
        return [
            c.step
            for c in by_step
            if c.step not in wanted and not (self.every is not None and c.step % self.every == 0)
        ]
