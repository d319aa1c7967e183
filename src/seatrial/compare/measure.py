"""Measures two models on the same samples: every metric of the task, its test, and the task's own tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from seatrial.compare.bootstrap import PairedEstimate, paired_bootstrap
from seatrial.compare.changed import changed_classification, changed_language
from seatrial.compare.classification import (
    accuracy_sums,
    class_scores,
    classified,
    confusion_matrix,
    four_cells,
    macro_f1_sums,
    mcnemar_p,
    probability_sums,
    wilson_interval,
)
from seatrial.compare.language import language, nll_sums
from seatrial.compare.pairs import Pairs
from seatrial.compare.power import samples_needed, samples_needed_for_accuracy
from seatrial.compare.randomization import swap_test
from seatrial.compare.sums import Ints, PairedSums


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to compare."""

    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Two models on the same samples; the dictionaries of numbers are by metric."""

    estimates: dict[str, PairedEstimate]
    p_values: dict[str, float]
    num_samples_needed: dict[str, int | None]
    """See `power`."""
    tables: dict[str, Any]
    """``mcnemar``, ``per_class``, ``confusion`` and ``changed``, as they stand in ``comparison.json``."""
    warnings: list[str]


def measure(pairs: Pairs, settings: Settings) -> Measured:
    """Everything that the task's files allow to be measured."""
    return (_language if pairs.original.info.labels is None else _classification)(pairs, settings)


def _classification(pairs: Pairs, settings: Settings) -> Measured:
    data = classified(pairs)
    confusion = [
        confusion_matrix(data.label, model.prediction, len(data.labels))
        for model in (data.original, data.trained)
    ]
    measured = _by_resampling(
        [macro_f1_sums(data), probability_sums(data)],
        settings,
        tables={
            "per_class": _class_rows(data.labels, confusion),
            "confusion": {"original": confusion[0].tolist(), "trained": confusion[1].tolist()},
            "changed": changed_classification(pairs, data),
        },
        warnings=_class_warnings(data.labels, confusion),
    )
    return _with_accuracy(measured, four_cells(data), settings)


def _language(pairs: Pairs, settings: Settings) -> Measured:
    data = language(pairs)
    tables = {
        "mcnemar": None,
        "per_class": None,
        "confusion": None,
        "changed": changed_language(pairs, data),
    }
    empty = int((data.num_tokens == 0).sum())
    warnings = (
        [f"{empty} samples are too short to have a target token and count for nothing"] if empty else []
    )
    return _by_resampling([nll_sums(data)], settings, tables=tables, warnings=warnings)


def _by_resampling(
    families: list[PairedSums], settings: Settings, *, tables: dict[str, Any], warnings: list[str]
) -> Measured:
    """Intervals by the bootstrap and p-values by the randomization test, for every metric of every family."""
    estimates: dict[str, PairedEstimate] = {}
    p_values: dict[str, float] = {}
    for paired in families:
        estimates |= _bootstrap(paired, settings)
        p_values |= swap_test(paired, resamples=settings.resamples, seed=settings.seed)
    num_samples = families[0].num_samples
    needed = {
        name: samples_needed(estimate, num_samples, settings.confidence)
        for name, estimate in estimates.items()
    }
    return Measured(
        estimates=estimates, p_values=p_values, num_samples_needed=needed, tables=tables, warnings=warnings
    )


def _with_accuracy(measured: Measured, cells: Ints, settings: Settings) -> Measured:
    """Adds accuracy, which has an exact test, an interval for one model and a formula for its power."""
    both, only_original, only_trained, neither = (int(count) for count in cells)
    num_samples = int(cells.sum())
    estimate = replace(
        _bootstrap(accuracy_sums(cells), settings)["accuracy"],
        original_interval=wilson_interval(both + only_original, num_samples, settings.confidence),
        trained_interval=wilson_interval(both + only_trained, num_samples, settings.confidence),
    )
    needed = samples_needed_for_accuracy(only_original, only_trained, num_samples, settings.confidence)
    p_value = mcnemar_p(only_original, only_trained)
    mcnemar = {
        "both_right": both,
        "only_original_right": only_original,
        "only_trained_right": only_trained,
        "both_wrong": neither,
        "p_value": p_value,
    }
    return replace(
        measured,
        estimates={"accuracy": estimate} | measured.estimates,
        p_values={"accuracy": p_value} | measured.p_values,
        num_samples_needed={"accuracy": needed} | measured.num_samples_needed,
        tables={"mcnemar": mcnemar} | measured.tables,
    )


def _bootstrap(paired: PairedSums, settings: Settings) -> dict[str, PairedEstimate]:
    return paired_bootstrap(
        paired, confidence=settings.confidence, resamples=settings.resamples, seed=settings.seed
    )


def _class_rows(labels: tuple[str, ...], confusion: list[Ints]) -> list[dict[str, Any]]:
    scores = [class_scores(matrix) for matrix in confusion]
    support = confusion[0].sum(axis=1)
    return [
        {
            "label": label,
            "support": int(support[i]),
            "original": {name: float(values[i]) for name, values in scores[0].items()},
            "trained": {name: float(values[i]) for name, values in scores[1].items()},
        }
        for i, label in enumerate(labels)
    ]


def _class_warnings(labels: tuple[str, ...], confusion: list[Ints]) -> list[str]:
    support = confusion[0].sum(axis=1)
    absent = [label for label, count in zip(labels, support, strict=True) if count == 0]
    warnings = []
    if absent:
        shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        warnings.append(
            f"{len(absent)} of {len(labels)} classes are absent from the held-out samples and left "
            f"out of macro_f1: {shown}"
        )
    for name, matrix in zip(("original", "trained"), confusion, strict=True):
        if (matrix.sum(axis=0) > 0).sum() == 1:
            warnings.append(f"the {name} model predicts one class for every sample")
    return warnings
