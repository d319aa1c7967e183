"""Whether the ranks are started once more after a failure, and how long to wait before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from seatrial.errors import ExitCode

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0


@dataclass
class Restarts:
    """The restarts of one stage.

    Each costs one of `most`, and two when the ranks got less far than the time before. Two failures in a row at the
    same step end it at once: what fails there will fail there again.
    """

    most: int
    used: int = 0
    reason: str = ""
    """Why there is no further restart."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    _last_step: int | None = None

    def wait_s(self, failure: dict[str, Any], step: int) -> float | None:
        """Seconds to wait before the ranks are started again (1, 2, 4, … 60), or None when they are not.

        Args:
            failure: as `verdict.first_failure` gives it; only failures of the platform are worth another start.
            step: the highest step that a rank had begun.
        """
        if failure["exit_code"] != ExitCode.PLATFORM or self.most == 0:
            return None
        if step == self._last_step:
            self.reason = f"step {step} failed twice in a row"
            return None
        cost = 1 if self._last_step is None or step > self._last_step else 2
        if self.used + cost > self.most:
            self.reason = f"{len(self.rows)} restarts did not help (train.max_restarts is {self.most})"
            return None
        self.used += cost
        self._last_step = step
        wait_s = min(_FIRST_WAIT_S * 2.0 ** len(self.rows), _LONGEST_WAIT_S)
        self.rows.append(
            {"step": step, "wait_s": wait_s, "rank": failure["rank"], "what": failure["what"]},
        )
        return wait_s
