"""The paired bootstrap: how far the metrics, and their difference, would move on other held-out samples.

Samples are drawn with replacement and both models are looked at on the same draw (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993; for comparing two systems, Koehn, "Statistical Significance Tests for
Machine Translation Evaluation", EMNLP 2004). There are three ways to draw the sums of a resample:

- ``cells``: samples that are alike form a cell, and the cells' counts in a resample are multinomial. This is
  the bootstrap of rows exactly, at a cost that does not depend on their number.
- ``rows``: every row gets its count.
- ``normal sums``: for too many rows, sums are drawn from the normal distribution with the mean and covariance
  of resampled sums, which they tend to by the central limit theorem.

The intervals are BCa (Efron, "Better Bootstrap Confidence Intervals", JASA 82, 1987; DiCiccio and Efron,
"Bootstrap Confidence Intervals", Statistical Science 11, 1996): unlike the plain percentile interval they
correct for bias, which the calibration error has (resampling adds noise, and noise adds to an absolute
value), and for skewness, which losses have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from seatrial.compare.sums import Floats, PairedSums, blocks, dense, normal_draws, split

# Draws of one unit in one resample. A row costs about 10 ns and a cell 100 ns, so either is some seconds.
MAX_ROW_DRAWS = 100_000_000
MAX_CELL_DRAWS = 50_000_000
MAX_ROWS = 50_000
_BLOCK_NUMBERS = 2**21  # 16 MB of float64


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedEstimate:
    """One metric on both models, with intervals."""

    original: float
    trained: float
    difference: float
    """trained - original."""
    original_interval: tuple[float, float]
    trained_interval: tuple[float, float]
    interval: tuple[float, float]
    """Of the difference."""
    standard_error: float
    """Of the difference: the standard deviation over resamples."""
    resamples: int
    method: str


def draw_method(paired: PairedSums, resamples: int) -> tuple[str, int]:
    """How to draw, and how many resamples: fewer than asked only for more cells than can be drawn in time."""
    if paired.counts is not None:
        return "cells", min(resamples, max(500, MAX_CELL_DRAWS // paired.num_units))
    if paired.num_units <= min(MAX_ROWS, MAX_ROW_DRAWS // resamples):
        return "rows", resamples
    return "normal sums", resamples


def paired_bootstrap(
    paired: PairedSums, *, confidence: float, resamples: int, seed: int
) -> dict[str, PairedEstimate]:
    """Every metric of `paired` with its BCa intervals.

    Args:
        paired: samples or cells.
        confidence: of the two-sided intervals, such as 0.95.
        resamples: how many are asked for; see `draw_method` for how many are drawn.
        seed: of the draws; equal seeds give equal results.
    """
    method, resamples = draw_method(paired, resamples)
    rng = np.random.default_rng(seed)
    total = paired.total
    drawn: dict[str, list[Floats]] = {name: [] for name in paired.metrics}
    for sums in _resampled_sums(paired, total, method, resamples, rng):
        for name, metric in paired.metrics.items():
            drawn[name].append(_values(metric, sums))
    # Leaving out one of very many rows moves nothing: the acceleration falls with 1/sqrt(n) (Efron 1987).
    weights, left_out = (None, {}) if method == "normal sums" else _leave_one_out(paired, total)
    estimates = {}
    for name, metric in paired.metrics.items():
        values = np.concatenate(drawn[name])
        point = _values(metric, total)
        jackknife = left_out.get(name)
        bounds = [
            bca_interval(
                float(point[i]),
                values[:, i],
                confidence,
                None if jackknife is None else jackknife[:, i],
                weights,
            )
            for i in range(3)
        ]
        estimates[name] = PairedEstimate(
            original=float(point[0]),
            trained=float(point[1]),
            difference=float(point[2]),
            original_interval=bounds[0],
            trained_interval=bounds[1],
            interval=bounds[2],
            standard_error=float(values[:, 2].std(ddof=1)),
            resamples=resamples,
            method=method,
        )
    return estimates


def bca_interval(
    point: float,
    resampled: Floats,
    confidence: float,
    left_out: Floats | None = None,
    weights: Floats | None = None,
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval (DiCiccio and Efron 1996, equations 2.3, 2.8 and 6.6).

    It is widened to take in the point estimate where the bias of a statistic on few samples would leave it
    outside: an interval without its own estimate says nothing to a reader.

    Args:
        point: the statistic on the samples themselves.
        resampled: ``[R]``, the statistic on the resamples.
        confidence: such as 0.95.
        left_out: ``[u]``, the statistic with one sample of each unit left out; None for no acceleration.
        weights: ``[u]``, how many samples each unit holds.
    """
    # Rounding must not decide whether a resample with the same value lies below the estimate.
    near = np.isclose(resampled, point, rtol=1e-9, atol=1e-12)
    below = np.mean((resampled < point) & ~near) + np.mean(near) / 2
    # With all resamples on one side the correction would be infinite; half a resample stands for the rest.
    half = 0.5 / len(resampled)
    bias = special.ndtri(np.clip(below, half, 1 - half))
    acceleration = 0.0 if left_out is None else _acceleration(left_out, weights)
    tails = bias + special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    levels = special.ndtr(bias + tails / (1 - acceleration * tails))
    low, high = np.quantile(resampled, np.clip(levels, 0, 1))
    return float(min(low, point)), float(max(high, point))


