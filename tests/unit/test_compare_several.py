"""Several runs side by side: the best is found by looking, and what is said of it allows for that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from seatrial.cli.runs_compare import compare_runs as command
from seatrial.compare.classification import mcnemar_p
from seatrial.compare.several import differing_keys, holm, needed_resamples
from seatrial.runs.files import write_json
from seatrial.runs.manifest import AttemptRecord, Manifest, read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from seatrial.spec.run import AdapterSpec, DataSpec, RunSpec, TrainSpec
from tests.unit.prediction_samples import answers, write_classification, write_language

NUM = 400
Make = Callable[..., RunPaths]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run whose trained model gets the first so many of its samples right; None leaves no predictions."""

    def run(
        name: str, right: int | None, *, state: RunState = RunState.COMPLETED, data: str = "d" * 64,
        tags: tuple[str, ...] = ("sweep-1",), shift: int = 0, **train: Any,
    ) -> RunPaths:  # fmt: skip
        paths = RunPaths(tmp_path / "runs" / name)
        paths.attempt(0).root.mkdir(parents=True)
        spec = RunSpec(name="n", model="m", data=DataSpec(path="d"), train=TrainSpec(**train))
        write_json(paths.spec, spec.model_dump(mode="json", by_alias=True))
        record = AttemptRecord(index=0, handle="local://999999999:1", stages=["train"], exit_code=0)
        manifest = Manifest(
            run_id=name, name="n", task=spec.task, command=[], cwd="/", spec_sha256="", seatrial_version="0", python="3",
            state=state, tags=list(tags), attempts=[record],
        )  # fmt: skip
        write_manifest(paths, manifest)
        if right is not None:
            paths.predictions("trained").parent.mkdir()
            label = np.zeros(NUM, dtype=int)
            for model, hits in (("original", 200), ("trained", right)):
                predicted = np.roll((np.arange(NUM) >= hits).astype(int), shift if model == "trained" else 0)
                write_classification(
                    paths.predictions(model), label, answers(label, predicted), data_sha256=data, run_id=name,
                    model_sha256=f"{name} {model}",
                )  # fmt: skip
        return paths

    return run


def compare(tmp_path: Path, *words: str) -> tuple[dict[str, Any], int]:
    done = CliRunner().invoke(
        command, [*words, "--json", "--runs-dir", str(tmp_path / "runs")], standalone_mode=False
    )
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout), done.return_value


def table(tmp_path: Path, *words: str) -> str:
    done = CliRunner().invoke(command, [*words, "--runs-dir", str(tmp_path / "runs")], standalone_mode=False)
    assert done.exception is None
    return done.output


def test_the_story_of_a_sweep(tmp_path: Path, make: Make) -> None:
    """Two learning rates with two seeds; one of the runs has not come to its predictions."""
    make("n-0", 210, learning_rate=1e-5, seed=0)
    make("n-1", None, learning_rate=1e-5, seed=1, state=RunState.FAILED)
    make("n-2", 300, learning_rate=3e-5, seed=0)
    make("n-3", 304, learning_rate=3e-5, seed=1)
    make("other", 399, tags=())
    result, code = compare(tmp_path, "--tag", "sweep-1")
    assert (code, result["keys"]) == (0, ["train.learning_rate", "train.seed"])
    rows = {row["run_id"]: row for row in result["runs"]}
    assert list(rows) == ["n-0", "n-1", "n-2", "n-3"]
    assert rows["n-2"]["values"] == {"train.learning_rate": 3e-5, "train.seed": 0}
    assert rows["n-2"]["measured"]["trained"] == 0.75
    assert rows["n-2"]["measured"]["original"] == 0.5
    assert (rows["n-2"]["measured"]["verdict"], rows["n-0"]["measured"]["verdict"]) == ("better", "better")
    assert rows["n-1"]["measured"] is None
    assert "no predictions" in rows["n-1"]["why"]
    assert result["best"] == "n-3"
    pairs = {row["run_id"]: row for row in result["pairs"]}
    assert set(pairs) == {"n-0", "n-2"}
    assert (pairs["n-0"]["verdict"], pairs["n-2"]["verdict"]) == ("better", "no evidence")
    assert pairs["n-0"]["difference"] == pytest.approx(0.235)
    assert pairs["n-0"]["p_value"] == mcnemar_p(0, 94)
    # three runs are three pairs, of which the two with the best are made
    assert pairs["n-0"]["p_adjusted"] == pytest.approx(3 * pairs["n-0"]["p_value"])
    assert pairs["n-2"]["p_adjusted"] == pytest.approx(2 * pairs["n-2"]["p_value"])
    first, second = result["groups"]
    assert (first["num_runs"], first["num_measured"], first["standard_deviation"]) == (2, 1, None)
    assert second["values"] == {"train.learning_rate": 3e-5}
    assert second["mean"] == pytest.approx(0.755)
    assert second["standard_deviation"] == pytest.approx(0.01 / 2**0.5)
    shown = table(tmp_path, "--tag", "sweep-1")
    assert "not measured: it has no predictions" in shown
    assert "p by Holm for all 3 pairs" in shown
    assert "75.5 ± 0.7 %" in shown


def test_a_comparison_that_was_not_made_yet_is_made_and_kept(tmp_path: Path, make: Make) -> None:
    run = make("n-0", 300)
    make("n-1", 301, seed=1)
    compare(tmp_path, "n-0", "n-1")
    assert run.comparison.exists()
    assert read_manifest(run).results["comparison"]["verdict"] == "better"
    made = run.comparison.stat().st_mtime_ns
    compare(tmp_path, "n-0", "n-1")
    assert run.comparison.stat().st_mtime_ns == made


