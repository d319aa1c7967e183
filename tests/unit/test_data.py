"""Data of every form is read, or refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

datasets = pytest.importorskip("datasets", reason="the job side needs the extra 'train'")

from seatrial.errors import SpecError
from seatrial.job.data import Data, load_data, load_held_out
from seatrial.job.sources import looks_local
from seatrial.spec.run import DataSpec

ROWS = [(f"text number {i}", ("red", "green", "blue")[i % 3]) for i in range(60)]


@pytest.fixture(autouse=True)
def _cache_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield


def write(
    path: Path, rows: list[tuple[object, object]] = ROWS, names: tuple[str, str] = ("text", "label")
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({names[0]: [r[0] for r in rows], names[1]: [r[1] for r in rows]})
    match path.suffix:
        case ".csv":
            table.to_csv(path, index=False)
        case ".tsv":
            table.to_csv(path, index=False, sep="\t")
        case ".jsonl":
            table.to_json(path)
        case ".json":
            path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        case ".parquet":
            table.to_parquet(path)
        case ".txt":
            path.write_text("\n".join(str(r[0]) for r in rows))
    return path


def load(path: Path, task: str = "text-classification", seed: int = 0, **more: object) -> Data:
    return load_data(DataSpec(path=str(path), **more), task, seed)  # type: ignore[arg-type]


def refusal(path: Path | str, **more: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load(Path(path), **more)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert caught.value.evidence
    return caught.value


class TestForms:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
    def test_one_file_is_split_by_seed(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"d.{suffix}")
        data = load(path)
        assert (len(data.train), len(data.test)) == (54, 6)
        assert data.labels == ("blue", "green", "red")
        assert not set(data.train.texts) & set(data.test.texts)
        assert load(path).test.ids == data.test.ids
        assert load(path, seed=1).test.ids != data.test.ids

    def test_every_form_gives_the_same_samples(self, tmp_path: Path) -> None:
        found = [load(write(tmp_path / f"d.{s}")) for s in ("csv", "tsv", "jsonl", "parquet")]
        assert len({data.facts["train"]["sha256"] for data in found}) == 1

    def test_a_directory_has_its_own_split(self, tmp_path: Path) -> None:
        write(tmp_path / "train.csv", ROWS[:45])
        write(tmp_path / "validation.jsonl", ROWS[45:])
        data = load(tmp_path)
        assert (len(data.train), len(data.test)) == (45, 15)
        assert data.test.texts == [text for text, _ in ROWS[45:]]

    def test_a_data_set_saved_to_disk(self, tmp_path: Path) -> None:
        rows = {"text": [t for t, _ in ROWS], "label": [lab for _, lab in ROWS]}
        table = datasets.Dataset.from_dict(rows).class_encode_column("label")
        datasets.DatasetDict(table.train_test_split(0.2, seed=0)).save_to_disk(tmp_path / "d")
        data = load(tmp_path / "d")
        assert (len(data.train), len(data.test)) == (48, 12)
        assert data.labels == ("blue", "green", "red")

    def test_plain_text_for_language_models(self, tmp_path: Path) -> None:
        data = load(write(tmp_path / "d.txt", [*ROWS, ("", ""), ("  ", "")]), task="causal-lm")
        assert len(data.train) + len(data.test) == 60
        assert data.labels == ()
        assert len(data.train.labels) == 0


class TestColumns:
    def test_plain_names_are_found(self, tmp_path: Path) -> None:
        data = load(write(tmp_path / "d.csv", names=("sentence", "category")))
        assert data.facts["columns"] == {"text": "sentence", "label": "category"}

    def test_others_are_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d.csv", names=("q", "a"))
        assert "q, a" in refusal(path).evidence
        assert "data.text=COLUMN" in refusal(path).remedy
        assert "'qq'" in refusal(path, text="qq").what
        assert load(path, text="q", label="a").labels == ("blue", "green", "red")

    def test_ids_come_from_a_column_or_from_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text(
            "".join(
                json.dumps({"text": t, "label": lab, "key": f"k{i}"}) + "\n"
                for i, (t, lab) in enumerate(ROWS)
            )
        )
        assert set(load(path, id="key").train.ids) < {f"k{i}" for i in range(60)}
        limited, whole = load(path, test_samples=3).test, load(path).test
        assert set(limited.ids) < set(whole.ids)  # a row keeps its id when samples are drawn

    def test_ids_that_repeat(self, tmp_path: Path) -> None:
        assert "not unique" in refusal(write(tmp_path / "d.csv"), id="label").what

    def test_words_that_look_missing_are_texts(self, tmp_path: Path) -> None:
        rows = [*ROWS, ("NA", "red"), ("null", "green"), ("None", "blue")]
        data = load(write(tmp_path / "d.csv", rows))
        assert {"NA", "null", "None"} <= set(data.train.texts) | set(data.test.texts)


class TestLabels:
    def test_numbers_sort_as_numbers(self, tmp_path: Path) -> None:
        assert load(write(tmp_path / "d.csv", [(f"t{i}", i % 12) for i in range(120)])).labels == tuple(
            map(str, range(12))
        )

    def test_limits_are_drawn_not_cut(self, tmp_path: Path) -> None:
        """A file sorted by label, cut at its beginning, would have one class."""
        rows = [(f"t{i}", "a" if i < 500 else "b") for i in range(1000)]
        data = load(write(tmp_path / "d.csv", rows), train_samples=100)
        assert np.bincount(data.train.labels).min() > 25

    def test_one_class_only(self, tmp_path: Path) -> None:
        error = refusal(write(tmp_path / "d.csv", [(f"t{i}", "same") for i in range(20)]))
        assert "one class only" in error.what and "'same'" in error.evidence

    def test_labels_that_training_never_saw(self, tmp_path: Path) -> None:
        write(tmp_path / "train.csv", ROWS[:30])
        write(tmp_path / "test.csv", [("new", "violet"), ("old", "red")])
        error = refusal(tmp_path)
        assert "'violet' (1 samples)" in error.evidence and "red" in error.evidence

    def test_a_hidden_test_split_is_passed_over(self, tmp_path: Path) -> None:
        write(tmp_path / "train.csv", [(f"t{i}", i % 2) for i in range(30)])
        write(tmp_path / "test.csv", [("hidden", -1)] * 3)
        with pytest.raises(SpecError, match="no held-out split"):
            load(tmp_path)
        write(tmp_path / "validation.csv", [("v", 0), ("w", 1)])
        assert load(tmp_path).test.texts == ["v", "w"]

    def test_a_number_with_a_fraction_is_no_class(self, tmp_path: Path) -> None:
        assert (
            "does not hold classes"
            in refusal(write(tmp_path / "d.csv", [(f"t{i}", i / 7) for i in range(20)])).what
        )


class TestRefusals:
    def test_nothing_there(self, tmp_path: Path) -> None:
        write(tmp_path / "other.csv")
        error = refusal(tmp_path / "none.csv")
        assert "there is no data at" in error.what and "other.csv" in error.evidence

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "d.csv").touch()
        assert "is empty" in refusal(tmp_path / "d.csv").what
        (tmp_path / "h.csv").write_text("text,label\n")
        assert "no rows" in refusal(tmp_path / "h.csv").what

    def test_a_directory_without_training_data(self, tmp_path: Path) -> None:
        write(tmp_path / "data.csv")
        assert "data.csv" in refusal(tmp_path).evidence

    def test_an_unknown_suffix_and_broken_content(self, tmp_path: Path) -> None:
        (tmp_path / "d.xlsx").write_text("x")
        assert ".xlsx" in refusal(tmp_path / "d.xlsx").evidence
        (tmp_path / "d.parquet").write_text("this is not parquet")
        assert "can't be read as parquet" in refusal(tmp_path / "d.parquet").what

    def test_rows_without_text(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text(
            "".join(
                json.dumps({"text": t, "label": lab}) + "\n"
                for t, lab in [("a", "x"), ("", "y"), ("c", "x")] * 9
            )
        )
        error = refusal(path)
        assert "have no text" in error.what and "row" in error.evidence

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        write(tmp_path / "train.csv")
        write(tmp_path / "test.csv")
        assert "test, train" in refusal(tmp_path, test="dev").evidence
        assert "are the same" in refusal(tmp_path, test="train").what

    @pytest.mark.parametrize("name", ["./x", "/x", "~/x", "a/b/c", "data.csv"])
    def test_what_can_only_be_a_path(self, name: str) -> None:
        assert looks_local(name)
        assert not looks_local("stanfordnlp/imdb")


class TestStreams:
    ROWS: ClassVar[list[tuple[object, object]]] = [
        (f"text {i}", "pos" if i % 2 else "neg") for i in range(3000)
    ]

    def test_no_more_is_read_than_is_wanted(self, tmp_path: Path) -> None:
        write(tmp_path / "d" / "train.jsonl", self.ROWS)
        write(tmp_path / "d" / "test.csv", [(f"held out {i}", "pos") for i in range(40)])
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        found, again, other = (
            load(tmp_path / "d", seed=seed, streaming=True, train_samples=50, test_samples=10)
            for seed in (0, 0, 1)
        )
        assert (len(found.train), len(found.test), found.labels) == (50, 10, ("neg", "pos"))
        assert len(set(found.train.texts)) == 50
        assert max(int(text.split()[1]) for text in found.train.texts) > 1000, "drawn, not the first"
        assert found.facts == again.facts and found.facts["train"] != other.facts["train"]
        assert not list(cache.rglob("*.arrow"))
        load(tmp_path / "d", train_samples=50)
        assert list(cache.rglob("*.arrow")), "which is what reading it whole leaves"

    def test_a_stream_has_an_end_and_both_splits(self, tmp_path: Path) -> None:
        path = write(tmp_path / "all.jsonl", self.ROWS[:10])
        with pytest.raises(ValueError, match="streaming needs train_samples and test_samples"):
            DataSpec(path=str(path), streaming=True, train_samples=5)
        error = refusal(path, streaming=True, train_samples=5, test_samples=2)
        assert "no split 'test'" in error.what and "data.streaming=false" in error.remedy
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "train.jsonl").write_text('{"text": "a"\n')
        write(tmp_path / "d" / "test.jsonl", self.ROWS[:4])
        error = refusal(tmp_path / "d", streaming=True, train_samples=5, test_samples=2)
        assert "can't be read as a stream" in error.what


def test_leaks_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:30])
    write(tmp_path / "test.csv", ROWS[28:40])
    assert load(tmp_path).facts["held_out_texts_seen_in_training"] == 2


def test_the_hash_names_the_samples_and_nothing_else(tmp_path: Path) -> None:
    one = load(write(tmp_path / "a.csv")).facts["test"]["sha256"]
    other = [(t + "!" if t == ROWS[0][0] else t, lab) for t, lab in ROWS]
    hashes = {load(write(tmp_path / "b.csv", other)).facts[split]["sha256"] for split in ("train", "test")}
    assert load(write(tmp_path / "c.csv")).facts["test"]["sha256"] == one
    assert len(hashes) == 2


def test_other_data_is_predicted_with_the_classes_of_the_model(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", [("x", "red"), ("y", "blue")])
    samples = load_held_out(DataSpec(path=str(path)), "text-classification", ("blue", "green", "red"))
    assert samples.labels.tolist() == [2, 0]
    with pytest.raises(SpecError, match="training never saw"):
        load_held_out(DataSpec(path=str(path)), "text-classification", ("blue", "green"))
