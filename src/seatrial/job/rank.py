"""The first moments of every rank: ``python -m seatrial.job.rank ATTEMPT_DIR -- ARGS OF THE INTERPRETER``.

torchrun starts this once a rank. It gives the rank a log file of its own, ties its life to torchrun's, and then
becomes the program, so that nothing stands between torchrun and the rank. It imports neither torch nor numpy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from seatrial.job.processes import die_with_parent
from seatrial.runs.paths import AttemptPaths


def main(argv: list[str]) -> None:
    """Replaces this process by the rank's program."""
    die_with_parent()
    attempt = AttemptPaths(Path(argv[0]))
    # torchrun knows of its own restarts only; it is the agent that starts the ranks again.
    os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["SEATRIAL_RESTART"]
    log = attempt.rank_log(int(os.environ["RANK"]))
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.execv(sys.executable, [sys.executable, "-u", *argv[2:]])  # noqa: S606 - argv is the plan's


if __name__ == "__main__":
    main(sys.argv[1:])
