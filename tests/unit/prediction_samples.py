"""Small prediction files for the tests of reading and comparing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seatrial.runs.predictions import (
    PredictionsInfo,
    classification_table,
    language_table,
    write_predictions,
)


def info(**changes: Any) -> PredictionsInfo:
    fields: dict[str, Any] = {
        "task": "text-classification",
        "labels": ("negative", "positive"),
        "data_sha256": "d" * 64,
        "model_name": "model",
        "model_sha256": "m" * 64,
        "run_id": "run-1",
        "split": "test",
        "num_samples": 0,
    }
    return PredictionsInfo(**(fields | changes))


def random_classifier(
    rng: np.random.Generator, label: np.ndarray, num_classes: int, skill: float
) -> np.ndarray:
    """Probabilities ``[n, num_classes]`` of a model that knows the label the better, the higher its skill."""
    logits = rng.normal(size=(len(label), num_classes))
    logits[np.arange(len(label)), label] += skill
    exponential = np.exp(logits)
    return (exponential / exponential.sum(axis=1, keepdims=True)).astype(np.float32)


def write_classification(
    path: Path,
    label: Sequence[int],
    probabilities: np.ndarray,
    *,
    ids: Sequence[str] | None = None,
    text: Sequence[str] | None = None,
    order: Sequence[int] | None = None,
    **changes: Any,
) -> Path:
    """A classification file; `order` permutes its rows, `changes` are fields of its metadata."""
    label = np.asarray(label)
    labels = changes.pop("labels", tuple(f"class {i}" for i in range(probabilities.shape[1])))
    changes.setdefault("model_sha256", path.stem)
    table = classification_table(
        ids if ids is not None else [f"test/{i}" for i in range(len(label))],
        label,
        probabilities.argmax(axis=1),
        probabilities,
        labels,
        text,
    )
    if order is not None:
        table = table.take(list(order))
    write_predictions(path, table, info(labels=labels, num_samples=len(label), **changes))
    return path


def answers(label: Sequence[int], prediction: Sequence[int], num_classes: int = 2) -> np.ndarray:
    """Probabilities that make a model predict just this, with confidence 0.9."""
    probabilities = np.full((len(label), num_classes), 0.1 / (num_classes - 1), dtype=np.float32)
    probabilities[np.arange(len(label)), np.asarray(prediction)] = 0.9
    return probabilities


def four_cells(both: int, only_original: int, only_trained: int, neither: int) -> tuple[np.ndarray, ...]:
    """Labels and two models' probabilities with these counts."""
    label = np.zeros(both + only_original + only_trained + neither, dtype=int)
    original = np.repeat([0, 0, 1, 1], [both, only_original, only_trained, neither])
    trained = np.repeat([0, 1, 0, 1], [both, only_original, only_trained, neither])
    return label, answers(label, original), answers(label, trained)


def write_language(path: Path, num_tokens: Sequence[int], nll: Sequence[float], **changes: Any) -> Path:
    ids = changes.pop("ids", [f"test/{i}" for i in range(len(num_tokens))])
    text = changes.pop("text", None)
    changes.setdefault("model_sha256", path.stem)
    table = language_table(ids, np.asarray(num_tokens), np.asarray(nll, dtype=float), text)
    write_predictions(
        path, table, info(task="causal-lm", labels=None, num_samples=len(num_tokens), **changes)
    )
    return path
