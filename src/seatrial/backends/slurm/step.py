"""What the supervisor of a job starts and reads: one srun, its ports, and slurmstepd's last line. Pure, but for the ports."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seatrial.backends.slurm.script import srun_arguments
from seatrial.errors import PlatformError
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.slurm import SlurmSpec

_FIRST_PORT = 10_000
_NUM_PORTS = 20_000
_PORTS_A_JOB = 20
"""Below the range that the kernel hands out (32768 to 60999 on Linux)."""
_GONE = re.compile(r"the agent of node \d+ \((\S+)\) is gone")
_ANSWER_S = 5.0
_CANCELLED = re.compile(r"\*\*\* JOB (\d+) .*CANCELLED AT \S+(?: DUE TO ([A-Z ]+))? \*\*\*")


def srun_argv(plan: LaunchPlan, slurm: SlurmSpec, hosts: list[str]) -> list[str]:
    """One agent a node, in charge of itself: how it ends is its own business, not srun's.

    The agents end together by their own connection; srun would send TERM to the rest, which is what a preemption looks
    like.

    Args:
        plan: the attempt's.
        slurm: the recipe's section.
        hosts: the nodes to use, where the allocation may have more.
    """
    where = [f"--nodelist={','.join(hosts)}", "--overlap"] if hosts else []
    return [
        "srun", f"--nodes={plan.nodes}", f"--ntasks={plan.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--wait=0",
        "--unbuffered", "--label", "--export=ALL", "--cpu-bind=none", "--mpi=none", f"--job-name={plan.run_id}", *where,
        *srun_arguments(slurm, (plan.run_dir, plan.cwd)),
        plan.python, "-m", "seatrial.job.agent", str(plan.run_dir), "--attempt", str(plan.attempt),
        "--node-rank-from", "SLURM_PROCID",
    ]  # fmt: skip


def job_id_of(environment: Mapping[str, str]) -> str:
    """What the job of a batch script's environment is called: ``12``, or ``8_3`` for an element of an array.

    The number in SLURM_JOB_ID won't do for these: the array's last element has the array's own, and whatever is asked for
    under that is asked for all (tried on 22.05).
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]


def open_file(descriptor: int) -> Path | None:
    """The file that is open there; None when it is none."""
    path = Path(f"/proc/self/fd/{descriptor}").resolve()
    return path if path.is_file() else None


def free_ports(job_id: int) -> int:
    """The first of this job's ports that can be bound here.

    Jobs with numbers near each other share no ports, so that two that start on one node at one moment don't collide.

    Raises:
        PlatformError: none is free.
    """
    first = _FIRST_PORT + job_id * _PORTS_A_JOB % _NUM_PORTS
    problem = ""
    for port in range(first, first + _PORTS_A_JOB):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return port
            except OSError as error:
                problem = str(error)
    raise PlatformError(
        f"no free port from {first} to {first + _PORTS_A_JOB - 1} on {socket.gethostname()}", evidence=problem
    )


def why_cancelled(output: Path, job_id: str, said_before: int = 0) -> str | None:
    """Why slurmstepd says that the job was cancelled: ``PREEMPTION``, ``TIME LIMIT``, …; empty for `scancel`.

    Args:
        output: the job's, to which each of its starts appends.
        job_id: the number that Slurm gave it.
        said_before: bytes that were there when this start began: an earlier one may have ended so.

    Returns:
        None when it says nothing of the kind.
    """
    try:
        text = output.read_bytes()[said_before:].decode(errors="replace")
    except FileNotFoundError:
        return None
    found = [match for match in _CANCELLED.finditer(text) if match[1] == job_id]
    return (found[-1][2] or "") if found else None


def node_gone(failure: Mapping[str, Any] | None) -> str | None:
    """The node whose agent is gone, by the failure in an attempt's record; None for any other failure."""
    found = _GONE.match((failure or {}).get("what", ""))
    return found[1] if found else None


def answers(address: str, port: int) -> bool:
    """Whether the machine at an address lives: it takes a connection, or refuses it."""
    try:
        with socket.create_connection((address, port), _ANSWER_S):
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
