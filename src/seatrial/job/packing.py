"""Samples end to end in one row: no token of padding goes through the layers, and none sees another sample's.

A causal language model takes the row as it is, with positions that begin anew at each seam. An encoder embeds padded
rows as ever (so positions are its own business) and is packed around its stack of layers, so that the head finds each
sample's tokens where it looks for them. Within attention, queries and keys are laid out by sample again: each token sees
its own sample only, at the cost of the longest sample and not of the whole row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from seatrial.errors import SpecError
from seatrial.job.batches import IGNORE
from seatrial.spec.run import Task

NAME = "seatrial_packed"
"""Of the attention implementation, as Transformers knows it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of a packed row belong. ``n`` samples, ``L`` the longest, ``T`` tokens in all."""

    rows: torch.Tensor
    """int64 [n, L]: the token of each place of the padded form; 0 where there is none."""
    there: torch.Tensor
    """bool [n, L]: whether there is one."""
    flat: torch.Tensor
    """int64 [T]: the place of each token in the padded form, counted through."""

    @classmethod
    def of(cls, lengths: torch.Tensor, device: torch.device) -> Layout:
        """From int64 [n] lengths on the CPU, where asking for the longest stops no device."""
        places = torch.arange(int(lengths.max()))
        there = places < lengths[:, None]
        starts = torch.cumsum(lengths, 0) - lengths
        rows = torch.where(there, starts[:, None] + places, 0)
        flat = there.reshape(-1).nonzero().squeeze(1)
        return cls(*(tensor.to(device, non_blocking=True) for tensor in (rows, there, flat)))

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """[T, …] to [n, L, …]; what lies on the padding is arbitrary, and finite."""
        return packed[self.rows]

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[n, L, …] to [T, …]."""
        return padded.flatten(0, 1)[self.flat]


class _InFlight:
    """The layout of the row that is on its way through the model; None for padded batches.

    It stays until the next batch begins, since activation checkpointing runs layers once more in the backward pass.
    """

    layout: Layout | None = None


def enable(model: Any, task: Task) -> None:
    """Prepares a Transformers model for packed batches; padded ones go on working.

    Raises:
        SpecError: its attention can't be replaced, or it is a classifier whose stack of layers is not found.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, AttributeError) as error:
        raise _cannot(model, str(error)) from error
    if model.config._attn_implementation != NAME:
        raise _cannot(model, f"its attention stays {model.config._attn_implementation!r}")
    if task == "causal-lm":
        return
    encoder = getattr(model.base_model, "encoder", None) or getattr(model.base_model, "transformer", None)
    if encoder is None:
        raise _cannot(model, "it has no encoder whose layers could be packed")
    encoder.forward = _around(encoder.forward)


def packed(
    batch: dict[str, torch.Tensor], task: Task, lengths: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """What the model is called with for a collated batch.

    Args:
        batch: padded, as `batches.collate` makes it, on the device.
        task: a causal model gets one row [1, T]; an encoder the padded batch.
        lengths: int64 [n], on the CPU; None for a batch that is to stay padded.

    Returns:
        The keyword arguments, and for a causal model its ``labels`` [1, T] with the seams masked by
        `batches.IGNORE` (the first token of a sample is nobody's target).
    """
    if lengths is None:
        _InFlight.layout = None
        return dict(batch)
    device = batch["input_ids"].device
    layout = _InFlight.layout = Layout.of(lengths, device)
    if task != "causal-lm":
        return dict(batch)
    places = torch.arange(layout.there.shape[1], device=device).expand(layout.there.shape)
    labels = batch["labels"].clone()
    labels[:, 0] = IGNORE
    row = {"input_ids": batch["input_ids"], "position_ids": places, "labels": labels}
    return {name: layout.pack(tensor)[None] for name, tensor in row.items()}


def by_sample(values: torch.Tensor) -> torch.Tensor:
    """Sums of a value a token [T] over the samples of the row in flight, [n]."""
    layout = _InFlight.layout
    assert layout is not None
    return (layout.pad(values) * layout.there).sum(1)


def _around(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A stack of layers that takes and returns padded states, and computes on packed ones."""

    def run(hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        layout = _InFlight.layout
        if layout is None:
            return forward(hidden_states, *arguments, **options)
        output = forward(layout.pack(hidden_states)[None], *arguments, **options)
        output.last_hidden_state = layout.pad(output.last_hidden_state[0])
        return output

    return run


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: [1, heads, T, dim] each, to [1, T, heads, dim]."""
    layout = _InFlight.layout
    if layout is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
        return output, None
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    q, k, v = (layout.pad(t[0].transpose(0, 1)).transpose(1, 2) for t in (query, key, value))
    mask = layout.there[:, None, None, :]
    if causal:
        length = layout.there.shape[1]
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    grouped = query.shape[1] != key.shape[1]
    attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling, enable_gqa=grouped)
    return layout.pack(attended.transpose(1, 2))[None], None


def _mask(*arguments: Any, **options: Any) -> Any:
    """No mask for a packed row: `_attention` makes its own, by sample."""
    return sdpa_mask(*arguments, **options) if _InFlight.layout is None else None


def _cannot(model: Any, why: str) -> SpecError:
    return SpecError(
        f"{model.config.model_type} models can't be trained on packed samples",
        evidence=why,
        remedy="train.packing=false",
    )
