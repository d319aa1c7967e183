"""How much memory a training needs, before anything is loaded.

``python -m seatrial.job.memory SPEC.json --world-size N --device cuda`` prints one JSON document: the estimate, or the
error in three parts. The model is built without weights; forward and backward passes run on tensors without data.
"""

from __future__ import annotations

import argparse
import copy
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seatrial.errors import SeatrialError, SpecError
from seatrial.job import adapters, data, model
from seatrial.job.sharded import layer_plan
from seatrial.job.world import World
from seatrial.runs.plan import Device
from seatrial.spec.load import read_spec
from seatrial.spec.run import DEFAULT_BATCH_SIZE, AdapterSpec, RunSpec

USABLE = 0.9
"""Part of the memory that a training may plan with; the rest is for the CUDA context, libraries and fragmentation."""
SMALL = 0.1
_FP32, _ADAM = 4, 8
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one rank, for one way to train."""

    strategy: str
    """ddp, fsdp or hsdp."""
    adapter: str | None
    activation_checkpointing: bool
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    """Parts of other ranks, gathered for a layer, and gradients before they are reduced."""

    @property
    def total(self) -> int:
        """All of it at once: the moment after the backward pass of a step that accumulates."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers

    def fits(self, memory_bytes: int) -> bool:
        """Whether it stays below `USABLE` of the memory."""
        return self.total <= USABLE * memory_bytes

    def recipe(self) -> str:
        """The keys that ask for it."""
        words = [f"train.parallel={self.strategy}"]
        words += [f"adapter.kind={self.adapter}"] if self.adapter else []
        words += ["train.activation_checkpointing=true"] if self.activation_checkpointing else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Activations:
    """Peak of what a forward and backward pass holds besides parameters and gradients, in bytes.

    Linear in the samples of a pass: ``fixed + per_sample × samples``.
    """

    fixed: int
    per_sample: int

    def of(self, samples: int) -> int:
        """Bytes for so many samples."""
        return self.fixed + self.per_sample * samples


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


def needs(subject: Subject, strategies: tuple[str, ...], *, alternatives: bool) -> list[Need]:
    """The recipe's own need under each strategy, and with `alternatives` those with and without adapter and checkpointing."""
    spec = subject.spec
    checkpointing, adapter = spec.train.activation_checkpointing, spec.adapter
    ways = [(adapter, checkpointing)]
    if alternatives:
        other = adapter or AdapterSpec()
        ways = [
            (a, c) for a in (adapter, None if adapter else other) for c in (checkpointing, not checkpointing)
        ]
    found = []
    for used, checkpointed in ways:
        if used is not None and not adapters.is_installed():
            continue
        need = activations(subject, used, checkpointed).of(micro_batch(spec))
        found += [
            need_of(subject, strategy, used, checkpointed, need)
            for strategy in strategies
            if used is None or strategy == "ddp"
        ]
    return found


def need_of(
    subject: Subject, strategy: str, adapter: AdapterSpec | None, checkpointed: bool, activation_bytes: int
) -> Need:
    """Parameters, gradients and AdamW's two moments, in fp32: 4 + 4 + 8 bytes a trained parameter.

    That is the arithmetic of ZeRO (Rajbhandari et al. 2020, section 3.1) with fp32 weights: with N ranks, FSDP (its stage 3)
    holds 1/N of each. FSDP also gathers a layer and prefetches the next, keeps what is in no layer (embeddings, head)
    gathered, and holds the gradients of one layer before they are reduced. DDP's buckets are the gradients themselves
    (``gradient_as_bucket_view``).
    """
    spec = subject.spec
    meta = subject.meta
    everything = sum(p.numel() for p in meta.parameters())
    layer = max((sum(p.numel() for p in m.parameters()) for m in _layers(meta)), default=0)
    outside = everything - sum(p.numel() for m in _layers(meta) for p in m.parameters())
    trained, weights, gathered, parts = everything, everything * _FP32, 0, 1
    if adapter is not None:
        trained, weights = _adapted_sizes(subject, adapter)
    if strategy in ("fsdp", "hsdp"):
        replicas = max(2, spec.resources.nodes) if strategy == "hsdp" else 1
        parts = max(1, subject.world_size // replicas)
        compute = 2 if spec.train.precision == "bf16" else _FP32
        gathered = (2 * layer + outside) * compute + max(layer, outside) * _FP32
    host = spec.train.cpu_offload and parts > 1
    return Need(
        strategy, adapter.kind if adapter else None, checkpointed,
        parameters=0 if host else weights // parts, gradients=0 if host else trained * _FP32 // parts,
        optimizer=0 if host else trained * _ADAM // parts, activations=activation_bytes, buffers=gathered,
    )  # fmt: skip


def _adapted_sizes(subject: Subject, adapter: AdapterSpec) -> tuple[int, int]:
    """Trained parameters, and the bytes of all; frozen ones of qlora in 4 bits and their scales: 0.52 bytes each.

    Dettmers et al. 2023 (QLoRA), section 3: 4 bits and 0.127 bits a parameter.
    """
    net = _build(subject, adapter, None)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters()) - trained
    return trained, trained * _FP32 + int(frozen * (0.516 if adapter.kind == "qlora" else _FP32))


