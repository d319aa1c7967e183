"""Sharded training on real ranks: the steps of DDP, whole models in the end, and no rank that holds everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence

from .conftest import Seatrial
from .test_main_job import losses


def test_fsdp_takes_the_steps_of_ddp(seatrial: Seatrial, recipe: Callable[..., str], encoder: Path) -> None:
    """A new head, an uneven last batch (540 = 16 × 33 + 12), other numbers of passes on each rank, clipping."""
    from safetensors.torch import load_file

    name = recipe(encoder, log_every=1, max_steps=35, batch_tokens=60, checkpoint_every=None)
    curves, models = [], []
    for words in (["train.parallel=ddp"], ["train.parallel=fsdp", "--activation-checkpointing"]):
        done = seatrial("train", name, "--train-only", *words)
        assert done.code == 0, done.stderr
        verdicts = {e.check: e.verdict for e in read_evidence(done.run.evidence)}
        assert verdicts["ranks_agree"] is verdicts["weights_changed"] is Verdict.PASS
        curves.append(losses(done.run))
        models.append(done.run)
    assert len(curves[0]) == len(curves[1]) == 35
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-4
    originals = [load_file(run.model("original") / "model.safetensors") for run in models]
    assert originals[0].keys() == originals[1].keys()
    assert all((originals[0][key] == originals[1][key]).all() for key in originals[0]), "the new head as well"
    trained = load_file(models[1].model("trained") / "model.safetensors")
    assert {key: t.shape for key, t in trained.items()} == {key: t.shape for key, t in originals[0].items()}
    assert commit.problems(models[1].model("trained")) == []


def test_a_batch_size_is_found_and_the_global_batch_kept(
    seatrial: Seatrial, recipe: Callable[..., str]
) -> None:
    """By the memory that the recipe names: all of the global batch fits into plenty, less into little, nothing into none."""
    words = ["train", recipe(max_steps=2, checkpoint_every=None), "--train-only", "--batch-size", "auto"]
    words += ["--global-batch", "64"]
    found = {}
    for memory_gib in ("1", "0.003"):
        done = seatrial(*words, "--gpu-memory", memory_gib)
        assert done.code == 0, done.stderr
        found[memory_gib] = done.manifest.results["model"]["batch_size"]
        assert found[memory_gib]["global_batch"] == 64
    assert found["1"]["found"] == 32 > found["0.003"]["found"] >= 1
    none = seatrial(*words, "--gpu-memory", "0.0001", "train.parallel=ddp")
    assert none.code == 2 and "does not fit into memory" in none.stderr and "GiB" in none.stderr
