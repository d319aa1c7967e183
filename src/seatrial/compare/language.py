"""Causal language models: negative log-likelihood per token, and perplexity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seatrial.compare.pairs import Pairs
from seatrial.compare.sums import Floats, PairedSums

LARGEST_NLL = 700.0
"""Nats per token beyond which perplexity is cut, since JSON has no infinity. Guessing at random among a
million tokens costs 14."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguagePairs:
    """Both models' likelihoods on the same samples, each ``[n]``."""

    num_tokens: Floats
    original_nll: Floats
    """Nats, summed over the sample's tokens."""
    trained_nll: Floats


def language(pairs: Pairs) -> LanguagePairs:
    """The arrays of two causal-lm files."""
    return LanguagePairs(
        num_tokens=pairs.original.table.column("num_tokens").to_numpy().astype(np.float64),
        original_nll=pairs.original.table.column("nll").to_numpy(),
        trained_nll=pairs.trained.table.column("nll").to_numpy(),
    )


def nll_sums(data: LanguagePairs) -> PairedSums:
    """Negative log-likelihood per token and its exponential.

    Both are ratios of sums (all nats over all tokens), as perplexity is defined on a corpus (Jurafsky and
    Martin, "Speech and Language Processing", chapter 3), and not means of per-sample ratios. Samples are what
    is drawn, since the tokens of one text depend on each other.
    """

    def features(block: slice) -> Floats:
        tokens = data.num_tokens[block]
        return np.stack([tokens, data.original_nll[block], tokens, data.trained_nll[block]], axis=1)

    def nll(sums: Floats) -> Floats:
        # A resample of nothing but texts too short to have a target counts as 0 nats.
        per_token: Floats = sums[..., 1] / np.maximum(sums[..., 0], 1)
        return per_token

    return PairedSums(
        num_units=len(data.num_tokens),
        features=features,
        metrics={"nll": nll, "perplexity": lambda sums: np.exp(np.minimum(nll(sums), LARGEST_NLL))},
    )
