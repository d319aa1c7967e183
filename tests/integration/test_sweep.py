"""A sweep on one machine: one run after the other, compared at the end; nothing is begun that can't be."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seatrial.runs.manifest import read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from tests.integration.conftest import Seatrial

Recipe = Callable[..., str]


def test_the_runs_come_one_after_the_other_and_are_compared(seatrial: Seatrial, recipe: Recipe) -> None:
    done = seatrial("train", recipe(), "resources.nproc=1", "--sweep", "lr=1e-5,2e-3", "--tags", "mine")
    assert done.code == 0, done.stderr
    runs = sorted(seatrial.runs_dir.glob("t-*"))
    manifests = [read_manifest(RunPaths(run)) for run in runs]
    assert [m.state for m in manifests] == [RunState.COMPLETED] * 2
    assert manifests[0].attempt.ended is not None
    assert manifests[0].attempt.ended < manifests[1].attempt.started
    mine, tag = manifests[0].tags
    assert (mine, manifests[1].tags) == ("mine", ["mine", tag])
    record = json.loads((seatrial.runs_dir / tag / "sweep.json").read_text())
    assert [run["values"] for run in record["runs"]] == [
        {"train.learning_rate": rate} for rate in (1e-5, 2e-3)
    ]
    assert all((run / "report.html").exists() for run in runs)
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["run", "learning_rate", "state"],
        [runs[0].name, "1e-05", "completed"],
        [runs[1].name, "0.002", "completed"],
    ]
    assert f"best     {runs[1].name}" in lines
    assert lines[-1] == f"again    seatrial runs compare --tag {tag}"
    assert done.stderr.count("540 training, 60 held-out samples") == 1  # looked at once

    shown = seatrial("runs", "compare", *(run.name for run in runs), "--json")
    result = json.loads(shown.stdout)
    assert (shown.code, result["best"]) == (0, runs[1].name)
    assert result["pairs"][0]["verdict"] == "better"


def test_ctrl_c_stops_the_run_and_begins_no_more(seatrial: Seatrial, recipe: Recipe) -> None:
    command = seatrial.start(
        "train",
        recipe(epochs=50),
        "resources.nproc=1",
        "--sweep",
        "seed=0..2",
        fault="slow_disk:seconds=1,step=1",
    )
    end = time.monotonic() + 120
    while not list(seatrial.runs_dir.glob("t-0-*/checkpoints/step_*")):
        assert time.monotonic() < end and command.poll() is None
        time.sleep(0.1)
    command.send_signal(signal.SIGINT)
    try:
        stdout, stderr = command.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        command.kill()
        raise
    assert command.returncode == 130
    (run,) = seatrial.runs_dir.glob("t-*")
    assert read_manifest(RunPaths(run)).state is RunState.INTERRUPTED
    assert "stopped: 2 runs were not begun" in stderr
    assert "not measured" in stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "lr=1e-5,-1"], "combination 2 of 2 is not a valid recipe: train.learning_rate=-1"),
        (["--sweep", "lrr=1,2"], "did you mean 'lr'?"),
        (["--sweep", "nproc=1,2"], "resources holds for all runs"),
        (["--sweep", "seed=0..1", "--seed", "3"], "train.seed is swept, and given for all runs"),
        (["--sweep", "seed=0..1", "--detach"], "can't be left to itself"),
        (["--sweep", "seed=0..1", "--estimate"], "--estimate is of one run"),
        (["--sweep", "data.label=label,nowhere"], "nowhere"),
    ],
)
def test_bad_input_leaves_nothing(seatrial: Seatrial, recipe: Recipe, words: list[str], said: str) -> None:
    done = seatrial("train", recipe(), *words)
    assert (done.code, said in done.stderr) == (2, True), done.stderr
    assert not seatrial.runs_dir.exists()


def test_a_dry_run_shows_the_combinations_and_touches_nothing(seatrial: Seatrial, recipe: Recipe) -> None:
    done = seatrial("train", recipe(), "--sweep", "lr=1e-5,2e-3", "epochs=1,2", "--dry-run")
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("# 4 runs, of tag sweep-")
    assert lines[4].endswith("train.learning_rate=2e-3 train.epochs=2")
    assert not Path(seatrial.runs_dir).exists()
