"""Bad input as a user types it: exit code 2, three parts, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Done, Seatrial

Make = Callable[[Seatrial, Path, Path], list[str]]


def refused(seatrial: Seatrial, done: Done, *parts: str) -> None:
    assert done.code == 2, done.stderr
    assert "error: " in done.stderr and "\n  evidence: " in done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.stdout == ""
    assert not seatrial.runs_dir.exists(), "a wrong request leaves nothing behind"


def test_a_missing_column_lists_those_there_are(seatrial: Seatrial, encoder: Path) -> None:
    (seatrial.cwd / "d.csv").write_text("q,a\nx,1\ny,2\n")
    done = seatrial("train", "--model", str(encoder), "--data", "d.csv")
    refused(seatrial, done, "no plain text column", "q, a", "data.text=COLUMN")


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "is empty"), ("text,label\na b,x\nc d,x\ne f,x\n", "one class only")],
)
def test_useless_files(seatrial: Seatrial, encoder: Path, content: str, said: str) -> None:
    (seatrial.cwd / "d.csv").write_text(content)
    refused(seatrial, seatrial("train", "--model", str(encoder), "--data", "d.csv"), said)


def test_a_missing_file_and_a_missing_model(seatrial: Seatrial, encoder: Path, reviews: Path) -> None:
    refused(
        seatrial,
        seatrial("train", "--model", str(encoder), "--data", "none.csv"),
        "there is no data at none.csv",
    )
    refused(
        seatrial,
        seatrial("train", "--model", "./none", "--data", str(reviews)),
        "there is no model directory ./none",
    )


def test_labels_that_training_never_saw(seatrial: Seatrial, encoder: Path) -> None:
    (seatrial.cwd / "d").mkdir()
    (seatrial.cwd / "d" / "train.csv").write_text("text,label\na,x\nb,y\n")
    (seatrial.cwd / "d" / "test.csv").write_text("text,label\nc,z\n")
    refused(
        seatrial,
        seatrial("train", "--model", str(encoder), "--data", "d"),
        "training never saw",
        "'z' (1 samples)",
    )


def test_a_hub_that_does_not_answer(seatrial: Seatrial, encoder: Path, reviews: Path) -> None:
    """A closed port stands for a network without the hub. Never synthetic data instead."""
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(seatrial.cwd / "hf")}
    done = seatrial("train", "--model", str(encoder), "--data", "stanfordnlp/imdb", **away)
    refused(seatrial, done, "could not be loaded from the hub", "pass a local path")
    done = seatrial("train", "--model", "roberta-base", "--data", str(reviews), **away)
    refused(seatrial, done, "'roberta-base' can't be loaded", "--model DIRECTORY")


def test_models_that_can_not_be_used(seatrial: Seatrial, encoder: Path, reviews: Path) -> None:
    model = seatrial.cwd / "model"
    shutil.copytree(encoder, model)
    words = ["train", "--model", str(model), "--data", str(reviews)]
    refused(seatrial, seatrial(*words, "--max-length", "65"), "at most 64 tokens", "data.max_length=64")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(seatrial, seatrial(*words, "--max-length", "64"), "no safetensors weights", "--allow-pickle")
    (model / "pytorch_model.bin").rename(model / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    refused(seatrial, seatrial(*words), "has no tokenizer", "tokenizer.save_pretrained")


def test_wrong_words(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    name = recipe()
    refused(seatrial, seatrial("train", name, "train.learning_rat=1"), "did you mean 'train.learning_rate'?")
    refused(seatrial, seatrial("train", name, "train.batch_size=many"), "train.batch_size = 'many'")
    refused(seatrial, seatrial("train"), "nothing to train")
    refused(seatrial, seatrial("train", "none.yaml"), "there is no recipe none.yaml")
    refused(seatrial, seatrial("train", name, "resources.gpus_per_node=64"), "64 GPUs were asked for")
    refused(seatrial, seatrial("run", "--", "none.py"), "there is no script none.py")
    refused(seatrial, seatrial("runs", "show", "none"), "no run is called 'none'")
    refused(seatrial, seatrial("compare", "a.parquet", "b.parquet"), "there is no prediction file a.parquet")
    typo = seatrial("trian", "x.yaml")
    assert typo.code == 2 and "Did you mean 'train'?" in typo.stderr
    assert seatrial("train", "--epochs", "many").code == 2


def test_a_precision_that_the_device_lacks(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    """Found on the node, where the device is: the run is on record as failed, with the same code."""
    done = seatrial("train", recipe(precision="fp16"), "--gpus", "0")
    assert done.code == 2
    assert "fp16 needs a GPU" in done.stderr
    assert done.manifest.state == "failed"


def test_bf16_trains_on_this_device(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    done = seatrial("train", recipe(precision="bf16"), "--train-only", "--gpus", "0")
    assert done.code == 0, done.stderr


def test_runs_that_are_not_whole(seatrial: Seatrial, recipe: Callable[..., str]) -> None:
    assert seatrial("train", recipe(max_steps=2), "--train-only").code == 0
    missing = seatrial("compare", "last")
    assert missing.code == 3 and "seatrial predict" in missing.stderr
    manifest = next(seatrial.runs_dir.glob("*/manifest.json"))
    manifest.write_text(json.dumps({"schema": 99}))
    assert seatrial("runs", "show", str(manifest.parent)).code == 2
    listed = seatrial("runs", "list")
    assert listed.code == 0 and "skipped" in listed.stderr


def test_a_reader_that_leaves_early(seatrial: Seatrial) -> None:
    argv = " ".join(seatrial.argv("doctor", "--json"))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {argv} | head -n 1"], cwd=seatrial.cwd, env=seatrial.environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "{\n"
    assert done.stderr == ""
