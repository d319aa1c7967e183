"""Packed and padded batches are the same batch: equal losses and gradients, in fp32, whatever the seams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the job side needs the extra 'train'")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from seatrial.errors import SpecError
from seatrial.job import packing
from seatrial.job.batches import collate
from seatrial.job.model import loss_and_hits
from seatrial.job.tokens import Tokens

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
ENCODER = {
    **SMALL,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MODELS = {
    "bert": (lambda: BertForSequenceClassification(BertConfig(**ENCODER, num_labels=3)), "text-classification"),
    "roberta": (
        lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER, pad_token_id=1, num_labels=3)),
        "text-classification",
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=4, n_positions=40, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        ),
        "causal-lm",
    ),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)), "causal-lm"),
}  # fmt: skip


def tokens(task: str) -> Tokens:
    rng = np.random.default_rng(0)
    lengths = [7, 1, 12, 2, 3]
    labels = rng.integers(0, 3, len(lengths)) if task == "text-classification" else np.empty(0, np.int64)
    return Tokens(rng.integers(4, 60, sum(lengths)).astype(np.int32), np.cumsum([0, *lengths]), labels, 0)


def loss_of(model: Any, task: Any, *, packed: bool) -> tuple[torch.Tensor, int, list[torch.Tensor]]:
    data = tokens(task)
    batch = collate(data, range(len(data)), pad_id=1)
    lengths = torch.from_numpy(data.lengths) if packed else None
    model.zero_grad()
    loss, hits, _ = loss_and_hits(model, batch, task, lengths)
    loss.backward()
    return loss.detach(), int(hits), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", MODELS)
def test_packed_and_padded_give_the_same_loss_and_gradients(name: str) -> None:
    make, task = MODELS[name]
    torch.manual_seed(0)
    model = make().train()
    plain = loss_of(model, task, packed=False)
    packing.enable(model, task)
    for packed in (True, False, True):  # padded batches (evaluation) in between go on working
        loss, hits, gradients = loss_of(model, task, packed=packed)
        assert torch.isclose(loss, plain[0], rtol=1e-5)
        assert hits == plain[1]
        for a, b in zip(gradients, plain[2], strict=True):
            assert torch.allclose(a, b, atol=2e-5)


def test_a_token_of_another_sample_changes_nothing() -> None:
    make, task = MODELS["llama"]
    torch.manual_seed(0)
    model = make().eval()
    packing.enable(model, task)
    data = tokens(task)
    losses = []
    for first in (5, 50):
        data.ids[0] = first  # of the first sample
        _, _, values = loss_and_hits(model, collate(data, range(5), 1), task, torch.from_numpy(data.lengths))
        losses.append(values)
    assert losses[0][0] != losses[1][0]
    assert torch.equal(losses[0][1:], losses[1][1:])


def test_a_model_that_can_not_be_packed_is_refused() -> None:
    model = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=1))
    with pytest.raises(SpecError, match="packed"):
        packing.enable(model, "text-classification")
