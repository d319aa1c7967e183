"""``utilisation.json``: how a run's devices were used, what held them up, and what the gate says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from seatrial.runs.evidence import Evidence, Verdict, record
from seatrial.runs.files import read_json, sha256_file, write_json
from seatrial.runs.manifest import write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.telemetry import METRICS
from seatrial.spec.gates import UtilisationGate
from seatrial.watch import series, steps
from seatrial.watch.causes import causes
from seatrial.watch.judge import idle_text, judge
from seatrial.watch.recorded import Recorded, read
from seatrial.watch.use import measure, num_allocated, rounded

Peak = Callable[[str, str], float | None]
"""Dense TFLOP/s of a GPU by the driver's name and precision; None for one that is not known."""


def unknown_peak(name: str, dtype: str) -> float | None:
    """Knows no GPU."""
    return None


def assess(run: Recorded, gate: UtilisationGate, peak: Peak = unknown_peak) -> dict[str, Any]:
    """All of ``utilisation.json``. Writes nothing.

    Args:
        run: what was recorded.
        gate: what is asked for.
        peak: the hardware's specification.
    """
    use = measure(run.attempts, gate.window)
    judgement = judge(use, gate, None if run.is_script else steps_made(run))
    # A later attempt may only have predicted.
    trained = next((a for a in reversed(run.attempts) if a.phases), None)
    found = causes(use, steps.by_rank(trained) if trained else [], trained.plan.nproc if trained else 1)
    work = steps.mfu(run, peak, tested(run))
    hours = device_hours(run)
    price = (run.spec.get("resources") or {}).get("price_per_gpu_hour")
    used = _used_hours(run)
    wasted = None if used is None else max(0.0, hours - used)
    zero = run.attempts[0].begin if run.attempts else 0.0
    return {
        "schema": 1, **judgement.to_dict(), "metric": use.metric, "metric_name": METRICS[use.metric][1],
        "source": use.source, "missing": use.missing, "window": gate.window, "window_s": rounded(use.seconds, 1),
        "mean_pct": rounded(use.mean_pct), "coverage": rounded(use.coverage, 3), "samples": use.num_samples,
        "num_devices": use.num_expected,
        "idle": [idle_text(d) for d in use.idle] if use.metric != "cpu_busy" else [],
        "causes": [cause.to_dict() for cause in found],
        "devices": [device.to_dict() for device in use.devices],
        "spans": [
            {"name": s.name, "begin_s": rounded(s.begin - zero, 1), "end_s": rounded(s.end - zero, 1)}
            for attempt in run.attempts for s in attempt.spans
        ],
        **series.series(run.attempts),
        "phases": steps.over_steps(run.attempts),
        "mfu": rounded(work.of_peak, 4), "mfu_of_measured": rounded(work.of_measured, 4), "mfu_reason": work.reason,
        "mfu_of_measured_reason": work.reason_measured, "tflops_per_rank": rounded(work.tflops, 4), "dtype": work.dtype,
        "goodput": rounded(steps.goodput(run), 4), **{k: rounded(v) for k, v in steps.throughput(run).items()},
        "device_hours": rounded(hours, 4), "used_device_hours": rounded(used, 4), "wasted_device_hours": rounded(wasted, 4),
        "price_per_gpu_hour": price, "cost": None if price is None else rounded(price * hours),
        "wasted_cost": None if price is None or wasted is None else rounded(price * wasted),
    }  # fmt: skip


def conclude(paths: RunPaths, gate: UtilisationGate, peak: Peak = unknown_peak) -> dict[str, Any]:
    """Assesses a run, and keeps what was found with it: the file, the evidence, a line of the manifest."""
    run = read(paths)
    found = assess(run, gate, peak)
    write_json(paths.utilisation, found)
    index = run.manifest.attempt.index if run.manifest.attempts else 0
    record(
        paths.evidence,
        Evidence(
            check="utilisation", verdict=Verdict(found["verdict"]), measured=found["mean_pct"], expected=found["required_pct"],
            unit="percent", source=f"{found['metric']} by {found['source'] or 'nobody'}", message=found["message"], attempt=index,
        ),
    )  # fmt: skip
    run.manifest.results["utilisation"] = (
        {"mean": found["mean_pct"]}
        | {
            key: found[key]
            for key in (
                "verdict",
                "metric",
                "mean_pct",
                "coverage",
                "mfu",
                "mfu_of_measured",
                "goodput",
                "device_hours",
            )
        }
        | {"cause": found["causes"][0]["sentence"] if found["causes"] else None}
    )
    write_manifest(paths, run.manifest)
    return found


def steps_made(run: Recorded) -> int:
    """Optimizer steps that any attempt logged."""
    return max((row["step"] for row in run.metrics if row.get("kind") == "train"), default=0)


def device_hours(run: Recorded) -> float:
    """Devices times hours, over all attempts."""
    return sum(max(num_allocated(a), 1) * (a.end - a.begin) / 3600 for a in run.attempts)


def _used_hours(run: Recorded) -> float | None:
    """Device-hours by their use: an hour at 40 % is 0.4 hours."""
    total, told = 0.0, False
    for attempt in run.attempts:
        use = measure([attempt], "all")
        if use.mean_pct is not None:
            told = True
            total += (
                sum((d.mean_pct or 0.0) / 100 for d in use.devices) * (attempt.end - attempt.begin) / 3600
            )
    return total if told else None


def tested(run: Recorded) -> dict[str, float]:
    """TFLOP/s that the acceptance test of these nodes reached in the run's precision, by node; none of a file that has changed."""
    metric = f"gemm_{steps.dtype_of(run)}"
    found: dict[str, float] = {}
    for used in run.manifest.acceptance.get("used", []):
        path = Path(used["path"])
        if path.is_file() and sha256_file(path) == used["sha256"]:
            ceilings = (read_json(path) or {}).get("ceilings", {})
            found |= {node: rates[metric] for node, rates in ceilings.items() if metric in rates}
    return found
