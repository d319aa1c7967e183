"""Which samples a rank sees in which step, and the tensors made of them.

The order is a pure function of (seed, epoch), a step's share of a rank a pure function of the step: a resumed run
needs no sampler state, and any number of ranks goes through the same global batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from seatrial.job.data import Samples

IGNORE = -100
"""Label of a position that has no target (PyTorch's default ``ignore_index``)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised split: the token ids of all samples end to end.

    Sample ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; ``labels`` is empty for tasks without labels.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    num_cut: int
    """Samples that were longer than the longest length allowed, and were cut."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 tokens of each sample."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> np.ndarray:
        """int64 weight of each sample in the loss: its label, or the tokens that have a predecessor."""
        return np.ones(len(self), np.int64) if len(self.labels) else np.maximum(self.lengths - 1, 0)


def tokenize(samples: Samples, tokenizer: Any, max_length: int, block: int = 4096) -> Tokens:
    """Tokenises a split with the tokenizer's own special tokens; longer texts are cut, and counted."""
    pieces, lengths, num_cut = [], [], 0
    for start in range(0, len(samples), block):
        encoded = tokenizer(
            samples.texts[start : start + block], add_special_tokens=True, truncation=False, verbose=False
        )["input_ids"]
        long = [i for i, ids in enumerate(encoded) if len(ids) > max_length]
        if long:
            # Cut by the tokenizer, which keeps the special token at the end.
            cut = tokenizer([samples.texts[start + i] for i in long], truncation=True, max_length=max_length)
            for i, ids in zip(long, cut["input_ids"], strict=True):
                encoded[i] = ids
        num_cut += len(long)
        lengths += [len(ids) for ids in encoded]
        pieces.append(np.fromiter((token for ids in encoded for token in ids), np.int32))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) if lengths else np.zeros(1, np.int64)
    return Tokens(
        np.concatenate(pieces) if pieces else np.empty(0, np.int32), offsets, samples.labels, num_cut
    )


def collate(tokens: Tokens, indices: Sequence[int] | np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
    """The samples `indices`, padded on the right to the longest of them.

    Returns:
        ``input_ids`` and ``attention_mask`` [batch, length] int64; ``labels`` [batch] int64 for a classification,
        [batch, length] with `IGNORE` on the padding otherwise.
    """
    rows = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in indices]
    length = max(len(row) for row in rows)
    input_ids = np.full((len(rows), length), pad_id, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for r, row in enumerate(rows):
        input_ids[r, : len(row)] = row
        mask[r, : len(row)] = 1
    labels = (
        tokens.labels[np.asarray(indices)] if len(tokens.labels) else np.where(mask == 1, input_ids, IGNORE)
    )
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Every sample once an epoch, none twice, for any number of ranks.

    The last global batch of an epoch may be smaller; its samples are spread evenly, and a rank may get none.
    """

    num_samples: int
    batch_size: int
    """Samples of one rank in one forward pass."""
    grad_accumulation: int
    world_size: int
    seed: int

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_size * self.grad_accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass."""
        return math.ceil(self.num_samples / self.global_batch)

    def num_steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps in all; at least one."""
        wanted = max(1, math.ceil(epochs * self.steps_per_epoch - 1e-9))
        return wanted if max_steps is None else min(wanted, max_steps)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch."""
        return _permutation(self.seed, epoch, self.num_samples)

    def indices(self, step: int) -> np.ndarray:
        """The samples of the global batch of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[within * self.global_batch : (within + 1) * self.global_batch]

    def micro_batches(self, indices: np.ndarray, rank: int) -> list[np.ndarray]:
        """What one rank does of a global batch: at most `grad_accumulation` parts, none empty; maybe none."""
        parts = np.array_split(indices, self.world_size * self.grad_accumulation)
        return [part for part in parts[rank :: self.world_size] if len(part)]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
