"""What is predicted: each sample once, in whatever pieces; and how texts are continued."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the job side needs the extra 'train'")
import torch.distributed as dist

from seatrial.errors import PlatformError, SpecError
from seatrial.job import parts as parts_module
from seatrial.job.generate import Generation, engine, left_padded
from seatrial.job.model import LoadedModel
from seatrial.job.parts import Parts, groups, parts_directory
from seatrial.job.predict import batches_of, nats, padded
from seatrial.job.token_cache import Split
from seatrial.job.tokens import Tokens
from seatrial.job.world import World
from seatrial.runs.predictions import read_predictions, stream_predictions

from .prediction_samples import info


def split_of(lengths: list[int], num_classes: int = 0) -> Split:
    offsets = np.cumsum([0, *lengths])
    ids = np.arange(offsets[-1], dtype=np.int32) % 50 + 4
    labels = np.arange(len(lengths)) % num_classes if num_classes else np.empty(0, np.int64)
    names = [f"test/{i}" for i in range(len(lengths))]
    return Split(pa.array(names), pa.array(names), Tokens(ids, offsets, labels, 0))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(16, 4096), st.integers(1, 10**7))
def test_batches_hold_each_sample_once_and_little_padding(
    lengths: list[int], num_tokens: int, vocabulary: int
) -> None:
    found = np.asarray(lengths)
    batches = batches_of(found, num_tokens, vocabulary)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * found[batch].max() <= num_tokens


def test_padding_is_masked_and_no_padding_needs_no_mask() -> None:
    tokens = split_of([3, 1, 3]).tokens
    batch = {name: tensor.tolist() for name, tensor in padded(tokens, np.asarray([0, 1]), pad_id=9).items()}
    assert batch == {"input_ids": [[4, 5, 6], [7, 9, 9]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    batch = {name: tensor.tolist() for name, tensor in padded(tokens, np.asarray([0, 2]), pad_id=9).items()}
    assert batch == {"input_ids": [[4, 5, 6], [8, 9, 10]]}


@pytest.fixture(scope="module")
def decoder() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=3)
    return GPT2LMHeadModel(config).eval()


def test_nats_do_not_depend_on_the_batch(decoder: Any) -> None:
    tokens = split_of([9, 4, 1]).tokens
    with torch.inference_mode():
        together = nats(decoder, **padded(tokens, np.arange(3), pad_id=0))
        alone = torch.cat([nats(decoder, **padded(tokens, np.asarray([i]), pad_id=0)) for i in range(3)])
        row = torch.from_numpy(tokens.row(1).astype(np.int64))[None]
        expected = decoder(input_ids=row, labels=row).loss * 3
    assert torch.allclose(together, alone, atol=1e-5)
    assert together[1].item() == pytest.approx(expected.item(), abs=1e-4)
    assert together[2] == 0


# --- the parts -------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'store'}")
    yield World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    dist.destroy_process_group()


class Ear:
    """Hears the evidence."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def evidence(self, check: str, verdict: Any, **_: Any) -> None:
        self.heard.append((check, str(verdict)))


def answers_of(rows: np.ndarray) -> Any:
    """Probabilities that name their row."""
    first = torch.from_numpy(rows.astype(np.float32)) / 1000
    return torch.stack([first, 1 - first], 1)


