"""The samples that changed most, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from seatrial.compare.classification import ClassifiedPairs
from seatrial.compare.language import LanguagePairs
from seatrial.compare.pairs import Pairs
from seatrial.compare.sums import Floats, Ints
from seatrial.runs.predictions import read_texts

MOST = 10
"""Samples in each direction."""
MAX_TEXT = 300
"""Characters of an excerpt."""


def changed_classification(pairs: Pairs, data: ClassifiedPairs) -> dict[str, list[dict[str, Any]]]:
    """By the change of the probability that each model gives to the true class."""
    original, trained = data.original, data.trained

    def describe(row: int) -> dict[str, Any]:
        return {
            "label": data.labels[data.label[row]],
            "original_prediction": data.labels[original.prediction[row]],
            "trained_prediction": data.labels[trained.prediction[row]],
            "original_probability": float(original.true_probability[row]),
            "trained_probability": float(trained.true_probability[row]),
        }

    gain = trained.true_probability.astype(np.float64) - original.true_probability
    return _most_changed(pairs, gain, describe)


def changed_language(pairs: Pairs, data: LanguagePairs) -> dict[str, list[dict[str, Any]]]:
    """By the change of the negative log-likelihood per token."""
    num_tokens = np.maximum(data.num_tokens, 1)
    original, trained = data.original_nll / num_tokens, data.trained_nll / num_tokens

    def describe(row: int) -> dict[str, Any]:
        return {
            "num_tokens": int(data.num_tokens[row]),
            "original_nll": float(original[row]),
            "trained_nll": float(trained[row]),
        }

    return _most_changed(pairs, original - trained, describe)


def _most_changed(
    pairs: Pairs, gain: Floats, describe: Callable[[int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    rows = {"improved": _largest(gain), "worsened": _largest(-gain)}
    wanted = np.concatenate(list(rows.values()))
    texts = dict(zip(wanted.tolist(), _excerpts(pairs, wanted), strict=True))
    ids = pairs.original.table.column("id")
    return {
        name: [{"id": ids[row].as_py(), "text": texts[row], **describe(row)} for row in found.tolist()]
        for name, found in rows.items()
    }


def _largest(gain: Floats) -> Ints:
    """The rows of the largest positive gains, largest first; equal gains in the order of the ids."""
    if len(gain) > MOST:
        threshold = max(np.partition(gain, -MOST)[-MOST], np.nextafter(0, 1))
        candidates = np.flatnonzero(gain >= threshold)
    else:
        candidates = np.flatnonzero(gain > 0)
    order = np.argsort(-gain[candidates], kind="stable")[:MOST]
    return candidates[order].astype(np.int64)


def _excerpts(pairs: Pairs, rows: Ints) -> list[str | None]:
    """The texts of a few pairs, from the original's file, else from the trained model's."""
    found: list[str | None] = [None] * len(rows)
    for side in (pairs.original, pairs.trained):
        if len(rows) and all(text is None for text in found):
            found = read_texts(side.path, side.file_rows[rows].tolist())
    return [text if text is None or len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…" for text in found]
