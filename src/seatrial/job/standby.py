"""An agent that is started before its run exists: ``python -m seatrial.job.standby CHANNEL KIND THREADS LOG``.

While the launcher still looks at data and model, the warm process imports; the looking itself is a fork of it, so
that nothing is imported twice. Then the launcher names the run, and this becomes its agent; or the launcher goes, and
so does this, leaving nothing.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Any

from seatrial.command import Channel
from seatrial.job.gang import WarmProcess


def main(argv: list[str]) -> int:
    """Passes messages on until it is told which run it belongs to; then that attempt's exit code."""
    channel = Channel(int(argv[0]))
    warm = WarmProcess(sys.executable, argv[1], int(argv[2]), Path(argv[3]))
    try:
        run = relay(channel, warm)
    except EOFError:
        return 0  # the kernel ends the warm process with this one
    channel.close()
    from seatrial.job.agent import run_attempt
    from seatrial.job.processes import become, redirect

    redirect(Path(run["log"]))
    become(" ".join(run["argv"]), dict(os.environ))
    return run_attempt(Path(run["run_dir"]), run["attempt"], warm)


def relay(channel: Channel, warm: WarmProcess) -> dict[str, Any]:
    """Passes requests to the warm process and its answers back; returns the message that names the run.

    Raises:
        EOFError: the launcher has gone.
    """
    while True:
        ready, _, _ = select.select([channel, warm.channel], [], [])
        if warm.channel in ready:
            try:
                answer = warm.channel.receive() or {}
            except EOFError:
                channel.send({"ended": -1, "returncode": warm.process.wait(5) or 1})
                raise
            channel.send(answer)
        if channel in ready:
            message = channel.receive() or {}
            if message["do"] == "take":
                return message
            warm.channel.send(message)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
