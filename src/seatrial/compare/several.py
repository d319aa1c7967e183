"""Several runs side by side: what each measured, the best against each other one, and what the seed alone moves.

The best is found by looking at the very samples that it is then tested on, so any two of the runs may become the pair that
is shown. The p-values are therefore adjusted for all pairs, by the step-down of Holm ("A Simple Sequentially Rejective
Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979). With m pairs in all, the i-th smallest of those that
were computed (i from 0) is multiplied by m - i, and none comes out below the one before it. That is never bolder than
with all m: a pair that was left out can only move those after it to smaller multipliers, and would pass where they do.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.compare.bootstrap import PairedEstimate, paired_bootstrap
from seatrial.compare.classification import (
    accuracy_sums,
    classified,
    four_cells,
    macro_f1_sums,
    mcnemar_p,
    probability_sums,
)
from seatrial.compare.comparison import MAX_RESAMPLES
from seatrial.compare.language import language, nll_sums
from seatrial.compare.metrics import Metric
from seatrial.compare.pairs import Pairs, load_pairs
from seatrial.compare.randomization import swap_test
from seatrial.compare.verdict import decide
from seatrial.errors import SpecError

SCHEMA = 1
SEED = "train.seed"
_NOT_A_DIFFERENCE = {"schema", "name", "tags"}
_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of one run."""

    run_id: str
    state: str
    recipe: dict[str, Any]
    """By dotted key."""
    comparison: dict[str, Any] | None
    """``comparison.json``; None when the run is not measured."""
    predictions: Path
    """Of its trained model."""
    why: str = ""
    """Why it is not measured."""


def compare_runs(
    runs: Sequence[RunFacts], metric: Metric, *, confidence: float, seed: int = 0
) -> dict[str, Any]:
    """The runs side by side, as plain data.

    Args:
        runs: in the order of the table.
        metric: what they are held against each other by.
        confidence: of the intervals between runs, and 1 - the level of all tests together.
        seed: of the resampling.
    """
    keys = differing_keys([run.recipe for run in runs])
    measured = [run for run in runs if run.comparison is not None]
    best = max(measured, key=lambda run: metric.sign * _trained(run, metric), default=None)
    num_pairs = len(measured) * (len(measured) - 1) // 2
    pairs = [] if best is None else _against(best, measured, metric, confidence, num_pairs, seed)
    return {
        "schema": SCHEMA,
        "metric": metric.name,
        "test": metric.test,
        "confidence": confidence,
        "keys": keys,
        "runs": [_row(run, keys, metric) for run in runs],
        "best": None if best is None else best.run_id,
        "pairs": pairs,
        "num_pairs": num_pairs,
        "groups": _groups(runs, keys, metric),
        "warnings": _warnings(measured, metric, confidence, num_pairs),
    }


def differing_keys(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Keys that have not the same value in all recipes, in the recipes' order; what a run is called is none of them."""
    every = dict.fromkeys(key for recipe in recipes for key in recipe)
    return [
        key
        for key in every
        if key not in _NOT_A_DIFFERENCE and len({json.dumps(recipe.get(key)) for recipe in recipes}) > 1
    ]


def holm(p_values: Sequence[float], num_tests: int | None = None) -> list[float]:
    """Adjusted p-values, in the order given.

    Args:
        p_values: of the tests that were made.
        num_tests: how many there are in all, if more could have been made.
    """
    total = len(p_values) if num_tests is None else num_tests
    adjusted = [1.0] * len(p_values)
    so_far = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, (total - rank) * p_values[i]))
        adjusted[i] = so_far
    return adjusted


def _trained(run: RunFacts, metric: Metric) -> float:
    assert run.comparison is not None
    return float(run.comparison["metrics"][metric.name]["trained"])


def _row(run: RunFacts, keys: Sequence[str], metric: Metric) -> dict[str, Any]:
    values = {key: run.recipe.get(key) for key in keys}
    row = {"run_id": run.run_id, "state": run.state, "values": values, "why": run.why, "measured": None}
    if run.comparison is None:
        return row
    found = run.comparison["metrics"][metric.name]
    shown = (
        "original",
        "original_interval",
        "trained",
        "trained_interval",
        "difference",
        "interval",
        "p_value",
    )
    return row | {
        "measured": {key: found[key] for key in shown}
        | {"verdict": _verdict(run.comparison, metric), "num_samples": run.comparison["num_samples"]}
    }