def _acceleration(left_out: Floats, weights: Floats | None) -> float:
    weights = np.ones_like(left_out) if weights is None else weights
    deviation = np.average(left_out, weights=weights) - left_out
    spread = float(weights @ deviation**2)
    if spread <= 1e-24:
        return 0.0
    # Held to 0.2, far beyond any sensible sample, so that the denominator of the levels stays positive.
    return float(np.clip(weights @ deviation**3 / (6 * spread**1.5), -0.2, 0.2))


def _values(metric: Any, sums: Floats) -> Floats:
    """``[..., 2k]`` to ``[..., 3]``: original, trained, difference."""
    original, trained = (metric(half) for half in split(sums))
    return np.stack([original, trained, trained - original], axis=-1)


def _leave_one_out(paired: PairedSums, total: Floats) -> tuple[Floats | None, dict[str, Floats]]:
    """The metrics ``[u, 3]`` without one sample of each unit, and the samples ``[u]`` in each unit."""
    if paired.num_samples < 3:
        return None, {}
    parts: dict[str, list[Floats]] = {name: [] for name in paired.metrics}
    for block in blocks(paired.num_units, max(1, _BLOCK_NUMBERS // len(total))):
        remaining = total - dense(paired.features(block))
        for name, metric in paired.metrics.items():
            parts[name].append(_values(metric, remaining))
    weights = None if paired.counts is None else paired.counts.astype(np.float64)
    return weights, {name: np.concatenate(values) for name, values in parts.items()}


def _resampled_sums(
    paired: PairedSums, total: Floats, method: str, resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """Sums ``[b, 2k]`` of `resamples` resamples, in blocks of bounded memory."""
    if method == "normal sums":
        yield _normal_sums(paired, resamples, rng)
        return
    features = paired.features(slice(0, paired.num_units))
    size = max(1, _BLOCK_NUMBERS // max(paired.num_units, len(total)))
    for block in blocks(resamples, size):
        num = block.stop - block.start
        if paired.counts is None:
            weights = _row_counts(paired.num_units, num, rng)
        else:
            share = paired.counts / paired.num_samples
            weights = rng.multinomial(paired.num_samples, share, size=num).astype(np.float64)
        yield np.asarray(weights @ features)


def _row_counts(num_rows: int, num: int, rng: np.random.Generator) -> Floats:
    """How often each row is in each of `num` resamples, ``[num, num_rows]``: multinomial, equal shares."""
    chosen = rng.integers(0, num_rows, size=(num, num_rows))
    chosen += num_rows * np.arange(num)[:, None]
    counts = np.bincount(chosen.reshape(-1), minlength=num * num_rows)
    return counts.reshape(num, num_rows).astype(np.float64)


def _normal_sums(paired: PairedSums, num: int, rng: np.random.Generator) -> Floats:
    """``[num, 2k]``: normal sums with the mean and covariance of resampled sums.

    They are drawn as (original, trained - original), so that models that agree differ by exactly nothing.
    """
    k = len(paired.total) // 2
    to_difference = np.eye(2 * k)
    to_difference[:k, k:] = -np.eye(k)
    mean = paired.total @ to_difference
    moments = to_difference.T @ paired.second_moments @ to_difference
    covariance = moments - np.outer(mean, mean) / paired.num_samples
    # What is the same for every sample has no variance, but for the rounding of this subtraction.
    constant = np.diag(covariance) <= 1e-12 * np.diag(moments)
    covariance[constant, :] = covariance[:, constant] = 0
    drawn = normal_draws(mean, covariance, num, rng)
    drawn[:, k:] += drawn[:, :k]
    return drawn
