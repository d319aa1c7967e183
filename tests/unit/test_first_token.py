"""A last layer that computes the first token only says what the whole layer says, and learns what it learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'train'")

from seatrial.job.first_token import enable

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3,
    "pad_token_id": 1,
}  # fmt: skip
KINDS = ["bert", "roberta", "xlm-roberta", "electra", "camembert"]


def classifier(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES, **more)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def batch() -> dict[str, Any]:
    ids = torch.randint(2, 50, (4, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((11, 7, 3, 1)):
        ids[row, length:], mask[row, length:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0])}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_whole_layer(kind: str) -> None:
    whole = classifier(kind)
    part = copy.deepcopy(whole)
    assert enable(part)
    states = []
    part.base_model.encoder.layer[-1].register_forward_hook(lambda _m, _i, out: states.append(out))
    results = [net(**batch()) for net in (whole, part)]
    assert states[-1].shape == (4, 1, 16)
    torch.testing.assert_close(results[1].logits, results[0].logits)
    for found in results:
        found.loss.backward()
    gradients = [dict(net.named_parameters()) for net in (whole, part)]
    for name, parameter in gradients[0].items():
        other = gradients[1][name].grad
        if parameter.grad is None or other is None:
            assert (parameter.grad is None) == (other is None), name
        else:
            torch.testing.assert_close(other, parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_a_head_that_reads_all_tokens_keeps_the_layer_whole() -> None:
    net = classifier("bert")
    before = net(**batch()).logits
    net.bert.pooler.forward = lambda states: states.mean(1)
    assert not enable(net)
    del net.bert.pooler.forward
    torch.testing.assert_close(net(**batch()).logits, before)


def test_a_head_that_says_nothing_is_not_trusted() -> None:
    """Zeros agree with everything; so would a bias that hides the rest."""
    net = classifier("bert")
    torch.nn.init.zeros_(net.classifier.weight)
    torch.nn.init.constant_(net.classifier.bias, 100.0)
    assert not enable(net)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("esm", {"position_embedding_type": "rotary"}),
        ("deberta-v2", {"relative_attention": True}),
        ("distilbert", {}),
    ],
)
def test_other_layers_stay_as_they_are(kind: str, more: dict[str, Any]) -> None:
    net = classifier(kind, **more)
    before = net.eval()(**batch()).logits
    assert not enable(net)
    torch.testing.assert_close(net(**batch()).logits, before)


def test_dropout_is_that_of_the_layer() -> None:
    """Attention dropout of 1 leaves the first token nothing of the others; with the layer's switch off, all of it."""
    net = classifier("bert")
    assert enable(net)
    attention = net.bert.encoder.layer[-1].attention.self
    attention.dropout.p = 0.99
    outputs = [net.train()(**batch()).logits for _ in range(2)]
    assert not torch.equal(*outputs)
    outputs = [net.eval()(**batch()).logits for _ in range(2)]
    assert torch.equal(*outputs)
