"""Embeddings of which only the rows in use are trained; the update is that of the whole.

A training set has a part of the words that a tokenizer knows: of 250,000 of XLM-R often a tenth. The rows of the others
get no gradient, and AdamW does nothing to them but weight decay. So their gradient is not made, reduced, measured
and fed to the optimizer every step: the trained parameter holds the rows in use, and one more, of ones, which no sample
has. What weight decay has made of that row it would have made of each row outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from seatrial.job.images import Encoded
from seatrial.job.tokens import Tokens

_WORTH_IT = 0.05
"""Part of the trained numbers that has to be outside; less is not worth a second lookup."""
_BLOCK = 1 << 24


class UsedRows(torch.nn.Module):
    """Stands in for an embedding while it is trained.

    Args:
        embedding: the whole; its weight, [vocabulary, width], is frozen as it is.
        rows: int64 [used], ascending: the rows that training samples have.
    """

    rows: torch.Tensor
    slots: torch.Tensor

    def __init__(self, embedding: torch.nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        weight = embedding.weight.detach()
        self.used = torch.nn.Parameter(torch.cat([weight[rows], torch.ones_like(weight[:1])]))
        embedding.weight.requires_grad_(False)
        slots = torch.full((len(weight),), -1, dtype=torch.int32)
        slots[rows] = torch.arange(len(rows), dtype=torch.int32)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        padding = embedding.padding_idx
        self._padding = None if padding is None else int(slots[padding])

    @property
    def weight(self) -> torch.Tensor:
        """The whole embedding as it was before the training: some models ask for its device or type."""
        return self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [..., width] for ids [...]; while training, of rows in use only."""
        slots = self.slots[ids]
        if self.training:
            return F.embedding(slots, self.used, self._padding)
        inside = F.embedding(slots.clamp(min=0), self.used)
        return torch.where((slots < 0).unsqueeze(-1), self.embedding(ids) * self.used[-1], inside)

    @torch.no_grad()
    def whole(self) -> torch.nn.Embedding:
        """The embedding with all rows as they are now."""
        weight = self.embedding.weight
        weight.mul_(self.used[-1])
        weight[self.rows] = self.used[:-1]
        weight.requires_grad_(True)
        return self.embedding


def trim(net: Any, train: Encoded, pad_id: int) -> dict[str, int] | None:
    """Puts `UsedRows` in the place of the token embedding where that is worth it and changes no result.

    Args:
        net: a Transformers model, whole and with all its weights trained.
        train: what it will be trained on.
        pad_id: what fills rows up.

    Returns:
        ``{"used", "vocabulary"}``, rows; None where the embedding stays as it is, or there is none.
    """
    if not isinstance(train, Tokens):
        return None
    embedding = net.get_input_embeddings()
    if type(embedding) is not torch.nn.Embedding or embedding.max_norm is not None:
        return None
    parameters = [p for _, p in net.named_parameters(remove_duplicate=False)]
    if sum(p is embedding.weight for p in parameters) != 1 or not embedding.weight.requires_grad:
        return None  # an output layer shares it, which sees every row in every step
    extra = {pad_id} if embedding.padding_idx is None else {pad_id, embedding.padding_idx}
    rows = rows_in_use(train.ids, embedding.num_embeddings, extra)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    outside = (embedding.num_embeddings - len(rows) - 1) * embedding.embedding_dim
    if outside < _WORTH_IT * trained:
        return None
    net.set_input_embeddings(UsedRows(embedding, rows))
    return {"used": len(rows), "vocabulary": embedding.num_embeddings}


def untrim(net: Any) -> None:
    """Puts the whole embedding back, as it is now."""
    if not any(isinstance(module, UsedRows) for module in net.modules()):
        return  # and so the model may be one without token embeddings, which raises when asked for them
    embedding = net.get_input_embeddings()
    if isinstance(embedding, UsedRows):
        net.set_input_embeddings(embedding.whole())


def is_trimmed(names: Iterable[str]) -> bool:
    """Whether such parameters, or the tensors of such a checkpoint, are those of a trimmed model."""
    return any(name.endswith(".used") for name in names)


def rows_in_use(ids: np.ndarray, vocabulary: int, extra: set[int]) -> torch.Tensor:
    """int64 [used], ascending: the ids that occur, and `extra`. `ids` may be mapped from a file larger than memory."""
    seen = np.zeros(vocabulary, bool)
    seen[list(extra)] = True
    for start in range(0, len(ids), _BLOCK):
        seen[ids[start : start + _BLOCK]] = True
    return torch.from_numpy(np.flatnonzero(seen))
