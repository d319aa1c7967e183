"""Tells trackers of a run: ``python -m seatrial.job.track RUN_DIR [--once]``, in a process of its own beside the training.

It reads what the training writes anyway. A tracker that is down, slow or hangs holds up nothing: what it was not told is told
later, or by ``--once`` at the end of the command, and what went wrong stands in ``tracking.json``.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from seatrial.job import processes
from seatrial.job.beside import Beside
from seatrial.job.trackers import About, Tracker, connect
from seatrial.runs import tracking
from seatrial.runs.clock import now
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan

_EVERY_S = 5.0
_POLL_S = 0.2
_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 120.0
_LAST_S = 20.0
_NOT_METRICS = {"kind", "step", "attempt", "time"}


def start_if_wanted(plan: LaunchPlan) -> Beside | None:
    """The process, where the recipe names trackers."""
    return Beside(plan, "track") if (read_json(RunPaths(plan.run_dir).spec) or {}).get("track") else None


class Teller:
    """One tracker, and what it has been told.

    Args:
        name: of the tracker.
        about: the run.
        known: of `tracking.json`, from earlier attempts.
        connect: makes the connection.
        clock: seconds.
    """

    def __init__(
        self, name: str, about: About, known: dict[str, Any], connect: Callable[[str], Tracker] = connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.name = name
        self.state = {"id": None, "url": None, "rows": 0, "error": None, **known}
        self._about = about
        self._connect = connect
        self._clock = clock
        self._tracker: Tracker | None = None
        self._wait_s = _FIRST_WAIT_S
        self._next = 0.0

    def tell(self, rows: list[tuple[int, float, dict[str, float]]], *, at_once: bool = False) -> None:
        """Tells what is new; a tracker that failed is left alone for a while first."""
        if not at_once and self._clock() < self._next:
            return
        self._guarded(lambda: self._told(rows))

    def finish(self, summary: dict[str, float], *, well: bool) -> None:
        """The end, where anything was begun."""
        if self._tracker is not None:
            self._guarded(lambda: self._connection().finish(summary, well=well))

    def _told(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
        tracker = self._connection()
        new = rows[self.state["rows"] :]
        if new:
            tracker.log(new)
            self.state["rows"] = len(rows)

    def _connection(self) -> Tracker:
        if self._tracker is None:
            tracker = self._connect(self.name)
            self.state["id"], self.state["url"] = tracker.begin(self._about, self.state["id"])
            self._tracker = tracker
        return self._tracker

    def _guarded(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except Exception as error:
            # Each library raises what it likes; none of it is the training's business.
            self.state["error"] = f"{type(error).__name__}: {error}"[:300]
            self._next, self._wait_s = self._clock() + self._wait_s, min(2 * self._wait_s, _LONGEST_WAIT_S)
            return
        self.state["error"], self._wait_s = None, _FIRST_WAIT_S


def rows_of(path: Path) -> list[tuple[int, float, dict[str, float]]]:
    """Every row of ``metrics.jsonl`` in the order of writing: step, time, and its finite numbers as ``train/loss`` and so on."""
    found = []
    for row in read_json_lines(path):
        values = {
            f"{row.get('kind', 'train')}/{key}": float(value)
            for key, value in row.items()
            if key not in _NOT_METRICS and isinstance(value, int | float) and math.isfinite(value)
        }
        if isinstance(row.get("step"), int) and values:
            found.append(
                (
                    row["step"],
                    datetime.fromisoformat(row["time"]).timestamp() if "time" in row else time.time(),
                    values,
                )
            )
    return found


def summary_of(paths: RunPaths) -> dict[str, float]:
    """What the comparison measured, where there is one."""
    comparison = read_json(paths.comparison) or {}
    return {
        f"{side}/{metric}": float(row[side])
        for metric, row in comparison.get("metrics", {}).items()
        for side in ("original", "trained", "difference")
        if isinstance(row.get(side), int | float)
    }


def main() -> int:
    """Tells until it is asked to end, then once more. Always 0: a tracker fails no run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--once", action="store_true", help="what is left, the comparison, and the end")
    args = parser.parse_args()
    paths, asked = RunPaths(args.run_dir), [args.once]

    def ask(number: int, frame: object) -> None:
        asked[0] = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not args.once:
        processes.die_with_parent()
    tellers = tellers_of(paths)
    while True:
        last = asked[0]
        rows = rows_of(paths.metrics)
        for teller in tellers:
            teller.tell(rows, at_once=last)
            if last and args.once:
                teller.finish(summary_of(paths), well=well(paths))
            if teller.state["error"]:
                print(f"{now()} {teller.name}: {teller.state['error']}", flush=True)  # noqa: T201 - its log
        tracking.write(paths.root, {teller.name: teller.state for teller in tellers})
        if last:
            return 0
        until = time.monotonic() + _EVERY_S
        while not asked[0] and time.monotonic() < until:
            time.sleep(_POLL_S)


def well(paths: RunPaths) -> bool:
    """Whether the latest attempt ended well."""
    manifest = read_json(paths.manifest) or {}
    attempts = manifest.get("attempts") or [{}]
    return (read_json(paths.attempt(len(attempts) - 1).exit) or {}).get("outcome") == "completed"


def tellers_of(paths: RunPaths) -> list[Teller]:
    """One for each tracker of the recipe."""
    spec = read_json(paths.spec)
    about = About(
        paths.run_id,
        spec["name"],
        tuple(spec.get("tags", ())),
        dict(_leaves({k: spec[k] for k in ("task", "model", "data", "train")})),
        paths.root,
    )
    known = tracking.read(paths.root)
    return [Teller(name, about, known.get(name, {})) for name in spec.get("track", ())]


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [
        leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}.{key}" if prefix else key)
    ]


if __name__ == "__main__":
    sys.exit(main())
