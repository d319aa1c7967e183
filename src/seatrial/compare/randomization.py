"""The paired randomization test: would the difference be as large if the two models were interchangeable?

If they were, swapping the two outputs of a sample would change nothing, so the observed difference is held
against those under random swaps (Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989; Yeh,
"More accurate tests for the statistical significance of result differences", COLING 2000). For a mean it is
Fisher's sign-flip test. It asks about the metric itself, ratio of sums included, where Wilcoxon's signed-rank
test would ask about the median of per-sample differences, a question that nobody put.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from seatrial.compare.bootstrap import draw_method
from seatrial.compare.sums import Floats, PairedSums, blocks, normal_draws, split

_BLOCK_NUMBERS = 2**21  # 16 MB of float64


def swap_test(paired: PairedSums, *, resamples: int, seed: int) -> dict[str, float]:
    """The two-sided p-value of each metric's difference.

    The observed arrangement counts as one of the swaps, so p is never 0 and the test keeps its level (Phipson
    and Smyth, "Permutation P-values Should Never Be Zero", 2010): the smallest is ``1 / (resamples + 1)``.
    """
    method, resamples = draw_method(paired, resamples)
    rng = np.random.default_rng(seed)
    original, trained = split(paired.total)
    observed = {name: float(f(trained) - f(original)) for name, f in paired.metrics.items()}
    extreme = dict.fromkeys(paired.metrics, 0)
    for moved in _moved_sums(paired, method, resamples, rng):
        for name, metric in paired.metrics.items():
            swapped = metric(trained - moved) - metric(original + moved)
            # An equal difference counts as extreme, whatever the rounding of its sums.
            at_least = np.abs(swapped) >= abs(observed[name]) * (1 - 1e-9) - 1e-12
            extreme[name] += int(np.count_nonzero(at_least))
    return {name: (1 + count) / (1 + resamples) for name, count in extreme.items()}


def _moved_sums(
    paired: PairedSums, method: str, resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """``[b, k]``: what random swaps carry from the trained model's sums to the original's."""
    if method == "normal sums":
        yield _moved_normal(paired, resamples, rng)
        return
    features = paired.features(slice(0, paired.num_units))
    k = features.shape[1] // 2
    delta = features[:, k:] - features[:, :k]
    for block in blocks(resamples, max(1, _BLOCK_NUMBERS // max(delta.shape))):
        size = (block.stop - block.start, paired.num_units)
        if paired.counts is None:
            swaps = rng.integers(0, 2, size=size, dtype=np.int8).astype(np.float64)
        else:
            swaps = rng.binomial(paired.counts, 0.5, size=size).astype(np.float64)
        yield np.asarray(swaps @ delta)


def _moved_normal(paired: PairedSums, num: int, rng: np.random.Generator) -> Floats:
    """The same for very many rows: each moves its difference or nothing, and the sum tends to the normal."""
    k = len(paired.total) // 2
    delta = np.concatenate([-np.eye(k), np.eye(k)])
    squares = delta.T @ paired.second_moments @ delta
    return normal_draws(paired.total @ delta / 2, squares / 4, num, rng)
