"""`seatrial prune` is killed at random moments: what is kept is whole, and the next one finishes."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

from seatrial.runs import commit
from tests.integration.conftest import Seatrial
from tests.trees import make_run


def seals(runs_dir: Path) -> list[Path]:
    return sorted(p for p in runs_dir.glob("*/*/*") if commit.is_committed(p))


def test_killed_while_pruning(seatrial: Seatrial) -> None:
    rng = random.Random(5)
    for number in range(60):
        make_run(
            seatrial.runs_dir, f"r-{number:02d}", checkpoints=(5, 10, 15, 20), weights=rng.randbytes(20_000)
        )
    began = time.monotonic()
    assert seatrial("prune", "--dry-run", "--runs", "r-0*").code == 0
    start_s = time.monotonic() - began
    kills, number = 0, 60
    while kills < 3 and number < 300:
        for fresh in range(number, number + 20):
            make_run(seatrial.runs_dir, f"r-{fresh:03d}", checkpoints=(5, 10, 15, 20), weights=b"more")
        number += 20
        process = subprocess.Popen(
            seatrial.argv("prune", "-y"), cwd=seatrial.cwd, env=seatrial.environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(start_s * rng.uniform(0.7, 1.3))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        # What has its name is whole, whatever was half deleted.
        assert all(commit.problems(seal) == [] for seal in seals(seatrial.runs_dir))
    assert kills == 3
    done = seatrial("prune", "-y")
    assert done.code == 0, done.stderr
    assert [seal.name for seal in seals(seatrial.runs_dir)] == ["step_000020", "trained"] * number
    assert not (seatrial.runs_dir / ".trash").exists()
    again = seatrial("prune", "-y")
    assert again.code == 0 and "nothing to remove" in again.stderr


def test_two_prunes_at_once_lose_nothing(seatrial: Seatrial) -> None:
    for number in range(40):
        make_run(seatrial.runs_dir, f"r-{number:02d}", checkpoints=(5, 10, 15))
    both = [seatrial.start("prune", "-y") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2], [0, 4]), said
    assert [seal.name for seal in seals(seatrial.runs_dir)] == ["step_000015", "trained"] * 40
