"""Text classification: accuracy, macro-F1, log-loss, calibration error, and the tables behind them.

Accuracy and macro-F1 see of a sample only its label and two predictions, so samples that agree in these three
form a cell. Log-loss and calibration error see probabilities, so each sample stands for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

from seatrial.compare.pairs import Pairs, Side
from seatrial.compare.sums import Floats, Ints, PairedSums
from seatrial.runs.prediction_checks import label_codes, largest_of_rows, probability_matrix

NUM_BINS = 15
"""Equal-width bins of the calibration error, as in Guo et al. 2017."""

SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to this (1.2e-7, float32's epsilon, as scikit-learn does), so that one certain
mistake costs 15.9 nats and not infinity."""

Codes: TypeAlias = npt.NDArray[np.int32]
Probabilities: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What one model said, each ``[n]``."""

    prediction: Codes
    true_probability: Probabilities
    """Of the true class."""
    confidence: Probabilities
    """Of the predicted class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifiedPairs:
    """Both models' outputs on the same samples."""

    labels: tuple[str, ...]
    label: Codes
    """``[n]``: the true classes."""
    original: Outputs
    trained: Outputs


def classified(pairs: Pairs) -> ClassifiedPairs:
    """The arrays of two files of a classification."""
    labels = pairs.original.info.labels
    assert labels is not None, "the reader checks that a classification file has labels"
    label = label_codes(pairs.original.table.column("label"), labels)
    return ClassifiedPairs(
        labels=labels,
        label=label,
        original=_outputs(pairs.original, label, labels),
        trained=_outputs(pairs.trained, label, labels),
    )


def _outputs(side: Side, label: Codes, labels: tuple[str, ...]) -> Outputs:
    probabilities = probability_matrix(side.table.column("probabilities"), len(labels))
    return Outputs(
        prediction=label_codes(side.table.column("prediction"), labels),
        true_probability=probabilities[np.arange(len(label)), label],
        confidence=largest_of_rows(probabilities),
    )


def four_cells(data: ClassifiedPairs) -> Ints:
    """Samples that both models get right, only the original, only the trained, neither."""
    original = data.original.prediction == data.label
    trained = data.trained.prediction == data.label
    return np.array(
        [
            np.count_nonzero(original & trained),
            np.count_nonzero(original & ~trained),
            np.count_nonzero(~original & trained),
            np.count_nonzero(~original & ~trained),
        ],
        dtype=np.int64,
    )


def accuracy_sums(cells: Ints) -> PairedSums:
    """Accuracy from the four cells, whatever the number of samples."""
    correct = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 1, 0]], dtype=np.float64)
    return PairedSums(
        num_units=4,
        counts=cells,
        features=lambda block: correct[block],
        metrics={"accuracy": lambda sums: sums[..., 1] / sums[..., 0]},
    )


def wilson_interval(successes: int, total: int, confidence: float) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, JASA 22, 1927; advised by Brown, Cai and DasGupta 2001).

    Unlike the bootstrap it does not shrink to a point where a model gets everything right, or nothing.
    """
    z = float(special.ndtri((1 + confidence) / 2))
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total**2)) ** 0.5
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mcnemar_p(only_original: int, only_trained: int) -> float:
    """The two-sided exact McNemar test: is a discordant pair as likely to go either way?

    McNemar, Psychometrika 12, 1947; the exact form is a binomial test with probability 1/2 (Dietterich,
    "Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms", 1998).
    """
    discordant = only_original + only_trained
    return min(1.0, 2 * float(special.bdtr(min(only_original, only_trained), discordant, 0.5)))


def macro_f1_sums(data: ClassifiedPairs) -> PairedSums:
    """Macro-F1 from the cells of equal (label, original prediction, trained prediction).

    F1 of a class is ``2 TP / (support + predicted)``, and macro-F1 its mean over the classes that the
    held-out samples have: the same classes for both models, and no division by zero. A class that nobody
    labelled has no recall; one that is never predicted counts with 0 (scikit-learn's ``zero_division=0``).
    """
    num = len(data.labels)
    keys = (data.label.astype(np.int64) * num + data.original.prediction) * num + data.trained.prediction
    cells, counts = np.unique(keys, return_counts=True)
    label, original, trained = cells // (num * num), cells // num % num, cells % num
    features = sparse.hstack([_f1_features(label, p, num) for p in (original, trained)]).tocsr()

    def macro_f1(sums: Floats) -> Floats:
        true_positive, predicted, support = (sums[..., i * num : (i + 1) * num] for i in range(3))
        present = support > 0
        f1 = np.where(present, 2 * true_positive / np.maximum(support + predicted, 1), 0.0)
        mean: Floats = f1.sum(axis=-1) / present.sum(axis=-1)
        return mean

    return PairedSums(
        num_units=len(cells),
        counts=counts.astype(np.int64),
        features=lambda block: features[block],
        metrics={"macro_f1": macro_f1},
    )


def _f1_features(label: Ints, prediction: Ints, num: int) -> Any:
    """``[cells, 3 num]``, sparse: one for a true positive, one for the prediction, one for the label."""
    rows = np.arange(len(label))
    right = rows[prediction == label]
    columns = np.concatenate([label[right], num + prediction, 2 * num + label])
    where = (np.concatenate([right, rows, rows]), columns)
    return sparse.csr_matrix((np.ones(len(columns)), where), shape=(len(label), 3 * num))


def probability_sums(data: ClassifiedPairs) -> PairedSums:
    """Log-loss and calibration error, from one row of sums per sample.

    Log-loss is the mean of ``-ln p(true class)``, in nats. Calibration error is the expected calibration
    error of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (after Naeini et al., AAAI
    2015): the samples fall into bins by the confidence of the prediction, ``(m/15, (m+1)/15]``, and the gaps
    between accuracy and mean confidence are averaged with the bins' shares. A bin's share times its gap is
    its sum of (correct - confidence) over n, so bins need no means.
    """
    models = data.original, data.trained
    width = 2 + NUM_BINS

    def features(block: slice) -> Floats:
        label = data.label[block]
        rows = np.arange(len(label))
        out = np.zeros((len(label), 2 * width))
        for offset, model in zip((0, width), models, strict=True):
            confidence = model.confidence[block].astype(np.float64)
            correct = model.prediction[block] == label
            bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
            out[:, offset] = 1
            out[:, offset + 1] = sample_log_loss(model.true_probability[block])
            out[rows, offset + 2 + bins] = correct - confidence
        return out

    return PairedSums(
        num_units=len(data.label),
        features=features,
        metrics={
            "log_loss": lambda sums: sums[..., 1] / sums[..., 0],
            "calibration_error": lambda sums: np.abs(sums[..., 2:]).sum(axis=-1) / sums[..., 0],
        },
    )


def sample_log_loss(true_probability: Probabilities) -> Floats:
    """``-ln p`` of each sample in nats, with p clipped below at `SMALLEST_PROBABILITY`."""
    loss: Floats = -np.log(np.clip(true_probability.astype(np.float64), SMALLEST_PROBABILITY, 1.0))
    return loss


def confusion_matrix(label: Codes, prediction: Codes, num_classes: int) -> Ints:
    """``[num_classes, num_classes]``: rows are true classes, columns are predictions."""
    cells = np.bincount(label.astype(np.int64) * num_classes + prediction, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def class_scores(confusion: Ints) -> dict[str, Floats]:
    """Precision, recall and F1 of each class, ``[num_classes]``; 0 where the denominator is 0."""
    right = np.diag(confusion).astype(np.float64)
    predicted, support = confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        "precision": right / np.maximum(predicted, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(predicted + support, 1),
    }
