"""What a forward and backward pass holds besides parameters and gradients: counted on tensors without data."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seatrial.job import adapters, model
from seatrial.job.device import autocast
from seatrial.runs.plan import Device
from seatrial.spec.run import AdapterSpec, RunSpec

_MANY = (64, 128)
"""Samples at which what grows with them outweighs what does not, such as the gradient of a large embedding."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Peak of what a forward and backward pass holds besides parameters and gradients, in bytes.

    The larger of two: what is held whatever the batch, and ``fixed + per_sample × samples``.
    """

    least: int
    fixed: int
    per_sample: int

    def of(self, samples: int) -> int:
        """Bytes for so many samples."""
        return max(self.least, self.fixed + self.per_sample * samples)

    @classmethod
    def through(cls, one: int, some: int, more: int) -> Activations:
        """From the peaks with as few samples as may be, and with each of `_MANY`."""
        slope = (more - some) // (_MANY[1] - _MANY[0])
        return cls(one, some - slope * _MANY[0], slope)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is estimated."""

    spec: RunSpec
    labels: tuple[str, ...]
    meta: Any
    """The model on the meta device."""
    length: int
    """Tokens of the longest sample."""
    world_size: int
    device: Device
    image: tuple[int, ...] | None = None
    """[3, height, width] of an image; None where samples are texts."""


def activations(subject: Subject, adapter: AdapterSpec | None, checkpointed: bool) -> Activations:
    """Measured on tensors without data (`FakeTensorMode`): the same operators, the same lifetimes, no memory.

    With one and two layers, and from there on in proportion: layers are alike, and so are samples. A model whose layers
    differ in kind is measured whole. Attention is that of the CPU where there is no GPU to ask.
    """
    kinds = set(getattr(subject.meta.config, "layer_types", None) or ())
    # A model in stages of different widths has no such number, or none that can be changed alone.
    layers = (
        1 if "depths" in vars(subject.meta.config) else getattr(subject.meta.config, "num_hidden_layers", 1)
    )

    def peak(samples: int) -> int:
        if len(kinds) > 1 or layers < 2:
            return peak_bytes(subject, adapter, checkpointed, None, samples)
        one, two = (peak_bytes(subject, adapter, checkpointed, n, samples) for n in (1, 2))
        total: int = one + (layers - 1) * (two - one)
        return total

    # Running statistics of a single value a channel are an error.
    return Activations.through(peak(1 if subject.image is None else 2), *(peak(samples) for samples in _MANY))


def peak_bytes(
    subject: Subject, adapter: AdapterSpec | None, checkpointed: bool, num_layers: int | None, samples: int
) -> int:
    """Most bytes alive during one forward and backward pass, without parameters and their gradients."""
    precision = subject.spec.train.precision
    device = subject.device if torch.cuda.is_available() else "cpu"
    net = build_meta(subject, adapter, num_layers).train()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        _give_memory(net)
        if checkpointed:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        batch = example(subject, samples)
        with live_bytes(net) as live:
            with autocast(precision, torch.device(device)):
                loss, _, _ = model.loss_and_hits(net, batch, subject.spec.task)
            loss.backward()
    return live.peak


def example(subject: Subject, samples: int) -> dict[str, torch.Tensor]:
    """A batch as `batches.collate` makes it, of the largest samples."""
    if subject.image is not None:
        return {
            "pixel_values": torch.zeros((samples, *subject.image), dtype=torch.uint8),
            "scale": torch.ones(3),
            "shift": torch.zeros(3),
            "labels": torch.zeros(samples, dtype=torch.int64),
        }
    shape = (samples, subject.length)
    return {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "labels": torch.zeros(shape[:1] if subject.labels else shape, dtype=torch.int64),
    }


def build_meta(subject: Subject, adapter: AdapterSpec | None, num_layers: int | None) -> Any:
    """The model with `num_layers` layers on the meta device, and an adapter in full precision."""
    config = copy.deepcopy(subject.meta.config)
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
    with torch.device("meta"):
        net = model.AUTO[subject.spec.task].from_config(config, dtype=torch.float32)
        return net if adapter is None else adapters.wrap(net, adapter, subject.spec.task, ())


def _give_memory(net: torch.nn.Module) -> None:
    """Moves a model from the meta device to the fake one; what is shared stays shared."""
    moved: dict[int, Any] = {}
    for module in net.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                if id(tensor) not in moved:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    moved[id(tensor)] = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                module._parameters[name] = moved[id(tensor)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make, as long as something refers to them."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = dict.fromkeys(known, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@contextmanager
def live_bytes(net: torch.nn.Module) -> Iterator[LiveBytes]:
    """Counts while the block runs; parameters are there before, and gradients are let go of as soon as they are whole."""

    def forget(parameter: torch.Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(forget) for p in net.parameters() if p.requires_grad]
    tensors = [*net.parameters(), *net.buffers()]
    with LiveBytes({t.untyped_storage()._cdata for t in tensors}) as live:
        yield live
    for hook in hooks:
        hook.remove()
