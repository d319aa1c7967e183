"""Run directories as a training leaves them, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seatrial.runs import commit
from seatrial.runs.evidence import Evidence, Verdict, record
from seatrial.runs.files import append_json_line, write_json
from seatrial.runs.manifest import AttemptRecord, Manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from seatrial.spec.run import RunSpec

SPEC: dict[str, Any] = {
    "name": "reviews", "task": "text-classification", "model": "org/base", "data": {"path": "org/reviews", "max_length": 96},
    "train": {"epochs": 3.0},
}  # fmt: skip


def make_run(
    runs: Path,
    run_id: str,
    *,
    weights: bytes = b"weights",
    verdict: str | None = "better",
    state: RunState = RunState.COMPLETED,
    checkpoints: tuple[int, ...] = (),
    evidence: tuple[Evidence, ...] = (),
    spec: dict[str, Any] | None = None,
    **more: Any,
) -> RunPaths:
    """A run with a trained model, a comparison with this verdict (None: none), and checkpoints."""
    paths = RunPaths(runs / run_id)
    paths.root.mkdir(parents=True)
    resolved = RunSpec.model_validate(SPEC | (spec or {}), strict=False)
    write_json(paths.spec, resolved.model_dump(mode="json", by_alias=True))
    for step in checkpoints:
        final = paths.checkpoints / f"step_{step:06d}"
        aside = commit.start(final)
        (aside / "rank_00000.safetensors").write_bytes(weights * 100 + str(step).encode())
        write_json(aside / "trainer.json", {"step": step})
        commit.commit(aside, final, step=step)
    model = paths.model("trained")
    aside = commit.start(model)
    (aside / "model.safetensors").write_bytes(weights)
    (aside / "config.json").write_text('{"model_type": "bert"}\n')
    (aside / "tokenizer.json").write_text("{}\n")
    commit.commit(aside, model, step=max(checkpoints, default=10))
    sha256 = commit.weights_sha256(model)
    if verdict is not None:
        write_json(paths.comparison, comparison(run_id, str(sha256), verdict))
    for row in evidence or (
        Evidence(
            check="loss_finite", verdict=Verdict.PASS, message="finite", time="2026-11-26T10:00:00.000+00:00"
        ),
    ):
        record(paths.evidence, row)
    append_json_line(paths.metrics, {"kind": "train", "step": 10, "loss": 0.5})
    manifest = Manifest(
        run_id=run_id, name="reviews", task="text-classification", state=state, command=["seatrial", "train"], cwd="/home/ann",
        spec_sha256="0" * 64, seatrial_version="0.1.0", python="3.11.7", created="2026-11-26T10:00:00.000+00:00",
        environment={"python": "CPython 3.11.7", "torch": {"version": "2.13.0", "gpus": []}, "packages": {"torch": "2.13.0", "click": "8"},
                     "host": {"hostname": "secret-host"}},
        data={"source": "/home/ann/data", "train": {"num_samples": 100, "sha256": "a" * 64, "num_cut": 3},
              "test": {"num_samples": 50, "sha256": "b" * 64, "num_cut": 1}},
        models={"trained": {"weights_sha256": sha256}}, results={"training": {"steps": 10}, "model": {"num_parameters": 1234}},
        attempts=[AttemptRecord(index=0, handle="local://1:1", nproc=2, started="2026-11-26T10:00:00.000+00:00",
                                ended="2026-11-26T10:01:00.000+00:00", exit_code=0, outcome="completed")],
        **more,
    )  # fmt: skip
    write_manifest(paths, manifest)
    return paths


def comparison(run_id: str, sha256: str, verdict: str) -> dict[str, Any]:
    """A comparison as `seatrial compare` writes it, as far as others read it."""
    row = {
        "original": 0.8, "trained": 0.85, "difference": 0.05, "interval": [0.01, 0.09], "p_value": 0.01, "test": "exact McNemar",
        "higher_is_better": True, "unit": "fraction",
    }  # fmt: skip
    loss = row | {"original": 0.5, "trained": 0.4, "difference": -0.1, "interval": [-0.2, -0.05], "p_value": 1e-9, "higher_is_better": False,
                  "unit": "nats/sample"}  # fmt: skip
    side = {"path": "/home/ann/predictions.parquet", "run_id": run_id}
    return {
        "schema": 1, "task": "text-classification", "num_samples": 50, "confidence": 0.95, "data_sha256": "b" * 64, "split": "test",
        "original": side | {"model_name": "original", "model_sha256": "c" * 64},
        "trained": side | {"model_name": "trained", "model_sha256": sha256},
        "metrics": {"accuracy": row, "log_loss": loss}, "per_class": [{"label": "bad", "support": 12}, {"label": "good", "support": 38}],
        "verdict": {"verdict": verdict, "reason": "", "sentence": "accuracy 80.0 % → 85.0 % (+5.0 points)"},
        "gate": {"passed": None, "reason": ""}, "warnings": [],
    }  # fmt: skip


def read(path: Path) -> Any:
    """A file of JSON."""
    return json.loads(path.read_text())
