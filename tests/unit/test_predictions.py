from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seatrial.errors import SpecError
from seatrial.runs.prediction_checks import label_codes, probability_matrix
from seatrial.runs.predictions import (
    METADATA_KEY,
    classification_table,
    language_table,
    read_predictions,
    read_texts,
    write_predictions,
)

from .prediction_samples import answers, info, write_classification, write_language


def classification(n: int = 3) -> pa.Table:
    label = np.arange(n) % 2
    ids = [f"test/{i}" for i in range(n)]
    return classification_table(ids, label, label, answers(label, label), ["negative", "positive"])


def rewrite(path: Path, table: pa.Table, metadata: dict | bytes | None) -> None:
    """Puts on disk what `write_predictions` would refuse to write."""
    raw = json.dumps(metadata).encode() if isinstance(metadata, dict) else metadata
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: raw} if raw is not None else None), path)


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "original.parquet"
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]], dtype=np.float32)
    table = classification_table(
        ["b", "a"],
        np.array([1, 1]),
        np.array([1, 0]),
        probabilities,
        ["no", "yes"],
        ["fine", None],
    )
    about = info(labels=("no", "yes"), num_samples=2)
    write_predictions(path, table, about)

    back, rows = read_predictions(path)
    assert back == about
    assert rows.to_pylist()[0] == {
        "id": "b",
        "label": "yes",
        "prediction": "yes",
        "probabilities": pytest.approx([0.2, 0.8]),
        "text": "fine",
    }
    assert read_texts(path, [1, 0, 1]) == [None, "fine", None]
    assert "text" not in read_predictions(path, with_text=False)[1].column_names
    assert [p.name for p in path.parent.iterdir()] == ["original.parquet"], "nothing is left beside it"


def test_a_language_file_comes_back_and_has_no_labels(tmp_path: Path) -> None:
    path = write_language(tmp_path / "lm.parquet", [3, 5], [6.5, 9.25])
    about, rows = read_predictions(path)
    assert about.labels is None
    assert rows.column("nll").to_pylist() == [6.5, 9.25]
    assert read_texts(path, [0]) == [None]


def test_codes_follow_the_labels_in_every_row_group_whatever_the_order_of_its_dictionary(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.parquet"
    first, second = (
        classification_table([i], np.array([c]), np.array([c]), answers([c], [c]), ["negative", "positive"])
        for i, c in (("a", 1), ("b", 0))
    )
    # pyarrow writes a dictionary per row group, in order of appearance.
    table = pa.concat_tables([first, second])
    write_predictions(path, table, info(num_samples=2))
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    rows = read_predictions(path)[1]
    assert label_codes(rows.column("label"), ("negative", "positive")).tolist() == [1, 0]
    assert probability_matrix(rows.column("probabilities"), 2).argmax(axis=1).tolist() == [1, 0]


def refuses(path: Path, evidence: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_predictions(path)
    assert str(path) in caught.value.what
    assert evidence in caught.value.evidence
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_what_is_no_prediction_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    refuses(path, "no such file")
    path.write_text("id,label\n1,2\n")
    refuses(path, "not Parquet")
    rewrite(path, classification(), None)
    refuses(path, "without the 'seatrial' metadata")
    rewrite(path, classification(), b"{")
    refuses(path, "metadata is broken")
    refuses_directory = tmp_path / "directory"
    refuses_directory.mkdir()
    refuses(refuses_directory, "")


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        ({"schema": 2}, "schema 2"),
        ({"task": "audio-classification"}, "audio-classification"),
        ({"task": "causal-lm"}, "causal-lm"),
        ({"labels": ["negative", "negative"]}, "different names"),
        ({"labels": ["negative", "positive", "neutral"]}, "'probabilities' is"),
        ({"labels": ["negative", "neutral"]}, "['positive']"),
        ({"num_samples": 4}, "3 rows; its metadata says 4"),
        ({"model": None}, "metadata is broken"),
        ({"split": ...}, "metadata is broken: KeyError: 'split'"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, change: dict, evidence: str) -> None:
    metadata = json.loads(info(num_samples=3).to_json()) | change
    rewrite(tmp_path / "p.parquet", classification(), {k: v for k, v in metadata.items() if v is not ...})
    refuses(tmp_path / "p.parquet", evidence)


def test_rows_that_would_spoil_a_comparison_are_refused_on_writing_and_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    good = classification()
    label, labels = np.array([0, 1, 0]), ["negative", "positive"]

    def with_probabilities(*rows: list[float]) -> pa.Table:
        return classification_table(["a", "b", "c"], label, label, np.array(rows), labels)

    cases = [
        (good.slice(0, 0), "no rows"),
        (pa.concat_tables([good.slice(0, 2), good.slice(1, 1)]), "1 rows repeat an id, such as 'test/1'"),
        (good.drop_columns(["label"]), "column 'label' is missing"),
        (good.set_column(0, "id", pa.array([1, 2, 3])), "column 'id' is int64"),
        (good.set_column(0, "id", pa.array(["a", None, "c"])), "'id' lacks 1 values"),
        (with_probabilities([0.9, 0.1], [np.nan, np.nan], [0.9, 0.1]), "1 rows have probabilities"),
        (with_probabilities([0.9, 0.1], [0.2, 0.8], [2.5, -1.5]), "such as 'c'"),
        (with_probabilities([0.9, 0.1], [-2.0, 3.5], [0.9, 0.1]), "such as 'b'"),
        (with_probabilities([0.1, 0.9], [0.2, 0.8], [0.9, 0.1]), "the order of the labels?"),
    ]
    for table, evidence in cases:
        about = info(num_samples=table.num_rows)
        with pytest.raises(SpecError) as caught:
            write_predictions(path, table, about)
        assert evidence in caught.value.evidence
        assert not path.exists(), "a refused table leaves no file"
        rewrite(path, table, json.loads(about.to_json()))
        refuses(path, evidence)
        path.unlink()


@pytest.mark.parametrize(
    ("num_tokens", "nll", "evidence"),
    [
        ([3, 4], [1.0, np.nan], "1 rows have an nll"),
        ([3, 4], [1.0, np.inf], "such as 'b'"),
        ([3, 4], [-1.0, 1.0], "such as 'a'"),
        ([3, 0], [1.0, 1.0], "1 rows have an nll without a token"),
        ([3, -1], [1.0, 0.0], "negative number of tokens"),
        ([0, 0], [0.0, 0.0], "no sample has a target token"),
    ],
)
def test_likelihoods_that_are_none_are_refused(
    tmp_path: Path, num_tokens: list[int], nll: list[float], evidence: str
) -> None:
    path = tmp_path / "p.parquet"
    table = language_table(["a", "b"], np.array(num_tokens), np.array(nll))
    rewrite(path, table, json.loads(info(task="causal-lm", labels=None, num_samples=2).to_json()))
    refuses(path, evidence)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = write_classification(tmp_path / "p.parquet", [0, 1], answers([0, 1], [0, 1]))
    before = path.read_bytes()
    with pytest.raises(SpecError):
        write_predictions(path, classification(3), info(num_samples=7))
    assert path.read_bytes() == before
