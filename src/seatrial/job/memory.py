"""How much memory a training needs, before anything is loaded.

``python -m seatrial.job.memory SPEC.json --world-size N --device cuda`` prints one JSON document: the estimate, or the
error in three parts. The model is built without weights; forward and backward passes run on tensors without data.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from seatrial.errors import SpecError
from seatrial.job import adapters, data, model
from seatrial.job.activations import Subject, activations, build_meta
from seatrial.job.answer import answer
from seatrial.job.sharded import layer_plan, split_numel, tp_size
from seatrial.job.world import World
from seatrial.runs.plan import Device
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
    """ddp, fsdp, hsdp or tp."""
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


def needs(subject: Subject, strategies: tuple[str, ...], *, alternatives: bool) -> list[Need]:
    """The recipe's own need under each strategy, and with `alternatives` those with and without adapter and checkpointing."""
    spec = subject.spec
    checkpointing, adapter = spec.train.activation_checkpointing, spec.adapter
    ways = [(adapter, checkpointing)]
    if alternatives:
        other = None if adapter or not adapters.possible(subject.meta, spec.task) else AdapterSpec()
        twice = (checkpointing, not checkpointing and subject.meta.supports_gradient_checkpointing)
        ways = list(dict.fromkeys((a, c) for a in (adapter, other) for c in twice))
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
    (``gradient_as_bucket_view``). Tensor parallelism splits what the model's plan names, and never gathers it; the
    activations are those of whole layers, which is more than it holds.
    """
    spec = subject.spec
    meta = subject.meta
    everything = sum(p.numel() for p in meta.parameters())
    layer = max((sum(p.numel() for p in m.parameters()) for m in _layers(meta)), default=0)
    outside = everything - sum(p.numel() for m in _layers(meta) for p in m.parameters())
    trained, weights, gathered, parts = everything, everything * _FP32, 0, 1
    if adapter is not None:
        trained, weights = _adapted_sizes(subject, adapter)
    compute = 2 if spec.train.precision == "bf16" else _FP32
    if strategy in ("fsdp", "hsdp"):
        replicas = max(2, spec.resources.nodes) if strategy == "hsdp" else 1
        parts = max(1, subject.world_size // replicas)
        gathered = (2 * layer + outside) * compute + max(layer, outside) * _FP32
    if strategy == "tp":
        split = tp_size(spec, subject.world_size)
        parts = subject.world_size // split
        trained = everything - (split - 1) * split_numel(meta) // split
        weights = trained * _FP32
        gathered = (
            ((2 * layer + outside) * compute + max(layer, outside) * _FP32) // split if parts > 1 else 0
        )
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
    net = build_meta(subject, adapter, None)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters()) - trained
    return trained, trained * _FP32 + int(frozen * (0.516 if adapter.kind == "qlora" else _FP32))


def _layers(meta: Any) -> list[torch.nn.Module]:
    patterns = [name.split(".*")[0] for name in layer_plan(meta)]
    return [layer for prefix in patterns for layer in meta.get_submodule(prefix).children()]


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
    spec: RunSpec, labels: tuple[str, ...], facts: dict[str, Any], world_size: int, device: Device
) -> Subject:
    """What is estimated, with its model on the meta device; `facts` has the size of a sample, as `model.check_model`."""
    meta = model.meta_model(spec.model, spec.task, labels)
    image = tuple(facts["image"]) if "image" in facts else None
    return Subject(spec, labels, meta, facts["max_length"], world_size, device, image)


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
    asked = _asked(spec, world.world_size)
    states = _states_at_most(spec.model)
    if states is not None and states < SMALL * memory_bytes:
        return (
            "ddp" if asked == "auto" else asked
        ), f"weights and optimizer need at most {_gib(states)} of {_gib(memory_bytes)} a rank"
    facts, _ = model.check_model(spec.model, spec.task, spec.data.max_length, spec.model_options)
    subject = subject_of(spec, labels, facts, world.world_size, device)
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


def _asked(spec: RunSpec, world_size: int) -> str:
    """A single rank shares its model with nobody, unless a number of ranks for that was named."""
    return "ddp" if world_size == 1 and spec.train.tp_size is None else spec.train.parallel


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
    facts, _ = model.check_model(spec.model, spec.task, spec.data.max_length, spec.model_options)
    labels = data.load_data(spec.data, spec.task, spec.train.seed).labels
    subject = subject_of(spec, labels, facts, world_size, device)
    model.check_checkpointing(spec, subject.meta)
    strategies: tuple[str, ...] = (
        ("ddp",) if world_size == 1 else ("ddp", "fsdp", "hsdp") if world_size >= 4 else ("ddp", "fsdp")
    )
    asked = _asked(spec, world_size)
    strategies += ("tp",) if asked == "tp" else ()
    memory_bytes = device_memory(spec, device, local_world_size)
    found = needs(subject, strategies, alternatives=True)
    rows = [
        {**asdict(n), "total": n.total, "fits": n.fits(memory_bytes), "recipe": n.recipe()} for n in found
    ]
    answer = {
        "schema": 1, "world_size": world_size, "device": device, "memory_bytes": memory_bytes, "usable": USABLE,
        "batch_size": micro_batch(spec), "length": facts["max_length"], "image": facts.get("image"), "precision": spec.train.precision, "rows": rows,
    }  # fmt: skip
    try:
        need, reason = choose(found, memory_bytes, asked)
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
    return answer(args.spec, lambda spec: estimate(spec, args.world_size, args.local_world_size, args.device))


if __name__ == "__main__":
    raise SystemExit(main())
