"""The last layer of a classifier computes the token that its head reads, and no other.

BERT, RoBERTa and their like classify by the state of the first token. Below the last layer every token counts, since the
first attends to all of them; in the last layer the queries, the output projection and the feed-forward network of all
other tokens end in nothing. Leaving them out saves about 80 % of that layer's matrix products, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from seatrial.job.sharded import is_sharded

_IMPLEMENTATIONS = ("sdpa", "eager")
_LENGTH = 8
_NOISE = 1e-4
"""Of the largest logit. A head that tells two samples apart by no more (a new one of zeros) tells nothing here."""
_TOLERANCE = 1e-2
"""Of the difference between two samples; what another token would say differs about as much as another sample."""


def enable(net: Any) -> bool:
    """Lets the last layer compute the first token only, where that changes no output; returns whether it does.

    The layer has to be built like BERT's, which is looked at, and the head has to read the first token alone, which is
    tried: the same samples through the whole layer and through the part of it have to get the same logits. A sharded model
    stays as it is: a pass without a backward pass would leave its parameters gathered.
    """
    layers = getattr(getattr(net.base_model, "encoder", None), "layer", None)
    if is_sharded(net) or not isinstance(layers, torch.nn.ModuleList):
        return False
    if net.config._attn_implementation not in _IMPLEMENTATIONS:
        return False
    attention = getattr(layers[-1], "attention", None)
    own: Any = getattr(attention, "self", None)
    output: Any = getattr(attention, "output", None)
    if not all(hasattr(own, name) for name in ("query", "key", "value")) or output is None:
        return False
    if not isinstance(getattr(own, "dropout", None), torch.nn.Dropout):
        return False
    expected = _logits(net)
    difference = (expected[0] - expected[1]).abs().max()
    if not difference > _NOISE * expected.abs().max():
        return False
    whole, add = own.forward, output.forward

    def attend(hidden: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **kept: Any) -> Any:
        mask = kept.get("attention_mask", mask)
        query, key, value = (
            layer(states).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
            for layer, states in ((own.query, hidden[:, :1]), (own.key, hidden), (own.value, hidden))
        )
        dropout = own.dropout.p if own.training else 0.0
        mask = None if mask is None else mask[:, :, :1]
        found = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return found.transpose(1, 2).flatten(2), None

    own.forward = attend
    output.forward = lambda found, hidden: add(found, hidden[:, :1])
    try:
        same = bool((_logits(net) - expected).abs().max() <= _TOLERANCE * difference)
    except (RuntimeError, TypeError, IndexError):
        same = False
    if not same:
        own.forward, output.forward = whole, add
    return same


@torch.no_grad()
def _logits(net: Any) -> torch.Tensor:
    """fp32 [2, classes] of two samples, the second padded."""
    embedding = net.get_input_embeddings().weight
    ids = torch.arange(2 * _LENGTH, device=embedding.device).reshape(2, _LENGTH) % embedding.shape[0]
    mask = torch.ones_like(ids)
    mask[1, _LENGTH // 2 :] = 0
    training = net.training
    found: torch.Tensor = net.eval()(input_ids=ids, attention_mask=mask).logits.float()
    net.train(training)
    return found