def _layers(meta: Any) -> list[torch.nn.Module]:
    patterns = [name.split(".*")[0] for name in layer_plan(meta)]
    return [layer for prefix in patterns for layer in meta.get_submodule(prefix).children()]


# --- activations ------------------------------------------------------------------------------------------------


def activations(subject: Subject, adapter: AdapterSpec | None, checkpointed: bool) -> Activations:
    """Measured on tensors without data (`FakeTensorMode`): the same operators, the same lifetimes, no memory.

    With one and two layers and one and two samples, and from there on in proportion: layers are alike, and so are samples.
    A model whose layers differ in kind is measured whole. Attention is that of the CPU where there is no GPU to ask.
    """
    kinds = set(getattr(subject.meta.config, "layer_types", None) or ())
    layers = subject.meta.config.num_hidden_layers
    if len(kinds) > 1 or layers < 2:
        one, two = (peak_bytes(subject, adapter, checkpointed, None, samples) for samples in (1, 2))
        return Activations(max(0, 2 * one - two), two - one)
    measured = {
        (n, samples): peak_bytes(subject, adapter, checkpointed, n, samples)
        for n in (1, 2)
        for samples in (1, 2)
    }
    at = [measured[1, s] + (layers - 1) * (measured[2, s] - measured[1, s]) for s in (1, 2)]
    return Activations(max(0, 2 * at[0] - at[1]), at[1] - at[0])


def peak_bytes(
    subject: Subject, adapter: AdapterSpec | None, checkpointed: bool, num_layers: int | None, samples: int
) -> int:
    """Most bytes alive during one forward and backward pass, without parameters and their gradients."""
    precision = subject.spec.train.precision
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    device = subject.device if torch.cuda.is_available() else "cpu"
    net = _build(subject, adapter, num_layers).train()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        _give_memory(net)
        if checkpointed:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        shape = (samples, subject.length)
        labels = torch.zeros(shape[:1] if subject.labels else shape, dtype=torch.int64)
        batch = {
            "input_ids": torch.zeros(shape, dtype=torch.int64),
            "attention_mask": torch.ones(shape, dtype=torch.int64),
            "labels": labels,
        }
        with live_bytes(net) as live:
            with torch.autocast(device, dtype=dtype, enabled=precision != "fp32"):
                loss, _, _ = model.loss_and_hits(net, batch, subject.spec.task)
            loss.backward()
    return live.peak


def _build(subject: Subject, adapter: AdapterSpec | None, num_layers: int | None) -> Any:
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


# --- does it fit --------------------------------------------------------------------------------------------------


def micro_batch(spec: RunSpec) -> int:
    """Samples of a pass that the estimate is for."""
    return DEFAULT_BATCH_SIZE if spec.train.batch_size == "auto" else spec.train.batch_size


def device_memory(spec: RunSpec, device: Device, local_world_size: int) -> int:
    """Bytes that one rank has: the recipe's word, the GPU's memory, or its share of the machine's (or the container's)."""
    if spec.resources.memory_gib is not None:
        return int(spec.resources.memory_gib * GIB)
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    if device == "cuda":
        raise SpecError(
            "the memory of the GPUs is not known here",
            evidence="torch sees no GPU",
            remedy="--gpu-memory GIB",
        )
    limits = [psutil.virtual_memory().total]
    limit = Path("/sys/fs/cgroup/memory.max")  # cgroup v2; "max" is no limit
    if limit.is_file() and limit.read_text().strip().isdigit():
        limits.append(int(limit.read_text()))
    return min(limits) // local_world_size