def test_a_stopped_predict_goes_on_and_its_file_is_in_order(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_GROUP", 7)
    target, split = tmp_path / "trained.parquet", split_of([5] * 40, num_classes=2)
    about, order = info(num_samples=40), np.random.default_rng(0).permutation(40)
    first = Parts(target, about, world)
    for batch in (order[:6], order[6:20], order[20:25]):
        first.add(batch, answers_of(batch), [])
        first.flush()
    first.add(order[25:30], answers_of(order[25:30]), [])  # never written down: it was killed
    damaged = sorted(parts_directory(target).glob("*.arrow"))[1]
    lost = pa.ipc.open_file(pa.BufferReader(damaged.read_bytes())).read_all()["row"].to_pylist()
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    again = Parts(target, about, world)
    assert set(np.flatnonzero(again.done)) == set(order[:25].tolist()) - set(lost)
    rest = order[~again.done[order]]
    with pytest.raises(PlatformError, match="not whole"):
        again.whole(40, Ear(), "trained")  # type: ignore[arg-type]
    again.add(rest, answers_of(rest), [])
    again.flush()
    ear = Ear()
    table, places = again.whole(40, ear, "trained")  # type: ignore[arg-type]
    assert ear.heard == [("predictions_cover_trained", "PASS")]
    stream_predictions(target, groups(table, places, split, ("negative", "positive")), about)
    again.remove()
    _, rows = read_predictions(target)
    assert rows["id"].to_pylist() == split.ids.to_pylist()
    assert np.allclose([p[0] for p in rows["probabilities"].to_pylist()], np.arange(40) / 1000)
    assert rows["label"].to_pylist() == ["negative", "positive"] * 20
    assert [p.name for p in tmp_path.iterdir() if "trained" in p.name] == ["trained.parquet"]


def test_parts_of_another_model_do_not_count(tmp_path: Path, world: World) -> None:
    target, rows = tmp_path / "trained.parquet", np.arange(4)
    parts = Parts(target, info(num_samples=9), world)
    parts.add(rows, answers_of(rows), [])
    parts.flush()
    assert Parts(target, info(num_samples=9), world).done.sum() == 4
    assert Parts(target, info(num_samples=9, model_sha256="other"), world).done.sum() == 0


# --- generation ------------------------------------------------------------------------------------------------


def generation(**changes: Any) -> Generation:
    fields = {
        "max_new_tokens": 6, "prompt_tokens": 8, "prompt_column": None, "temperature": 0.0, "seed": 0,
        "engine": "transformers", **changes,
    }  # fmt: skip
    return Generation(**fields)


@pytest.fixture
def loaded(decoder: Any) -> LoadedModel:
    def decode(rows: Any, skip_special_tokens: bool) -> list[str]:
        return [" ".join(str(int(t)) for t in row if t != 3) for row in rows]

    tokenizer = SimpleNamespace(
        pad_token_id=3, all_special_ids=[3], batch_decode=decode, model_max_length=10**30
    )
    return LoadedModel(decoder, tokenizer, {"name": "tiny"})


def test_left_padding_ends_every_prompt_in_the_last_column() -> None:
    ids, mask = left_padded([np.asarray([7]), np.asarray([5, 6, 7])], pad_id=0)
    assert ids.tolist() == [[0, 0, 7], [5, 6, 7]] and mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_greedy_words_are_those_of_the_model_alone_whatever_the_batch(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    split = split_of([12, 5, 7, 2])
    split.tokens.ids[-1] = 3  # an end token that the tokenizer put there
    go_on = engine(generation(), loaded, tmp_path, split, torch.device("cpu"))
    found = go_on(np.arange(4))
    for row, text in enumerate(found):
        ids = [t for t in split.tokens.row(row)[:8].tolist() if t != 3]
        words = []
        for _ in range(6):  # without a cache, without padding
            token = int(loaded.model(torch.tensor([ids + words])).logits[0, -1].argmax())
            words.append(token)
            if token == 3:
                break
        assert text == " ".join(str(w) for w in words if w != 3)


def test_sampling_is_seeded_by_seed_and_batch(loaded: LoadedModel, tmp_path: Path) -> None:
    split, rows = split_of([6] * 4), np.arange(4)

    def sample(seed: int) -> list[str]:
        wanted = generation(temperature=1.5, seed=seed)
        return engine(wanted, loaded, tmp_path, split, torch.device("cpu"))(rows)

    assert sample(1) == sample(1) != sample(2)


def test_what_does_not_fit_and_what_is_not_installed(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of([20, 5])
    with pytest.raises(SpecError, match="at most 32 tokens") as caught:
        engine(generation(max_new_tokens=30), loaded, tmp_path, split, torch.device("cpu"))
    assert "--generate 24" in caught.value.remedy
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SpecError, match="vLLM is not installed") as caught:
        engine(generation(engine="vllm"), loaded, tmp_path, split, torch.device("cpu"))
    assert "pip install vllm" in caught.value.remedy
