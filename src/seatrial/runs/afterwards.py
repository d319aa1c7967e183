"""What follows an attempt that ended well where nobody waits for it: the comparison, and the page."""

from __future__ import annotations

from collections.abc import Callable

from seatrial import command
from seatrial.errors import ExitCode, PlatformError
from seatrial.runs.plan import LaunchPlan

_TIME_LIMIT_S = 3600.0


def run_afterwards(plan: LaunchPlan, say: Callable[[str], None]) -> ExitCode:
    """Runs what the plan names, one after the other; the exit code of the first that did not end with 0.

    Args:
        plan: of the attempt.
        say: prints a line.
    """
    worst = ExitCode.OK
    for argv in plan.afterwards:
        try:
            done = command.run([plan.python, *argv], timeout_s=_TIME_LIMIT_S, cwd=plan.cwd)
        except PlatformError as error:
            say(f"error: {error}")
            return ExitCode.PLATFORM
        for line in (done.stdout + done.stderr).splitlines():
            say(line)
        if worst is ExitCode.OK and done.returncode != 0:
            known = done.returncode in set(ExitCode)
            worst = ExitCode(done.returncode) if known else ExitCode.PLATFORM
    return worst
