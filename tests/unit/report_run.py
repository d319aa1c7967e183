"""A run directory for the tests of the page: every file as the real parts write it, all values fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seatrial.compare import compare_files, write_comparison
from seatrial.runs.evidence import Evidence, Verdict, record
from seatrial.runs.files import append_json_line, write_json
from seatrial.runs.manifest import AttemptRecord, GitState, Manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.predictions import PredictionsInfo, classification_table, write_predictions
from seatrial.runs.state import RunState

LABELS = ("email", "<script>alert(1)</script>", "xml & co")
TIME = "2026-01-02T03:04:05.000+00:00"


def make_manifest(paths: RunPaths, **more: Any) -> None:
    paths.root.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "run_id": paths.run_id, "name": "demo", "task": "text-classification", "state": RunState.COMPLETED,
        "created": TIME, "command": ["seatrial", "train", "a file.yaml"], "cwd": "/work dir", "spec_sha256": "ab" * 32,
        "seatrial_version": "0.1.0", "python": "3.12.1", "tags": ["ci"],
        "git": GitState(commit="c0ffee", branch="main", dirty=True, diff_sha256="d1" * 32),
        "attempts": [AttemptRecord(index=0, stages=["train", "predict"], nproc=2, started=TIME,
                                   ended="2026-01-02T03:05:17.000+00:00", exit_code=0, outcome="completed")],
    } | more  # fmt: skip
    manifest = Manifest(**fields)
    write_manifest(paths, manifest)
    text = paths.manifest.read_text().replace(manifest.updated, TIME)
    paths.manifest.write_text(text)


def make_predictions(paths: RunPaths, num_samples: int = 120) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, num_samples)
    for name, skill in (("original", 0.2), ("trained", 3.0)):
        logits = rng.normal(size=(num_samples, 3)) + skill * np.eye(3)[truth]
        probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
        texts = [f"sample {i} <img src=x onerror=alert(2)> & more words" for i in range(num_samples)]
        ids = [f"test-{i:07d}" for i in range(num_samples)]
        table = classification_table(ids, truth, probabilities.argmax(1), probabilities, LABELS, texts)
        info = PredictionsInfo(
            task="text-classification", labels=LABELS, data_sha256="da" * 32, model_name=name,
            model_sha256=name[0] * 64, run_id=paths.run_id, split="test", num_samples=num_samples,
        )  # fmt: skip
        write_predictions(paths.predictions(name), table, info)


def make_run(root: Path) -> RunPaths:
    """A whole run that went well."""
    paths = RunPaths(root / "demo-20260102-030405-abcd")
    make_manifest(
        paths,
        environment={"python": "CPython 3.12.1", "host": {"hostname": "box", "memory_gib": 16.0},
                     "torch": {"version": "2.11.0", "gpus": []}, "packages": {"numpy": "2.0.0"}},
        data={s: {"num_samples": n, "num_cut": 1, "sha256": s[0] * 64} for s, n in (("train", 900), ("test", 120))},
        models={n: {"sha256": n[0] * 64, "weights_sha256": n[0] * 64} for n in ("original", "trained")},
        results={"training": {"steps": 50, "first_loss": 1.1, "last_loss": 0.2},
                 "model": {"type": "bert", "num_parameters": 1_065_098, "new_weights": ["classifier.weight"]}},
    )  # fmt: skip
    write_json(
        paths.spec, {"schema": 1, "name": "demo", "model": "/m/tiny", "data": {"path": "/d/reviews.csv"}}
    )
    for step in range(1, 51):
        append_json_line(paths.metrics, {"kind": "train", "step": step, "loss": 1.1 * 0.96**step, "attempt": 0,
                                         "learning_rate": 1e-3 * (1 - step / 51), "samples_per_s": 300 + step % 7})  # fmt: skip
    for step in (25, 50):
        append_json_line(paths.metrics, {"kind": "eval", "step": step, "loss": 20 / step, "accuracy": step / 60, "attempt": 0})  # fmt: skip
    make_predictions(paths)
    result = compare_files(
        paths.predictions("original"), paths.predictions("trained"), require="better", resamples=1000
    )
    for model in ("original", "trained"):
        result[model]["path"] = f"{model}.parquet"
    write_comparison(paths.comparison, result)
    for check, verdict in (
        ("ranks_present", Verdict.PASS),
        ("loss_fell", Verdict.WARN),
        ("utilisation", Verdict.UNMEASURED),
    ):
        record(paths.evidence, Evidence(check=check, verdict=verdict, measured=2, expected=2, unit="ranks",
                                        source="a < b", message=f"{check} was looked at", time=TIME))  # fmt: skip
    return paths
