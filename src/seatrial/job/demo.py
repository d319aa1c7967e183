"""Builds what `seatrial demo` trains: ``python -m seatrial.job.demo DIRECTORY [--seed 0]``.

Real data (`demo_data`), a small tokenizer trained on its training side, and a small encoder with random weights, as
anyone's model directory looks. Prints one line of JSON about it.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from seatrial.job.demo_data import (
    Docstring,
    choose_classes,
    read_docstrings,
    split_by_module,
    standard_library,
)
from seatrial.job.model import quiet_libraries
from seatrial.runs.commit import commit, problems, read_marker, start

VERSION = 1
"""Raised when the same seed would give other data or another model."""
_VOCABULARY = 6000
_POSITIONS = 96
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def main() -> None:
    """Builds into the directory, unless the same is there already."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_libraries()
    print(json.dumps(build(args.directory, args.seed)))  # noqa: T201 - this is the output


def build(directory: Path, seed: int) -> dict[str, Any]:
    """``directory/data/{train,test}.jsonl`` and ``directory/model/``, committed together.

    Returns:
        Where they are, and how many samples, labels and modules there are.
    """
    made_from = {"version": VERSION, "python": platform.python_version(), "seed": seed}
    where = {"data": str(directory / "data"), "model": str(directory / "model")}
    marker = read_marker(directory)
    if marker is not None and marker["made_from"] == made_from and not problems(directory):
        return {**marker["about"], **where}
    docstrings, _ = read_docstrings(standard_library())
    train, test = split_by_module(choose_classes(docstrings), seed)
    aside = start(directory)
    (aside / "data").mkdir()
    write_rows(aside / "data" / "train.jsonl", train)
    write_rows(aside / "data" / "test.jsonl", test)
    make_model(aside / "model", [row.text for row in train], seed)
    about = {
        "num_train": len(train),
        "num_test": len(test),
        "labels": sorted({row.package for row in train}),
        "num_modules": len({row.module for row in [*train, *test]}),
        "majority": Counter(row.package for row in test).most_common(1)[0][1] / len(test),
    }
    if marker is not None:
        (directory / "COMMITTED.json").unlink()  # built by another version: `commit` may replace it now
    commit(aside, directory, made_from=made_from, about=about)
    return {**about, **where}


def write_rows(path: Path, rows: list[Docstring]) -> None:
    """One JSON object a line: id, text, label."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            key = f"{row.module}:{row.name or '(module)'}:{number}"
            file.write(json.dumps({"id": key, "text": row.text, "label": row.package}) + "\n")


def make_model(path: Path, texts: list[str], seed: int) -> None:
    """A tokenizer trained on `texts`, and a BERT-like encoder of about two million random weights."""
    tokenizer = make_tokenizer(texts)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=_POSITIONS,
        type_vocab_size=1,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def make_tokenizer(texts: list[str]) -> Any:
    """Byte pairs within lower-cased words; a text is ``[CLS] … [SEP]``.

    BPE, since the trainers of WordPiece and Unigram give another vocabulary each time.
    """
    raw = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106 - a token of text
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=_VOCABULARY, special_tokens=_SPECIAL, show_progress=False)
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, raw.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",  # noqa: S106
        model_max_length=_POSITIONS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
