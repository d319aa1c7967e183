"""The estimate against what the allocator says, and what is decided by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the job side needs the extra 'train'")

from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from seatrial.errors import SpecError
from seatrial.job import memory
from seatrial.job.activations import Activations, Subject
from seatrial.job.memory import GIB, Need
from seatrial.job.model import loss_and_hits, meta_model
from seatrial.spec.run import RunSpec


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers; only the configuration is looked at."""
    path = tmp_path_factory.mktemp("models") / "llama"
    LlamaConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=160,
        max_position_embeddings=128, tie_word_embeddings=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def subject(path: Path, world_size: int = 1, **train: object) -> Subject:
    spec = RunSpec.model_validate(
        {
            "name": "t",
            "model": str(path),
            "task": "causal-lm",
            "data": {"path": "x"},
            "train": {"batch_size": 6, **train},
        }
    )
    return Subject(spec, (), meta_model(str(path), "causal-lm", ()), 96, world_size, "cpu")


def allocated_peak(path: Path, tmp_path: Path, samples: int, checkpointed: bool) -> int:
    """Bytes that PyTorch's allocator held at most during a real step, without gradients, from its own event trace."""
    net = LlamaForCausalLM(LlamaConfig.from_pretrained(path)).train()
    if checkpointed:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    ids = torch.randint(0, 1000, (samples, 96))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    loss_and_hits(net, batch, "causal-lm")[0].backward()  # what is allocated once is there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        loss_and_hits(net, batch, "causal-lm")[0].backward()
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    now = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_what_the_allocator_measures(llama: Path, tmp_path: Path, checkpointed: bool) -> None:
    estimated = memory.activations(subject(llama), None, checkpointed).of(6)
    measured = allocated_peak(llama, tmp_path, 6, checkpointed)
    assert estimated == pytest.approx(measured, rel=0.25)


def test_states_are_counted_a_rank(llama: Path) -> None:
    of = {n.strategy: n for n in memory.needs(subject(llama, 4), ("ddp", "fsdp", "hsdp"), alternatives=False)}
    numel = sum(p.numel() for p in LlamaForCausalLM(LlamaConfig.from_pretrained(llama)).parameters())
    ddp, fsdp, hsdp = of["ddp"], of["fsdp"], of["hsdp"]
    assert (ddp.parameters, ddp.gradients, ddp.optimizer, ddp.buffers) == (4 * numel, 4 * numel, 8 * numel, 0)
    assert (fsdp.parameters, fsdp.optimizer) == (numel, 2 * numel)
    assert hsdp.parameters == 2 * numel
    layer = (numel - 2 * 64 * 1000 - 64) // 4
    assert fsdp.buffers == (2 * layer + 128_064) * 4 + 128_064 * 4


def test_an_adapter_and_checkpointing_need_less(llama: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the extra 'lora'")
    rows = memory.needs(subject(llama), ("ddp",), alternatives=True)
    plain, checkpointed, lora, both = rows
    assert (lora.adapter, lora.activation_checkpointing) == ("lora", False)
    assert lora.gradients < plain.gradients / 4 and lora.parameters > plain.parameters
    assert checkpointed.activations < plain.activations and both.activations < lora.activations
    assert both.total == min(n.total for n in rows)


def test_the_choice_is_explained_and_the_impossible_refused() -> None:
    ddp = Need("ddp", None, False, 4 * GIB, 4 * GIB, 8 * GIB, 2 * GIB, 0)
    fsdp = replace(ddp, strategy="fsdp", parameters=GIB, gradients=GIB, optimizer=2 * GIB, buffers=GIB)
    lora = replace(ddp, adapter="lora", gradients=0, optimizer=0)
    found = [ddp, fsdp, lora]
    assert memory.choose(found, 24 * GIB, "auto") == (ddp, "ddp needs 18.00 GiB of 24.00 GiB a rank")
    assert memory.choose(found, 18 * GIB, "auto")[0] is fsdp, "a tenth is left for what is not counted"
    with pytest.raises(SpecError) as refused:
        memory.choose(found, 8 * GIB - 1, "ddp")
    assert "ddp: parameters 4.00 GiB" in refused.value.evidence and "18.00 GiB" in refused.value.evidence
    assert refused.value.remedy == "train.parallel=fsdp\ntrain.parallel=ddp adapter.kind=lora"
    with pytest.raises(SpecError, match="does not fit"):
        memory.choose(found, GIB, "auto")


def test_a_large_embedding_does_not_hide_the_batch() -> None:
    """The gradient of the embedding outweighs the activations of one sample, not those of many."""
    found = Activations.through(50, 64, 128)
    assert [found.of(n) for n in (1, 50, 64, 256)] == [50, 50, 64, 256]
