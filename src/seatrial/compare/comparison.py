"""Two prediction files in, ``comparison.json`` out.

result = compare_files(Path("original.parquet"), Path("trained.parquet"), require="better")
print(result["verdict"]["sentence"], result["gate"]["passed"])
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from seatrial.compare.bootstrap import PairedEstimate
from seatrial.compare.gate import check_gate, judge_gate
from seatrial.compare.measure import Measured, Settings, measure
from seatrial.compare.metrics import METRICS, Metric, choose_metric
from seatrial.compare.pairs import Pairs, Side, load_pairs
from seatrial.compare.verdict import Verdict, decide, verdict_data
from seatrial.errors import SpecError
from seatrial.runs.files import write_json

SCHEMA = 1
FEW_SAMPLES = 30
"""Below this a comparison carries a warning."""
MAX_RESAMPLES = 100_000


def compare_files(
    original: Path,
    trained: Path,
    *,
    metric: str | None = None,
    require: str | None = None,
    min_improvement: float = 0.0,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Decides whether the trained model is better than the original on the same held-out samples.

    Args:
        original: prediction file of the model that training started from.
        trained: prediction file of the model that came out.
        metric: what the verdict rests on; by default accuracy, or nll for causal-lm.
        require: ``better`` or ``not worse`` makes a gate of the verdict; see `gate.judge_gate`.
        min_improvement: smallest improvement that the gate accepts as shown, in the metric's own unit and in
            its improving direction.
        confidence: of the intervals, and 1 - the level of the tests.
        resamples: of the bootstrap and of the randomization test.
        seed: of both. Equal files, settings and seed give equal results.

    Returns:
        Plain data for ``comparison.json``, without NaN or infinity.

    Raises:
        SpecError: a file is unusable, the files are not about the same samples, or a setting is not valid.
    """
    check_gate(require, min_improvement)
    _check_settings(confidence, resamples, seed)
    pairs = load_pairs(original, trained)
    chosen = choose_metric(metric, pairs.original.info.task)
    settings = Settings(confidence=confidence, resamples=resamples, seed=seed)
    measured = measure(pairs, settings)
    verdict = _verdict(chosen, measured, pairs, confidence)
    return {
        "schema": SCHEMA,
        "task": pairs.original.info.task,
        "num_samples": pairs.num_samples,
        "confidence": confidence,
        "data_sha256": pairs.original.info.data_sha256,
        "split": pairs.original.info.split,
        "original": _side_data(pairs.original),
        "trained": _side_data(pairs.trained),
        "labels": None if pairs.original.info.labels is None else list(pairs.original.info.labels),
        "metrics": {
            name: _metric_data(estimate, name, measured.p_values[name])
            for name, estimate in measured.estimates.items()
        },
        **measured.tables,
        "bootstrap": _bootstrap_data(measured.estimates, settings),
        "verdict": verdict_data(verdict),
        "gate": judge_gate(verdict, require, min_improvement),
        "warnings": _warnings(pairs, measured, settings),
    }


def write_comparison(path: Path, result: dict[str, Any]) -> None:
    """Writes ``comparison.json`` beside `path`, syncs and renames."""
    write_json(path, result)


def _check_settings(confidence: float, resamples: int, seed: int) -> None:
    if not 0.5 < confidence < 1:
        raise SpecError(
            f"confidence is {confidence}", evidence="it lies between 0.5 and 1", remedy="confidence=0.95"
        )
    # The ends of an interval need resamples beyond them, and a p-value can't be below 1 / (resamples + 1).
    least = max(100, math.ceil(round(5 / (1 - confidence), 6)))
    if not least <= resamples <= MAX_RESAMPLES:
        raise SpecError(
            f"{resamples} resamples can't be used",
            evidence=f"confidence {confidence} needs {least} or more; {MAX_RESAMPLES} is the most",
            remedy="resamples=10000",
        )
    if seed < 0:
        raise SpecError(f"seed is {seed}", evidence="a seed is 0 or more", remedy="seed=0")


def _verdict(metric: Metric, measured: Measured, pairs: Pairs, confidence: float) -> Verdict:
    estimate, p_value = measured.estimates[metric.name], measured.p_values[metric.name]
    same_model = _same_model(pairs)
    return Verdict(
        metric=metric,
        verdict="no evidence" if same_model else decide(metric, estimate, p_value, confidence),
        estimate=estimate,
        p_value=p_value,
        confidence=confidence,
        num_samples=pairs.num_samples,
        num_samples_needed=measured.num_samples_needed[metric.name],
        same_model=same_model,
    )


def _same_model(pairs: Pairs) -> bool:
    known, other = pairs.original.info.model_sha256, pairs.trained.info.model_sha256
    return bool(known) and known == other  # an unknown hash is equal to none


def _metric_data(estimate: PairedEstimate, name: str, p_value: float) -> dict[str, Any]:
    metric = METRICS[name]
    return {
        "original": estimate.original,
        "trained": estimate.trained,
        "difference": estimate.difference,
        "interval": list(estimate.interval),
        "original_interval": list(estimate.original_interval),
        "trained_interval": list(estimate.trained_interval),
        "p_value": p_value,
        "test": metric.test,
        "higher_is_better": metric.higher_is_better,
        "unit": metric.unit,
    }


def _bootstrap_data(estimates: dict[str, PairedEstimate], settings: Settings) -> dict[str, Any]:
    return {
        "resamples": settings.resamples,
        "seed": settings.seed,
        "method": "paired, BCa; Wilson for the accuracy of one model",
        "by_metric": {
            name: {"resamples": estimate.resamples, "draws": estimate.method}
            for name, estimate in estimates.items()
        },
    }


def _side_data(side: Side) -> dict[str, Any]:
    return {
        "path": str(side.path),
        "model_name": side.info.model_name,
        "model_sha256": side.info.model_sha256,
        "run_id": side.info.run_id,
    }


def _warnings(pairs: Pairs, measured: Measured, settings: Settings) -> list[str]:
    warnings = []
    if _same_model(pairs):
        warnings.append("both files are of the same model (equal weights): nothing was trained between them")
    if pairs.num_samples < FEW_SAMPLES:
        warnings.append(
            f"only {pairs.num_samples} samples: below {FEW_SAMPLES} the intervals are rough and only very "
            "large effects can be shown"
        )
    if pairs.original.info.split != pairs.trained.info.split:
        warnings.append(
            f"the splits have different names: {pairs.original.info.split}, {pairs.trained.info.split}"
        )
    for name, estimate in measured.estimates.items():
        if estimate.resamples < settings.resamples:
            counts = f"{estimate.resamples:,} times instead of {settings.resamples:,}"
            warnings.append(f"{name} was resampled {counts}: its many cells take long to draw")
    return warnings + measured.warnings
