"""How the ranks share the work: what wraps the model, when gradients are reduced, and who goes forward how often."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from seatrial.job.batches import BatchPlan
from seatrial.job.sharded import is_sharded
from seatrial.job.world import World


def parallelize(net: torch.nn.Module, world: World) -> torch.nn.Module:
    """The model on this rank's device; with more than one rank, wrapped so that gradients are averaged."""
    if is_sharded(net):
        return net  # `sharded` put it there, and it averages its gradients itself
    net = net.to(world.device)
    if world.world_size == 1:
        return net
    device_ids = [world.local_rank] if world.device.type == "cuda" else None
    # What is in buffers (positions, masks) no step changes, but for running statistics: see `share_statistics`.
    return DistributedDataParallel(
        net, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False
    )


def settle_buckets(
    net: torch.nn.Module, world: World, buffers: list[torch.Tensor], backward: Callable[[], None]
) -> None:
    """Lets DDP choose its buckets before the first step, by a backward pass that leaves no trace.

    DDP lays its buckets out anew after its first backward pass, and where a gradient lies decides in which order three or
    more ranks add it up. Without this the first step of every attempt would add in another order than a run that was
    never interrupted, and a resumed run would differ from it in the last bits.

    Args:
        net: as `parallelize` gave it.
        world: the ranks; all of them call this.
        buffers: what a forward pass changes: `statistics`.
        backward: goes forward and back over some samples of this rank's.
    """
    if not isinstance(net, DistributedDataParallel) or world.world_size < 3:
        return
    before = [b.clone() for b in buffers]
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        backward()
    for b, old in zip(buffers, before, strict=True):
        b.data.copy_(old)
    net.zero_grad(set_to_none=True)


def statistics(net: torch.nn.Module) -> list[torch.Tensor]:
    """The buffers that a forward pass changes, other on each rank: running statistics (BatchNorm)."""
    layers = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    return [b for m in layers for b in m.buffers(recurse=False)]


@torch.no_grad()
def share_statistics(buffers: list[torch.Tensor], world: World) -> None:
    """Gives all ranks rank 0's, after each step; every rank calls this.

    DDP does so before each forward pass, which leaves the ranks with different ones wherever a step is followed by
    something else: an evaluation, a checkpoint that holds a part from each rank, the end.
    """
    if world.world_size == 1:
        return
    for dtype in {b.dtype: None for b in buffers}:
        some = [b for b in buffers if b.dtype == dtype]
        flat = torch.cat([b.reshape(-1) for b in some])
        dist.broadcast(flat, 0)
        for b, part in zip(some, flat.split([b.numel() for b in some]), strict=True):
            b.copy_(part.view_as(b))


@contextlib.contextmanager
def unsynced(net: torch.nn.Module, *, wanted: bool) -> Iterator[None]:
    """No reduction of gradients in the passes of a step but the last."""
    if isinstance(net, DistributedDataParallel) and wanted:
        with net.no_sync():
            yield
    else:
        if isinstance(net, FSDPModule):
            net.set_requires_gradient_sync(not wanted)
        yield


def passes(
    batches: BatchPlan, indices: np.ndarray, world: World, net: torch.nn.Module
) -> list[tuple[np.ndarray, float]]:
    """This rank's forward passes over a global batch: the samples of each, and whether they count.

    A rank without samples still takes part in the reduction: one sample, weighing nothing. Ranks that share a model go
    forward equally often, since each brings its part of the parameters to every pass.
    """
    mine = [(part, 1.0) for part in batches.micro_batches(indices, world.dp_rank)]
    wanted = 1
    if isinstance(net, FSDPModule):
        wanted = max(len(batches.micro_batches(indices, rank)) for rank in range(world.dp_size))
    return mine + [(indices[:1], 0.0)] * (wanted - len(mine))


def shares(
    order: np.ndarray, size: int, world: World, net: torch.nn.Module
) -> list[tuple[np.ndarray, float]]:
    """This rank's part of samples that each is seen by one rank (or `tp` group), cut into batches of `size`; as many as `passes` needs."""
    mine = order[world.dp_rank :: world.dp_size]
    parts = [(mine[start : start + size], 1.0) for start in range(0, len(mine), size)]
    wanted = math.ceil(math.ceil(len(order) / world.dp_size) / size) if isinstance(net, FSDPModule) else 0
    return parts + [(order[:1], 0.0)] * (wanted - len(parts))
