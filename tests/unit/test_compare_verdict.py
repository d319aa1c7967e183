"""Better, worse, or no evidence; and the gate on it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.compare.bootstrap import paired_bootstrap
from seatrial.compare.classification import accuracy_sums, mcnemar_p
from seatrial.compare.comparison import compare_files
from seatrial.compare.language import LanguagePairs, nll_sums
from seatrial.compare.metrics import METRICS
from seatrial.compare.randomization import swap_test
from seatrial.compare.verdict import decide

from .prediction_samples import four_cells, random_classifier, write_classification, write_language

MIRROR = {"better": "worse", "worse": "better", "no evidence": "no evidence"}


def compare_cells(tmp_path: Path, cells: tuple[int, int, int, int], **options: Any) -> dict[str, Any]:
    label, original, trained = four_cells(*cells)
    return compare_files(
        write_classification(tmp_path / "original.parquet", label, original),
        write_classification(tmp_path / "trained.parquet", label, trained),
        **({"resamples": 1000} | options),
    )


def test_a_large_improvement_is_better_and_the_sentence_says_all_of_it(tmp_path: Path) -> None:
    verdict = compare_cells(tmp_path, (100, 20, 645, 147))["verdict"]
    assert verdict["verdict"] == "better"
    assert verdict["sentence"].startswith("accuracy 13.2 % → 81.7 % (+68.5 points, 95 % interval +6")
    assert verdict["sentence"].endswith("; exact McNemar p < 1e-6; 912 samples)")
    assert verdict["relative_change"] == pytest.approx(625 / 120)
    assert verdict["num_samples_needed"] < 20
    assert "lies above zero" in verdict["reason"]


def test_a_loss_is_worse(tmp_path: Path) -> None:
    verdict = compare_cells(tmp_path, (100, 60, 20, 20))["verdict"]
    assert verdict["verdict"] == "worse"
    assert "−20.0 points" in verdict["sentence"]
    assert "lies below zero" in verdict["reason"]


def test_five_lucky_samples_are_no_evidence_though_the_interval_excludes_zero(tmp_path: Path) -> None:
    result = compare_cells(tmp_path, (40, 0, 5, 5))
    assert result["verdict"]["interval"][0] > 0
    assert result["verdict"]["p_value"] == 0.0625
    assert result["verdict"]["verdict"] == "no evidence"
    assert "exact McNemar p = 0.062 is not below 0.05" in result["verdict"]["reason"]
    assert compare_cells(tmp_path, (40, 0, 6, 4))["verdict"]["verdict"] == "better"


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss", "calibration_error"])
def test_equal_predictions_are_no_evidence_of_anything(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 200)
    said = random_classifier(rng, label, 3, 1.0)
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, said),
        write_classification(tmp_path / "t.parquet", label, said),
        metric=metric,
        resamples=200,
    )
    verdict = result["verdict"]
    assert (verdict["verdict"], verdict["difference"], verdict["interval"]) == ("no evidence", 0, [0, 0])
    assert verdict["p_value"] == 1
    assert verdict["num_samples_needed"] is None
    assert "no difference was observed" in verdict["num_samples_needed_reason"]
    assert result["changed"] == {"improved": [], "worsened": []}


def test_a_model_is_never_better_than_itself(tmp_path: Path) -> None:
    label, original, trained = four_cells(10, 0, 90, 0)
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, original, model_sha256="same"),
        write_classification(tmp_path / "t.parquet", label, trained, model_sha256="same"),
        require="better",
        resamples=100,
    )
    assert result["verdict"]["verdict"] == "no evidence"
    assert "same model" in result["verdict"]["reason"]
    assert result["gate"]["passed"] is False
    assert any("same model" in warning for warning in result["warnings"])


def test_two_unknown_models_are_not_taken_for_the_same(tmp_path: Path) -> None:
    label, original, trained = four_cells(10, 0, 90, 0)
    files = [
        write_classification(tmp_path / f"{i}.parquet", label, model, model_sha256="")
        for i, model in enumerate((original, trained))
    ]
    assert compare_files(*files, resamples=100)["verdict"]["verdict"] == "better"


def test_a_language_model_is_better_when_its_likelihood_rises(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(5, 50, 200)
    nll = tokens * rng.normal(3.0, 0.4, 200)
    better = nll - tokens * rng.normal(0.3, 0.2, 200)
    files = (
        write_language(tmp_path / "o.parquet", tokens, nll),
        write_language(tmp_path / "t.parquet", tokens, better),
    )
    for metric in (None, "perplexity"):
        verdict = compare_files(*files, metric=metric, resamples=1000)["verdict"]
        assert verdict["verdict"] == "better" and verdict["difference"] < 0
    sentence = compare_files(*files, resamples=1000)["verdict"]["sentence"]
    assert "nats/token (−0." in sentence and "% relative, 95 % interval −0." in sentence
    assert compare_files(*reversed(files), resamples=1000)["verdict"]["verdict"] == "worse"


@settings(max_examples=25, deadline=None)
@given(cells=st.tuples(*[st.integers(0, 40)] * 4).filter(lambda cells: sum(cells) > 0))
def test_swapping_the_files_swaps_better_and_worse(cells: tuple[int, int, int, int]) -> None:
    label, *models = four_cells(*cells)
    with tempfile.TemporaryDirectory() as directory:
        files = [
            write_classification(Path(directory, f"{i}.parquet"), label, model)
            for i, model in enumerate(models)
        ]
        there = compare_files(*files, resamples=100)
        back = compare_files(*reversed(files), resamples=100)
    verdicts = there["verdict"]["verdict"], back["verdict"]["verdict"]
    if 0.001 < there["verdict"]["p_value"] < 0.05:
        # Here the interval decides, and the draws of cells differ with their order: one side may stay undecided.
        assert "no evidence" in verdicts or verdicts[1] == MIRROR[verdicts[0]]
    else:
        assert verdicts[1] == MIRROR[verdicts[0]]
    for name, metric in there["metrics"].items():
        assert back["metrics"][name]["difference"] == pytest.approx(-metric["difference"], abs=1e-12)
        assert metric["interval"][0] <= metric["difference"] <= metric["interval"][1]
        assert metric["original_interval"][0] <= metric["original"] <= metric["original_interval"][1]
    # Metrics of single rows see the very same draws, so their intervals are mirrored exactly.
    low, high = there["metrics"]["log_loss"]["interval"]
    assert back["metrics"]["log_loss"]["interval"] == pytest.approx([-high, -low], abs=1e-9)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 150)
    models = [random_classifier(rng, label, 2, skill) for skill in (0.8, 1.2)]

    def compare(*orders: np.ndarray | None) -> dict[str, Any]:
        paths = [
            write_classification(tmp_path / f"{i}.parquet", label, model, order=order)
            for i, (model, order) in enumerate(zip(models, orders, strict=True))
        ]
        return compare_files(*paths, resamples=300)

    assert compare(None, None) == compare(rng.permutation(150), rng.permutation(150))


def test_noise_against_noise_is_better_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(4)
    verdicts = []
    for seed in range(300):
        cells = rng.multinomial(150, [0.6, 0.1, 0.1, 0.2])
        estimate = paired_bootstrap(accuracy_sums(cells), confidence=0.95, resamples=500, seed=seed)
        p_value = mcnemar_p(int(cells[1]), int(cells[2]))
        verdicts.append(decide(METRICS["accuracy"], estimate["accuracy"], p_value, 0.95))
    # At most 2.5 % of "better" is promised; 99.9 % of Binomial(300, 0.025) stay below 17.
    assert verdicts.count("better") < 17 and verdicts.count("worse") < 17


def test_noise_against_noise_of_skewed_likelihoods_too() -> None:
    rng = np.random.default_rng(5)
    verdicts = []
    for seed in range(300):
        tokens = rng.integers(5, 60, 25).astype(float)
        nll = tokens * rng.lognormal(1, 0.5, 25)
        data = LanguagePairs(
            num_tokens=tokens,
            original_nll=nll + tokens * rng.exponential(0.3, 25),
            trained_nll=nll + tokens * rng.exponential(0.3, 25),
        )
        estimate = paired_bootstrap(nll_sums(data), confidence=0.95, resamples=400, seed=seed)["nll"]
        p_value = swap_test(nll_sums(data), resamples=400, seed=seed)["nll"]
        verdicts.append(decide(METRICS["nll"], estimate, p_value, 0.95))
    assert verdicts.count("better") < 17 and verdicts.count("worse") < 17


CLEARLY_BETTER, CLEARLY_WORSE, UNCLEAR = (700, 40, 140, 120), (700, 140, 40, 120), (700, 82, 78, 140)


@pytest.mark.parametrize(
    ("cells", "require", "min_improvement", "passed", "reason"),
    [
        (CLEARLY_BETTER, None, 0.0, None, "no gate was asked for"),
        (CLEARLY_BETTER, "better", 0.0, True, "required 'better', the verdict is 'better'"),
        (UNCLEAR, "better", 0.0, False, "the verdict is 'no evidence'"),
        (CLEARLY_WORSE, "better", 0.0, False, "the verdict is 'worse'"),
        (CLEARLY_BETTER, "not worse", 0.0, True, "the verdict is 'better'"),
        (UNCLEAR, "not worse", 0.0, True, "a loss of up to 3.0 points is not excluded"),
        (CLEARLY_WORSE, "not worse", 0.0, False, "the verdict is 'worse'"),
        # The difference is 10 points, its interval begins at about 7.5.
        (CLEARLY_BETTER, "better", 0.07, True, "at least 7.0 points, the 95 % interval shows 7.5 points"),
        (CLEARLY_BETTER, None, 0.07, True, "required an improvement of at least 7.0 points"),
        (CLEARLY_BETTER, "better", 0.09, False, "required an improvement of at least 9.0 points"),
        (CLEARLY_BETTER, None, 0.09, False, "interval shows 7.5 points"),
        (UNCLEAR, None, 0.001, False, "0.10 points, the 95 % interval shows none"),
    ],
)
def test_the_gate_passes_on_what_was_shown(
    tmp_path: Path,
    cells: tuple[int, int, int, int],
    require: str | None,
    min_improvement: float,
    passed: bool | None,
    reason: str,
) -> None:
    gate = compare_cells(tmp_path, cells, require=require, min_improvement=min_improvement)["gate"]
    assert gate["passed"] is passed
    assert reason in gate["reason"]
    assert (gate["require"], gate["min_improvement"]) == (require, min_improvement)


def test_an_improvement_of_a_loss_is_a_fall(tmp_path: Path) -> None:
    tokens = [10] * 40
    before = [30.0 + i % 3 for i in range(40)]
    after = [value - 2 - i % 2 for i, value in enumerate(before)]  # 0.25 nats per token less
    files = (
        write_language(tmp_path / "o.parquet", tokens, before),
        write_language(tmp_path / "t.parquet", tokens, after),
    )
    assert compare_files(*files, min_improvement=0.2, resamples=1000)["gate"]["passed"] is True
    gate = compare_files(*files, min_improvement=0.3, resamples=1000)["gate"]
    assert gate["passed"] is False and "nats/token" in gate["reason"]
