"""How ranks share a model: who sees which samples, what is refused, and what computing twice leaves as it was."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the job side needs the extra 'train'")

from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from seatrial.errors import SpecError
from seatrial.job import model
from seatrial.job.batches import BatchPlan
from seatrial.job.parallel import passes, shares
from seatrial.job.sharded import sharding, split_numel, tp_size
from seatrial.job.world import World
from seatrial.spec.run import RunSpec


def at(rank: int, world_size: int, tp_size: int = 1) -> World:
    return World(
        rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"), tp_size=tp_size
    )


def recipe(parallel: str, **train: object) -> RunSpec:
    return RunSpec.model_validate(
        {"name": "t", "model": "m", "data": {"path": "x"}, "train": {"parallel": parallel, **train}}
    )


def meta_llama(**more: object) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        **{"vocab_size": 60, **more},
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CPU ranks beside GPUs are refused before")
class TestSharing:
    def test_groups_that_split_matrices_are_those_of_a_node(self) -> None:
        config = sharding(recipe("tp", tp_size=2), "tp", at(0, 4), meta_llama())["distributed_config"]
        assert (config.tp_size, config.fsdp_size, config.dp_replicate_size) == (2, 2, 1)
        assert tp_size(recipe("tp"), 2) == 2, "all ranks of the node"
        with pytest.raises(SpecError, match="tp_size 3 does not fit"):
            tp_size(recipe("tp", tp_size=3), 4)

    def test_a_model_without_a_plan_is_refused(self) -> None:
        with torch.device("meta"):
            bert = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
        with pytest.raises(SpecError, match="can't be split by tensor parallelism") as refused:
            sharding(recipe("tp"), "tp", at(0, 2), bert)
        assert refused.value.remedy == "train.parallel=fsdp"
        with pytest.raises(SpecError, match="heads can't be dealt out over 4"):
            sharding(recipe("tp"), "tp", at(0, 4), meta_llama())

    @pytest.mark.parametrize(
        ("parallel", "rows", "tied", "refused"),
        [("fsdp", 61, True, True), ("fsdp", 61, False, False), ("fsdp", 62, True, False), ("tp", 61, True, False)],
    )  # fmt: skip
    def test_tied_weights_are_never_cut_unevenly(
        self, parallel: str, rows: int, tied: bool, refused: bool
    ) -> None:
        meta = meta_llama(vocab_size=rows, tie_word_embeddings=tied)
        said = pytest.raises(SpecError, match="uneven parts") if refused else contextlib.nullcontext()
        with said:
            sharding(recipe(parallel), parallel, at(0, 2), meta)

    def test_a_plan_splits_all_but_the_norms(self) -> None:
        meta = meta_llama()
        norms = sum(p.numel() for name, p in meta.named_parameters() if "norm" in name)
        assert split_numel(meta) == sum(p.numel() for p in meta.parameters()) - norms > 0

    def test_ranks_of_a_group_see_the_same_samples(self) -> None:
        """Four ranks in two groups: each sample once a group that sees it, none left out."""
        order = np.arange(11)
        net = torch.nn.Linear(1, 1)
        plan = BatchPlan(np.ones(11, int), 11, 3, world_size=2, seed=0)
        for dealt in (
            [np.concatenate([part for part, _ in passes(plan, order, at(r, 4, 2), net)]) for r in range(4)],
            [np.concatenate([part for part, _ in shares(order, 3, at(r, 4, 2), net)]) for r in range(4)],
        ):
            assert list(dealt[0]) == list(dealt[1]) != list(dealt[2]) == list(dealt[3])
            assert sorted([*dealt[0], *dealt[2]]) == list(order)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_gradient(dropout: float) -> None:
    """With dropout the second pass through a layer has to draw what the first drew."""
    torch.manual_seed(0)
    net = BertForSequenceClassification(
        BertConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )
    ).train()  # fmt: skip
    ids = torch.randint(0, 60, (3, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1])}
    passed, calls = [], []
    layer = net.bert.encoder.layer[1].intermediate
    layer.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        torch.manual_seed(7)
        calls.clear()
        net.zero_grad()
        loss, _, _ = model.loss_and_hits(net, batch, "text-classification")
        loss.backward()
        passed.append(
            (loss.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None], len(calls))
        )
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    (kept, gradients, once), (again, recomputed, twice) = passed
    assert (once, twice) == (1, 2), "it was computed again"
    assert torch.equal(kept, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))
