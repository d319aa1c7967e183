"""Every metric here is a function of sums over samples; this is the form in which resampling sees them.

Accuracy is the sum of correct answers over the sum of ones, macro-F1 a function of three sums per class,
calibration error of one sum per bin, perplexity of two sums. So a resample needs no metric to be computed on
resampled rows: it needs resampled sums, and one vectorised call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

MetricOfSums: TypeAlias = Callable[[Floats], Floats]
"""From sums ``[..., k]`` to values ``[...]``."""


@dataclass(frozen=True, kw_only=True)
class PairedSums:
    """What metrics need of paired samples.

    A unit is a sample, or a cell of samples that are alike (same label, same two predictions). Its features
    are ``2k`` numbers: ``k`` for the original model, then the same ``k`` for the trained one.
    """

    num_units: int
    features: Callable[[slice], Any]
    """Units -> ``float64[b, 2k]``, an array or a SciPy sparse matrix; called in blocks of units."""
    metrics: Mapping[str, MetricOfSums]
    """Each takes the sums of one model."""
    counts: Ints | None = None
    """``[num_units]``: the samples in each cell; None where each unit is one sample."""

    @property
    def num_samples(self) -> int:
        """How many samples the units hold."""
        return self.num_units if self.counts is None else int(self.counts.sum())

    @property
    def total(self) -> Floats:
        """``[2k]``: the sums over all samples."""
        return self._moments[0]

    @property
    def second_moments(self) -> Floats:
        """``[2k, 2k]``: the sums of products of two features over all samples. For units that are samples."""
        assert self.counts is None, "cells are resampled as they are"
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Floats, Floats]:
        # One pass in blocks: the features of millions of rows are never in memory at once.
        total, second = np.zeros(1), np.zeros((1, 1))
        for block in blocks(self.num_units, 65_536):
            features = self.features(block)
            if self.counts is None:
                total = total + features.sum(axis=0)
                second = second + features.T @ features
            else:
                total = total + np.asarray(self.counts[block].astype(np.float64) @ features)
        return total, second


def normal_draws(mean: Floats, covariance: Floats, num: int, rng: np.random.Generator) -> Floats:
    """``[num, k]`` normal vectors; what has no variance keeps its mean exactly."""
    drawn = np.tile(mean, (num, 1))
    varies = np.flatnonzero(np.diag(covariance) > 0)
    values, vectors = np.linalg.eigh(covariance[np.ix_(varies, varies)])
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    drawn[:, varies] += rng.standard_normal((num, len(varies))) @ root
    return drawn


def blocks(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover ``range(length)``."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def dense(features: Any) -> Floats:
    """Features as a plain array."""
    array: Floats = features if isinstance(features, np.ndarray) else features.toarray()
    return array


def split(sums: Floats) -> tuple[Floats, Floats]:
    """``[..., 2k]`` into the halves of the original and the trained model."""
    k = sums.shape[-1] // 2
    return sums[..., :k], sums[..., k:]
