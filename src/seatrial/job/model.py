"""Models with their tokenizers or image processors, from a local directory or the hub, for the tasks that there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)
from transformers.utils import logging as transformers_logging

from seatrial.errors import SpecError
from seatrial.job import adapters, packing
from seatrial.job.batches import IGNORE
from seatrial.job.images import Imaging, normalised
from seatrial.job.processors import (
    cannot_load,
    from_pretrained,
    load_image_processor,
    load_tokenizer,
    text_length,
)
from seatrial.job.sharded import draw_anew, is_sharded
from seatrial.runs.commit import commit, is_committed, problems, read_marker, start
from seatrial.spec.run import ModelOptions, RunSpec, Task, is_classification

AUTO: dict[str, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
    "causal-lm": AutoModelForCausalLM,
}
DEFAULT_OPTIONS = ModelOptions()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, its tokenizer, and what was found on the way."""

    model: Any
    tokenizer: Any
    """Of an image model: its image processor."""
    facts: dict[str, Any]

    @property
    def pad_id(self) -> int:
        """Fills rows of tokens up; masked everywhere."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return int(pad if pad is not None else 0)


def quiet_libraries() -> None:
    """Transformers' warnings repeat what the run records in its own words."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def check_model(
    name: str, task: Task, max_length: int | None, options: ModelOptions = DEFAULT_OPTIONS
) -> tuple[dict[str, Any], Any]:
    """Looks at a model without loading its weights: facts, and its tokenizer or image processor.

    Raises:
        SpecError: it isn't there, has no tokenizer (image processor) or no safe weights, is not for the task, or takes
            shorter texts than `max_length`.
    """
    config = from_pretrained(name, AutoConfig, "configuration")
    if task == "image-classification":
        processor = load_image_processor(name, config)
        _check_weights(name, options)
        how = Imaging(processor)
        return {
            "name": name, "type": config.model_type, "image": list(how.shape), "max_length": how.max_length
        }, processor  # fmt: skip
    tokenizer = load_tokenizer(name, config)
    _check_weights(name, options)
    length = text_length(max_length, name, config, tokenizer)
    facts = {"name": name, "type": config.model_type, "vocabulary": len(tokenizer), "max_length": length}
    return facts, tokenizer


def meta_model(name: str, task: Task, labels: tuple[str, ...]) -> Any:
    """The model without its weights, on the meta device: names and shapes.

    Raises:
        SpecError: it isn't there.
    """
    config = from_pretrained(name, AutoConfig, "configuration")
    for key, value in _label_options(task, labels).items():
        setattr(config, key, value)
    try:
        with torch.device("meta"):
            return AUTO[task].from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise cannot_load(name, "architecture", error) from error


def load_model(
    name: str,
    task: Task,
    labels: tuple[str, ...],
    options: ModelOptions = DEFAULT_OPTIONS,
    *,
    new_weights: bool = True,
    **more: Any,
) -> LoadedModel:
    """A model with its weights, in fp32, on the CPU.

    Args:
        name: local directory or hub id.
        task: chooses the head.
        labels: class names of a classification, in the order of the outputs.
        options: what may be done on the way.
        new_weights: whether weights that the files lack may be made new (from the seed). Not for a model of a run.
        more: for `from_pretrained`: ``distributed_config`` of `sharded.sharding`, ``quantization_config``.

    Raises:
        SpecError: it can't be loaded, or its head has another shape.
    """
    _check_weights(name, options)
    rng_state = torch.get_rng_state()
    try:
        model, info = AUTO[task].from_pretrained(
            name, dtype=torch.float32, use_safetensors=_use_safetensors(name, options), weights_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True, **_label_options(task, labels), **more,
        )  # fmt: skip
    except Exception as error:
        raise cannot_load(name, "weights", error) from error
    _check_shapes(name, {key: (there, here) for key, there, here in info["mismatched_keys"]}, labels, options)
    missing = {*info["missing_keys"], *(key for key, _, _ in info["mismatched_keys"])}
    if missing and not new_weights:
        raise SpecError(f"the model {name} lacks weights", evidence=", ".join(sorted(missing)[:8]))
    if is_sharded(model):
        draw_anew(model, missing, rng_state)
    if task == "image-classification":
        tokenizer = load_image_processor(name, model.config)
    else:
        tokenizer = load_tokenizer(name, model.config)
        if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
    facts = {
        "name": name,
        "type": model.config.model_type,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "new_weights": sorted(missing),
    }
    return LoadedModel(model, tokenizer, facts)


def load_committed(path: Path, task: Task, labels: tuple[str, ...], **more: Any) -> LoadedModel:
    """A model that a run saved; every file is hashed first. An adapter comes with the run's original below it.

    Raises:
        SpecError: never committed, or changed since.
    """
    wrong = problems(path)
    if wrong:
        raise SpecError(
            f"the {path.name} model of this run can't be used",
            evidence=f"{path}: {wrong[0]}",
            remedy=f"seatrial runs resume {path.parent.parent.name}",
        )
    if adapters.is_adapter(path):
        return adapters.load(path, load_committed(path.parent / "original", task, labels, **more))
    loaded = load_model(str(path), task, labels, new_weights=False, **more)
    loaded.facts["new_weights"] = (read_marker(path) or {}).get("new_weights", [])
    return loaded


