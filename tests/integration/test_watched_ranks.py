"""Ranks that freeze, die again and again, or lose the command that started them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from seatrial.job.heartbeat import Beat
from seatrial.runs import commit
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.paths import RunPaths

from .conftest import Seatrial, rank_processes
from .test_main_job import losses, wait_for

Make = Callable[..., str]


def test_a_frozen_rank_is_named_and_the_ranks_go_on_in_place(seatrial: Seatrial, recipe: Make) -> None:
    """Freeze at 25, then death at 28 after a first restart: the weights are those of an undisturbed run."""
    name = recipe(max_steps=34, hang_timeout_s=3)
    whole = seatrial("train", name, "--train-only")
    assert whole.code == 0, whole.stderr
    expected = commit.weights_sha256(whole.run.model("trained"))

    done = seatrial(
        "train", name, "--train-only", "--max-restarts", "3",
        fault="freeze:rank=1,step=25; kill:rank=0,step=28,restart=1",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert commit.weights_sha256(done.run.model("trained")) == expected
    attempt = done.run.attempt(0)
    first, second = read_json(attempt.exit)["stages"][0]["restarts"]
    assert (first["step"], first["rank"], first["wait_s"]) == (25, 1, 1)
    assert first["what"].startswith("rank 1 is frozen: no progress for ")
    assert (second["step"], second["rank"], second["wait_s"]) == (28, 0, 2)
    assert [row["restart"] for row in read_json_lines(attempt.restarts)] == [1, 2]
    assert "before_step" in attempt.rank_log(1).read_text(), "the stack of the frozen rank"
    assert [e["from_step"] for e in read_json_lines(attempt.rank_events(0)) if e["event"] == "training"] == [
        0,
        20,
        20,
    ]
    shown = seatrial("runs", "show", "last").stdout
    assert "restart 1 (train, step 25): rank 1 is frozen" in shown
    assert "restart 2 (train, step 28): rank 0 was killed by SIGKILL" in shown


def test_a_rank_that_is_stopped_from_outside_ends_the_run(seatrial: Seatrial, recipe: Make) -> None:
    started = seatrial(
        "train", recipe(epochs=4000, hang_timeout_s=3, log_every=1), "--detach", "--train-only"
    )
    wait_for(lambda: len(losses(started.run)) > 3)
    attempt = started.run.attempt(0)
    beat = Beat.read(attempt.heartbeat(1))
    assert beat is not None
    os.kill(beat.pid, signal.SIGSTOP)
    wait_for(attempt.exit.exists)
    record = read_json(attempt.exit)
    assert (record["outcome"], record["exit_code"]) == ("failed", 4)
    assert record["failure"]["rank"] == 1 and "is frozen" in record["failure"]["what"]
    assert f"process {beat.pid} is stopped" in record["failure"]["evidence"]
    assert "the others: rank 0: step" in record["failure"]["evidence"]
    wait_for(lambda: not rank_processes(started.run.root), 10)


def test_what_fails_at_the_same_step_again_is_not_tried_for_ever(seatrial: Seatrial, recipe: Make) -> None:
    done = seatrial(
        "train", recipe(), "--train-only", "--max-restarts", "9",
        fault="kill:rank=0,step=17; kill:rank=0,step=17,restart=1",
    )  # fmt: skip
    assert done.code == 4
    assert "not started again: step 17 failed twice in a row" in done.stderr
    assert len(read_json(done.run.attempt(0).exit)["stages"][0]["restarts"]) == 1
    assert rank_processes(done.run.root) == []


def test_a_run_outlives_the_command_that_started_it(seatrial: Seatrial, recipe: Make) -> None:
    process = seatrial.start("train", recipe(max_steps=40, log_every=1))
    wait_for(lambda: seatrial.runs_dir.exists() and any(seatrial.runs_dir.glob("*/metrics.jsonl")))
    process.kill()
    process.communicate()
    run = RunPaths(next(seatrial.runs_dir.iterdir()))
    wait_for(run.attempt(0).exit.exists)
    shown = seatrial("runs", "show", "last").stdout
    assert f"{run.run_id}: completed" in shown and "predict: completed, exit code 0" in shown
    assert run.predictions("trained").exists()


def test_bad_input_leaves_no_process_that_was_started_ahead(
    seatrial: Seatrial, recipe: Make, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    done = seatrial("train", recipe(), "data.path=nowhere.csv", TMPDIR=str(tmp_path / "tmp"))
    assert done.code == 2 and not seatrial.runs_dir.exists()
    wait_for(lambda: not _started_ahead(str(tmp_path / "tmp")), 10)
    assert list((tmp_path / "tmp").iterdir()) == []


def _started_ahead(where: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if where in " ".join(p.info["cmdline"] or [])]
