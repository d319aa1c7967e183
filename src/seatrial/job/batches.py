"""Which samples a rank sees in which step, and the tensors made of them.

The order is a pure function of (seed, epoch), a step's share of a rank a pure function of the step: a resumed run
needs no sampler state, and any number of ranks goes through the same global batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from seatrial.job.images import Encoded, Images
from seatrial.spec.run import TrainSpec

IGNORE = -100
"""Label of a position that has no target (PyTorch's default ``ignore_index``)."""


def collate(
    tokens: Encoded, indices: Sequence[int] | np.ndarray, pad_id: int, epoch: int | None = None
) -> dict[str, torch.Tensor]:
    """The samples `indices`; texts padded on the right to the longest of them, images as their `augment` has them in `epoch`.

    Returns:
        ``input_ids`` and ``attention_mask`` [batch, length] int64; ``labels`` [batch] int64 for a classification,
        [batch, length] with `IGNORE` on the padding otherwise. Of images, what `images.Images.batch` returns.
    """
    if isinstance(tokens, Images):
        return tokens.batch(indices, epoch)
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


_WINDOW = 64
"""Global batches that are sorted by length together. Wider gains nothing: at 64 of them the padding is near its floor."""


@dataclass(frozen=True)
class BatchPlan:
    """Every sample once an epoch, none twice, for any number of ranks.

    The order is drawn from (seed, epoch). With `grouped`, samples of about one length share a global batch: windows of
    the random order are sorted by length and cut, and the cuts are shuffled, so that little is computed on padding and
    nothing is learnt from the order. The last global batch of an epoch may be smaller; a rank may get none of it.
    """

    lengths: np.ndarray
    """int64 [samples] tokens."""
    global_batch: int
    """Samples of one optimizer step, whatever the number of ranks."""
    micro_batch: int
    """At most so many samples in one forward pass of a rank …"""
    world_size: int
    seed: int
    grouped: bool = True
    batch_tokens: int | None = None
    """… or, instead, as many as fit into so many tokens, padding included unless `packed`."""
    packed: bool = False

    @classmethod
    def of(
        cls, train: TrainSpec, lengths: np.ndarray, world_size: int, global_batch: int | None = None
    ) -> BatchPlan:
        """The plan of a recipe; `global_batch` is that of the attempt before, which ran on other ranks maybe."""
        assert train.batch_size != "auto", "resolved before the plan is made"
        return cls(
            lengths, global_batch or train.samples_per_step(world_size), train.batch_size,
            world_size, train.seed, train.group_by_length, train.batch_tokens, train.packing,
        )  # fmt: skip

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return len(self.lengths)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass."""
        return math.ceil(self.num_samples / self.global_batch)

    def num_steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps in all; at least one."""
        wanted = max(1, math.ceil(epochs * self.steps_per_epoch - 1e-9))
        return wanted if max_steps is None else min(wanted, max_steps)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch; a global batch is a slice of it."""
        if epoch not in self._drawn:
            self._drawn.clear()
            self._drawn[epoch] = self._draw(epoch)
        return self._drawn[epoch]

    def epoch(self, step: int) -> int:
        """The epoch, from 0, of a step, counted from 0."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> np.ndarray:
        """The samples of the global batch of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[within * self.global_batch : (within + 1) * self.global_batch]

    def micro_batches(self, indices: np.ndarray, rank: int) -> list[np.ndarray]:
        """What one rank does of a global batch, a forward pass each; none empty, maybe none at all."""
        mine = np.array_split(indices, self.world_size)[rank]
        if len(mine) == 0:
            return []
        if self.batch_tokens is None:
            return np.array_split(mine, math.ceil(len(mine) / self.micro_batch))
        if self.packed:
            return list(packed_budget(self.lengths, mine, self.batch_tokens))
        longest_first = mine[np.argsort(-self.lengths[mine], kind="stable")]
        return list(token_budget(self.lengths, longest_first, self.batch_tokens))

    @cached_property
    def _drawn(self) -> dict[int, np.ndarray]:
        return {}

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.num_samples)
        if not self.grouped:
            return order
        # The rest that fills no batch stays a random one at the end, not always the longest or the shortest.
        whole, rest = np.split(order, [self.num_samples // self.global_batch * self.global_batch])
        batches = []
        for start in range(0, len(whole), _WINDOW * self.global_batch):
            window = whole[start : start + _WINDOW * self.global_batch]
            window = window[np.argsort(self.lengths[window], kind="stable")].reshape(-1, self.global_batch)
            batches.append(window[rng.permutation(len(window))].reshape(-1))
        return np.concatenate([*batches, rest])


def token_budget(lengths: np.ndarray, order: np.ndarray, num_tokens: int) -> Iterator[np.ndarray]:
    """Cuts rows sorted by falling length into batches of at most `num_tokens` with padding; at least one row each."""
    start = 0
    while start < len(order):
        count = max(1, num_tokens // max(int(lengths[order[start]]), 1))
        yield order[start : start + count]
        start += count


def packed_budget(lengths: np.ndarray, order: np.ndarray, num_tokens: int) -> Iterator[np.ndarray]:
    """Cuts rows, in their order, into batches of at most `num_tokens` real tokens; at least one row each."""
    start = taken = 0
    for i, length in enumerate(lengths[order]):
        if i > start and taken + length > num_tokens:
            yield order[start:i]
            start, taken = i, 0
        taken += length
    yield order[start:]
