"""How the ranks share the work: what wraps the model, when gradients are reduced, and who goes forward how often."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
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
    # Only running statistics differ between ranks; what else is in buffers (positions, masks) no step changes.
    statistics = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in net.modules())
    return DistributedDataParallel(
        net, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=statistics
    )


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
