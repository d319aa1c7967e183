"""How a rank computes on its device: arithmetic, and batches on their way there."""

from __future__ import annotations

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(precision: str, device: torch.device) -> torch.amp.autocast:
    """Lower precision (bf16 or fp16) for the forward pass, when asked for."""
    return torch.amp.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Moves a batch; from pinned memory, so that the copy does not wait for the device."""
    if device.type == "cpu":
        return batch
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
