"""``train.batch_size: auto``: the largest micro-batch that fits; the global batch stays what it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from seatrial.errors import SpecError
from seatrial.job import memory, model
from seatrial.job.activations import activations
from seatrial.job.batches import collate
from seatrial.job.device import autocast, to_device
from seatrial.job.images import Encoded, Images
from seatrial.job.reporter import is_out_of_memory
from seatrial.job.sharded import is_sharded
from seatrial.job.world import World
from seatrial.spec.run import RunSpec, TrainSpec, is_classification


def resolved(spec: RunSpec, loaded: model.LoadedModel, train: Encoded, world: World) -> TrainSpec:
    """The recipe's training with a number for its batch size, the same on all ranks; every rank calls this.

    A GPU is asked by trying, on the longest samples and with room set aside for the optimizer; the CPU's memory is
    estimated, since a machine that runs out of it kills.

    Raises:
        SpecError: not even one sample fits.
    """
    if spec.train.batch_size != "auto":
        return spec.train
    global_batch = spec.train.samples_per_step(world.dp_size)
    cap = min(math.ceil(global_batch / world.dp_size), len(train))
    fits = (
        _tried(spec, loaded, train, world)
        if world.device.type == "cuda"
        else _estimated(spec, loaded, train, world)
    )
    found = largest(lambda samples: agreed(fits(samples), world), cap)
    if found == 0:
        raise SpecError(
            "not even one sample fits into memory",
            evidence=f"the largest has {train.largest}",
            remedy="seatrial train … --estimate shows what would fit",
        )
    loaded.facts["batch_size"] = {"found": found, "cap": cap, "global_batch": global_batch}
    return spec.train.model_copy(
        update={"batch_size": found, "global_batch": global_batch, "grad_accumulation": 1}
    )


def largest(fits: Callable[[int], bool], cap: int) -> int:
    """The largest number up to `cap` that fits, 0 if not even 1 does: doubling, then bisecting; 2 log2(cap) tries at most."""
    good, bad = 0, 1
    while bad <= cap and fits(bad):
        good, bad = bad, min(2 * bad, cap) if bad < cap else cap + 1
    bad = min(bad, cap + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def agreed(fits: bool, world: World) -> bool:
    """Whether it fits on all ranks."""
    answer = torch.tensor(int(fits), device=world.device)
    dist.all_reduce(answer, dist.ReduceOp.MIN)
    return bool(answer.item())


def _estimated(
    spec: RunSpec, loaded: model.LoadedModel, train: Encoded, world: World
) -> Callable[[int], bool]:
    local = max(1, world.world_size // spec.resources.nodes)
    facts: dict[str, Any] = {"max_length": int(train.lengths.max())}
    if isinstance(train, Images):
        facts["image"] = train.pixels.shape[1:]
    subject = memory.subject_of(spec, _labels(spec, loaded), facts, world.world_size, "cpu")
    has = memory.device_memory(spec, "cpu", local)
    need = activations(subject, spec.adapter, spec.train.activation_checkpointing)
    strategy = loaded.facts.get("parallel", {}).get("strategy", "ddp")

    def fits(samples: int) -> bool:
        return memory.need_of(
            subject, strategy, spec.adapter, spec.train.activation_checkpointing, need.of(samples)
        ).fits(has)

    return fits


def _tried(spec: RunSpec, loaded: model.LoadedModel, train: Encoded, world: World) -> Callable[[int], bool]:
    net = loaded.model if is_sharded(loaded.model) else loaded.model.to(world.device)
    held = sum(
        p.to_local().numel() if hasattr(p, "to_local") else p.numel()
        for p in net.parameters()
        if p.requires_grad
    )
    longest = np.argsort(-train.lengths, kind="stable")

    def fits(samples: int) -> bool:
        try:
            moments = torch.empty(8 * held, dtype=torch.uint8, device=world.device)
            batch = to_device(collate(train, longest[:samples], loaded.pad_id), world.device)
            with autocast(spec.train.precision, world.device):
                loss, _, _ = model.loss_and_hits(net, batch, spec.task)
            loss.backward()
            del moments
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            net.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    net.train()
    return fits


def _labels(spec: RunSpec, loaded: model.LoadedModel) -> tuple[str, ...]:
    if not is_classification(spec.task):
        return ()
    names = loaded.model.config.id2label
    return tuple(names[i] for i in sorted(names))
