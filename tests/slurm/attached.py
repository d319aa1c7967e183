"""A command that follows a run on a cluster, while a test does things to both."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from seatrial.backends.base import JobHandle
from seatrial.errors import SeatrialError
from seatrial.runs import commit
from seatrial.runs.files import read_json
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import RunPaths
from tests.integration.conftest import Seatrial
from tests.slurm import processes
from tests.slurm.cluster import SlurmCluster

PATIENCE_S = 300.0
"""For anything that takes seconds on a machine that does nothing else."""


class Attached:
    """``seatrial …`` as a user started it, attached to the run that it made.

    Args:
        seatrial: whose ``runs/`` is empty.
        slurm: where it runs.
        words: the command line.
        fault: ``SEATRIAL_FAULT`` of its ranks.
        env: more of its environment.
    """

    def __init__(
        self, seatrial: Seatrial, slurm: SlurmCluster, *words: str, fault: str = "", **env: str
    ) -> None:
        self.slurm = slurm
        self.seatrial = seatrial
        self._said = seatrial.cwd / "said.txt"
        with self._said.open("wb") as output:
            self.process = subprocess.Popen(
                seatrial.argv(*words), cwd=seatrial.cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=seatrial.environment(SEATRIAL_FAULT=fault, **env),
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything that it has printed."""
        return self._said.read_text(errors="replace")

    @property
    def run(self) -> RunPaths:
        """The run, once it is submitted."""
        self.until(lambda: self._handle() is not None, "the run is submitted")
        return RunPaths(next(self.seatrial.runs_dir.iterdir()))

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.run)

    @property
    def job(self) -> str:
        """The id of the job that the run's first attempt is."""
        self.until(lambda: self._handle() is not None, "the run is submitted")
        return job_of(self._handle() or "")

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Waits for something; fails with what the command said if it ends first, or if that doesn't come."""
        end = time.monotonic() + timeout_s
        while not condition():
            ended = self.process.poll() is not None
            assert not ended or condition(), f"the command ended before {what}:\n{self.said}"
            assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s\n{self.said}\n{self.log()}"
            time.sleep(0.05)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The command's exit code; no traceback is in what it printed."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on:\n{self.said}\n{self.log()}") from None
        own = [line for line in self.said.split("its last lines:")[0].splitlines() if "[rank " not in line]
        assert "Traceback (most recent call last)" not in "\n".join(own)
        return code

    def log(self) -> str:
        """The agents' logs and the job's output, for messages."""
        logs = sorted(self.seatrial.runs_dir.glob("*/attempt-*/logs/agent.log"))
        logs += sorted(self.seatrial.runs_dir.glob("*/slurm-*.out"))
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def ranks_run(self, attempt: int = 0, world_size: int = 2) -> None:
        """Waits until every rank of an attempt of somebody's own script has printed something."""
        logs = [self.run.attempt(attempt).rank_log(rank) for rank in range(world_size)]
        self.until(
            lambda: all(log.exists() and log.stat().st_size for log in logs),
            f"the ranks of attempt {attempt} run",
        )

    def halted(self, attempt: int = 0) -> list[psutil.Process]:
        """Waits until a rank has halted itself, as ``stop:…`` asks it to; those that have."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = stopped(self.slurm)
            return bool(found)

        self.until(look, f"a rank of attempt {attempt} halts")
        return found

    def let_go(self, attempt: int = 0) -> None:
        """Lets the halted ranks of an attempt go on once they have been asked to stop."""
        self.until(
            self.run.attempt(attempt).stop_request.exists, f"the ranks of attempt {attempt} are asked to stop"
        )
        for process in stopped(self.slurm):
            with contextlib.suppress(psutil.Error):
                process.resume()

    def queued_again(self, restarts: int) -> None:
        """Waits until Slurm has queued the job again so often, and takes the wait out of it that credentials impose."""
        self.until(
            lambda: self.slurm.job(self.job).get("Restarts") == str(restarts),
            f"restart {restarts} of the job",
        )
        self.until(
            lambda: self.slurm.job(self.job).get("JobState") == "RUNNING" or self._at_once(), "the job starts"
        )

    def _at_once(self) -> bool:
        at_once(self.slurm, self.job)
        return False

    def record(self, attempt: int) -> dict[str, Any]:
        """How an attempt ended, as it said itself."""
        return read_json(self.run.attempt(attempt).exit) or {}

    def weights(self) -> str | None:
        return commit.weights_sha256(self.run.model("trained"))

    def outcomes(self) -> list[str | None]:
        return [record.outcome for record in self.manifest.attempts]

    def _handle(self) -> str | None:
        with contextlib.suppress(OSError, StopIteration, SeatrialError):
            manifest = read_manifest(RunPaths(next(self.seatrial.runs_dir.iterdir())))
            return manifest.attempts[0].handle if manifest.attempts else None
        return None

    def close(self) -> None:
        """Ends the command if a test has not."""
        self.process.kill()
        self.process.wait()


def job_of(handle: str) -> str:
    """The job's id in a handle."""
    return JobHandle.parse(handle).native.partition("/")[0]


def at_once(slurm: SlurmCluster, job: str) -> None:
    """Takes the wait out of a job that was queued again (as long as a credential lives)."""
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def node_processes(slurm: SlurmCluster) -> Iterator[psutil.Process]:
    for node in slurm.nodes:
        for pid in slurm.node_pids(node):
            with contextlib.suppress(psutil.Error):
                yield psutil.Process(pid)


def stopped(slurm: SlurmCluster) -> list[psutil.Process]:
    """Processes on the nodes that are halted."""
    found = []
    for process in node_processes(slurm):
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(process)
    return found


def on_nodes(slurm: SlurmCluster, module: str) -> list[psutil.Process]:
    """Processes on the nodes that run one of Seatrial's programs, for instance "seatrial.job.agent"."""
    return [p for p in node_processes(slurm) if module in processes.words(p)]


def orphans(slurm: SlurmCluster, run_dir: Path) -> list[str]:
    """What lives on the nodes of a run whose jobs are gone: by its command line or its environment."""
    found = []
    for process in node_processes(slurm):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if ("seatrial" in words and "node.py" not in words and process.pid != os.getpid()) or str(
                run_dir
            ) in " ".join(process.environ().values()):
                found.append(f"{process.pid} {words}")
    return found


def no_orphans(slurm: SlurmCluster, run_dir: Path, timeout_s: float = 30) -> bool:
    """Whether nothing of a run is left on the nodes; Slurm may take a moment to end a job."""
    return processes.until(timeout_s, lambda: not orphans(slurm, run_dir), 0.2)
