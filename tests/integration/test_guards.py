"""Training that goes wrong by itself: not finite, a spike, ranks that drift, ranks that leave. On real ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.files import read_json, read_json_lines

from .conftest import Done, Seatrial, rank_processes
from .test_main_job import wait_for


@pytest.fixture
def words(reviews: Path, dropout_encoder: Path) -> list[str]:
    """A run with dropout on two ranks; a row of metrics every second step."""
    return [
        "train", "--model", str(dropout_encoder), "--data", str(reviews), "--nproc", "2", "--batch-size", "8",
        "--max-steps", "45", "--learning-rate", "2e-3", "--max-length", "32", "--train-only",
        "train.checkpoint_every=10", "train.log_every=2",
    ]  # fmt: skip


def verdicts(done: Done) -> dict[str, Verdict]:
    return {e.check: e.verdict for e in read_evidence(done.run.evidence)}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_skipped_updates_are_counted(seatrial: Seatrial, words: list[str]) -> None:
    """A slow disk on top: it costs time, and nothing else."""
    fault = "inf_grad:rank=1,step=13; nan:rank=0,step=28; nan:step=29; slow_disk:step=40,seconds=1"
    done = seatrial(*words, "train.on_nonfinite=skip", fault=fault)
    assert done.code == 0, done.stderr
    assert "the loss or its gradient is not finite at step 13: skipped, 1 of at most 10" in done.stderr
    assert read_json(done.run.guard)["skipped"] == [13, 28, 29]
    found = verdicts(done)
    assert found["loss_finite"] is Verdict.WARN
    assert found["ranks_agree"] is Verdict.PASS and found["loss_fell"] is Verdict.PASS
    assert done.manifest.results["training"]["steps_without_update"] == 3


def test_going_back_survives_kill_and_damage(seatrial: Seatrial, words: list[str]) -> None:
    """The steps that were left out stay so, though the run was killed after it had gone back, resumes from a checkpoint
    before them, and the resumed attempt would find nothing wrong with them."""
    words = [*words, "train.on_nonfinite=rollback", "train.on_spike=rollback"]
    fault = "nan:rank=1,step=25; spike:step=38"
    whole = seatrial(*words, fault=fault)
    assert whole.code == 0, whole.stderr
    assert "going back to the checkpoint before and leaving out step 25" in whole.stderr
    record = read_json(whole.run.guard)["rollbacks"]
    assert [(row["why"], row["steps"], row["done"]) for row in record] == [
        ("not finite", [25], True),
        ("loss spike", [36, 37, 38], True),
    ]
    began = [
        e["from_step"]
        for e in read_json_lines(whole.run.attempt(0).rank_events(1))
        if e["event"] == "training"
    ]
    assert began == [0, 20, 30]
    assert verdicts(whole)["loss_finite"] is verdicts(whole)["loss_steady"] is Verdict.WARN
    expected = commit.weights_sha256(whole.run.model("trained"))

    killed = seatrial(*words, fault=f"{fault}; kill:rank=0,step=43")
    assert killed.code == 4 and "rank 0 was killed by SIGKILL" in killed.stderr
    newer = [
        path for path in killed.run.checkpoints.glob("step_*") if path.name in ("step_000030", "step_000040")
    ]
    assert newer, "step 40 may not have been whole yet, step 30 was"
    for path in newer:
        flip_a_bit(next(path.glob("*rank_00000.safetensors")))
    resumed = seatrial("runs", "resume", "last")
    assert resumed.code == 0, resumed.stderr
    assert commit.weights_sha256(resumed.run.model("trained")) == expected


def test_a_rank_that_drifts_is_named(seatrial: Seatrial, words: list[str]) -> None:
    done = seatrial(*words, fault="drift:rank=1,step=12")
    assert done.code == 4
    assert "rank 1 has other weights than the rest at step 20" in done.stderr
    assert "tensors differ, the first: " in done.stderr
    assert [p.name for p in done.run.checkpoints.iterdir()] == ["step_000010"]


@pytest.mark.parametrize(("fault", "code"), [("exit:code=7,rank=1,step=3", 7), ("term:rank=1,step=3", 143)])
def test_a_rank_that_leaves_is_named(seatrial: Seatrial, words: list[str], fault: str, code: int) -> None:
    done = seatrial(*words, fault=fault)
    assert done.code == 4
    assert f"rank 1 ended with exit code {code}" in done.stderr
    assert rank_processes(done.run.root) == []


def test_a_stopped_rank_can_be_ended(seatrial: Seatrial, words: list[str]) -> None:
    started = seatrial(*words, "--detach", fault="stop:rank=1,step=5")
    wait_for(lambda: started.run.metrics.exists())
    done = seatrial("runs", "cancel", "--force", "last", timeout=60)
    assert done.code == 0, done.stderr
    assert rank_processes(started.run.root) == []


def test_a_fault_that_cannot_be_read_is_refused_before_anything_starts(
    seatrial: Seatrial, recipe: Callable[..., str]
) -> None:
    done = seatrial("train", recipe(), fault="explode:step=1")
    assert done.code == 2
    assert "unknown kind 'explode'" in done.stderr
    assert not seatrial.runs_dir.exists()
