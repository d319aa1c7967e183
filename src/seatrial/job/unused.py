"""Stops ranks whose devices are not used: idle for too long, or under the recipe's gate for too long."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from seatrial.errors import ExitCode
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.telemetry import IDLE_PCT, METRICS, Header, last_rows

_LOOK_EVERY_S = 5.0
_TAIL_BYTES = 65536


class UseWatch:
    """Looks at what the samplers of all nodes wrote, now and then.

    Args:
        plan: says when to stop.
        clock: seconds since the epoch, as the samplers have them.
    """

    def __init__(self, plan: LaunchPlan, clock: Callable[[], float] = time.time) -> None:
        self._plan = plan
        self._clock = clock
        self._attempt = RunPaths(plan.run_dir).attempt(plan.attempt)
        self._looked_at = float("-inf")
        self._used_at = clock()
        self._seen: dict[int, float] = {}
        self._rows: deque[tuple[float, float]] = deque()

    @property
    def is_needed(self) -> bool:
        """Whether the plan stops anything."""
        return self._plan.stop_idle_s is not None or self._plan.stop_below is not None

    def look(self, step: int) -> dict[str, Any] | None:
        """The failure to stop with, once it is time to; None before.

        Args:
            step: the highest that any rank has begun; the gate counts training alone, from the second step on.
        """
        now = self._clock()
        if not self.is_needed or now - self._looked_at < _LOOK_EVERY_S:
            return None
        self._looked_at = now
        rows = self._new_rows()
        if not rows:
            return None  # an idle device is one that was seen to be idle
        for at, busiest, _ in rows:
            if busiest >= IDLE_PCT:
                self._used_at = max(self._used_at, at)
        idle_s = max(self._seen.values()) - self._used_at
        if self._plan.stop_idle_s is not None and idle_s >= self._plan.stop_idle_s:
            return self._failure(
                f"no device has done anything for {idle_s / 60:.1f} minutes",
                f"each was under {IDLE_PCT:g} %; gates.utilisation.stop_idle_minutes is {self._plan.stop_idle_s / 60:g}",
            )
        return self._below([(at, mean) for at, _, mean in rows], step)

    def _below(self, rows: list[tuple[float, float]], step: int) -> dict[str, Any] | None:
        wanted = self._plan.stop_below
        if wanted is None:
            return None
        if step < 2:
            self._rows.clear()
            return None
        self._rows += rows
        while self._rows and self._rows[-1][0] - self._rows[0][0] > wanted["patience_s"]:
            self._rows.popleft()
        span = self._rows[-1][0] - self._rows[0][0] if self._rows else 0.0
        # A row short of the patience, since the oldest one has just gone.
        if span < 0.9 * wanted["patience_s"]:
            return None
        mean = sum(use for _, use in self._rows) / len(self._rows)
        if mean >= wanted["min_pct"]:
            return None
        return self._failure(
            f"the devices are used {mean:.1f} %, and {wanted['min_pct']:g} % is required",
            f"mean of all devices over the last {span / 60:.1f} minutes of training; gates.utilisation.on_fail is stop",
        )

    def _failure(self, what: str, evidence: str) -> dict[str, Any]:
        return {
            "exit_code": int(ExitCode.FAILED), "what": what, "evidence": evidence,
            "remedy": f"seatrial watch {self._plan.run_id} --require 80    (says what holds the devices up)",
            "rank": None, "last_lines": [], "told": True,
        }  # fmt: skip

    def _new_rows(self) -> list[tuple[float, float, float]]:
        """Of each row that no earlier look saw: time, use of the busiest device, mean over devices; in percent."""
        found = []
        for node_rank in range(self._plan.nodes):
            header, rows = last_rows(self._attempt.telemetry(node_rank), _TAIL_BYTES)
            last = self._seen.get(node_rank, 0.0)
            new = [row for row in rows if row["t"] > last]
            if header is None or not new:
                continue
            self._seen[node_rank] = new[-1]["t"]
            found += [seen for row in new if (seen := _use(header, row)) is not None]
        return sorted(found)


def _use(header: Header, row: dict[str, Any]) -> tuple[float, float, float] | None:
    column = METRICS[header.metric][0]
    told = [device[column] for device in row.get("d", ()) if column in device]
    return (row["t"], max(told), sum(told) / len(told)) if told else None
