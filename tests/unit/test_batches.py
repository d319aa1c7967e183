"""Every sample once an epoch, none twice, whatever the number of ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the job side needs the extra 'train'")

from seatrial.job.batches import IGNORE, BatchPlan, collate
from seatrial.job.data import Samples
from seatrial.job.tokens import Tokens, tokenize

plans = st.builds(
    BatchPlan,
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300).map(np.asarray),
    global_batch=st.integers(1, 36),
    micro_batch=st.integers(1, 9),
    world_size=st.integers(1, 8),
    seed=st.integers(0, 5),
    grouped=st.booleans(),
    batch_tokens=st.none() | st.integers(2, 100),
    packed=st.booleans(),
)


def plan_of(num_samples: int, global_batch: int, seed: int = 0, **more: object) -> BatchPlan:
    lengths = np.random.default_rng(7).integers(3, 60, num_samples)
    return BatchPlan(lengths, global_batch, **{"micro_batch": 4, "world_size": 1, "seed": seed, **more})  # type: ignore[arg-type]


@given(plans, st.integers(0, 3))
def test_an_epoch_holds_each_sample_once(plan: BatchPlan, epoch: int) -> None:
    seen = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        for rank in range(plan.world_size):
            for part in plan.micro_batches(plan.indices(step), rank):
                assert len(part) >= 1
                if plan.batch_tokens is None:
                    assert len(part) <= plan.micro_batch
                else:
                    padded = len(part) * plan.lengths[part].max()
                    computed = plan.lengths[part].sum() if plan.packed else padded
                    assert computed <= plan.batch_tokens or len(part) == 1
                seen += [int(i) for i in part]
    assert sorted(seen) == list(range(plan.num_samples))


@given(plans, st.integers(0, 30))
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(plan: BatchPlan, step: int) -> None:
    """16 × 2 ranks and 32 × 1 rank take the same steps, and a run may go on with other ranks than it began with."""
    merged = replace(plan, world_size=1, micro_batch=plan.global_batch)
    assert merged.steps_per_epoch == plan.steps_per_epoch
    assert (merged.indices(step) == plan.indices(step)).all()


@pytest.mark.parametrize("grouped", [True, False])
def test_epochs_differ_and_seeds_differ(grouped: bool) -> None:
    plan, other = plan_of(100, 10, grouped=grouped), plan_of(100, 10, seed=1, grouped=grouped)
    assert not (plan.order(0) == plan.order(1)).all()
    assert not (plan.order(0) == other.order(0)).all()
    assert (plan.order(0) == plan_of(100, 10, grouped=grouped, world_size=2).order(0)).all()


def padding(plan: BatchPlan, epoch: int = 0) -> float:
    """Part of the computed tokens that are padding."""
    batches = [
        plan.lengths[plan.indices(epoch * plan.steps_per_epoch + s)] for s in range(plan.steps_per_epoch)
    ]
    return 1 - sum(b.sum() for b in batches) / sum(len(b) * b.max() for b in batches)


def test_grouping_leaves_little_padding_and_the_order_of_batches_random() -> None:
    grouped, plain = plan_of(20_000, 32), plan_of(20_000, 32, grouped=False)
    assert padding(grouped) < 0.05 < 0.4 < padding(plain)
    means = np.asarray([grouped.lengths[grouped.indices(s)].mean() for s in range(grouped.steps_per_epoch)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1, None, 7), (2, None, 14), (0.5, None, 4), (3, 5, 5), (0.01, None, 1)],
)
def test_number_of_steps(epochs: float, max_steps: int | None, steps: int) -> None:
    assert plan_of(100, 16).num_steps(epochs, max_steps) == steps


def tokens(*rows: list[int], labels: list[int] | None = None) -> Tokens:
    offsets = np.cumsum([0, *map(len, rows)])
    return Tokens(np.concatenate(rows).astype(np.int32), offsets, np.asarray(labels or [], np.int64), 0)


def test_collate_pads_to_the_longest_of_the_batch() -> None:
    batch = collate(tokens([1, 2, 3], [4], [5, 6], labels=[0, 1, 1]), [2, 1], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6], [4, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 1]


def test_language_labels_ignore_the_padding() -> None:
    """The padding may be a real token (GPT-2 pads with its end token): the mask decides, not the id."""
    batch = collate(tokens([9, 2, 9], [4]), [0, 1], pad_id=9)
    assert batch["labels"].tolist() == [[9, 2, 9], [4, IGNORE, IGNORE]]


def test_weights_count_samples_or_predicted_tokens() -> None:
    assert tokens([1, 2, 3], [4], labels=[0, 1]).targets.tolist() == [1, 1]
    assert tokens([1, 2, 3], [4]).targets.tolist() == [2, 0]


class WordTokenizer:
    """One token a word between a start and an end token, cut in front of the end token as real ones do."""

    def __call__(
        self, texts: list[str], truncation: bool, max_length: int | None = None, **_: object
    ) -> dict[str, list[list[int]]]:
        rows = [[1, *(len(word) + 2 for word in text.split()), 2] for text in texts]
        if truncation and max_length is not None:
            rows = [row if len(row) <= max_length else [*row[: max_length - 1], 2] for row in rows]
        return {"input_ids": rows}


def test_long_texts_are_cut_by_the_tokenizer_and_counted() -> None:
    samples = Samples("train", ["a", "b"], ["one two three four", "six"], np.asarray([0, 1]))
    found = tokenize(samples, WordTokenizer(), max_length=4, block=1)
    assert found.num_cut == 1
    assert found.lengths.tolist() == [4, 3]
    assert found.ids[:4].tolist() == [1, 5, 5, 2]
