"""How the ranks share the work: what wraps the model, and when gradients are reduced."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from seatrial.job.world import World


def parallelize(net: torch.nn.Module, world: World) -> torch.nn.Module:
    """The model on this rank's device; with more than one rank, wrapped so that gradients are averaged."""
    net = net.to(world.device)
    if world.world_size == 1:
        return net
    device_ids = [world.local_rank] if world.device.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=device_ids, gradient_as_bucket_view=True)


def unsynced(net: torch.nn.Module, *, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """DDP's ``no_sync`` for all forward passes of a step but the last."""
    if wanted and isinstance(net, DistributedDataParallel):
        return net.no_sync()
    return contextlib.nullcontext()
