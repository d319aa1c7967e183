"""A call of a client program, and what it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a client was called."""

    program: str
    words: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdin: str | None = None


@dataclass(frozen=True)
class Reply:
    """What it prints, and its exit code."""

    out: str = ""
    err: str = ""
    code: int = 0
    wait_s: float = 0
    """It does so only after so long."""
    needs_input: bool = False
    """It has to call again, with its standard input."""


def away(call: Call, wait_s: float, host: str) -> Reply | None:
    """What a client says whose controller does not answer; None for a question that needs none.

    Args:
        call: how the client was called.
        wait_s: what most of them wait; some ask twice.
        host: the controller's.
    """
    words = "Unable to contact slurm controller (connect failure)"
    first = next((word for word in call.words if not word.startswith("-")), "")
    second = next((word for word in reversed(call.words) if word.isdigit()), "")
    told = {
        "squeue": Reply(err=f"slurm_load_jobs error: {words}\n", code=1, wait_s=wait_s),
        "sinfo": Reply(err=f"slurm_load_partitions: {words}\n", code=1, wait_s=wait_s),
        "scancel": Reply(
            err=f"scancel: error: Kill job error on job id {second}: {words}\n", code=8, wait_s=wait_s
        ),
        "sbatch": Reply(err=f"sbatch: error: Batch job submission failed: {words}\n", code=1, wait_s=wait_s),
        "srun": Reply(err=f"srun: error: Unable to create step for job: {words}\n", code=1, wait_s=wait_s),
    }
    if call.program in {"sacct", "sacctmgr"} or "--version" in call.words or "-V" in call.words:
        return None
    if call.program == "sbatch" and "--test-only" in call.words:
        return Reply(err=f"allocation failure: {words}\n", code=1, wait_s=2 * wait_s)
    if call.program != "scontrol":
        return told.get(call.program)
    if first == "ping":
        return Reply(
            f"Slurmctld(primary) at {host} is DOWN\n*****************************************\n", code=1
        )
    if "hostnames" in call.words or "hostlist" in call.words:
        return None
    if first in {"requeue", "requeuehold"}:
        return Reply(err=f"Unexpected message received for job {second}\n", code=1, wait_s=wait_s)
    twice = 2 if "job" in call.words else 1
    return Reply(err=f"slurm_load_jobs error: {words}\n", code=1, wait_s=twice * wait_s)
