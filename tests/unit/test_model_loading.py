"""Weights that may not be read, heads that don't fit, parts of a model, and the largest batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the job side needs the extra 'train'")

from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from seatrial.errors import SpecError
from seatrial.job import batch_size, model
from seatrial.job.sharded import layer_plan
from seatrial.spec.run import ModelOptions

from ..integration.conftest import tokenizer_for


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Three classes."""
    path = tmp_path / "bert"
    config = BertConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer_for(["a b c", "d e f"]).save_pretrained(path)
    return path


def test_a_head_for_other_classes_is_replaced_only_on_request(classifier: Path) -> None:
    labels, kept, new = ("x", "y"), ModelOptions(), ModelOptions(new_head=True)
    meta = model.meta_model(str(classifier), "text-classification", labels)
    with pytest.raises(SpecError, match="has 3 classes, the data has 2") as refused:
        model.check_head(str(classifier), "text-classification", labels, kept, meta)
    assert "--new-head" in refused.value.remedy
    with pytest.raises(SpecError, match="has 3 classes"):
        model.load_model(str(classifier), "text-classification", labels)
    model.check_head(str(classifier), "text-classification", labels, new, meta)
    loaded = model.load_model(str(classifier), "text-classification", labels, new)
    assert loaded.facts["new_weights"] == ["classifier.bias", "classifier.weight"]
    assert loaded.model.config.id2label == {0: "x", 1: "y"}
    whole = model.load_model(str(classifier), "text-classification", ("x", "y", "z"))
    assert whole.facts["new_weights"] == []


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil"),))


def test_pickles_are_read_on_request_and_only_their_tensors(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, name = ("x", "y", "z"), str(classifier)
    monkeypatch.chdir(classifier)
    weights = load_file("model.safetensors")
    torch.save(weights, "pytorch_model.bin")
    Path("model.safetensors").unlink()
    with pytest.raises(SpecError, match="no safetensors") as refused:
        model.load_model(name, "text-classification", labels)
    assert "pickles" in refused.value.evidence and "--allow-pickle" in refused.value.remedy
    allowed = ModelOptions(allow_pickle=True)
    loaded = model.load_model(name, "text-classification", labels, allowed)
    assert torch.equal(loaded.model.classifier.weight, weights["classifier.weight"])
    model.save_model(classifier.parent / "original", loaded.model, loaded.tokenizer)
    assert (classifier.parent / "original" / "model.safetensors").is_file()
    torch.save({**weights, "classifier.bias": Evil()}, "pytorch_model.bin")
    with pytest.raises(SpecError, match="can't be loaded"):
        model.load_model(name, "text-classification", labels, allowed)
    assert not Path("evil").exists()


def test_the_repeated_layers_are_found(classifier: Path) -> None:
    meta = model.meta_model(str(classifier), "text-classification", ("x", "y"))
    assert layer_plan(meta) == {"bert.encoder.layer.*": "free_full_weight"}
    with torch.device("meta"):
        assert layer_plan(GPT2LMHeadModel(GPT2Config(n_layer=2))) == {"transformer.h.*": "free_full_weight"}


_LOAD = """
import sys, torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from seatrial.job import model, sharded
from seatrial.job.world import World
from seatrial.spec.run import RunSpec

path, world_size = sys.argv[1], int(sys.argv[2])
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
world = World(rank=0, local_rank=0, world_size=world_size, device=torch.device("cpu"))
spec = RunSpec.model_validate({"name": "t", "model": path, "task": "causal-lm", "data": {"path": "x"}})
meta = model.meta_model(path, "causal-lm", ())
more = sharded.sharding(spec, "fsdp", world, meta) if world_size > 1 else {}
peak = lambda: 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
parts = [p.to_local() if world_size > 1 else p for p in model.load_model(path, "causal-lm", (), **more).model.parameters()]
_ = [float(part.sum()) for part in parts]  # files are mapped: what nobody looks at is not there
print(sum(part.nbytes for part in parts), peak() - before)
"""


def test_a_rank_never_holds_more_than_its_part(tmp_path: Path) -> None:
    """One of four ranks (a process group that only pretends) against a whole load: bytes held, and peak memory."""
    config = GPT2Config(
        vocab_size=200, n_embd=1024, n_layer=4, n_head=8, n_positions=64, bos_token_id=2, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer_for(["a b c", "d e f"]).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    held, peak = {}, {}
    for world_size in (1, 4):
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, str(tmp_path), str(world_size)],
            capture_output=True,
            text=True,
            check=True,
        )
        held[world_size], peak[world_size] = (int(word) for word in done.stdout.split()[-2:])
    assert held[1] == pytest.approx(size, rel=0.01) and held[4] == pytest.approx(size / 4, rel=0.01)
    assert peak[1] > 0.9 * size, "the measurement sees a whole model"
    assert peak[4] < 0.5 * size


@given(st.integers(0, 200), st.integers(1, 100))
def test_the_largest_batch_is_found_in_few_tries(limit: int, cap: int) -> None:
    tried: list[int] = []

    def fits(samples: int) -> bool:
        tried.append(samples)
        return samples <= limit

    assert batch_size.largest(fits, cap) == min(limit, cap)
    assert max(tried) <= cap and len(tried) <= 2 * cap.bit_length() + 1