def save_model(
    path: Path, model: Any, tokenizer: Any, *, is_main: bool = True, **facts: Any
) -> dict[str, Any] | None:
    """Writes a model directory aside and commits it. Every rank calls this; rank 0 (`is_main`) writes, and gets the marker.

    A sharded model is gathered, tensor by tensor, into the memory of rank 0's machine.
    """
    if is_main and is_committed(path):
        raise FileExistsError(path)
    aside = start(path) if is_main else path.with_name(path.name + ".writing")
    if is_sharded(model):
        dist.barrier()  # the other ranks make the directory too, if they come first
    if is_main or is_sharded(model):
        adapters.save(model, aside) if adapters.is_adapted(model) else model.save_pretrained(aside)
    if not is_main:
        return None
    tokenizer.save_pretrained(aside)
    return commit(aside, path, **facts)


def class_names(path: Path) -> tuple[str, ...]:
    """The classes of a saved classification model, in the order of its outputs."""
    id2label = AutoConfig.from_pretrained(path).id2label
    return tuple(id2label[i] for i in sorted(id2label))


def loss_and_hits(
    model: Any, batch: dict[str, torch.Tensor], task: Task, lengths: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward pass.

    Args:
        batch: what `batches.collate` makes, on the model's device.
        task: decides the loss.
        lengths: int64 [batch] on the CPU: the samples go through the layers end to end (`packing`); None: padded.

    Returns:
        The *sum* of the loss over samples (classification) or target tokens (causal LM), in nats; the number of
        right predictions among them; and, for prediction files, class probabilities [batch, classes] or the sum of
        the loss of each sample [batch]. All fp32 (the count int64), on the device.
    """
    inputs = normalised(packing.packed(batch, task, lengths))
    labels = inputs.pop("labels")
    logits = model(**inputs).logits.float()
    if is_classification(task):
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return loss, (logits.argmax(-1) == labels).sum(), logits.softmax(-1)
    # Position t predicts token t + 1.
    shifted = labels[:, 1:]
    token_loss = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), shifted, reduction="none", ignore_index=IGNORE
    )
    hits = ((logits[:, :-1].argmax(-1) == shifted) & (shifted != IGNORE)).sum()
    if lengths is None:
        return token_loss.sum(), hits, token_loss.sum(1)
    return token_loss.sum(), hits, packing.by_sample(F.pad(token_loss[0], (1, 0)))


def check_checkpointing(spec: RunSpec, meta: Any) -> None:
    """Raises `SpecError` where the recipe asks for activation checkpointing and the model's class has none."""
    if spec.train.activation_checkpointing and not meta.supports_gradient_checkpointing:
        raise SpecError(
            f"the model {spec.model!r} can't compute its activations again",
            evidence=f"{type(meta).__name__} has no gradient checkpointing in Transformers",
            remedy="train.activation_checkpointing=false",
        )


def check_head(name: str, task: Task, labels: tuple[str, ...], options: ModelOptions, meta: Any) -> None:
    """Compares the shapes in a local model's safetensors with those that the task needs; reads no weights.

    Raises:
        SpecError: they differ.
    """
    if not Path(name).is_dir():
        return  # a model of the hub is compared when it is loaded
    needed = {key: tuple(tensor.shape) for key, tensor in meta.state_dict().items()}
    differ = {}
    for file in sorted(Path(name).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in set(tensors.keys()) & set(needed):
                shape = tuple(tensors.get_slice(key).get_shape())
                if shape != needed[key]:
                    differ[key] = (shape, needed[key])
    _check_shapes(name, differ, labels, options)


def _check_shapes(
    name: str, differ: dict[str, tuple[Any, Any]], labels: tuple[str, ...], options: ModelOptions
) -> None:
    if not differ:
        return
    shapes = "; ".join(
        f"{k}: {tuple(there)}, needed {tuple(here)}" for k, (there, here) in sorted(differ.items())
    )
    if not all(
        labels and here[0] == len(labels) and there[1:] == here[1:] for there, here in differ.values()
    ):
        raise SpecError(f"the weights of {name!r} do not fit its configuration", evidence=shapes[:300])
    if not options.new_head:
        classes = next(iter(differ.values()))[0][0]
        raise SpecError(
            f"the head of {name!r} has {classes} classes, the data has {len(labels)}",
            evidence=shapes[:300],
            remedy="--new-head replaces it by a new one, from the seed    (or check data.label)",
        )


def _label_options(task: Task, labels: tuple[str, ...]) -> dict[str, Any]:
    if not is_classification(task):
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _check_weights(name: str, options: ModelOptions) -> None:
    path = Path(name)
    if not path.is_dir() or list(path.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in path.glob("*.bin"))
    if pickled and options.allow_pickle:
        return
    raise SpecError(
        f"the model directory {name} has no safetensors weights",
        evidence=f"it has {', '.join(pickled)}: pickles, which can run code" if pickled else "no *.safetensors there",
        remedy="--allow-pickle reads tensors, and nothing else, from them; or save it again with model.save_pretrained(DIR)"
        if pickled
        else "save it again with model.save_pretrained(DIRECTORY)",
    )  # fmt: skip


def _use_safetensors(name: str, options: ModelOptions) -> bool | None:
    """What `from_pretrained` may open: safetensors only, pickles only (where there is nothing else), or either."""
    if not options.allow_pickle:
        return True
    if Path(name).is_dir():
        return bool(list(Path(name).glob("*.safetensors")))
    return None
