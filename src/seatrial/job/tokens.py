"""Texts as token ids: one split end to end in two arrays, in memory or mapped from a file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seatrial.job.data import Samples
from seatrial.runs.files import sha256_file

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_COMPARED = 64
"""Texts on which the tokenizer's core must agree with the tokenizer before it does the rest."""


@dataclass(frozen=True)
class Tokens:
    """A tokenised split: the token ids of all samples end to end.

    Sample ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; ``labels`` is empty for tasks without labels.
    """

    noun: ClassVar[str] = "texts"

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    num_cut: int
    """Samples that were longer than the longest length allowed, and were cut."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 tokens of each sample."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> np.ndarray:
        """int64 weight of each sample in the loss: its label, or the tokens that have a predecessor."""
        return np.ones(len(self), np.int64) if len(self.labels) else np.maximum(self.lengths - 1, 0)

    @property
    def largest(self) -> str:
        """The size of the longest sample, for people."""
        return f"{int(self.lengths.max())} tokens"

    def row(self, index: int) -> np.ndarray:
        """int32 token ids of one sample."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def tokenize(samples: Samples, tokenizer: Any, max_length: int, block: int = 4096) -> Tokens:
    """Tokenises a split with the tokenizer's own special tokens; longer texts are cut, and counted."""
    core = _trusted_core(samples.texts[:_COMPARED], tokenizer)
    pieces, lengths, num_cut = [], [], 0
    for start in range(0, len(samples), block):
        texts = samples.texts[start : start + block]
        encoded = _encode(texts, tokenizer) if core is None else _encode_fast(texts, core)
        long = [i for i, ids in enumerate(encoded) if len(ids) > max_length]
        if long:
            # Cut by the tokenizer, which keeps the special token at the end.
            cut = tokenizer([texts[i] for i in long], truncation=True, max_length=max_length)
            for i, ids in zip(long, cut["input_ids"], strict=True):
                encoded[i] = ids
        num_cut += len(long)
        lengths += [len(ids) for ids in encoded]
        pieces.append(np.fromiter(chain.from_iterable(encoded), np.int32))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) if lengths else np.zeros(1, np.int64)
    return Tokens(
        np.concatenate(pieces) if pieces else np.empty(0, np.int32), offsets, samples.labels, num_cut
    )


def tokenizer_sha256(tokenizer: Any) -> str:
    """Of all that decides which ids a text gets: the serialised form, wherever the tokenizer was loaded from."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        # Both are left there by the last call, and asked for anew by the next.
        core.no_truncation()
        core.no_padding()
        return hashlib.sha256(core.to_str().encode()).hexdigest()
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="seatrial-") as directory:
        tokenizer.save_pretrained(directory)
        for path in sorted(p for p in Path(directory).iterdir() if p.is_file()):
            digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def parallel_tokenizers() -> Iterator[None]:
    """Lets the tokenizers use all cores while the block runs; not for processes that fork in it."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before


def _encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    found = tokenizer(
        texts, add_special_tokens=True, truncation=False, verbose=False, return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]  # fmt: skip
    return list(found)


def _encode_fast(texts: list[str], core: Any) -> list[list[int]]:
    core.no_truncation()
    core.no_padding()
    return [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=True)]


def _trusted_core(texts: list[str], tokenizer: Any) -> Any:
    """The Rust tokenizer, which takes half the time, unless the Python class around it does more than call it."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None or not hasattr(core, "encode_batch_fast"):
        return None
    return core if _encode_fast(texts, core) == _encode(texts, tokenizer) else None
