"""Data is tokenised once: a second look reads, tokenises and loads nothing, and no damage is trained on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("datasets", reason="the job side needs the extra 'train'")

from seatrial.errors import SpecError
from seatrial.job import data, inputs, token_cache
from seatrial.job.inputs import Tokenizing, Wanted, prepare
from seatrial.job.tokens import Tokens, tokenize, tokenizer_sha256
from seatrial.runs import commit
from seatrial.spec.run import DataSpec

from ..integration.conftest import tokenizer_for

TEXTS = [f"text number {i} {'x ' * (i % 9)}" for i in range(60)]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    import datasets

    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "".join(f"{text},{'ab'[i % 2]}\n" for i, text in enumerate(TEXTS)))
    return Wanted(DataSpec(path=str(path)), "text-classification", 0)


@pytest.fixture
def how() -> Tokenizing:
    return Tokenizing(tokenizer_for(TEXTS), 10)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
    """How often data was loaded, and splits were tokenised."""
    counts = {"load": 0, "tokenize": 0}

    def counting(name: str, work: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            counts[name] += 1
            return work(*args, **more)

        return wrapped

    monkeypatch.setattr(data, "load_data", counting("load", data.load_data))
    monkeypatch.setattr(inputs, "tokenize", counting("tokenize", inputs.tokenize))
    return lambda: (counts["load"], counts["tokenize"])


def test_a_second_start_reads_nothing_twice_and_maps_the_same(
    source: Wanted, how: Tokenizing, loads: Callable[[], tuple[int, int]], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    record = prepare(source, how)
    assert loads() == (1, 2)
    how.tokenizer.save_pretrained(tmp_path / "saved")
    again = Tokenizing(AutoTokenizer.from_pretrained(tmp_path / "saved"), 10)
    assert prepare(source, again) == record  # wherever the tokenizer comes from
    assert loads() == (1, 2)

    splits = token_cache.open_entry(record["entry"])
    loaded = data.load_data(source.spec, source.task, 0)
    for name, samples in (("train", loaded.train), ("test", loaded.test)):
        expected, found = tokenize(samples, how.tokenizer, 10), splits[name].tokens
        assert (found.ids == expected.ids).all() and (found.offsets == expected.offsets).all()
        assert (found.labels == samples.labels).all()
        assert found.num_cut == expected.num_cut == record["facts"][name]["num_cut"] > 0
        assert splits[name].ids.to_pylist() == samples.ids
    assert splits["test"].texts.to_pylist() == loaded.test.texts
    assert record["facts"]["test"]["sha256"] == loaded.test.sha256(loaded.labels)
    assert record["labels"] == ["a", "b"]


def test_whatever_decides_about_the_tokens_makes_another_entry(
    source: Wanted, how: Tokenizing, loads: Callable[[], tuple[int, int]]
) -> None:
    entries = {prepare(source, how)["entry"], prepare(source, Tokenizing(how.tokenizer, 8))["entry"]}
    entries.add(prepare(source, Tokenizing(tokenizer_for(["only these words"]), 10))["entry"])
    path = Path(source.spec.path)
    path.write_text(path.read_text().replace("number 7", "number 8"))
    entries.add(prepare(source, how)["entry"])
    assert len(entries) == 4
    # The same samples from another file are the same entry; they are read once, and not tokenised.
    before = loads()
    (path.parent / "copy.csv").write_text(path.read_text())
    copy = prepare(Wanted(DataSpec(path=str(path.parent / "copy.csv")), source.task, 0), how)
    assert copy["entry"] in entries
    assert loads() == (before[0] + 1, before[1])


def test_a_damaged_entry_is_made_anew(
    source: Wanted, how: Tokenizing, loads: Callable[[], tuple[int, int]]
) -> None:
    record = prepare(source, how)
    path = token_cache.cache_root() / record["entry"] / "train.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit
    path.write_bytes(content)
    assert not token_cache.is_sound(record["entry"])
    assert prepare(source, how) == record
    assert token_cache.is_sound(record["entry"])
    assert loads() == (2, 4)


def test_a_cache_that_can_not_be_written_is_said(
    source: Wanted, how: Tokenizing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(SpecError, match="can't be written") as caught:
        prepare(source, how)
    assert "SEATRIAL_CACHE=" in caught.value.remedy


def test_old_entries_make_room_and_other_peoples_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path))
    tokens = Tokens(np.arange(1000, dtype=np.int32), np.asarray([0, 400, 1000]), np.empty(0, np.int64), 0)
    split = token_cache.Split(pa.array(["a", "b"]), None, tokens)
    (tmp_path / ("f" * 64)).mkdir()
    (tmp_path / ("f" * 64) / "theirs").write_text("x" * 100_000)
    (tmp_path / "notes.txt").write_text("x" * 100_000)
    keys = [c * 64 for c in "abc"]
    for age, key in enumerate(keys):
        token_cache.write_entry(key, {"train": split})
        os.utime(tmp_path / key / commit.MARKER, (age, age))
    token_cache.open_entry(keys[0])  # used last
    token_cache.write_entry("d" * 64, {"train": split}, cap_bytes=10_000)
    assert {p.name[0] for p in tmp_path.iterdir()} == {"a", "d", "f", "n"}


def test_the_hash_of_a_tokenizer_survives_saving_and_use(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokenizer_for(TEXTS)
    tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_sha256(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_sha256(tokenizer)
    assert tokenizer_sha256(tokenizer) != tokenizer_sha256(tokenizer_for(["other words"]))
