"""Adapters by PEFT: LoRA, DoRA and QLoRA. The model stays as it is; small matrices beside its linear layers are trained."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seatrial.errors import SpecError
from seatrial.job.world import World
from seatrial.spec.run import AdapterSpec, RunSpec, Task, is_classification

if TYPE_CHECKING:
    from seatrial.job.model import LoadedModel

CONFIG = "adapter_config.json"


def is_adapter(path: Path) -> bool:
    """Whether a model directory holds an adapter alone."""
    return (path / CONFIG).is_file()


def is_adapted(net: Any) -> bool:
    """Whether the model has an adapter (PEFT's `PeftModel`)."""
    return hasattr(net, "peft_config") and hasattr(net, "merge_and_unload")


def is_installed() -> bool:
    """Whether PEFT is there."""
    return find_spec("peft") is not None


def check(adapter: AdapterSpec, task: Task, meta: Any) -> None:
    """Looks whether an adapter can be made, on the model without weights.

    Raises:
        SpecError: PEFT (for qlora, bitsandbytes or the GPU) is missing; a target matches no linear layer.
    """
    if not is_installed():
        raise SpecError(
            "an adapter needs PEFT", evidence="there is no package 'peft'", remedy="pip install 'seatrial[lora]'"
        )  # fmt: skip
    if adapter.kind == "qlora":
        _check_four_bits()
    targets_of(adapter, meta, heads_of(meta, task, ()))


def possible(meta: Any, task: Task) -> bool:
    """Whether the model has a layer that an adapter could sit on."""
    return bool(linear_layers(meta, heads_of(meta, task, ())))


def add(loaded: LoadedModel, spec: RunSpec) -> LoadedModel:
    """The model with a new adapter, drawn by train.seed, and everything else frozen but a classification's head.

    Raises:
        SpecError: as `check`.
    """
    if spec.adapter is None:
        return loaded
    check(spec.adapter, spec.task, loaded.model)
    torch.manual_seed(spec.train.seed)
    net = loaded.model
    if spec.adapter.kind == "qlora":
        from peft import prepare_model_for_kbit_training

        net = prepare_model_for_kbit_training(net, use_gradient_checkpointing=False)
    net = wrap(net, spec.adapter, spec.task, tuple(loaded.facts["new_weights"]))
    net.peft_config["default"].base_model_name_or_path = spec.model
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    facts = {**loaded.facts, "adapter": {**spec.adapter.model_dump(mode="json"), "num_trainable": trainable}}
    return replace(loaded, model=net, facts=facts)


def wrap(net: Any, adapter: AdapterSpec, task: Task, new_weights: tuple[str, ...]) -> Any:
    """PEFT's model around `net`. `new_weights` are names of parameters that are not pretrained, and so are trained."""
    from peft import LoraConfig, TaskType, get_peft_model

    heads = heads_of(net, task, new_weights)
    kinds = {"text-classification": TaskType.SEQ_CLS, "causal-lm": TaskType.CAUSAL_LM}
    config = LoraConfig(
        task_type=kinds.get(task),  # none is PEFT's for images
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_dora=adapter.kind == "dora",
        target_modules=targets_of(adapter, net, heads),
        modules_to_save=heads or None,
    )
    return get_peft_model(net, config)


def load(path: Path, base: LoadedModel) -> LoadedModel:
    """A saved adapter on the model that it was trained on, unmerged. With qlora, on that model in full precision."""
    from peft import PeftModel

    return replace(base, model=PeftModel.from_pretrained(base.model, str(path)))


def finished(net: Any, adapter: AdapterSpec | None) -> Any:
    """What is saved as the trained model: the adapter alone, or the whole model where the recipe merges it."""
    return net.merge_and_unload() if adapter is not None and adapter.merge else net


def save(net: Any, directory: Path) -> None:
    """The adapter (safetensors), the name of its base, and the base's configuration with the classes."""
    net.save_pretrained(directory, save_embedding_layers=False)
    net.config.save_pretrained(directory)


def before_and_after(net: Any, adapter: AdapterSpec | None) -> tuple[str, str] | None:
    """Hashes of the weights that an adapter changes, without and with it; None where the saved models themselves tell.

    An adapter file always differs from the model below it, which proves nothing. Counted is what reaches the weights:
    W against W + B·A, and a head against the one that it was made from.
    """
    if adapter is None or adapter.merge:
        return None
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    before, after = hashlib.sha256(), hashlib.sha256()
    for _, module in sorted(net.named_modules(), key=lambda pair: pair[0]):
        if isinstance(module, LoraLayer):
            weight, delta = (
                module.get_base_layer().weight.detach(),
                module.get_delta_weight("default").detach(),
            )
            # Weights of 4 bits can't be added to; there, the update itself is looked at.
            weight = weight if weight.is_floating_point() else torch.zeros_like(delta)
            before.update(_bytes(weight))
            after.update(_bytes(weight + delta))
        elif isinstance(module, ModulesToSaveWrapper):
            for digest, part in (
                (before, module.original_module),
                (after, module.modules_to_save["default"]),
            ):
                for parameter in part.parameters():
                    digest.update(_bytes(parameter.detach()))
    return before.hexdigest(), after.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def heads_of(net: Any, task: Task, new_weights: tuple[str, ...]) -> list[str]:
    """Modules that are trained and saved whole: a classification's head, and whatever is not pretrained."""
    heads = {name.rpartition(".")[0] for name in new_weights}
    if is_classification(task):
        heads |= {
            name for name, module in net.named_children()
            if name != net.base_model_prefix and any(True for _ in module.parameters())
        }  # fmt: skip
    return sorted(h for h in heads if not any(h.startswith(f"{other}.") for other in heads))


def targets_of(adapter: AdapterSpec, net: Any, heads: list[str]) -> list[str]:
    """Names, or last parts of names where those are enough, of the layers that get an adapter.

    Raises:
        SpecError: a target of the recipe matches no linear layer.
    """
    layers = linear_layers(net, heads)
    if not layers:
        raise SpecError(
            "an adapter finds nothing in this model to sit on",
            evidence=f"{type(net).__name__} has no linear layer besides its head",
            remedy="leave out the section adapter",
        )
    there = sorted({name.rpartition(".")[2] for name in layers})
    if adapter.targets == "auto":
        # A name that a head uses as well can't stand for itself.
        taken = {
            name.rpartition(".")[2] for head in heads for name, _ in net.get_submodule(head).named_modules()
        }
        taken |= {head.rpartition(".")[2] for head in heads}
        return [n for n in there if n not in taken] + [n for n in layers if n.rpartition(".")[2] in taken]
    for target in adapter.targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise SpecError(
                f"adapter.targets: {target!r} matches no linear layer of the model",
                evidence=f"its linear layers are called {', '.join(there)}",
                remedy=f"adapter.targets=[{', '.join(there[:2])}], or auto",
            )
    return list(adapter.targets)


def linear_layers(net: Any, heads: list[str]) -> list[str]:
    """Full names of the linear layers outside `heads` and outside the output layer of a language model."""
    from transformers.pytorch_utils import Conv1D

    # Image models have no such layer, and some of them raise.
    output = net.get_output_embeddings() if getattr(net.config, "vocab_size", None) else None
    return [
        name for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]  # fmt: skip


def four_bits(world: World) -> dict[str, Any]:
    """What `from_pretrained` takes to hold the model in 4 bits, as in the QLoRA paper: NF4, doubly quantised, bf16 inside."""
    _check_four_bits()
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return {"quantization_config": config, "device_map": {"": world.device}}


def _check_four_bits() -> None:
    missing = [] if find_spec("bitsandbytes") else ["there is no package 'bitsandbytes'"]
    missing += [] if torch.cuda.is_available() else ["torch sees no GPU"]
    if missing:
        raise SpecError(
            "qlora needs a GPU and bitsandbytes",
            evidence="; ".join(missing),
            remedy="pip install bitsandbytes    (or adapter.kind=lora)",
        )
