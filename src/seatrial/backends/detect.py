"""Which platform `auto` means here, and how that is known."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from seatrial import command
from seatrial.errors import PlatformError

_PING_S = 5.0


def detect(environment: Mapping[str, str], runner: command.CommandRunner = command.run) -> tuple[str, str]:
    """The platform's name, and the evidence for it.

    Args:
        environment: of this process.
        runner: asks the controller.
    """
    if shutil.which("sbatch") is None:
        return "local", "no sbatch on PATH"
    if "SLURM_JOB_ID" in environment:
        return "slurm", f"this is a shell of Slurm job {environment['SLURM_JOB_ID']}, whose nodes are used"
    try:
        done = runner(["scontrol", "ping"], timeout_s=_PING_S)
    except PlatformError as error:
        return "local", f"sbatch is on PATH, but {error.what}"
    if " is UP" in done.stdout:
        return "slurm", "sbatch is on PATH and the controller answers"
    words = (done.stdout or done.stderr).strip().splitlines()[:1] or ["no word"]
    return "local", f"sbatch is on PATH, but the controller does not answer: {words[0]}"
