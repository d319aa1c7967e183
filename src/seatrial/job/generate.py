"""How a causal language model goes on: ``seatrial predict RUN --generate 64`` fills the column ``generation``.

By default the prompt of a sample is the beginning of its text; ``--prompt-column`` names a column that has it. Greedy
unless a temperature is given; then each batch is seeded by the seed and its first row, so that a predict which was
killed goes on to the same words.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from seatrial.errors import SpecError
from seatrial.job.batches import token_budget
from seatrial.job.model import LoadedModel
from seatrial.job.processors import longest_text
from seatrial.job.token_cache import Split
from seatrial.job.tokens import Tokens

GoOn: TypeAlias = Callable[[np.ndarray], list[str]]
"""From rows of the split to how the model goes on from their prompts; to nothing when that is not wanted."""
_TOKENS_PER_BATCH = 16384
"""Of prompts and what follows them, padding included: what the cache of keys and values holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How texts are continued; all of it stands in the prediction file."""

    max_new_tokens: int
    prompt_tokens: int
    """At most so many tokens of the text, or of the prompt column."""
    prompt_column: str | None
    temperature: float
    """0 takes the most probable token each time."""
    seed: int
    engine: str
    """``transformers`` or ``vllm``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a generation, as the command line passes them on."""
    parser.add_argument("--generate", type=int, dest="max_new_tokens")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--prompt-column")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")


def from_arguments(args: argparse.Namespace) -> Generation | None:
    """What `add_arguments` read; None when nothing is to be generated."""
    if args.max_new_tokens is None:
        return None
    return Generation(
        max_new_tokens=args.max_new_tokens, prompt_tokens=args.prompt_tokens, prompt_column=args.prompt_column,
        temperature=args.temperature, seed=args.seed, engine=args.engine,
    )  # fmt: skip


def engine(
    wanted: Generation | None, loaded: LoadedModel, path: Path, prompts: Split, device: torch.device
) -> GoOn:
    """What continues the texts of a split.

    Args:
        wanted: None gives an engine that generates nothing.
        loaded: the model, which Transformers' engine uses as it is.
        path: the model's directory, which vLLM loads on its own.
        prompts: the split whose texts, or whose column of prompts, are continued.
        device: where the model is.

    Raises:
        SpecError: prompt and continuation are longer than the model takes; vLLM is asked for and not installed.
    """
    if wanted is None:
        return lambda rows: []
    tokens = prompts.tokens
    assert isinstance(tokens, Tokens), "only language models generate"
    longest = min(int(tokens.lengths.max()), wanted.prompt_tokens) + wanted.max_new_tokens
    limit = longest_text(loaded.model.config, loaded.tokenizer)
    if limit is not None and longest > limit:
        raise SpecError(
            f"the model takes at most {limit} tokens",
            evidence=f"prompts of up to {longest - wanted.max_new_tokens} tokens and {wanted.max_new_tokens} to follow",
            remedy=f"--generate {max(1, limit - longest + wanted.max_new_tokens)}    (or fewer --prompt-tokens)",
        )
    special = set(loaded.tokenizer.all_special_ids)

    def prompt(row: int) -> np.ndarray:
        ids = tokens.row(row)
        # The end token that the tokenizer put there would be the end of the story.
        while len(ids) > 1 and int(ids[-1]) in special:
            ids = ids[:-1]
        return ids[: wanted.prompt_tokens]

    make = _vllm if wanted.engine == "vllm" else _transformers
    return make(wanted, loaded, path, prompt, device)


def _transformers(
    wanted: Generation,
    loaded: LoadedModel,
    path: Path,
    prompt: Callable[[int], np.ndarray],
    device: torch.device,
) -> GoOn:
    choice = {"do_sample": False} if wanted.temperature == 0 else {
        "do_sample": True, "temperature": wanted.temperature, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip

    def batch(prompts: list[np.ndarray]) -> list[str]:
        ids, mask = left_padded(prompts, loaded.pad_id)
        found = loaded.model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=wanted.max_new_tokens,
            pad_token_id=loaded.pad_id, num_beams=1, use_cache=True, **choice,
        )  # fmt: skip
        texts = loaded.tokenizer.batch_decode(found[:, ids.shape[1] :].cpu(), skip_special_tokens=True)
        return [str(text) for text in texts]

    def go_on(rows: np.ndarray) -> list[str]:
        torch.manual_seed(int(np.random.SeedSequence([wanted.seed, int(rows[0])]).generate_state(1)[0]))
        prompts = [prompt(int(row)) for row in rows]
        lengths = np.asarray([len(p) for p in prompts])
        texts = [""] * len(rows)
        for some in token_budget(
            lengths + wanted.max_new_tokens, np.argsort(-lengths, kind="stable"), _TOKENS_PER_BATCH
        ):
            for i, text in zip(some, batch([prompts[i] for i in some]), strict=True):
                texts[i] = text
        return texts

    return go_on


def _vllm(
    wanted: Generation,
    loaded: LoadedModel,
    path: Path,
    prompt: Callable[[int], np.ndarray],
    device: torch.device,
) -> GoOn:
    try:
        vllm: Any = importlib.import_module("vllm")
    except ImportError as error:
        raise SpecError(
            "vLLM is not installed",
            evidence=f"{type(error).__name__}: {error}",
            remedy="pip install vllm    (or --engine transformers)",
        ) from error
    llm = vllm.LLM(model=str(path), seed=wanted.seed)
    params = vllm.SamplingParams(
        max_tokens=wanted.max_new_tokens, temperature=wanted.temperature, seed=wanted.seed
    )

    def go_on(rows: np.ndarray) -> list[str]:
        prompts = [{"prompt_token_ids": prompt(int(row)).tolist()} for row in rows]
        return [str(done.outputs[0].text) for done in llm.generate(prompts, params, use_tqdm=False)]

    return go_on


def left_padded(rows: list[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts that all end in the last column, where the first new token follows.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 [batch, length].
    """
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_id, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
