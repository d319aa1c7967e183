"""torchrun itself, with its account of failed ranks kept as data: ``python -m seatrial.job.torchrun FILE ARGS``.

torchrun exits with 1 whatever a rank exited with, and tells the rest in prose. This calls the same code with the
same arguments and writes what it saw of each failed rank to FILE.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from seatrial.job.processes import die_with_parent
from seatrial.runs.files import write_json


def main(argv: list[str]) -> int:
    """Runs torchrun; 0 when every rank exited with 0."""
    die_with_parent()
    # A scheduler's warning is for the agent, which passes it on as TERM; some send it to every process of the job.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    record = Path(argv[0])
    try:
        run(parse_args(argv[1:]))
    except ChildFailedError as error:
        rows = [
            {"rank": rank, "pid": failure.pid, "exitcode": failure.exitcode, "time": failure.timestamp}
            for rank, failure in sorted(error.failures.items())
        ]
        write_json(record, {"schema": 1, "failures": rows})
        print(json.dumps(rows), file=sys.stderr)  # noqa: T201 - this is the log
        return 1
    except SignalException as error:
        write_json(record, {"schema": 1, "failures": [], "signal": int(error.sigval)})
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch's store may outlive main and delay the exit by seconds; all is written.
    os._exit(code)
