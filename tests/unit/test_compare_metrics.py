"""Every metric against an implementation that others wrote."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from seatrial.compare.classification import mcnemar_p, wilson_interval
from seatrial.compare.comparison import compare_files
from seatrial.compare.metrics import METRICS
from seatrial.compare.power import samples_needed_for_accuracy
from seatrial.spec.run import METRICS as SPEC_METRICS
from seatrial.spec.run import is_classification

from .prediction_samples import (
    answers,
    four_cells,
    random_classifier,
    write_classification,
    write_language,
)


@pytest.mark.parametrize("num_classes", [2, 5, 40])
def test_classification_agrees_with_scikit_learn(tmp_path: Path, num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    label = rng.integers(0, num_classes, 300)
    label[:num_classes] = np.arange(num_classes)  # every class occurs
    models = [random_classifier(rng, label, num_classes, skill) for skill in (0.5, 1.5)]
    result = compare_files(
        write_classification(tmp_path / "original.parquet", label, models[0]),
        write_classification(tmp_path / "trained.parquet", label, models[1]),
        resamples=200,
    )
    for side, probabilities in zip(("original", "trained"), models, strict=True):
        prediction = probabilities.argmax(axis=1)
        measured = {name: entry[side] for name, entry in result["metrics"].items()}
        assert measured["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(label, prediction))
        assert measured["macro_f1"] == pytest.approx(
            sklearn_metrics.f1_score(label, prediction, average="macro", zero_division=0)
        )
        assert measured["log_loss"] == pytest.approx(sklearn_metrics.log_loss(label, probabilities), rel=1e-5)
        confusion = sklearn_metrics.confusion_matrix(label, prediction)
        assert result["confusion"][side] == confusion.tolist()
        expected = sklearn_metrics.precision_recall_fscore_support(label, prediction, zero_division=0)
        for row, precision, recall, f1, support in zip(
            result["per_class"], *(values.tolist() for values in expected), strict=True
        ):
            assert row[side] == pytest.approx({"precision": precision, "recall": recall, "f1": f1})
            assert row["support"] == support


def test_macro_f1_averages_the_classes_that_the_held_out_samples_have(tmp_path: Path) -> None:
    label, original, trained = [0, 0, 1, 1, 1], [0, 2, 1, 1, 1], [0, 0, 1, 1, 0]
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, answers(label, original, 3)),
        write_classification(tmp_path / "t.parquet", label, answers(label, trained, 3)),
        resamples=100,
    )
    for side, prediction in (("original", original), ("trained", trained)):
        assert result["metrics"]["macro_f1"][side] == pytest.approx(
            sklearn_metrics.f1_score(label, prediction, labels=[0, 1], average="macro")
        )
    assert result["per_class"][2]["original"] == {"precision": 0, "recall": 0, "f1": 0}
    assert any("1 of 3 classes are absent" in warning for warning in result["warnings"])


def test_a_certain_mistake_costs_what_the_clip_allows(tmp_path: Path) -> None:
    label = [0, 1]
    wrong = np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    right = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, wrong),
        write_classification(tmp_path / "t.parquet", label, right),
        resamples=100,
    )
    assert result["metrics"]["log_loss"]["original"] == pytest.approx(-math.log(np.finfo(np.float32).eps) / 2)
    assert result["metrics"]["log_loss"]["trained"] == 0


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, 500)
    models = [random_classifier(rng, label, 3, skill) for skill in (0.2, 2.0)]
    paths = [write_classification(tmp_path / f"{i}.parquet", label, model) for i, model in enumerate(models)]
    result = compare_files(*paths, resamples=100)
    for side, probabilities in zip(("original", "trained"), models, strict=True):
        confidence = probabilities.max(axis=1).astype(float)
        correct = probabilities.argmax(axis=1) == label
        expected = 0.0
        for m in range(15):  # Guo et al. 2017, equation 3, written out
            inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
            if inside.any():
                expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        assert result["metrics"]["calibration_error"][side] == pytest.approx(expected)


def test_a_model_as_sure_as_it_is_right_has_no_calibration_error(tmp_path: Path) -> None:
    label, original, trained = four_cells(both=80, only_original=10, only_trained=0, neither=10)
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, original),
        write_classification(tmp_path / "t.parquet", label, trained),
        resamples=100,
    )
    # Confidence is 0.9 throughout; the original is right in 90 of 100, the trained one in 80.
    assert result["metrics"]["calibration_error"]["original"] == pytest.approx(0, abs=1e-7)
    assert result["metrics"]["calibration_error"]["trained"] == pytest.approx(0.1)


def test_likelihood_is_weighted_by_tokens_and_perplexity_is_its_exponential(tmp_path: Path) -> None:
    result = compare_files(
        write_language(tmp_path / "o.parquet", [1, 9], [5.0, 9.0]),
        write_language(tmp_path / "t.parquet", [1, 9], [4.0, 6.0]),
        resamples=100,
    )
    assert result["metrics"]["nll"]["original"] == pytest.approx(1.4)
    assert result["metrics"]["nll"]["trained"] == pytest.approx(1.0)
    assert result["metrics"]["perplexity"]["difference"] == pytest.approx(math.e - math.exp(1.4))


def test_an_absurd_likelihood_has_a_finite_perplexity(tmp_path: Path) -> None:
    result = compare_files(
        write_language(tmp_path / "o.parquet", [1, 1], [5000.0, 5000.0]),
        write_language(tmp_path / "t.parquet", [1, 1], [2.0, 2.0]),
        resamples=100,
    )
    assert math.isfinite(result["metrics"]["perplexity"]["original"])


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (0, 6), (5, 5), (3, 14), (1200, 1000), (0, 100_000)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar_p(c, b) == mcnemar_p(b, c)


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (5, 5), (81, 100), (499_000, 1_000_000)])
def test_the_interval_of_one_accuracy_is_wilsons(successes: int, total: int) -> None:
    expected = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, total, 0.95) == pytest.approx((expected.low, expected.high))


def test_the_sample_size_is_connors_and_has_the_power_it_promises() -> None:
    # Published example: shares 0.45 and 0.05 of discordant pairs, 80 % power, two-sided 5 %: 23 pairs.
    assert samples_needed_for_accuracy(5, 45, 100, 0.95) == 23
    assert samples_needed_for_accuracy(7, 7, 100, 0.95) is None

    needed = samples_needed_for_accuracy(50, 80, 1000, 0.95)
    assert needed is not None
    rng = np.random.default_rng(0)
    draws = rng.multinomial(needed, [0.05, 0.08, 0.87], size=400)
    power = np.mean([mcnemar_p(int(b), int(c)) < 0.05 for b, c, _ in draws])
    assert 0.72 < power < 0.86  # the exact test is a little more cautious than the formula


def test_recipes_and_comparisons_know_the_same_metrics() -> None:
    for task, names in SPEC_METRICS.items():
        assert names == tuple(
            metric.name for metric in METRICS.values() if metric.classification == is_classification(task)
        )
