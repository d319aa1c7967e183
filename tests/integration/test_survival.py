"""What happens when things break: nothing is lost, nothing is left behind, the reason is named."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from seatrial.runs import commit
from seatrial.runs.evidence import read_evidence
from seatrial.runs.files import read_json_lines
from seatrial.runs.metrics import read_metrics
from seatrial.runs.paths import RunPaths
from seatrial.runs.predictions import read_predictions

from .conftest import Seatrial, rank_processes
from .test_main_job import losses, wait_for


def committed_steps(checkpoints: Path) -> list[int]:
    return [
        int(p.name[5:]) for p in checkpoints.glob("step_*") if p.name[5:].isdigit() and commit.is_committed(p)
    ]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, reviews: Path, dropout_encoder: Path
) -> tuple[list[str], str | None]:
    """The words that start a run with dropout on two ranks, and the weights that it ends with."""
    seatrial = Seatrial(tmp_path_factory.mktemp("undisturbed"))
    words = [
        "train", "--model", str(dropout_encoder), "--data", str(reviews), "--nproc", "2", "--batch-size", "8",
        "--max-steps", "45", "--learning-rate", "2e-3", "--max-length", "32", "--train-only",
        "train.checkpoint_every=10", "train.eval_every=15",
    ]  # fmt: skip
    done = seatrial(*words)
    assert done.code == 0, done.stderr
    return words, commit.weights_sha256(done.run.model("trained"))


class TestKillAndResume:
    @pytest.mark.parametrize(("rank", "step"), [(0, 1), (1, 17), (0, 31), (1, 45)])
    def test_a_killed_rank_costs_nothing_but_time(
        self, seatrial: Seatrial, undisturbed: tuple[list[str], str], rank: int, step: int
    ) -> None:
        """The resumed run ends with the weights of the undisturbed one, bit for bit."""
        words, expected = undisturbed
        started = time.monotonic()
        killed = seatrial(*words, fault=f"kill:rank={rank},step={step}")
        assert killed.code == 4
        assert f"rank {rank} was killed by SIGKILL" in killed.stderr
        assert f"first failing rank: {rank}" in killed.stderr
        assert time.monotonic() - started < 60
        assert rank_processes(killed.run.root) == []
        assert killed.manifest.state == "failed"
        # Saving goes on beside the training: the last save may not have been committed yet, the one before has.
        due = (step - 1) // 10 * 10
        newest = max(committed_steps(killed.run.checkpoints), default=0)
        assert due - 10 <= newest <= due

        resumed = seatrial("runs", "resume", "last")
        assert resumed.code == 0, resumed.stderr
        assert commit.weights_sha256(resumed.run.model("trained")) == expected
        assert [record.outcome for record in resumed.manifest.attempts] == ["failed", "completed"]
        event = next(
            e for e in read_json_lines(resumed.run.attempt(1).rank_events(0)) if e["event"] == "training"
        )
        assert event["from_step"] == newest

    def test_a_damaged_checkpoint_is_passed_over(
        self, seatrial: Seatrial, undisturbed: tuple[list[str], str]
    ) -> None:
        words, expected = undisturbed
        killed = seatrial(*words, fault="kill:rank=0,step=35")
        step = max(committed_steps(killed.run.checkpoints))
        newest = killed.run.checkpoints / f"step_{step:06d}" / "rank_00001.safetensors"
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1  # one flipped bit
        newest.write_bytes(data)
        resumed = seatrial("runs", "resume", "last")
        assert resumed.code == 0, resumed.stderr
        assert f"the checkpoint of step {step} is damaged" in resumed.stderr
        assert f"checkpoint_step_{step:06d}" in {e.check for e in read_evidence(resumed.run.evidence)}
        assert commit.weights_sha256(resumed.run.model("trained")) == expected

    def test_a_killed_agent_leaves_no_orphan_and_is_lost_not_forgotten(
        self, seatrial: Seatrial, undisturbed: tuple[list[str], str]
    ) -> None:
        words, expected = undisturbed
        started = seatrial(*words, "--detach", "train.log_every=1", fault="freeze:rank=0,step=25")
        wait_for(lambda: len(losses(started.run)) >= 24)
        agent = int(started.manifest.attempt.handle.split("//")[1].split(":")[0])  # type: ignore[union-attr]
        ranks = psutil.Process(agent).children(recursive=True)
        assert len(ranks) >= 3  # torchrun and two ranks
        os.kill(agent, signal.SIGKILL)
        _, alive = psutil.wait_procs(ranks, timeout=10)
        assert alive == []
        assert "is gone, and left no exit.json" in seatrial("runs", "show", "last").stdout
        resumed = seatrial("runs", "resume", "last")
        assert resumed.code == 0, resumed.stderr
        assert commit.weights_sha256(resumed.run.model("trained")) == expected


class TestPredictions:
    def test_a_killed_predict_goes_on_and_a_whole_one_is_kept(
        self, seatrial: Seatrial, reviews: Path, decoder: Path
    ) -> None:
        done = seatrial(
            "train", "--task", "causal-lm", "--model", str(decoder), "--data", str(reviews), "--nproc", "2",
            "--max-steps", "3", "--max-length", "32", "--train-only",
        )  # fmt: skip
        assert done.code == 0, done.stderr
        words = ["predict", "last", "--model", "trained", "--data", str(reviews), "--generate", "5"]
        killed = seatrial(*words, fault="kill:rank=1,step=4,attempt=1")
        assert killed.code == 4, killed.stderr
        events = []
        for attempt in (2, 3):
            again = seatrial(*words)
            assert again.code == 0, again.stderr
            events.append(list(read_json_lines(again.run.attempt(attempt).rank_events(1))))
        predicting = next(e for e in events[0] if e["event"] == "predicting")
        assert 0 < predicting["num_done"] < predicting["num_samples"] == 600
        assert [e["event"] for e in events[1]] == ["started", "kept", "finished"]

        path = Path(again.stdout.strip())
        about, rows = read_predictions(path)
        assert rows["id"].to_pylist() == [f"test-{i:07d}" for i in range(600)]
        assert about.options["generation"]["max_new_tokens"] == 5
        assert about.options["precision"] == "fp32"
        assert sum(bool(text) for text in rows["generation"].to_pylist()) > 300
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        assert seatrial("predict", "last", "--temperature", "1").code == 2
        assert "at most 64 tokens" in seatrial("predict", "last", "--generate", "60").stderr


def test_a_run_goes_on_with_its_own_data_or_not_at_all(
    seatrial: Seatrial, recipe: Callable[..., str], reviews: Path, tmp_path: Path
) -> None:
    """Without the cache, the data is read again, and must be what it was."""
    mine = tmp_path / "mine.csv"
    mine.write_text(reviews.read_text())
    caches = [{"SEATRIAL_CACHE": str(tmp_path / name)} for name in ("first", "second", "third")]
    words = ["train", recipe(max_steps=12), f"data.path={mine}", "--train-only"]
    killed = seatrial(*words, fault="kill:rank=1,step=11", **caches[0])
    assert killed.code == 4, killed.stderr
    mine.write_text(reviews.read_text().replace("pos", "neg", 1))
    changed = seatrial("runs", "resume", "last", **caches[1])
    assert changed.code == 2
    assert "not those that the run began with" in changed.stderr and str(mine) in changed.stderr
    mine.write_text(reviews.read_text())
    resumed = seatrial("runs", "resume", "last", **caches[2])
    assert resumed.code == 0, resumed.stderr


class TestInterrupt:
    def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_weights(
        self, seatrial: Seatrial, undisturbed: tuple[list[str], str]
    ) -> None:
        words = [*undisturbed[0], "train.max_steps=1500", "train.log_every=1"]
        process = seatrial.start(*words)
        wait_for(lambda: seatrial.runs_dir.exists() and any(seatrial.runs_dir.glob("*/metrics.jsonl")))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert "saving a checkpoint first" in stderr and "seatrial runs resume" in stderr
        run = RunPaths(next(seatrial.runs_dir.iterdir()))
        assert rank_processes(run.root) == []
        stopped = [
            e["step"] for e in read_json_lines(run.attempt(0).rank_events(0)) if e["event"] == "checkpoint"
        ]
        assert 0 < stopped[-1] < 1500
        assert commit.is_committed(run.checkpoints / f"step_{stopped[-1]:06d}")

        assert seatrial("runs", "resume", "last").code == 0
        whole = seatrial(*words)
        assert commit.weights_sha256(run.model("trained")) == commit.weights_sha256(
            whole.run.model("trained")
        )

    def test_ctrl_c_twice_kills_at_once(self, seatrial: Seatrial, undisturbed: tuple[list[str], str]) -> None:
        process = seatrial.start(*undisturbed[0], fault="freeze:step=3")
        wait_for(lambda: seatrial.runs_dir.exists() and any(seatrial.runs_dir.glob("*/metrics.jsonl")))
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=40)
        assert process.returncode == 130, stderr
        assert rank_processes(next(seatrial.runs_dir.iterdir())) == []

    def test_a_platforms_term_is_a_preemption(
        self, seatrial: Seatrial, undisturbed: tuple[list[str], str]
    ) -> None:
        started = seatrial(*undisturbed[0], "--detach", "train.max_steps=4000", "train.log_every=1")
        wait_for(lambda: losses(started.run))
        agent = int(started.manifest.attempt.handle.split("//")[1].split(":")[0])  # type: ignore[union-attr]
        os.kill(agent, signal.SIGTERM)
        wait_for(lambda: started.run.attempt(0).exit.exists())
        assert "preempted, exit code 75" in seatrial("runs", "show", "last").stdout


class TestFailures:
    def test_a_loss_that_is_not_finite_stops_the_run(
        self, seatrial: Seatrial, recipe: Callable[..., str]
    ) -> None:
        done = seatrial("train", recipe(), fault="nan:rank=1,step=28")
        assert done.code == 1
        assert "the loss is not finite at step 28" in done.stderr
        assert "last good checkpoint: step 20" in done.stderr
        assert sorted(p.name for p in done.run.checkpoints.iterdir()) == ["step_000010", "step_000020"]
        assert done.run.report.exists()

    def test_an_exploding_learning_rate_is_caught_for_real(
        self, seatrial: Seatrial, recipe: Callable[..., str]
    ) -> None:
        done = seatrial("train", recipe(learning_rate=1e38, clip_norm=None, weight_decay=0.0))
        assert done.code == 1
        assert "the loss is not finite at step" in done.stderr

    def test_an_exception_names_rank_and_line(self, seatrial: Seatrial, recipe: Callable[..., str]) -> None:
        done = seatrial("train", recipe(), fault="raise:rank=1,step=4")
        assert done.code == 4
        assert "RuntimeError at faults.py" in done.stderr and "first failing rank: 1" in done.stderr
        assert rank_processes(done.run.root) == []

    def test_out_of_memory_says_what_would_fit(self, seatrial: Seatrial, recipe: Callable[..., str]) -> None:
        done = seatrial("train", recipe(), fault="oom:step=2")
        assert done.code == 2
        assert "does not fit into memory" in done.stderr
        assert "train.batch_size=4 train.grad_accumulation=2    (the same global batch)" in done.stderr

    def test_a_full_disk_leaves_the_earlier_checkpoint(
        self, seatrial: Seatrial, recipe: Callable[..., str]
    ) -> None:
        done = seatrial("train", recipe(), fault="disk_full:step=20")
        assert done.code == 4
        assert "the disk is full" in done.stderr
        assert [p.name for p in done.run.checkpoints.iterdir()] == ["step_000010"]
        assert commit.problems(done.run.checkpoints / "step_000010") == []
        assert seatrial("runs", "resume", "last").code == 0

    def test_training_that_changes_nothing_fails(
        self, seatrial: Seatrial, recipe: Callable[..., str]
    ) -> None:
        done = seatrial("train", recipe(learning_rate=1e-300, weight_decay=0.0, max_steps=3))
        assert done.code == 1
        assert "training changed nothing" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, for real."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full(seatrial: Seatrial, recipe: Callable[..., str], small_disk: Path) -> None:
    name = recipe(keep_checkpoints=1000, checkpoint_every=2)
    done = seatrial("train", name, "--runs-dir", str(small_disk))
    assert done.code == 4
    assert "the disk is full" in done.stderr
    run = RunPaths(next(p for p in small_disk.iterdir() if p.is_dir()))
    kept = sorted(p for p in run.checkpoints.iterdir())
    assert kept and all(commit.problems(p) == [] for p in kept)


class TestOtherRanksOtherRecipe:
    def test_two_ranks_then_one_then_four_train_as_two_do(
        self, seatrial: Seatrial, recipe: Callable[..., str]
    ) -> None:
        """The global batch stays, so the losses do; what was changed on the way is recorded."""
        whole = seatrial("train", recipe(log_every=1, max_steps=36), "--train-only")
        assert whole.code == 0, whole.stderr
        expected = {row["step"]: row["loss"] for row in read_metrics(whole.run.metrics)["train"]}

        name = recipe(log_every=1, max_steps=36, checkpoint_every=12)
        assert seatrial("train", name, "--train-only", fault="kill:rank=1,step=15").code == 4
        refused = seatrial("runs", "resume", "last", "train.learning_rate=1e-3", "train.seed=4")
        assert refused.code == 2
        assert "- train.learning_rate: 0.002\n            + train.learning_rate: 0.001" in refused.stderr
        assert "--allow-change" in refused.stderr
        words = ("runs", "resume", "last", "train.checkpoint_every=6")
        second = seatrial(*words, "--nproc", "1", fault="kill:step=26,attempt=1")
        assert second.code == 4, second.stderr
        third = seatrial("runs", "resume", "last", "--nproc", "4")
        assert third.code == 0, third.stderr

        found = {row["step"]: row["loss"] for row in read_metrics(third.run.metrics)["train"]}
        assert found.keys() == expected.keys()
        assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
        starts = [
            next(e for e in read_json_lines(third.run.attempt(k).rank_events(0)) if e["event"] == "training")
            for k in range(3)
        ]
        # A checkpoint that was still being written at the kill does not count: then it is the one before.
        assert [e["from_step"] for e in starts] in ([0, 12, 24], [0, 12, 18], [0, 0, 24], [0, 0, 18])
        assert [e["steps_per_epoch"] for e in starts] == [starts[0]["steps_per_epoch"]] * 3
        assert [record.nproc for record in third.manifest.attempts] == [2, 1, 4]
        assert third.manifest.attempts[1].changes == {
            "train.checkpoint_every": [12, 6], "resources.nproc": [2, 1],
        }  # fmt: skip
        assert third.manifest.attempts[2].changes == {"resources.nproc": [2, 4]}


def test_a_read_only_directory_is_said_before_anything_starts(
    seatrial: Seatrial, recipe: Callable[..., str], small_disk: Path
) -> None:
    done = seatrial(
        "train", recipe(max_steps=3), "--runs-dir", str(small_disk), "--train-only", fault="kill:step=2"
    )
    run = RunPaths(next(p for p in small_disk.iterdir() if p.is_dir()))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = seatrial("train", recipe(), "--runs-dir", str(small_disk))
    assert refused.code == 2 and "Read-only file system" in refused.stderr
    resumed = seatrial("runs", "resume", str(run.root))
    assert resumed.code == 4 and "can't be written" in resumed.stderr
    assert not run.attempt(1).root.exists() and done.code == 4
