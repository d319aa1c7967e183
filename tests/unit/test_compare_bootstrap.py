"""The intervals cover what they promise, however their resamples are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seatrial.compare import bootstrap
from seatrial.compare.bootstrap import bca_interval, draw_method, paired_bootstrap
from seatrial.compare.classification import (
    ClassifiedPairs,
    Outputs,
    accuracy_sums,
    four_cells,
    macro_f1_sums,
    probability_sums,
)
from seatrial.compare.language import LanguagePairs, nll_sums
from seatrial.compare.randomization import swap_test
from seatrial.compare.sums import PairedSums

OPTIONS = {"confidence": 0.95, "resamples": 4000, "seed": 1}


def as_rows(paired: PairedSums) -> PairedSums:
    """The same samples with each its own row, as nobody would draw them."""
    repeated = np.repeat(np.arange(paired.num_units), paired.counts)
    features = paired.features(slice(0, paired.num_units))
    features = features if isinstance(features, np.ndarray) else features.toarray()
    rows = features[repeated]
    return PairedSums(num_units=len(rows), features=lambda block: rows[block], metrics=paired.metrics)


def random_pairs(n: int, num_classes: int, seed: int) -> ClassifiedPairs:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, n, dtype=np.int32)

    def outputs(skill: float) -> Outputs:
        prediction = np.where(rng.random(n) < skill, label, rng.integers(0, num_classes, n)).astype(np.int32)
        confidence = rng.uniform(0.4, 1, n).astype(np.float32)
        true = np.where(prediction == label, confidence, (1 - confidence) / 2).astype(np.float32)
        return Outputs(prediction=prediction, true_probability=true, confidence=confidence)

    labels = tuple(f"class {i}" for i in range(num_classes))
    return ClassifiedPairs(labels=labels, label=label, original=outputs(0.5), trained=outputs(0.6))


def test_resampling_cells_is_resampling_rows() -> None:
    pairs = random_pairs(400, 3, seed=0)
    for cells in (accuracy_sums(four_cells(pairs)), macro_f1_sums(pairs)):
        name = next(iter(cells.metrics))
        by_cells = paired_bootstrap(cells, **OPTIONS)[name]
        by_rows = paired_bootstrap(as_rows(cells), **OPTIONS)[name]
        assert (by_cells.method, by_rows.method) == ("cells", "rows")
        assert by_cells.difference == pytest.approx(by_rows.difference)
        assert by_cells.standard_error == pytest.approx(by_rows.standard_error, rel=0.05)
        width = by_rows.interval[1] - by_rows.interval[0]
        assert by_cells.interval == pytest.approx(by_rows.interval, abs=0.06 * width)


def test_normal_sums_stand_in_for_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = probability_sums(random_pairs(2000, 3, seed=1))
    by_rows = paired_bootstrap(pairs, **OPTIONS)
    tested_rows = swap_test(pairs, resamples=4000, seed=1)
    monkeypatch.setattr(bootstrap, "MAX_ROWS", 0)
    by_sums = paired_bootstrap(pairs, **OPTIONS)
    tested_sums = swap_test(pairs, resamples=4000, seed=1)
    for name, expected in by_rows.items():
        assert by_sums[name].method == "normal sums"
        assert by_sums[name].standard_error == pytest.approx(expected.standard_error, rel=0.06)
        width = expected.interval[1] - expected.interval[0]
        assert by_sums[name].interval == pytest.approx(expected.interval, abs=0.08 * width)
        assert tested_sums[name] == pytest.approx(tested_rows[name], abs=0.05)


def test_the_interval_of_a_mean_is_scipys_bca() -> None:
    rng = np.random.default_rng(4)
    nll, ones = rng.lognormal(sigma=1, size=60), np.ones(60)
    data = LanguagePairs(num_tokens=ones, original_nll=nll, trained_nll=np.zeros(60))
    ours = paired_bootstrap(nll_sums(data), confidence=0.9, resamples=10_000, seed=0)["nll"]
    theirs = stats.bootstrap((nll,), np.mean, confidence_level=0.9, method="BCa", random_state=0)
    assert ours.original_interval == pytest.approx(theirs.confidence_interval, rel=0.03)


def test_a_95_percent_interval_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    truth, repetitions = np.array([0.60, 0.08, 0.14, 0.18]), 300
    covered = 0
    for seed in range(repetitions):
        cells = rng.multinomial(250, truth)
        estimate = paired_bootstrap(accuracy_sums(cells), confidence=0.95, resamples=1000, seed=seed)
        low, high = estimate["accuracy"].interval
        covered += low <= 0.06 <= high
    # Two-sided 99.9 % of Binomial(300, 0.95), and half a percent for a bootstrap of 250 samples.
    assert 0.9 <= covered / repetitions <= 0.99


def test_the_interval_of_a_ratio_of_skewed_sums_covers_too() -> None:
    rng = np.random.default_rng(6)
    repetitions, covered = 300, 0
    for seed in range(repetitions):
        tokens = rng.integers(5, 60, 80).astype(float)
        nll = tokens * rng.lognormal(0, 0.3, 80)
        better = nll - tokens * rng.gamma(2, 0.05, 80)  # a true improvement of 0.1 nats per token
        data = LanguagePairs(num_tokens=tokens, original_nll=nll, trained_nll=better)
        low, high = paired_bootstrap(nll_sums(data), confidence=0.95, resamples=500, seed=seed)[
            "nll"
        ].interval
        covered += low <= -0.1 <= high
    assert 0.89 <= covered / repetitions <= 0.99


def test_the_randomization_test_of_a_mean_is_scipys_permutation_test() -> None:
    rng = np.random.default_rng(7)
    original, trained = rng.normal(2, 1, 9), rng.normal(1.5, 1, 9)
    data = LanguagePairs(num_tokens=np.ones(9), original_nll=original, trained_nll=trained)
    ours = swap_test(nll_sums(data), resamples=20_000, seed=0)["nll"]
    exact = stats.permutation_test(
        (trained, original), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples"
    )
    assert ours == pytest.approx(exact.pvalue, abs=0.015)


def test_the_randomization_test_of_accuracy_by_cells_is_mcnemars() -> None:
    cells = np.array([50, 4, 13, 20])
    ours = swap_test(accuracy_sums(cells), resamples=20_000, seed=0)["accuracy"]
    assert ours == pytest.approx(stats.binomtest(4, 17).pvalue, abs=0.01)


def test_resamples_are_cut_only_for_very_many_cells_and_it_is_told() -> None:
    def cells(num: int) -> PairedSums:
        ones = np.ones((num, 2))
        return PairedSums(
            num_units=num, counts=np.ones(num, dtype=np.int64), features=lambda b: ones[b], metrics={}
        )

    assert draw_method(cells(4), 10_000) == ("cells", 10_000)
    assert draw_method(cells(50_000), 10_000) == ("cells", 1000)


@settings(max_examples=40, deadline=None)
@given(
    resampled=st.lists(st.floats(-1, 1), min_size=100, max_size=120),
    point=st.floats(-2, 2),
    confidence=st.floats(0.6, 0.99),
)
def test_an_interval_holds_its_estimate_and_stays_among_the_resamples(
    resampled: list[float], point: float, confidence: float
) -> None:
    low, high = bca_interval(point, np.array(resampled), confidence)
    assert low <= point <= high
    assert low >= min(*resampled, point) and high <= max(*resampled, point)