def test_other_samples_are_refused_and_named(tmp_path: Path, make: Make) -> None:
    """The split of data without a test split is drawn by the seed: their models were held to other samples."""
    make("n-0", 300, seed=0)
    make("n-1", 310, seed=1, data="e" * 64)
    result, _ = compare(tmp_path, "--tag", "sweep-1")
    (pair,) = result["pairs"]
    assert pair["run_id"] == "n-0"
    assert "those of n-1 have different held-out data" in pair["refused"]
    assert "verdict" not in pair
    assert "2 different sets of held-out samples" in result["warnings"][0]
    assert "not comparable" in table(tmp_path, "--tag", "sweep-1")


def test_a_metric_that_was_not_the_gates(tmp_path: Path, make: Make) -> None:
    make("n-0", 300, seed=0)
    make("n-1", 100, seed=1)
    result, _ = compare(tmp_path, "--tag", "sweep-1", "--metric", "log_loss")
    assert result["best"] == "n-0"  # less is better
    assert [row["measured"]["verdict"] for row in result["runs"]] == ["better", "worse"]
    assert result["pairs"][0]["verdict"] == "better"
    assert result["pairs"][0]["difference"] < 0


def test_a_run_that_goes_on_is_not_measured(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have predictions of an earlier attempt."""
    monkeypatch.setattr("seatrial.launch.launcher.settle", read_manifest)
    make("n-0", 300, state=RunState.RUNNING)
    result, code = compare(tmp_path, "n-0")
    assert (result["runs"][0]["why"], code) == ("it has not ended", 3)


def test_language_models_are_compared_by_nll(tmp_path: Path) -> None:
    tokens = np.full(200, 10)
    base = np.random.default_rng(0).uniform(20, 30, 200)
    waver = np.tile([2.0, -1.9], 100)  # up and down, and a little worse in the mean
    for name, trained in (("a", base - 1), ("b", base - 3), ("c", base - 3 + waver)):
        paths = RunPaths(tmp_path / "runs" / name)
        paths.predictions("trained").parent.mkdir(parents=True)
        spec = RunSpec(
            name="n",
            task="causal-lm",
            model="m",
            data=DataSpec(path="d"),
            adapter=AdapterSpec(alpha=ord(name)),
        )
        write_json(paths.spec, spec.model_dump(mode="json", by_alias=True))
        manifest = Manifest(
            run_id=name, name="n", task=spec.task, command=[], cwd="/", spec_sha256="", seatrial_version="0", python="3",
            state=RunState.COMPLETED, attempts=[AttemptRecord(index=0, handle="local://9:1", exit_code=0)],
        )  # fmt: skip
        write_manifest(paths, manifest)
        for model, nll in (("original", base), ("trained", trained)):
            write_language(paths.predictions(model), tokens, nll, model_sha256=f"{name}{model}")
    result, _ = compare(tmp_path, "a", "b", "c")
    assert (result["metric"], result["keys"], result["best"]) == ("nll", ["adapter.alpha"], "b")
    assert [pair["verdict"] for pair in result["pairs"]] == ["better", "no evidence"]


def test_what_can_not_be_compared_is_refused(tmp_path: Path, make: Make) -> None:
    run = make("n-0", 300)
    for words, said in (([], "nothing to compare"), (["--tag", "none"], "nothing to compare"),
                        (["n-0", "--metric", "acc"], "no metric 'acc'")):  # fmt: skip
        done = CliRunner().invoke(
            command, [*words, "--runs-dir", str(tmp_path / "runs")], standalone_mode=False
        )
        assert said in str(done.exception)
    spec = RunSpec(name="n", task="causal-lm", model="m", data=DataSpec(path="d"))
    make("n-1", None)
    write_json(RunPaths(run.root.parent / "n-1").spec, spec.model_dump(mode="json", by_alias=True))
    done = CliRunner().invoke(
        command, ["n-0", "n-1", "--runs-dir", str(tmp_path / "runs")], standalone_mode=False
    )
    assert "these runs can't be compared" in str(done.exception)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03], 10) == pytest.approx([0.1, 0.32, 0.27])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_runs_that_are_equally_good_are_seldom_told_apart() -> None:
    """Ten models with equal chances on 300 samples: with the p-values of nine tests alone, chance would often win."""
    rng = np.random.default_rng(0)
    k, trials, wrong, naive = 10, 400, 0, 0
    for _ in range(trials):
        right = rng.random((k, 300)) < 0.7
        best = int(right.sum(axis=1).argmax())
        p_values = [
            mcnemar_p(int((right[i] & ~right[best]).sum()), int((~right[i] & right[best]).sum()))
            for i in range(k)
            if i != best
        ]
        wrong += min(holm(p_values, k * (k - 1) // 2)) < 0.05
        naive += min(holm(p_values)) < 0.05
    assert wrong / trials <= 0.05
    assert naive / trials > 0.05  # what allowing for the choice of the best is for


def test_a_randomization_test_can_still_reach_the_level() -> None:
    for num_pairs in (0, 1, 100, 1000):
        assert num_pairs / (needed_resamples(num_pairs, 0.95) + 1) < 0.05
    assert needed_resamples(10**6, 0.95) == 100_000


def test_what_a_run_is_called_is_no_difference() -> None:
    recipes = [
        {"name": "a", "tags": ["x"], "train.seed": 0, "adapter": None},
        {"name": "b", "train.seed": 0, "adapter.r": 8},
    ]
    assert differing_keys(recipes) == ["adapter.r"]
