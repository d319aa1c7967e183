"""What can't be paired is not compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seatrial.compare.comparison import compare_files
from seatrial.errors import SpecError

from .prediction_samples import answers, write_classification, write_language

LABEL = [0, 1, 1, 0]


def original(tmp_path: Path) -> Path:
    return write_classification(tmp_path / "original.parquet", LABEL, answers(LABEL, [0, 1, 0, 1]))


def refused(first: Path, second: Path, **options: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        compare_files(first, second, resamples=100, **options)
    error = caught.value
    assert error.exit_code == 2
    assert error.what and error.evidence and error.remedy, "what failed, the evidence, what to do next"
    return error


def test_other_samples_are_refused_with_counts_and_examples(tmp_path: Path) -> None:
    trained = write_classification(
        tmp_path / "trained.parquet",
        LABEL,
        answers(LABEL, LABEL),
        ids=["test/0", "test/1", "test/2", "test/9"],
    )
    error = refused(original(tmp_path), trained)
    assert "not about the same samples" in error.what
    assert "1 of 4 ids are only in original: 'test/3'" in error.evidence
    assert "1 of 4 ids are only in trained: 'test/9'" in error.evidence
    assert "original.parquet" in error.evidence and "trained.parquet" in error.evidence


def test_a_file_that_stopped_early_is_refused(tmp_path: Path) -> None:
    trained = write_classification(tmp_path / "t.parquet", LABEL[:2], answers(LABEL[:2], [0, 1]))
    error = refused(original(tmp_path), trained)
    assert "2 of 4 ids are only in original" in error.evidence
    assert "0 of 2 ids are only in trained" in error.evidence


def test_other_true_labels_are_refused(tmp_path: Path) -> None:
    other = [0, 1, 1, 1]
    error = refused(
        original(tmp_path), write_classification(tmp_path / "t.parquet", other, answers(other, LABEL))
    )
    assert "different true labels" in error.what
    assert "1 of 4 samples differ, such as 'test/3'" in error.evidence


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"labels": ("class 1", "class 0")}, "labels"), ({"data_sha256": "other"}, "held-out data (SHA-256)")],
)
def test_other_classes_or_other_data_are_refused(tmp_path: Path, changes: dict, what: str) -> None:
    trained = write_classification(tmp_path / "t.parquet", LABEL, answers(LABEL, LABEL), **changes)
    assert f"different {what}" in refused(original(tmp_path), trained).what


def test_another_task_is_refused(tmp_path: Path) -> None:
    error = refused(original(tmp_path), write_language(tmp_path / "t.parquet", [1, 2, 3, 4], [1, 2, 3, 4]))
    assert "different task" in error.what and "'causal-lm'" in error.evidence


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    error = refused(
        write_language(tmp_path / "o.parquet", [10, 20], [9.0, 9.0]),
        write_language(tmp_path / "t.parquet", [10, 23], [9.0, 9.0]),
    )
    assert "numbers of tokens" in error.what and "same tokenizer" in error.evidence


@pytest.mark.parametrize(
    ("options", "evidence", "remedy"),
    [
        ({"metric": "acuracy"}, "macro_f1", "'accuracy'"),
        ({"metric": "nll"}, "known: accuracy", ""),
        ({"require": "beter"}, "known: better, not worse", "'better'"),
        ({"min_improvement": -0.1}, "0 or more", "0.02"),
        ({"min_improvement": float("nan")}, "0 or more", "0.02"),
        ({"confidence": 95.0}, "between 0.5 and 1", "0.95"),
        ({"confidence": 0.999}, "needs 5000 or more", "resamples"),
        ({"seed": -1}, "0 or more", "seed=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict, evidence: str, remedy: str
) -> None:
    trained = write_classification(tmp_path / "t.parquet", LABEL, answers(LABEL, LABEL))
    error = refused(original(tmp_path), trained, **options)
    assert evidence in error.evidence and remedy in error.remedy


def test_rows_are_paired_by_id_and_not_by_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    said = rng.integers(0, 2, 60)
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, answers(label, said)),
        write_classification(tmp_path / "t.parquet", label, answers(label, said), order=rng.permutation(60)),
        resamples=100,
    )
    assert result["mcnemar"]["only_original_right"] == result["mcnemar"]["only_trained_right"] == 0
