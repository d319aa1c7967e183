"""The whole result, as a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seatrial.compare import bootstrap
from seatrial.compare.comparison import compare_files, write_comparison

from .prediction_samples import answers, random_classifier, write_classification, write_language


def keys(value: Any) -> set[str]:
    return set(value)


def test_the_result_has_the_promised_keys_and_is_json(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 120)
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, random_classifier(rng, label, 3, 0.5)),
        write_classification(tmp_path / "t.parquet", label, random_classifier(rng, label, 3, 2.0)),
        resamples=200,
        seed=7,
    )
    write_comparison(tmp_path / "comparison.json", result)
    assert json.loads((tmp_path / "comparison.json").read_text()) == result

    assert result["schema"] == 1 and result["num_samples"] == 120 and result["confidence"] == 0.95
    assert result["labels"] == ["class 0", "class 1", "class 2"]
    assert keys(result["original"]) >= {"path", "model_name", "model_sha256"}
    assert list(result["metrics"]) == ["accuracy", "macro_f1", "log_loss", "calibration_error"]
    for metric in result["metrics"].values():
        assert keys(metric) >= {
            "original",
            "trained",
            "difference",
            "interval",
            "original_interval",
            "trained_interval",
            "higher_is_better",
            "unit",
        }
    assert sum(v for k, v in result["mcnemar"].items() if k != "p_value") == 120
    assert np.sum(result["confusion"]["trained"]) == 120
    assert sum(row["support"] for row in result["per_class"]) == 120
    assert result["bootstrap"]["resamples"] == 200 and result["bootstrap"]["seed"] == 7
    assert {entry["draws"] for entry in result["bootstrap"]["by_metric"].values()} == {"cells", "rows"}
    assert keys(result["gate"]) == {"require", "min_improvement", "passed", "reason"}
    assert result["warnings"] == []


def test_a_language_result_has_no_tables_of_classes(tmp_path: Path) -> None:
    result = compare_files(
        write_language(tmp_path / "o.parquet", [2, 4], [6.0, 8.0], text=["one", "two " * 200]),
        write_language(tmp_path / "t.parquet", [2, 4], [4.0, 9.0]),
        resamples=100,
    )
    assert result["labels"] is result["mcnemar"] is result["per_class"] is result["confusion"] is None
    assert result["changed"]["improved"] == [
        {"id": "test/0", "text": "one", "num_tokens": 2, "original_nll": 3.0, "trained_nll": 2.0}
    ]
    assert len(result["changed"]["worsened"][0]["text"]) == 300
    assert any("only 2 samples" in warning for warning in result["warnings"])
    json.dumps(result, allow_nan=False)


def test_a_text_too_short_to_have_a_target_counts_for_nothing(tmp_path: Path) -> None:
    result = compare_files(
        write_language(tmp_path / "o.parquet", [2, 0, 4], [6.0, 0.0, 8.0]),
        write_language(tmp_path / "t.parquet", [2, 0, 4], [4.0, 0.0, 7.0]),
        resamples=100,
    )
    assert result["metrics"]["nll"]["original"] == pytest.approx(14 / 6)
    assert any(warning.startswith("1 samples are too short") for warning in result["warnings"])
    assert {sample["id"] for sample in result["changed"]["improved"]} == {"test/0", "test/2"}
    json.dumps(result, allow_nan=False)


def test_one_sample_is_compared_without_a_crash(tmp_path: Path) -> None:
    result = compare_files(
        write_classification(tmp_path / "o.parquet", [0], answers([0], [1])),
        write_classification(tmp_path / "t.parquet", [0], answers([0], [0])),
        resamples=100,
    )
    assert result["verdict"]["verdict"] == "no evidence"
    json.dumps(result, allow_nan=False)


def test_the_samples_that_changed_most_come_first_with_their_texts(tmp_path: Path) -> None:
    n = 40
    label = np.zeros(n, dtype=int)
    original, trained = (np.full((n, 2), 0.5, dtype=np.float32) for _ in range(2))
    for row in range(n):
        change = (row - 20) / 50
        trained[row] = [0.5 + change, 0.5 - change]
    shuffled = np.random.default_rng(1).permutation(n)
    result = compare_files(
        write_classification(
            tmp_path / "o.parquet", label, original, text=[f"text {i}" for i in range(n)], order=shuffled
        ),
        write_classification(tmp_path / "t.parquet", label, trained),
        resamples=100,
    )
    improved, worsened = result["changed"]["improved"], result["changed"]["worsened"]
    assert [s["id"] for s in improved] == [f"test/{i}" for i in range(39, 29, -1)]
    assert [s["id"] for s in worsened] == [f"test/{i}" for i in range(10)]
    assert improved[0] == {
        "id": "test/39",
        "text": "text 39",
        "label": "class 0",
        "original_prediction": "class 0",
        "trained_prediction": "class 0",
        "original_probability": 0.5,
        "trained_probability": pytest.approx(0.88),
    }


def test_equal_seeds_give_equal_results_and_other_seeds_nearly(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 300)
    files = [
        write_classification(tmp_path / f"{i}.parquet", label, random_classifier(rng, label, 2, i))
        for i in (1, 2)
    ]
    first, again, other = (compare_files(*files, resamples=2000, seed=seed) for seed in (0, 0, 1))
    assert first == again
    for name, metric in first["metrics"].items():
        width = metric["interval"][1] - metric["interval"][0]
        assert other["metrics"][name]["interval"] == pytest.approx(metric["interval"], abs=0.15 * width)


def test_a_model_that_always_says_the_same_is_pointed_out(tmp_path: Path) -> None:
    label = [0, 1] * 20
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, answers(label, label)),
        write_classification(tmp_path / "t.parquet", label, answers(label, [1] * 40)),
        resamples=100,
    )
    assert "the trained model predicts one class for every sample" in result["warnings"]


def test_fewer_resamples_than_asked_for_are_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "MAX_CELL_DRAWS", 1)
    label = [0, 1] * 20
    result = compare_files(
        write_classification(tmp_path / "o.parquet", label, answers(label, [0] * 40)),
        write_classification(tmp_path / "t.parquet", label, answers(label, label)),
        resamples=1000,
    )
    assert result["bootstrap"]["by_metric"]["macro_f1"]["resamples"] == 500
    assert any("macro_f1 was resampled 500 times instead of 1,000" in w for w in result["warnings"])


def test_comparing_loads_neither_torch_nor_pandas_nor_scikit_learn() -> None:
    code = "import sys, seatrial.compare.comparison; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for module in ("torch", "pandas", "sklearn", "transformers"):
        assert f"'{module}'" not in loaded
