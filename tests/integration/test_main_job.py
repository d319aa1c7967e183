"""The main job on real ranks: train, predict with both models, compare, show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.metrics import read_metrics
from seatrial.runs.paths import RunPaths
from seatrial.runs.predictions import read_predictions

from .conftest import Done, Seatrial


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, reviews: Path, encoder: Path) -> tuple[Seatrial, Done]:
    """One whole run on two ranks, started without a recipe."""
    seatrial = Seatrial(tmp_path_factory.mktemp("main"))
    done = seatrial(
        "train", "--model", str(encoder), "--data", str(reviews), "--nproc", "2", "--epochs", "4", "--learning-rate",
        "2e-3", "--batch-size", "8", "--max-length", "32", "--tags", "ci,small", "--require", "better",
    )  # fmt: skip
    return seatrial, done


class TestWholeRun:
    def test_it_ends_well_and_says_so_in_six_lines(self, finished: tuple[Seatrial, Done]) -> None:
        _, done = finished
        assert done.code == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 6
        assert "2 ranks on CPU" in lines[0]
        assert "accuracy" in lines[1] and "95 %" in lines[1]
        assert lines[2].startswith("verdict  better; gate passed")
        assert lines[3].startswith("use      processor time of the job (no GPU: a stand-in) ")
        assert lines[4].split()[1].endswith("report.html")

    def test_its_directory_holds_what_the_design_says(self, finished: tuple[Seatrial, Done]) -> None:
        run = finished[1].run
        for path in (run.manifest, run.spec, run.inputs, run.evidence, run.report, run.metrics, run.comparison, run.request("json"),
                     run.attempt(0).exit, run.attempt(0).rank_log(1), run.attempt(0).rank_events(1),
                     run.predictions("original"), run.predictions("trained")):  # fmt: skip
            assert path.is_file(), path
        assert not [p for p in run.root.rglob("*") if "writing" in p.name or p.suffix == ".tmp"]
        for name in ("original", "trained"):
            assert commit.problems(run.model(name)) == []

    def test_its_evidence_is_whole(self, finished: tuple[Seatrial, Done]) -> None:
        verdicts = {e.check: e.verdict for e in read_evidence(finished[1].run.evidence)}
        expected = {
            "ranks_present", "held_out_is_new", "ranks_agree", "steps_done", "loss_finite", "loss_fell",
            "weights_changed", "predictions_cover_original", "predictions_cover_trained", "comparison", "gate_compare",
        }  # fmt: skip
        assert expected <= set(verdicts)
        assert {verdicts[name] for name in expected} == {Verdict.PASS}

    def test_its_manifest_tells_the_story(self, finished: tuple[Seatrial, Done]) -> None:
        manifest = finished[1].manifest
        assert manifest.state == "completed"
        assert manifest.tags == ["ci", "small"]
        assert manifest.models["original"]["weights_sha256"] != manifest.models["trained"]["weights_sha256"]
        assert manifest.data["train"]["num_samples"] == 540
        assert manifest.results["comparison"]["verdict"] == "better"
        assert manifest.results["model"]["new_weights"], "the new head is on record"
        assert manifest.attempt.exit_code == 0

    def test_both_prediction_files_are_about_the_same_samples(self, finished: tuple[Seatrial, Done]) -> None:
        run = finished[1].run
        (info, rows), (other_info, other_rows) = (
            read_predictions(run.predictions(n)) for n in ("original", "trained")
        )
        assert info.data_sha256 == other_info.data_sha256
        assert info.model_sha256 != other_info.model_sha256
        assert rows["id"].to_pylist() == other_rows["id"].to_pylist()
        assert len(rows) == 60

    def test_the_curve_falls(self, finished: tuple[Seatrial, Done]) -> None:
        curves = read_metrics(finished[1].run.metrics)
        assert curves["train"][-1]["loss"] < curves["train"][0]["loss"]
        assert [row["step"] for row in curves["eval"]] == [34, 68, 102, 136]
        assert all(row["samples_per_s"] > 0 for row in curves["train"])

    def test_runs_list_show_logs(self, finished: tuple[Seatrial, Done]) -> None:
        seatrial, done = finished
        listed = json.loads(seatrial("runs", "list", "--tag", "ci", "--json").stdout)
        assert [row["run_id"] for row in listed] == [done.run.run_id]
        assert "better" in seatrial("runs", "list").stdout
        assert seatrial("runs", "list", "--tag", "other").stdout == ""
        shown = seatrial("runs", "show", "last")
        assert "weights_changed" in shown.stdout and "completed" in shown.stdout
        assert json.loads(seatrial("runs", "show", "last", "--json").stdout)["evidence"]
        assert "ranks_present" in seatrial("runs", "logs", "last", "--rank", "0").stdout
        assert "nothing to resume" in seatrial("runs", "resume", "last").stderr

    def test_compare_and_gates(self, finished: tuple[Seatrial, Done]) -> None:
        seatrial, done = finished
        files = [str(done.run.predictions(name)) for name in ("original", "trained")]
        assert seatrial("compare", *files, "--require", "better").code == 0
        assert seatrial("compare", *reversed(files), "--require", "better").code == 1
        strict = seatrial("compare", "last", "--min-improvement", "0.9", "--require", "better", "--json")
        assert strict.code == 1
        assert json.loads(strict.stdout)["gate"]["passed"] is False
        assert seatrial("compare", "last", "--require", "better").code == 0  # the recipe's gate again

    def test_predict_other_data(self, finished: tuple[Seatrial, Done], tmp_path: Path) -> None:
        seatrial, _ = finished
        other = tmp_path / "other.jsonl"
        other.write_text(
            '{"sentence": "a superb film", "label": "pos"}\n{"sentence": "a sad town", "label": "neg"}\n'
        )
        done = seatrial("predict", "last", "--model", "trained", "--data", str(other))
        assert done.code == 0, done.stderr
        _, rows = read_predictions(Path(done.stdout.strip()))
        assert rows["label"].to_pylist() == ["pos", "neg"]
        assert [len(p) for p in rows["probabilities"].to_pylist()] == [2, 2]
        assert seatrial("predict", "last", "--data", "none.csv").code == 2
        other.write_text('{"sentence": "x", "label": "unheard of"}\n')
        wrong = seatrial("predict", "last", "--data", str(other))
        assert wrong.code == 2 and "training never saw" in wrong.stderr
        assert wrong.manifest.state == "completed", "more predictions say nothing of the run"

    def test_the_page_can_be_written_again(self, finished: tuple[Seatrial, Done]) -> None:
        seatrial, done = finished
        done.run.report.unlink()
        again = seatrial("report", "last")
        assert Path(again.stdout.strip()).read_text().startswith("<!doctype html>")


def test_causal_lm(seatrial: Seatrial, reviews: Path, decoder: Path) -> None:
    done = seatrial(
        "train", "--task", "causal-lm", "--model", str(decoder), "--data", str(reviews), "--nproc", "2", "--epochs", "2",
        "--learning-rate", "3e-3", "--batch-size", "8", "--max-length", "32", "--require", "better",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    comparison = json.loads(done.run.comparison.read_text())
    assert comparison["metrics"]["nll"]["trained"] < comparison["metrics"]["nll"]["original"]
    _, rows = read_predictions(done.run.predictions("trained"))
    assert min(rows["num_tokens"].to_pylist()) > 3


def losses(run: RunPaths) -> list[float]:
    return [row["loss"] for row in read_metrics(run.metrics)["train"]]


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_two_ranks_take_the_steps_of_one(
    seatrial: Seatrial, recipe: Callable[..., str], encoder: Path, decoder: Path, task: str
) -> None:
    """Same global batch, uneven last batch (540 = 16 × 33 + 12), accumulation: the same losses."""
    model = encoder if task == "text-classification" else decoder
    name = recipe(model, log_every=1, max_steps=40)
    curves = []
    for words in (
        ("resources.nproc=1", "train.batch_size=16"),
        ("train.grad_accumulation=2", "train.batch_size=4"),
    ):
        done = seatrial("train", name, "--train-only", f"task={task}", *words)
        assert done.code == 0, done.stderr
        curves.append(losses(done.run))
    assert len(curves[0]) == len(curves[1]) == 40
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-4


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    seatrial: Seatrial, recipe: Callable[..., str], dropout_encoder: Path
) -> None:
    name = recipe(dropout_encoder, max_steps=10)
    weights = []
    for seed in (3, 3, 4):
        done = seatrial("train", name, "--train-only", f"train.seed={seed}")
        assert done.code == 0, done.stderr
        weights.append(commit.weights_sha256(done.run.model("trained")))
    assert weights[0] == weights[1] != weights[2]


def test_a_detached_run_is_followed_and_cancelled(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    started = seatrial("train", recipe(epochs=2000), "--detach")
    assert started.code == 0
    run_id = started.stdout.strip()
    wait_for(lambda: losses(started.run))
    assert "running" in seatrial("runs", "list").stdout
    busy = seatrial("runs", "resume", run_id)
    assert busy.code == 2 and "in use" in busy.stderr
    assert seatrial("runs", "cancel", run_id).code == 0
    manifest = started.manifest
    assert (manifest.state, manifest.attempt.exit_code) == ("interrupted", 130)
    assert list(started.run.checkpoints.iterdir())


def test_any_torchrun_script(seatrial: Seatrial) -> None:
    (seatrial.cwd / "mine.py").write_text(
        "import os, sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "x = torch.ones(1) * dist.get_rank(); dist.all_reduce(x)\n"
        "print('sum', x.item(), sys.argv[1:], os.environ['SEATRIAL_RUN_ID'][:4])\n"
        "dist.destroy_process_group(); sys.exit(3 if '--fail' in sys.argv and dist.is_available() else 0)\n"
    )
    done = seatrial("run", "--nproc", "2", "--", "mine.py", "--lr", "1")
    assert done.code == 0, done.stderr
    assert "[rank 0] sum 1.0 ['--lr', '1'] mine" in done.stderr
    assert done.manifest.task == "script" and done.run.report.exists()
    failed = seatrial("run", "--nproc", "2", "--", "mine.py", "--fail")
    assert failed.code == 4
    assert "ended with exit code 3" in failed.stderr


def test_dry_run_touches_nothing(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    done = seatrial("train", recipe(), "train.seed=5", "--dry-run")
    assert done.code == 0
    assert "train.seed: train.seed=5" in done.stdout and "seatrial.job.agent" in done.stdout
    assert not seatrial.runs_dir.exists()


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)
