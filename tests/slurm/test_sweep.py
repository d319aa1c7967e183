"""A sweep is one array on a real Slurm: each element is preempted, cancelled and finished without the others."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from seatrial.backends import registry
from seatrial.backends.base import SubmitsMany
from seatrial.launch import launcher
from seatrial.launch.launcher import Submitted
from seatrial.launch.sweep import make_directory, submit_all
from seatrial.runs.manifest import read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.runs.state import RunState
from seatrial.spec.run import ScriptSpec
from seatrial.spec.slurm import SlurmSpec
from tests.integration.conftest import Seatrial, encoder, reviews, seatrial
from tests.slurm.cluster import SlurmCluster

pytest.importorskip("torch", reason="real ranks need the extra 'train'")
__all__ = ["encoder", "reviews", "seatrial"]

PATIENCE_S = 180.0
WAITS = """
import os, pathlib, time
go = pathlib.Path(os.environ["SEATRIAL_RUN_DIR"]).parent / "go"
print("attempt", os.environ["SLURM_RESTART_COUNT"] if "SLURM_RESTART_COUNT" in os.environ else 0, flush=True)
while not go.exists():
    time.sleep(0.1)
"""


def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def urgent(slurm: SlurmCluster, directory: Path, node: str) -> None:
    """A job that comes first wants a whole node for a moment."""
    script = directory / "urgent.sh"
    script.write_text("#!/bin/sh\ntrue\n")
    slurm.run(
        "sbatch",
        "--parsable",
        "--output=/dev/null",
        "--qos=high",
        "--exclusive",
        f"--nodelist={node}",
        str(script),
    )


def at_once(slurm: SlurmCluster, job: str) -> None:
    """Takes the wait out of a job that was queued again."""
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


class TestElements:
    """Three runs of a script that waits for a word, on two nodes that have room for all."""

    @pytest.fixture
    def array(self, slurm: SlurmCluster, tmp_path: Path) -> Iterator[list[Submitted]]:
        registry.get.cache_clear()
        backend = registry.get("slurm")
        assert isinstance(backend, SubmitsMany)
        root = tmp_path / 'runs of 100% "mine"'
        (tmp_path / "waits.py").write_text(WAITS)
        plans = []
        for i in range(3):
            paths = RunPaths(root / f"it's {i}")
            launcher.create(
                paths, ScriptSpec(name="s", command=("waits.py",), cwd=str(tmp_path)), ["seatrial", "run"]
            )
            plans.append(
                LaunchPlan(
                    run_id=paths.run_id, run_dir=paths.root, attempt=0, nodes=1, nproc=1, device="cpu", threads=1,
                    stages=(Stage(name="script", argv=("waits.py",), reports=False),), python=sys.executable, cwd=tmp_path,
                    grace_s=5, platform=SlurmSpec(qos="low").model_dump(mode="json"),
                )
            )  # fmt: skip
        directory = root / "sweep-x"
        make_directory(directory, {})
        submitted = submit_all(backend.render_all(plans, "sweep-x", directory), backend, directory)
        for one in submitted:
            until(lambda one=one: one.paths.attempt(0).rank_log(0).exists(), f"{one.handle} runs")  # type: ignore[misc]
        yield submitted
        (root / "go").touch()

    def end(self, array: list[Submitted]) -> list[RunState]:
        (array[0].paths.root.parent / "go").touch()
        for one in array:
            until(lambda one=one: launcher.settle(one.paths).state.is_terminal, f"{one.handle} ends")  # type: ignore[misc]
        return [read_manifest(one.paths).state for one in array]

    def test_one_is_cancelled_and_the_others_go_on(self, array: list[Submitted]) -> None:
        for one in (array[2], array[0]):  # the last element has the number of the whole array
            one.backend.cancel(one.handle)
            until(lambda one=one: launcher.settle(one.paths).state.is_terminal, "it ends")  # type: ignore[misc]
        assert launcher.settle(array[1].paths).state is RunState.RUNNING
        assert self.end(array) == [RunState.INTERRUPTED, RunState.COMPLETED, RunState.INTERRUPTED]

    def test_one_is_queued_again_by_hand_and_the_others_go_on(
        self, slurm: SlurmCluster, array: list[Submitted]
    ) -> None:
        """The one that has the number of the whole array."""
        job = array[2].handle.native.partition("/")[0]
        slurm.run("scontrol", "requeue", job)
        paths = array[2].paths
        until(lambda: at_once(slurm, job) or paths.attempt(1).rank_log(0).exists(), "attempt 1 runs")
        assert [len(launcher.settle(one.paths).attempts) for one in array] == [1, 1, 2]
        assert self.end(array) == [RunState.COMPLETED] * 3
        manifest = read_manifest(paths)
        assert [record.outcome for record in manifest.attempts] == ["preempted", "completed"]
        assert {record.handle for record in manifest.attempts} == {str(array[2].handle)}
        outputs = [path for path in array[2].backend.logs(array[2].handle, paths.root) if path.exists()]
        assert outputs[0].name == f"slurm-{job}.out"
        assert "DUE TO JOB REQUEUE" in outputs[0].read_text()


def halted(slurm: SlurmCluster) -> list[psutil.Process]:
    """Ranks that have halted themselves, as ``stop:…`` asks them to."""
    found = []
    for node in slurm.nodes:
        for pid in slurm.node_pids(node):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() == psutil.STATUS_STOPPED:
                    found.append(process)
    return found


def test_the_story_of_a_sweep(slurm: SlurmCluster, seatrial: Seatrial, reviews: Path, encoder: Path) -> None:
    """Two learning rates, two seeds, two nodes: one run is preempted, one is cancelled in the queue, three are compared."""
    head, *rows = reviews.read_text().splitlines()
    data = seatrial.cwd / "data"
    data.mkdir()
    for name, part in (("train", rows[:400]), ("test", rows[400:])):
        (data / f"{name}.csv").write_text("\n".join([head, *part]) + "\n")
    text = {
        "name": "t", "model": str(encoder), "data": {"path": str(data), "max_length": 32},
        "train": {"epochs": 2, "batch_size": 8, "checkpoint_every": 10, "log_every": 5},
        "resources": {"on": "slurm", "gpus_per_node": 0, "nproc": 1},
        "slurm": {"cpus_per_task": 64, "qos": "low"},
    }  # fmt: skip
    (seatrial.cwd / "t.yaml").write_text(json.dumps(text))
    words = ["train", "t.yaml", "--sweep", "lr=1e-5,2e-3", "seed=0..1"]
    with (seatrial.cwd / "said.txt").open("w+") as said:
        command = subprocess.Popen(
            seatrial.argv(*words), cwd=seatrial.cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            env=seatrial.environment(SEATRIAL_FAULT="stop:rank=0,step=15"),
        )  # fmt: skip
        try:
            until(lambda: command.poll() is None and len(halted(slurm)) == 2, "two elements run")
            runs = [RunPaths(path) for path in sorted(seatrial.runs_dir.glob("t-*"))]
            handles = [read_manifest(run).attempt.handle or "" for run in runs]
            jobs = [handle.partition("://")[2].partition("/")[0] for handle in handles]
            assert [job.partition("_")[2] for job in jobs] == ["0", "1", "2", "3"]
            shown = slurm.run("squeue", "-h", "-r", "-o", "%i %T %N").stdout.splitlines()
            states = {line.split()[0]: line.split()[1:] for line in shown}
            assert [states[job][0] for job in jobs] == ["RUNNING", "RUNNING", "PENDING", "PENDING"]

            assert seatrial("runs", "cancel", runs[3].run_id).code == 0
            assert read_manifest(runs[3]).state is RunState.INTERRUPTED
            urgent(slurm, seatrial.cwd, states[jobs[1]][1])
            until(lambda: slurm.job(jobs[1]).get("Restarts") == "1", "the second element is queued again")

            def all_ended() -> bool:
                for process in halted(slurm):
                    with contextlib.suppress(psutil.Error):
                        process.resume()
                at_once(slurm, jobs[1])
                return command.poll() is not None

            until(all_ended, "the command ends", 2 * PATIENCE_S)
        finally:
            command.kill()
            command.wait()
        said.seek(0)
        text_said = said.read()
    assert command.returncode == 130, text_said
    manifests = [read_manifest(run) for run in runs]
    assert [manifest.state for manifest in manifests[:3]] == [RunState.COMPLETED] * 3, text_said
    assert [record.outcome for record in manifests[1].attempts] == ["preempted", "completed"]
    assert {record.handle for record in manifests[1].attempts} == {handles[1]}
    assert slurm.run("squeue", "-h", "--me").stdout == ""
    assert f"{runs[1].run_id}  learning_rate=1e-5 seed=1: attempt 1" in text_said
    assert "not measured" in text_said
    tag = next(tag for tag in manifests[0].tags if tag.startswith("sweep-"))
    assert (seatrial.runs_dir / tag / f"slurm-{jobs[1]}.out").read_text().count("DUE TO PREEMPTION") == 1

    done = seatrial("runs", "compare", "--tag", tag, "--json")
    result = json.loads(done.stdout)
    assert (done.code, result["keys"]) == (0, ["train.learning_rate", "train.seed"])
    assert [row["measured"] is not None for row in result["runs"]] == [True, True, True, False]
    assert result["best"] == runs[2].run_id
    assert [(row["verdict"], row["num_samples"]) for row in result["pairs"]] == [("better", 200)] * 2
    assert [(group["num_measured"], group["num_runs"]) for group in result["groups"]] == [(2, 2), (1, 2)]
