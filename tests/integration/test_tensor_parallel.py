"""Ranks that split each matrix between them take the steps of one rank that has it whole."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="real ranks need the extra 'train'")

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.metrics import read_metrics

from .conftest import Seatrial, tokenizer_for
from .test_main_job import losses


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Path:
    """Random weights; four query heads share two key heads. Its vocabulary (201) is odd, so parts are uneven."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=201, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer_for(reviews.read_text().splitlines()).save_pretrained(path)
    return path


@pytest.fixture
def words(llama: Path, reviews: Path) -> list[str]:
    """A global batch of 16, the last one of an epoch uneven (60 = 16 × 3 + 12); checkpoints at steps 3 and 6."""
    return [
        "train", "--task", "causal-lm", "--model", str(llama), "--data", str(reviews), "--max-steps", "8", "--global-batch",
        "16", "--learning-rate", "2e-3", "--max-length", "32", "--train-only", "train.checkpoint_every=3",
        "--train-samples", "60",
        "train.log_every=1", "train.batch_size=4",
    ]  # fmt: skip


TP = ("train.parallel=tp", "train.tp_size=2")


def test_split_matrices_take_the_steps_of_whole_ones(seatrial: Seatrial, words: list[str]) -> None:
    """On two ranks, and on four of which pairs see other samples, in other numbers of passes."""
    one = seatrial(*words, "--nproc", "1")
    assert one.code == 0, one.stderr
    held_out = read_metrics(one.run.metrics)["eval"][-1]
    weights = load_file(one.run.model("trained") / "model.safetensors")
    for more in (("--nproc", "2"), ("--nproc", "4", "train.batch_tokens=60", "--activation-checkpointing")):
        done = seatrial(*words, *more, *TP)
        assert done.code == 0, done.stderr
        assert len(losses(done.run)) == 8
        assert max(abs(a - b) for a, b in zip(losses(one.run), losses(done.run), strict=True)) < 1e-4
        evaluated = read_metrics(done.run.metrics)["eval"][-1]
        assert evaluated["loss"] == pytest.approx(held_out["loss"], abs=1e-4)
        assert evaluated["accuracy"] == pytest.approx(held_out["accuracy"], abs=1e-9), (
            "each sample counts once"
        )
        found = {e.check: e.verdict for e in read_evidence(done.run.evidence)}
        assert found["ranks_agree"] is found["weights_changed"] is found["loss_fell"] is Verdict.PASS
        assert done.manifest.results["model"]["parallel"]["strategy"] == "tp"
        plain = AutoModelForCausalLM.from_pretrained(done.run.model("trained")).state_dict()
        assert all(torch.allclose(plain[name], tensor, atol=1e-3) for name, tensor in weights.items())
        original = load_file(done.run.model("original") / "model.safetensors")
        assert any((original[name] - plain[name]).abs().max() > 1e-3 for name in original)


def test_a_killed_run_goes_on_bit_for_bit_and_on_other_ranks(seatrial: Seatrial, words: list[str]) -> None:
    whole = seatrial(*words, "--nproc", "4", *TP)
    assert whole.code == 0, whole.stderr
    expected = commit.weights_sha256(whole.run.model("trained"))
    for ranks in ("4", "2"):
        killed = seatrial(*words, "--nproc", "4", *TP, fault="kill:rank=3,step=8")
        assert killed.code == 4 and "rank 3 was killed by SIGKILL" in killed.stderr
        resumed = seatrial("runs", "resume", "last", "--nproc", ranks)
        assert resumed.code == 0, resumed.stderr
        curve = {row["step"]: row["loss"] for row in read_metrics(resumed.run.metrics)["train"]}
        assert max(abs(a - b) for a, b in zip(losses(whole.run), curve.values(), strict=True)) < 1e-4
        same = commit.weights_sha256(resumed.run.model("trained")) == expected
        assert same or ranks == "2", "only sums in another order may differ"
