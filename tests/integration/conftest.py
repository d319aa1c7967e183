"""Real parts for the integration tests: a small model, real files, real ranks, the real command."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import RunPaths

GOOD = ["good", "great", "lovely", "fine", "superb"]
BAD = ["bad", "awful", "poor", "sad", "weak"]
FILLER = ["the", "film", "was", "a", "very", "long", "story", "about", "people", "who", "went", "to", "town"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str
    runs_dir: Path

    @property
    def run(self) -> RunPaths:
        """The only run, or the newest."""
        return RunPaths(max(self.runs_dir.iterdir(), key=lambda p: p.stat().st_mtime))

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.run)


@dataclass(frozen=True)
class Seatrial:
    """The command as a user types it."""

    cwd: Path

    @property
    def runs_dir(self) -> Path:
        return self.cwd / "runs"

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120", **more}

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "seatrial", *words]

    def __call__(self, *words: str, fault: str = "", timeout: float = 240, **env: str) -> Done:
        done = subprocess.run(
            self.argv(*words), cwd=self.cwd, env=self.environment(SEATRIAL_FAULT=fault, **env), capture_output=True,
            text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert (
            "Traceback (most recent call last)" not in done.stdout + done.stderr.split("its last lines:")[0]
        )
        return Done(done.returncode, done.stdout, done.stderr, self.runs_dir)

    def start(self, *words: str, fault: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words), cwd=self.cwd, env=self.environment(SEATRIAL_FAULT=fault), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture
def seatrial(tmp_path: Path) -> Seatrial:
    return Seatrial(tmp_path)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 invented reviews whose label can be learnt from one word, a tenth of it noise."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sentence", "label"])
        for i in range(600):
            positive = i % 2 == 0
            words = rng.choices(FILLER, k=rng.randint(3, 16))
            words.insert(rng.randrange(len(words)), rng.choice(GOOD if positive else BAD))
            noise = rng.random() < 0.1
            rows.writerow([" ".join([*words, str(i)]), "pos" if positive != noise else "neg"])
    return path


def tokenizer_for(texts: list[str]) -> Any:
    """Words and single digits. The vocabulary is counted here: trainers of WordPiece give another one each time."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words][:200])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = split
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    )  # fmt: skip


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Path:
    """A small BERT with random weights and without dropout, as a local model directory."""
    torch = pytest.importorskip("torch", reason="real ranks need the extra 'train'")
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "tiny-bert"
    BertModel(config).save_pretrained(path)
    tokenizer_for(reviews.read_text().splitlines()).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def dropout_encoder(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """The same, with dropout: a resumed run has to find its random numbers again."""
    import shutil

    path = tmp_path_factory.mktemp("models") / "tiny-bert-dropout"
    shutil.copytree(encoder, path)
    config = json.loads((path / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Path:
    """A small GPT-2 with random weights, as a local model directory."""
    torch = pytest.importorskip("torch", reason="real ranks need the extra 'train'")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=200, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer_for(reviews.read_text().splitlines()).save_pretrained(path)
    return path


@pytest.fixture
def recipe(tmp_path: Path, reviews: Path, encoder: Path) -> Callable[..., str]:
    """Writes a recipe of two ranks that takes a second to train; returns its name."""

    def make(model: Path = encoder, **train: Any) -> str:
        settings = {
            "epochs": 2, "learning_rate": 0.002, "batch_size": 8, "checkpoint_every": 10, "log_every": 5, **train,
        }  # fmt: skip
        text = {
            "name": "t",
            "model": str(model),
            "data": {"path": str(reviews), "max_length": 32},
            "train": settings,
            "resources": {"nproc": 2, "on": "local"},
        }
        (tmp_path / "t.yaml").write_text(json.dumps(text))
        return "t.yaml"

    return make


def rank_processes(run_dir: Path) -> list[str]:
    """Living processes that belong to a run: their command line names its directory."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if (
            str(run_dir) in words
            and "seatrial.job" in words
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(f"{process.info['pid']} {words}")
    return found
