"""What the supervisor of a job starts, reads and ends: one srun, its ports, its step, and slurmstepd's last line."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from seatrial import command
from seatrial.backends.slurm.script import srun_arguments
from seatrial.errors import PlatformError
from seatrial.runs.clock import now
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.slurm import SlurmSpec

_FIRST_PORT = 10_000
_NUM_PORTS = 20_000
_PORTS_A_JOB = 20
"""Below the range that the kernel hands out (32768 to 60999 on Linux)."""
_GONE = re.compile(r"the agent of node \d+ \((\S+)\) is gone")
_ANSWER_S = 5.0
_ENDED = re.compile(r"^srun: error: \S+: tasks? ([\d,-]+): (.+)$", re.MULTILINE)
_SAID = 3
_TRIES = 300
_POLL_S = 0.5
_PATIENCE_S = 60.0
"""With a controller that does not answer."""
_GRACE_S = 20.0
"""Agents are told to end before the leading one does; it takes them a second."""
_Answer = TypeVar("_Answer")
_CANCELLED = re.compile(r"\*\*\* JOB (\d+) .*CANCELLED AT \S+(?: DUE TO ([A-Z ]+))? \*\*\*")


def say(text: str) -> None:
    """One line of the job's log."""
    print(f"{now()} job: {text}", flush=True)  # noqa: T201 - the job's log


def patiently(ask: Callable[[], _Answer]) -> _Answer:
    """An answer of the controller, which may just be starting again; `PlatformError` when none comes for too long."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask()
        except PlatformError as error:
            if "does not answer" not in error.what or time.monotonic() > until:
                raise
            say(f"{error.what}; asking again")
            time.sleep(_POLL_S)


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


def check_time(plan: LaunchPlan, job_id: str, left_s: float) -> None:
    """Refuses a start whose ranks would be asked to stop at once, as those of each further start would be.

    What is submitted is checked before; this is for a limit that is the partition's, or was lowered since.

    Args:
        plan: the attempt's.
        job_id: the job's.
        left_s: seconds from now to the job's end.

    Raises:
        PlatformError: there is no more time than ``train.stop_before_s``.
    """
    if plan.conducts == "ranks" and left_s <= plan.stop_before_s:
        raise PlatformError(
            "the job's time limit leaves no time to run",
            evidence=f"job {job_id} ends in {left_s:.0f} s, and the ranks are asked to save {plan.stop_before_s:g} s before "
            "that (train.stop_before_s)",
            remedy="seatrial runs resume RUN    (asks for resources.time anew)",
        )


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


class EarlyEnds:
    """Tells the leading agent of agents that ended before they could say anything: it would wait for them for minutes.

    Args:
        log: what srun and the agents print.
        hosts: the nodes by node rank.
        environment: of the agents; without a meeting there is nobody to tell.
    """

    def __init__(self, log: Path, hosts: list[str], environment: Mapping[str, str]) -> None:
        self._log = log
        self._hosts = hosts
        self._lead = environment.get("SEATRIAL_LEAD", "")
        self._token = environment.get("SEATRIAL_LINK_TOKEN", "")
        self._ended: dict[int, dict[str, Any]] = {}
        self._tries: dict[int, int] = {}
        self._size = 0
        self.lead_ended = False
        """Whether srun has said that the leading agent has failed."""

    def tell(self) -> None:
        """Looks at what was printed since, and passes it on; once all are at work, nobody listens any more."""
        if (size := self._log.stat().st_size) != self._size:
            self._size = size
            self._read(self._log.read_text(errors="replace"))
        for node_rank, hello in self._ended.items():
            # It may not listen yet.
            if self._tries.setdefault(node_rank, _TRIES) > 0:
                self._tries[node_rank] = 0 if self._say(hello) else self._tries[node_rank] - 1

    def _read(self, text: str) -> None:
        for task, how in early_ends(text):
            self.lead_ended = self.lead_ended or task == 0
            if not self._lead or not 0 < task < len(self._hosts) or task in self._ended:
                continue
            said = [line for line in text.splitlines() if line.startswith(f"{task}: ")][-_SAID:]
            error = {
                "what": f"its agent ended before it had checked in: {how}", "evidence": "\n".join(said),
                "remedy": "is Seatrial's environment there, under the same path as on the first node?",
            }  # fmt: skip
            self._ended[task] = {
                "node_rank": task, "host": self._hosts[task], "token": self._token, "error": error,
            }  # fmt: skip

    def _say(self, hello: Mapping[str, Any]) -> bool:
        address, _, port = self._lead.rpartition(":")
        try:
            with socket.create_connection((address, int(port)), _ANSWER_S) as wire:
                wire.sendall(json.dumps(hello).encode() + b"\n")
        except OSError:
            return False
        return True


class LeftOver:
    """Ends what is left of a step whose leading agent has ended: an agent that is frozen never ends by itself.

    srun would wait for it for ever, and with it the job, its nodes, and the next attempt.

    Args:
        srun: the step's.
        kill: ends the step, with KILL.
        say: a line of the job's log.
        clock: seconds.
    """

    def __init__(
        self,
        srun: command.Process,
        kill: Callable[[], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._srun = srun
        self._kill = kill
        self._say = say
        self._clock = clock
        self._next = float("inf")
        self._kills = 0

    def look(self, lead_ended: bool) -> None:
        """Ends it once the time for that has come; srun itself where the step's end doesn't reach it.

        Args:
            lead_ended: whether the leading agent has ended, or written its record, the last thing that it does.
        """
        if not lead_ended:
            return
        if self._next == float("inf"):
            self._next = self._clock() + _GRACE_S
        if self._clock() < self._next:
            return
        self._next = self._clock() + _GRACE_S
        self._kills += 1
        self._say(f"the leading agent has ended, and srun goes on {_GRACE_S:g} s later: killing the step")
        try:
            self._kill()
        except PlatformError as error:
            self._say(f"that failed: {error.what}")
        if self._kills > 1:
            self._say("killing srun")
            self._srun.send_signal(signal.SIGKILL)


def early_ends(text: str) -> list[tuple[int, str]]:
    """Each task whose end srun reports as an error, and how it ended: ``srun: error: node1: tasks 1-2: Exited with …``."""
    found = []
    for match in _ENDED.finditer(text):
        for part in match[1].split(","):
            first, _, last = part.partition("-")
            found += [(task, match[2]) for task in range(int(first), int(last or first) + 1)]
    return found
