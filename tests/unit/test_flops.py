"""FLOPs of a token, held to those that torch counts while a small model goes forward and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from torch.utils.flop_counter import FlopCounterMode

from seatrial.job import flops

LENGTH, SAMPLES = 64, 4


def decoder() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300, n_embd=96, n_layer=3, n_head=4, n_positions=LENGTH, attn_implementation="eager"
        )
    )


def encoder() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(vocab_size=300, hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384, attn_implementation="eager")
    )  # fmt: skip


def counted(net: Any, labels: Any) -> float:
    """What torch counts for a token, forward and back."""
    ids = torch.randint(0, 300, (SAMPLES, LENGTH))
    with FlopCounterMode(display=False) as counter:
        net(input_ids=ids, labels=labels(ids)).loss.backward()
    return counter.get_total_flops() / (SAMPLES * LENGTH)


@pytest.mark.parametrize(
    ("make", "task", "labels"),
    [(decoder, "causal-lm", lambda ids: ids), (encoder, "text-classification", lambda ids: torch.zeros(SAMPLES, dtype=torch.long))],
    ids=["decoder", "encoder"],
)  # fmt: skip
def test_as_many_as_torch_counts(make: Callable[[], Any], task: str, labels: Any) -> None:
    net = make()
    said = flops.per_token(net, task, np.full(100, LENGTH))
    assert said == pytest.approx(counted(net, labels), rel=0.03), (
        "but for pooler and the first layer's inputs"
    )


def test_weights_that_are_not_trained_cost_less() -> None:
    net = decoder()
    whole = flops.per_token(net, "causal-lm", np.full(100, LENGTH))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    frozen = flops.per_token(net, "causal-lm", np.full(100, LENGTH))
    attention = 12 * 3 * 96 * LENGTH
    assert whole is not None and frozen is not None
    assert (frozen - attention) / (whole - attention) == pytest.approx(4 / 6)


def test_long_samples_count_by_their_squares() -> None:
    net = decoder()
    mixed, even = (flops.per_token(net, "causal-lm", np.array(lengths)) for lengths in ([10, 50], [30, 30]))
    assert mixed is not None and even is not None
    assert mixed - even == pytest.approx(12 * 3 * 96 * ((10**2 + 50**2) / 60 - 30))


def test_convolutions_are_not_counted() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
    assert flops.per_token(net, "image-classification", np.ones(3)) is None