def _verdict(comparison: dict[str, Any], metric: Metric) -> str:
    """Trained against original, by a metric that need not be the one which the recipe's gate names."""
    verdict = comparison["verdict"]
    known = comparison["original"]["model_sha256"]
    if verdict["metric"] == metric.name or (known and known == comparison["trained"]["model_sha256"]):
        return str(verdict["verdict"])
    found = comparison["metrics"][metric.name]
    estimate = PairedEstimate(
        original=found["original"], trained=found["trained"], difference=found["difference"],
        original_interval=tuple(found["original_interval"]), trained_interval=tuple(found["trained_interval"]),
        interval=tuple(found["interval"]), standard_error=0.0, resamples=0, method="",
    )  # fmt: skip
    return decide(metric, estimate, found["p_value"], comparison["confidence"])


def _against(
    best: RunFacts, runs: Sequence[RunFacts], metric: Metric, confidence: float, num_pairs: int, seed: int
) -> list[dict[str, Any]]:
    """The best run against each other one; what can't be paired says why."""
    resamples = needed_resamples(num_pairs, confidence)
    rows: list[dict[str, Any]] = []
    found: list[tuple[dict[str, Any], PairedEstimate, float]] = []
    for run in runs:
        if run is best:
            continue
        row: dict[str, Any] = {"run_id": run.run_id, "refused": None}
        rows.append(row)
        try:
            pairs = load_pairs(run.predictions, best.predictions)
        except SpecError as error:
            what = error.what.removeprefix("the two prediction files ")
            row["refused"] = f"its predictions and those of {best.run_id} {what}"
            continue
        estimate, p_value = _measure(pairs, metric, confidence, resamples, seed)
        row |= {
            "num_samples": pairs.num_samples, "difference": estimate.difference, "interval": list(estimate.interval),
            "p_value": p_value,
        }  # fmt: skip
        found.append((row, estimate, p_value))
    for (row, estimate, _), adjusted in zip(found, holm([p for *_, p in found], num_pairs), strict=True):
        row |= {"p_adjusted": adjusted, "verdict": decide(metric, estimate, adjusted, confidence)}
    return rows


def needed_resamples(num_pairs: int, confidence: float) -> int:
    """Swaps enough for a p-value that is still below the level when it is adjusted; the smallest is 1 / (swaps + 1)."""
    return min(MAX_RESAMPLES, max(_RESAMPLES, math.ceil(4 * num_pairs / (1 - confidence))))


def _measure(
    pairs: Pairs, metric: Metric, confidence: float, resamples: int, seed: int
) -> tuple[PairedEstimate, float]:
    """One metric alone: its difference with an interval, and the p-value."""
    if metric.name == "accuracy":
        cells = four_cells(classified(pairs))
        sums = accuracy_sums(cells)
        p_value = mcnemar_p(int(cells[1]), int(cells[2]))
    else:
        sums = (
            macro_f1_sums(classified(pairs)) if metric.name == "macro_f1"
            else probability_sums(classified(pairs)) if metric.classification
            else nll_sums(language(pairs))
        )  # fmt: skip
        p_value = swap_test(sums, resamples=resamples, seed=seed)[metric.name]
    estimates = paired_bootstrap(sums, confidence=confidence, resamples=_RESAMPLES, seed=seed)
    return estimates[metric.name], p_value


def _groups(runs: Sequence[RunFacts], keys: Sequence[str], metric: Metric) -> list[dict[str, Any]]:
    """Runs that differ by the seed alone, with the mean and the standard deviation (n - 1) of their trained models."""
    if SEED not in keys:
        return []
    others = [key for key in keys if key != SEED]
    members: dict[str, list[RunFacts]] = {}
    for run in runs:
        members.setdefault(json.dumps([run.recipe.get(key) for key in others]), []).append(run)
    groups = []
    for group in members.values():
        if len({run.recipe.get(SEED) for run in group}) < 2:
            continue
        values = [_trained(run, metric) for run in group if run.comparison is not None]
        groups.append(
            {
                "values": {key: group[0].recipe.get(key) for key in others},
                "num_runs": len(group),
                "num_measured": len(values),
                "mean": statistics.fmean(values) if values else None,
                "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
            }
        )
    return groups


def _warnings(measured: Sequence[RunFacts], metric: Metric, confidence: float, num_pairs: int) -> list[str]:
    warnings = []
    data = Counter((run.comparison or {}).get("data_sha256") for run in measured)
    if len(data) > 1:
        warnings.append(
            f"the runs have {len(data)} different sets of held-out samples, and only runs with the same set are held against "
            "each other: where the data has no test split of its own, train.seed draws it"
        )
    smallest = num_pairs / (needed_resamples(num_pairs, confidence) + 1)
    if metric.name != "accuracy" and smallest >= 1 - confidence:
        warnings.append(
            f"with {num_pairs:,} pairs the {metric.test} can show no difference: compare fewer runs"
        )
    return warnings
