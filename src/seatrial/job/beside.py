"""A program beside the training, as its agent sees it: it lives as long as the attempt, and ends when asked, or is ended."""

from __future__ import annotations

import os
import signal

from seatrial import command
from seatrial.job import processes
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan


class Beside:
    """One of Seatrial's own programs, on this node.

    Args:
        plan: the attempt's.
        name: of the module below `seatrial.job`, and of its log.
        words: more arguments, after the run's directory.
        node_rank: this node's.
    """

    def __init__(self, plan: LaunchPlan, name: str, *words: str, node_rank: int = 0) -> None:
        self._process = command.start(
            [plan.python, "-m", f"seatrial.job.{name}", str(plan.run_dir), *words],
            log=RunPaths(plan.run_dir).attempt(plan.attempt).launcher_log(name, node_rank),
            env=os.environ,
            cwd=plan.cwd,
        )
        # It outlives each stage's ranks.
        processes.keep(self._process.pid)

    def finish(self, patience_s: float) -> None:
        """Has it do what is left, for so many seconds at most."""
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(patience_s) is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(1.0)