def choose(found: list[Need], memory_bytes: int, asked: str) -> tuple[Need, str]:
    """The need that is met, and the reason in a sentence. `found` starts with the recipe's own, ddp before fsdp.

    Raises:
        SpecError: what was asked for does not fit; the evidence has the numbers, the remedy what would fit.
    """
    own = found[0]
    mine = [
        n for n in found
        if (n.adapter, n.activation_checkpointing) == (own.adapter, own.activation_checkpointing)
        and asked in ("auto", n.strategy)
    ]  # fmt: skip
    for need in mine:
        if need.fits(memory_bytes):
            return need, f"{need.strategy} needs {_gib(need.total)} of {_gib(memory_bytes)} a rank"
    fitting = [n for n in found if n.fits(memory_bytes)]
    raise SpecError(
        "the training does not fit into memory",
        evidence="\n".join(
            f"{n.strategy}: parameters {_gib(n.parameters)} + gradients {_gib(n.gradients)} + optimizer "
            f"{_gib(n.optimizer)} + activations {_gib(n.activations)} + buffers {_gib(n.buffers)} = {_gib(n.total)} "
            f"a rank; it may plan with {USABLE:.0%} of {_gib(memory_bytes)}"
            for n in mine
        ),
        remedy="\n".join(n.recipe() for n in fitting[:3])
        or "a smaller train.batch_size or data.max_length, more ranks, or seatrial train … --estimate for the table",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def subject_of(
    spec: RunSpec, labels: tuple[str, ...], length: int, world_size: int, device: Device
) -> Subject:
    """What is estimated, with its model on the meta device."""
    return Subject(spec, labels, model.meta_model(spec.model, spec.task, labels), length, world_size, device)


def decide(spec: RunSpec, labels: tuple[str, ...], world: World) -> tuple[str, str]:
    """How this run's ranks share the model, and why; before its weights are read. Every rank calls this.

    A model that is small for its device (weights, gradients and optimizer below `SMALL` of the memory) is not looked at
    closer: sharding it could save no more than that.

    Raises:
        SpecError: what was asked for does not fit.
    """
    local = max(1, world.world_size // spec.resources.nodes)
    device: Device = "cuda" if world.device.type == "cuda" else "cpu"
    has = torch.tensor(device_memory(spec, device, local), device=world.device)
    dist.all_reduce(has, dist.ReduceOp.MIN)
    memory_bytes = int(has.item())
    asked = "ddp" if world.world_size == 1 else spec.train.parallel
    states = _states_at_most(spec.model)
    if states is not None and states < SMALL * memory_bytes:
        return (
            "ddp" if asked == "auto" else asked
        ), f"weights and optimizer need at most {_gib(states)} of {_gib(memory_bytes)} a rank"
    length = model.check_model(spec.model, spec.data.max_length, spec.model_options)["max_length"]
    subject = subject_of(spec, labels, length, world.world_size, device)
    mine = (
        ("ddp", "fsdp")
        if asked == "auto" and spec.adapter is None
        else ("ddp",)
        if asked == "auto"
        else (asked,)
    )
    found = needs(subject, mine, alternatives=False)
    if not any(n.fits(memory_bytes) for n in found):
        found = needs(subject, ("ddp", "fsdp") if world.world_size > 1 else ("ddp",), alternatives=True)
    need, reason = choose(found, memory_bytes, asked)
    return need.strategy, reason


def _states_at_most(name: str) -> int | None:
    """Bytes of weights, gradients and moments, by the size of a local model's files: 16 a parameter, stored in 2 or 4."""
    sizes = [p.stat().st_size for p in Path(name).glob("*.safetensors")] if Path(name).is_dir() else []
    return 8 * sum(sizes) if sizes else None


# --- the program ------------------------------------------------------------------------------------------------


def estimate(spec: RunSpec, world_size: int, local_world_size: int, device: Device) -> dict[str, Any]:
    """The table of ``seatrial train --estimate``: a row for each way to train, the recipe's own first.

    Raises:
        SpecError: whatever is wrong with the data or the model.
    """
    facts = model.check_model(spec.model, spec.data.max_length, spec.model_options)
    labels = data.load_data(spec.data, spec.task, spec.train.seed).labels
    subject = subject_of(spec, labels, facts["max_length"], world_size, device)
    strategies = (
        ("ddp",) if world_size == 1 else ("ddp", "fsdp", "hsdp") if world_size >= 4 else ("ddp", "fsdp")
    )
    memory_bytes = device_memory(spec, device, local_world_size)
    found = needs(subject, strategies, alternatives=True)
    rows = [
        {**asdict(n), "total": n.total, "fits": n.fits(memory_bytes), "recipe": n.recipe()} for n in found
    ]
    answer = {
        "schema": 1, "world_size": world_size, "device": device, "memory_bytes": memory_bytes, "usable": USABLE,
        "batch_size": micro_batch(spec), "length": facts["max_length"], "precision": spec.train.precision, "rows": rows,
    }  # fmt: skip
    try:
        need, reason = choose(found, memory_bytes, spec.train.parallel)
        return {**answer, "chosen": need.recipe(), "reason": reason, "refusal": None}
    except SpecError as error:
        return {**answer, "chosen": None, "reason": "", "refusal": error.to_dict()}


def main() -> int:
    """0 with the estimate, or the error's exit code with the error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--local-world-size", type=int, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    args = parser.parse_args()
    spec = read_spec(args.spec)
    assert isinstance(spec, RunSpec)
    data.quiet_libraries()
    model.quiet_libraries()
    try:
        print(json.dumps({"facts": estimate(spec, args.world_size, args.local_world_size, args.device)}))  # noqa: T201
    except SeatrialError as error:
        print(json.dumps({"error": error.to_dict()}))  # noqa: T201 - this is the output
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
