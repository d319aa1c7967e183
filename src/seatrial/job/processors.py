"""What comes with a model's weights: its configuration, and its tokenizer or image processor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from seatrial.errors import SpecError
from seatrial.job.image_files import check_pillow
from seatrial.job.sources import looks_local

DEFAULT_LENGTH = 128
_LIMIT_OF_A_TOKENIZER_WITHOUT_LIMIT = 10**6


def load_image_processor(name: str, config: Any) -> Any:
    """The model's image processor, of Pillow's backend: results don't depend on whether torchvision is installed.

    Raises:
        SpecError: Pillow is missing; the model is not one of images in three channels, or has no processor.
    """
    check_pillow()
    if config.model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise SpecError(
            f"the model {name!r} does not classify images",
            evidence=f"its type is {config.model_type}",
            remedy="task: text-classification    (or an image model, such as google/vit-base-patch16-224)",
        )
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise SpecError(
            f"the model {name!r} takes images of {channels} channels",
            evidence="images are read in red, green and blue",
        )
    return from_pretrained(name, AutoImageProcessor, "image processor", backend="pil")


def load_tokenizer(name: str, config: Any) -> Any:
    """The model's tokenizer.

    Raises:
        SpecError: there is none, or its token ids go beyond the model's embeddings. Transformers makes an *empty*
            tokenizer for a directory that has none, for which every word is unknown: training on that would run.
    """
    tokenizer = from_pretrained(name, AutoTokenizer, "tokenizer")
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not words:
        raise SpecError(
            f"the model {name!r} has no tokenizer",
            evidence=f"the one that Transformers made for it knows no words, only {tokenizer.all_special_tokens}",
            remedy="save it beside the weights: tokenizer.save_pretrained(DIRECTORY)",
        )
    largest = max(tokenizer.get_vocab().values())
    embeddings = getattr(config, "vocab_size", None)
    if embeddings is not None and largest >= embeddings:
        raise SpecError(
            f"the tokenizer of {name!r} belongs to another model",
            evidence=f"its token ids go up to {largest}, the model has {embeddings} embeddings",
        )
    return tokenizer


def text_length(asked: int | None, name: str, config: Any, tokenizer: Any) -> int:
    """Tokens that a text may have: what was asked for, else `DEFAULT_LENGTH` or the model's limit if that is less.

    Raises:
        SpecError: more was asked for than the model takes.
    """
    limit = longest_text(config, tokenizer)
    if asked is None:
        return DEFAULT_LENGTH if limit is None else min(DEFAULT_LENGTH, limit)
    if limit is not None and asked > limit:
        raise SpecError(
            f"the model takes at most {limit} tokens",
            evidence=f"data.max_length is {asked}; {name} has {limit} positions",
            remedy=f"data.max_length={limit}",
        )
    return asked


def longest_text(config: Any, tokenizer: Any) -> int | None:
    """Most tokens that the model takes, or None where it names no limit."""
    limits = []
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        # Roberta-like models number positions from padding_idx + 1 on.
        offset = 2 if config.model_type in {"roberta", "xlm-roberta", "camembert", "longformer"} else 0
        limits.append(positions - offset)
    if tokenizer.model_max_length < _LIMIT_OF_A_TOKENIZER_WITHOUT_LIMIT:
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


def from_pretrained(name: str, kind: Any, what: str, **options: Any) -> Any:
    """What the class `kind` of Transformers makes of a model's files; raises `SpecError` where it can't, naming `what`."""
    path = Path(name).expanduser()
    if looks_local(name) and not path.is_dir():
        raise SpecError(
            f"there is no model directory {name}",
            evidence=f"{path.absolute()} is not a directory",
            remedy="model=DIRECTORY with config.json, tokenizer and *.safetensors, or a hub id such as roberta-base",
        )
    try:
        return kind.from_pretrained(name, **options)
    except Exception as error:
        raise cannot_load(name, what, error) from error


def cannot_load(name: str, what: str, error: Exception) -> SpecError:
    """The error for a model of which a part can't be loaded."""
    remedy = f"does {name} hold a whole Transformers model (config.json, tokenizer, *.safetensors)?"
    if not Path(name).is_dir():
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        remedy = f"pass a local path: --model DIRECTORY\n(or check the hub id, the network and HF_ENDPOINT{offline})"
    return SpecError(
        f"the {what} of the model {name!r} can't be loaded",
        evidence=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        remedy=remedy,
    )
