"""Adapters on real ranks: trained, saved alone or merged, loaded by plain PEFT and Transformers, resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.paths import RunPaths
from seatrial.runs.predictions import read_predictions

from .conftest import Done, Seatrial

pytest.importorskip("peft", reason="adapters need the extra 'lora'")


def probabilities(net: object, run: RunPaths) -> tuple[np.ndarray, np.ndarray]:
    """What a model says of the first held-out samples, and what the run's prediction file says."""
    import torch
    from transformers import AutoTokenizer

    _, rows = read_predictions(run.predictions("trained"))
    tokenizer = AutoTokenizer.from_pretrained(run.model("trained"))
    said = []
    for text in rows["text"].to_pylist()[:5]:
        with torch.inference_mode():
            said.append(net.eval()(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0])  # type: ignore[attr-defined]
    return torch.stack(said).numpy(), np.asarray(rows["probabilities"].to_pylist()[:5])


def evidence(done: Done, check: str) -> tuple[Verdict, object, object]:
    found = [e for e in read_evidence(done.run.evidence) if e.check == check][-1]
    return found.verdict, found.measured, found.expected


def test_an_adapter_is_saved_alone_and_plain_peft_loads_it(
    seatrial: Seatrial, recipe: Callable[..., str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    words = ["train", recipe(epochs=1), "--adapter", "lora", "adapter.r=4"]
    done = seatrial(*words)
    assert done.code == 0, done.stderr
    trained = done.run.model("trained")
    weights = sorted(p.name for p in trained.glob("*.safetensors"))
    assert weights == ["adapter_model.safetensors"]
    original = done.run.model("original") / "model.safetensors"
    assert (trained / weights[0]).stat().st_size < original.stat().st_size / 2
    for check in ("weights_changed", "ranks_agree"):
        assert evidence(done, check)[0] is Verdict.PASS
    assert done.manifest.results["model"]["adapter"]["num_trainable"] < 10_000
    base = AutoModelForSequenceClassification.from_pretrained(done.run.model("original"))
    said, recorded = probabilities(PeftModel.from_pretrained(base, str(trained)), done.run)
    assert np.allclose(said, recorded, atol=1e-5)

    killed = seatrial(*words, "--train-only", fault="kill:rank=1,step=15")
    assert killed.code == 4
    resumed = seatrial("runs", "resume", "last")
    assert resumed.code == 0, resumed.stderr
    assert commit.weights_sha256(resumed.run.model("trained")) == commit.weights_sha256(trained)


def test_a_merged_adapter_is_a_plain_model(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    from transformers import AutoModelForSequenceClassification

    done = seatrial(
        "train", recipe(epochs=1), "--adapter", "dora", "--merge", "adapter.targets=[query, value]", "resources.nproc=1"
    )  # fmt: skip
    assert done.code == 0, done.stderr
    trained = done.run.model("trained")
    assert [p.name for p in trained.glob("*.safetensors")] == ["model.safetensors"]
    assert not (trained / "adapter_config.json").exists()
    net, info = AutoModelForSequenceClassification.from_pretrained(trained, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    said, recorded = probabilities(net, done.run)
    assert np.allclose(said, recorded, atol=1e-5)


def test_an_adapter_that_learnt_nothing_fails(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    done = seatrial(
        "train",
        recipe(learning_rate=1e-300, weight_decay=0.0, max_steps=3),
        "--adapter",
        "lora",
        "--train-only",
    )
    assert done.code == 1, done.stderr
    assert "training changed nothing" in done.stderr


def test_wishes_that_can_not_be_met(seatrial: Seatrial, recipe: Callable[..., str], decoder: Path) -> None:
    name = recipe()
    wrong = seatrial("train", name, "adapter.targets=[q_proj]")
    assert wrong.code == 2
    assert "'q_proj' matches no linear layer" in wrong.stderr and "key, query, value" in wrong.stderr
    wrong = seatrial("train", name, "--adapter", "qlora")
    assert wrong.code == 2 and "qlora needs a GPU and bitsandbytes" in wrong.stderr
    wrong = seatrial("train", name, "--adapter", "lora", "train.parallel=fsdp")
    assert wrong.code == 2 and "don't go together" in wrong.stderr
    assert not seatrial.runs_dir.exists()
