"""The update: AdamW, its schedule, and one pass that clips and steps without asking the device anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR

from seatrial.job.sharded import by_layout, whole
from seatrial.spec.run import TrainSpec


def make_optimizer(net: torch.nn.Module, train: TrainSpec) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices, not on biases and norms. One kernel takes tensors of one layout only."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": alike, "weight_decay": decay}
        for chosen, decay in ((matrices, train.weight_decay), (others, 0.0))
        for alike in by_layout(chosen)
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)


def make_scheduler(optimizer: torch.optim.Optimizer, num_steps: int, train: TrainSpec) -> LambdaLR:
    """Linear warmup, then the schedule, over `num_steps` optimizer steps."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps, train))


def learning_rate_factor(step: int, num_steps: int, train: TrainSpec) -> float:
    """Part of the highest learning rate at a step counted from 0: linear warmup, then the schedule."""
    warmup = math.ceil(train.warmup * num_steps) if train.warmup < 1 else int(train.warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    part = (step - warmup) / max(1, num_steps - warmup)
    match train.schedule:
        case "linear":
            return max(0.0, 1 - part)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
        case "constant":
            return 1.0


def total_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The 2-norm of all gradients as one vector, 0-d and the same on all ranks; of parts, all ranks have to ask."""
    # Of parts, the norm comes as a DTensor that only a gathering makes a number.
    norms = [whole(torch.nn.utils.get_total_norm(alike, foreach=True)) for alike in by_layout(gradients)]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def update(
    optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler, clip_norm: float | None
) -> torch.Tensor:
    """Clips all gradients to one norm and steps; a gradient that is not finite changes nothing.

    The clipping rides along in the fused kernel, which divides each gradient by ``grad_scale`` as it reads it, and
    skips the step on the device where ``found_inf`` is 1 (PyTorch's protocol between GradScaler and optimizers).

    Returns:
        The norm before clipping, fp32, on the device. The same on every rank: gradients have been reduced.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if scaler.is_enabled():
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        if clip_norm is not None:
            torch._foreach_mul_(gradients, torch.clamp(clip_norm / norm, max=1.0))
        scaler.step(optimizer)
        scaler.update()
    else:
        norm = total_norm(gradients)
        optimizer.grad_scale = None if clip_norm is None else torch.clamp(norm / clip_norm, min=1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()
