"""What the benchmarks share: a RoBERTa-shaped encoder, a tokenizer, and samples as long as those of SST-2's train split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

VOCABULARY = 50_265
_SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
_SIGNAL = 200
"""Words that tell each of the two classes."""


def make(directory: Path, *, num_train: int = 20_000, num_test: int = 500, seed: int = 0) -> None:
    """Writes ``model/`` (4 layers × 256, random weights) and ``data/{train,test}.jsonl`` unless they are there.

    Lengths are log-normal (median 7 words, mean 10, at most 62), words fall off as in real text (Zipf), and the label
    hangs on one word, with 5 % of the labels wrong: there is something to learn, and a limit to it.
    """
    if (directory / "data" / "test.jsonl").exists():
        return
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    words = _SPECIAL | {f"w{i}": i for i in range(len(_SPECIAL), VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", cls_token="<s>", sep_token="</s>",
        model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=130, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    rng = np.random.default_rng(seed)
    (directory / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", num_train), ("test", num_test)):
        with (directory / "data" / f"{split}.jsonl").open("w") as file:
            for _ in range(count):
                file.write(json.dumps(_sample(rng)) + "\n")


def _sample(rng: np.random.Generator) -> dict[str, object]:
    num_words = int(np.clip(rng.lognormal(np.log(7), 0.85), 1, 62))
    label = int(rng.integers(2))
    first = len(_SPECIAL) + 2 * _SIGNAL
    ids = rng.zipf(1.2, num_words) % (VOCABULARY - first) + first
    ids[rng.integers(num_words)] = len(_SPECIAL) + label * _SIGNAL + rng.integers(_SIGNAL)
    if rng.random() < 0.05:
        label = 1 - label
    return {"text": " ".join(f"w{i}" for i in ids), "label": label}
