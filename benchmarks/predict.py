"""Predicting: Seatrial's path against Transformers' pipeline and `Trainer.predict`, as they come. CPU, one process.

    python benchmarks/predict.py [--samples 4000] [--rounds 3] [--threads 2]

One model (4 layers × 256, RoBERTa-shaped, random weights, vocabulary of 30,000), one set of samples with the lengths of
SST-2's train split, the same threads, interleaved, medians. The model is loaded on all sides. Against the pipeline,
tokenising is part of both; against `Trainer.predict`, both get tokenised samples. All must agree on the probabilities.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "true"
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging

from seatrial.job import first_token
from seatrial.job.batches import token_budget
from seatrial.job.data import Samples
from seatrial.job.predict import TOKENS_PER_BATCH, batches_of, padded, probabilities
from seatrial.job.tokens import Tokens, tokenize

VOCABULARY = 30_000
PEER_BATCH = 32


def lengths_like_sst2_train(n: int, rng: np.random.Generator) -> np.ndarray:
    """Words of each sample: mostly phrases of 1 to 10 words (mean 9.4, median 7), whole sentences up to 52."""
    phrase = rng.random(n) < 0.72
    words = np.where(phrase, 1 + rng.geometric(0.2, n), 1 + rng.gamma(4.2, 4.4, n))
    return np.clip(words, 1, 64).astype(int)


def make_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = {
        word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(VOCABULARY - len(special)))])
    }
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>", model_max_length=128,
    )  # fmt: skip


def make_model() -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=130, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return RobertaForSequenceClassification(config).eval()


@torch.inference_mode()
def ours(model: Any, tokens: Tokens, budget: int | None = None) -> np.ndarray:
    """Batches as `seatrial predict` cuts them, or of just so many tokens."""
    rows = batches_of(tokens.lengths, TOKENS_PER_BATCH["cpu"])
    if budget is not None:
        rows = list(token_budget(tokens.lengths, np.argsort(-tokens.lengths, kind="stable"), budget))
    found = torch.cat([probabilities(model, **padded(tokens, some, 1)) for some in rows]).numpy()
    return found[np.argsort(np.concatenate(rows))]


def clocked(work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return time.process_time() - cpu, time.perf_counter() - wall, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tune", action="store_true", help="only our path, at several batch sizes")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    counts = lengths_like_sst2_train(args.samples, rng)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, VOCABULARY - 4, n)) for n in counts]
    tokenizer, model = make_tokenizer(), make_model()
    mine = copy.deepcopy(model)
    assert first_token.enable(mine)
    samples = Samples("test", [str(i) for i in range(len(texts))], texts, np.zeros(len(texts), np.int64))
    tokens = tokenize(samples, tokenizer, 128)
    print(
        f"{len(texts)} samples: {tokens.lengths.mean():.1f} tokens on average, median {np.median(tokens.lengths):.0f}, "
        f"longest {tokens.lengths.max()}; {args.threads} threads, torch {torch.__version__}"
    )
    if args.tune:
        compare({f"budget {b}": lambda b=b: ours(mine, tokens, b) for b in (512, 1024, 2048, 4096, 8192)},
                args.rounds, len(texts))  # fmt: skip
        return
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    encoded = [{"input_ids": tokens.row(i).tolist()} for i in range(len(tokens))]
    arguments = TrainingArguments("/tmp", per_device_eval_batch_size=PEER_BATCH, use_cpu=True, report_to=[])
    trainer = Trainer(model=model, args=arguments, data_collator=DataCollatorWithPadding(tokenizer))

    def from_pipeline() -> np.ndarray:
        rows = classify(texts, batch_size=PEER_BATCH, top_k=None)
        return np.asarray([[{d["label"]: d["score"] for d in r}[f"LABEL_{i}"] for i in (0, 1)] for r in rows])

    compare(
        {
            "pipeline, batch 32, from texts": from_pipeline,
            "seatrial, from texts": lambda: ours(mine, tokenize(samples, tokenizer, 128)),
        },
        args.rounds,
        len(texts),
    )
    compare(
        {
            "Trainer.predict, batch 32, from tokens": lambda: (
                torch.from_numpy(trainer.predict(encoded).predictions).softmax(-1).numpy()
            ),
            "seatrial, from tokens": lambda: ours(mine, tokens),
        },
        args.rounds,
        len(texts),
    )


def compare(candidates: dict[str, Callable[[], np.ndarray]], rounds: int, num_samples: int) -> None:
    """Interleaved; the first row is the unit. A warm-up round is not counted."""
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    expected = None
    for i in range(rounds + 1):
        for name, work in candidates.items():
            cpu_s, wall_s, found = clocked(work)
            expected = found if expected is None else expected
            assert np.abs(found - expected).max() < 1e-4, f"{name} says something else"
            if i:
                cpu[name].append(cpu_s)
                wall[name].append(wall_s)
    first = next(iter(candidates))
    for name in candidates:
        cpu_s, wall_s = statistics.median(cpu[name]), statistics.median(wall[name])
        ratios = [a / b for a, b in zip(cpu[first], cpu[name], strict=True)]
        print(
            f"{name:<40} {num_samples / cpu_s:7.0f} samples per CPU-s   {num_samples / wall_s:7.0f} per s   "
            f"{statistics.median(cpu[first]) / cpu_s:5.2f} × in CPU time ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"{statistics.median(wall[first]) / wall_s:5.2f} × in wall time"
        )


if __name__ == "__main__":
    main()
