"""The mirror of an attempt: ``python -m seatrial.job.mirror RUN_DIR``, beside the training and after everything else.

It takes what processor time others leave, sends what is new, and never fails an attempt: what it could not send is evidence.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from seatrial.errors import SeatrialError
from seatrial.job import processes
from seatrial.job.beside import Beside
from seatrial.runs import mirror
from seatrial.runs.clock import now
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan

_EVERY_S = 15.0
_POLL_S = 0.2
_LAST_S = 60.0
"""For what is left when the attempt has ended; the rest is for ``seatrial runs push``."""
_NICE = 15


def start_if_wanted(plan: LaunchPlan) -> Beside | None:
    """The mirror's process where the recipe names a store."""
    return Beside(plan, "mirror") if mirror.url_of(RunPaths(plan.run_dir)) is not None else None


def main() -> int:
    """Sends until it is asked to end, then once more; 0 when all has arrived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    paths = RunPaths(parser.parse_args().run_dir)
    processes.die_with_parent()
    _step_back()
    asked = [0.0]

    def ask(number: int, frame: object) -> None:
        asked[0] = asked[0] or time.monotonic()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with mirror.alone(paths, "the attempt's mirror", _LAST_S):
            return _send(mirror.Mirror(paths), asked)
    except SeatrialError as error:
        _say(f"error: {error}")
        return int(error.exit_code)


def _send(sender: mirror.Mirror, asked: list[float]) -> int:
    _say(f"to {sender.url}")
    while not asked[0]:
        left = sender.one_pass(lambda: bool(asked[0]), lambda file: _say(f"{file.name}: {file.bytes} bytes"))
        for line in sender.errors:
            _say(f"error: {line}")
        until = time.monotonic() + _EVERY_S
        while not asked[0] and time.monotonic() < until:
            time.sleep(_POLL_S)
    left = sender.conclude(
        lambda: time.monotonic() - asked[0] > _LAST_S, lambda file: _say(f"{file.name}: {file.bytes} bytes")
    )
    _say(mirror.describe(left, sender.errors) or "all is there")
    return 1 if left else 0


def _step_back() -> None:
    """Runs where nobody else would (SCHED_IDLE, sched(7)): niceness alone takes a thirtieth of a busy core."""
    os.nice(_NICE)
    with contextlib.suppress(psutil.Error, AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _say(text: str) -> None:
    print(f"{now()} {text}", flush=True)  # noqa: T201 - the mirror's log


if __name__ == "__main__":
    sys.exit(main())
