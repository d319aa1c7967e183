"""An embedding of which only the rows in use are trained ends as the whole one would."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from seatrial.job.optimizer import make_optimizer, update
from seatrial.job.tokens import Tokens
from seatrial.job.vocabulary import UsedRows, rows_in_use, trim, untrim
from seatrial.spec.run import TrainSpec

PAD = 1


def bert(**more: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=PAD, **more,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def tokens(*rows: list[int]) -> Tokens:
    offsets = np.cumsum([0, *map(len, rows)])
    return Tokens(np.concatenate(rows).astype(np.int32), offsets, np.arange(len(rows)) % 2, 0)


def steps(net: Any, train: Tokens, *, num: int, spike_at: int = -1) -> list[float]:
    """Losses of `num` steps, each on another pair of rows, padded."""
    optimizer = make_optimizer(net, TrainSpec(weight_decay=0.1, learning_rate=0.01))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    net.train()
    losses = []
    for step in range(num):
        pair = [train.row((step + k) % len(train)) for k in range(2)]
        width = max(map(len, pair))
        ids = torch.full((2, width), PAD)
        for i, row in enumerate(pair):
            ids[i, : len(row)] = torch.from_numpy(row.copy())
        labels = torch.tensor([train.labels[(step + k) % len(train)] for k in range(2)])
        loss = net(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        (loss * (float("inf") if step == spike_at else 1.0)).backward()
        update(optimizer, scaler, 1.0)
        losses.append(float(loss.detach()))
    return losses


TRAIN = tokens([2, 10, 11, 3], [2, 12, 3], [2, 13, 10, 14, 15, 3], [2, 299, 3])


def test_the_update_is_that_of_the_whole() -> None:
    """A step whose gradient is not finite decays no row, inside or outside."""
    whole = bert()
    trimmed = copy.deepcopy(whole)
    before = whole.get_input_embeddings().weight.detach().clone()
    assert trim(trimmed, TRAIN, PAD) == {"used": 10, "vocabulary": 300}
    assert isinstance(trimmed.get_input_embeddings(), UsedRows)
    assert trimmed.get_input_embeddings().used.shape == (11, 16)
    expected = steps(whole, TRAIN, num=30, spike_at=7)
    assert steps(trimmed, TRAIN, num=30, spike_at=7) == pytest.approx(expected, abs=1e-6)
    untrim(trimmed)
    assert trimmed.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(trimmed.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    outside = trimmed.get_input_embeddings().weight[200]
    torch.testing.assert_close(outside, before[200] * (1 - 0.01 * 0.1) ** 29, rtol=1e-5, atol=0)
    assert all(p.requires_grad for p in trimmed.parameters())


def test_held_out_samples_see_every_row() -> None:
    whole = bert()
    trimmed = copy.deepcopy(whole)
    trim(trimmed, TRAIN, PAD)
    steps(whole, TRAIN, num=5)
    steps(trimmed, TRAIN, num=5)
    ids = torch.tensor([[2, 10, 200, 201, 3], [2, 298, 12, 3, PAD]])
    with torch.no_grad():
        logits = [
            net.eval()(input_ids=ids, attention_mask=(ids != PAD).long()).logits for net in (whole, trimmed)
        ]
    torch.testing.assert_close(logits[0], logits[1])


def test_it_stays_whole_where_that_is_as_good_or_needed() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    every = tokens(list(range(300)))
    assert trim(bert(), every, PAD) is None
    tied = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    assert trim(tied, TRAIN, PAD) is None
    frozen = bert()
    frozen.get_input_embeddings().weight.requires_grad_(False)
    assert trim(frozen, TRAIN, PAD) is None


def test_rows_in_use_are_found_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seatrial.job.vocabulary._BLOCK", 3)
    assert rows_in_use(TRAIN.ids, 300, {PAD}).tolist() == [1, 2, 3, 10, 11, 12, 13, 14, 15, 299]
