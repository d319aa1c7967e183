"""Sharded training on real ranks: the steps of DDP, whole models in the end, and no rank that holds everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="real ranks need the extra 'train'")

from safetensors.torch import load_file

from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.metrics import read_metrics

from .conftest import Seatrial
from .test_main_job import losses


def test_fsdp_takes_the_steps_of_ddp(seatrial: Seatrial, recipe: Callable[..., str], encoder: Path) -> None:
    """A new head, an uneven last batch (540 = 16 × 33 + 12), other numbers of passes on each rank, clipping."""
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


@pytest.fixture
def words(reviews: Path, dropout_encoder: Path) -> list[str]:
    """A run with dropout on two ranks that hold half of the model each; a row of metrics every second step."""
    return [
        "train", "--model", str(dropout_encoder), "--data", str(reviews), "--nproc", "2", "--batch-size", "8",
        "--max-steps", "30", "--learning-rate", "2e-3", "--max-length", "32", "--train-only",
        "train.checkpoint_every=10", "train.log_every=2", "train.parallel=fsdp",
    ]  # fmt: skip


def test_a_killed_fsdp_run_goes_on_bit_for_bit(seatrial: Seatrial, words: list[str]) -> None:
    whole = seatrial(*words)
    assert whole.code == 0, whole.stderr
    expected = commit.weights_sha256(whole.run.model("trained"))
    killed = seatrial(*words, fault="kill:rank=1,step=25")
    assert killed.code == 4 and "rank 1 was killed by SIGKILL" in killed.stderr
    resumed = seatrial("runs", "resume", "last")
    assert resumed.code == 0, resumed.stderr
    begun = [e for e in read_json_lines(resumed.run.attempt(1).rank_events(1)) if e["event"] == "training"]
    assert [e["from_step"] for e in begun] == [20]
    assert commit.weights_sha256(resumed.run.model("trained")) == expected


def test_parts_that_are_not_finite_are_skipped_by_all(seatrial: Seatrial, words: list[str]) -> None:
    """One rank's gradient reaches the parts of both; neither of them may be updated."""
    done = seatrial(*words, "train.on_nonfinite=skip", fault="inf_grad:rank=1,step=13; nan:rank=0,step=28")
    assert done.code == 0, done.stderr
    assert read_json(done.run.guard)["skipped"] == [13, 28]
    found = {e.check: e.verdict for e in read_evidence(done.run.evidence)}
    assert found["loss_finite"] is Verdict.WARN and found["ranks_agree"] is Verdict.PASS
    trained = load_file(done.run.model("trained") / "model.safetensors")
    assert all(t.isfinite().all() for t in trained.values()), "neither rank's part took the update"


def test_ranks_that_share_a_model_go_back_together(seatrial: Seatrial, words: list[str]) -> None:
    done = seatrial(*words, "train.on_nonfinite=rollback", fault="inf_grad:rank=1,step=25")
    assert done.code == 0, done.stderr
    events = read_json_lines(done.run.attempt(0).rank_events(1))
    assert [e["from_step"] for e in events if e["event"] == "training"] == [0, 20]
    [record] = read_json(done.run.guard)["rollbacks"]
    assert (record["why"], record["steps"]) == ("not finite", [25])
    assert done.manifest.results["training"]["steps_without_update"] == 1


def test_hsdp_and_bf16_take_the_steps_of_ddp(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    """Four ranks, two replicas of two parts; bf16 computes in halves, and keeps fp32 weights."""
    name = recipe(log_every=1, max_steps=8, batch_size=4, checkpoint_every=None)
    curves = {}
    for words in ("ddp", "hsdp", "fsdp train.precision=bf16"):
        done = seatrial("train", name, "--train-only", "--nproc", "4", *f"train.parallel={words}".split())
        assert done.code == 0, done.stderr
        curves[words] = losses(done.run)
        assert done.manifest.results["model"]["parallel"]["strategy"] == words.split()[0]
    ddp, hsdp, bf16 = curves.values()
    assert len(ddp) == len(hsdp) == len(bf16) == 8
    assert max(abs(a - b) for a, b in zip(ddp, hsdp, strict=True)) < 1e-4
    far = [abs(a - b) for a, b in zip(ddp, bf16, strict=True)]
    assert 1e-6 < max(far) < 0.03, "bf16 has 8 bits of precision: near, and not the same"
    trained = load_file(done.run.model("trained") / "model.safetensors")
    assert {t.dtype for t in trained.values()} == {torch.float32}


def test_a_run_changes_how_it_is_shared(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    """ddp, then fsdp, then one rank: the losses of a run that stays. Of a part of the embedding it can't, and says why."""
    name = recipe(log_every=1, max_steps=12, checkpoint_every=4)
    long = ["train", name, "--train-only", "train.parallel=ddp", "train.trim_vocabulary=false"]
    whole = seatrial(*long)
    first = seatrial(*long, fault="kill:rank=1,step=7")
    assert (whole.code, first.code) == (0, 4)
    second = seatrial(
        "runs", "resume", "last", "train.parallel=fsdp", "train.trim_vocabulary=true", "--allow-change",
        fault="kill:rank=0,step=11,attempt=1",
    )  # fmt: skip
    assert second.code == 4 and "rank 0 was killed" in second.stderr, second.stderr
    third = seatrial("runs", "resume", "last", "--nproc", "1")
    assert third.code == 0, third.stderr
    curve = {row["step"]: row["loss"] for row in read_metrics(third.run.metrics)["train"]}
    assert max(abs(a - b) for a, b in zip(losses(whole.run), curve.values(), strict=True)) < 1e-4

    assert seatrial(*long[:-1], fault="kill:rank=1,step=7").code == 4
    refused = seatrial("runs", "resume", "last", "train.parallel=fsdp", "--allow-change")
    assert refused.code == 2
    assert "holds a part of the embedding" in refused.stderr
    assert "go on with train.parallel=ddp train.trim_vocabulary=true" in refused.stderr


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
