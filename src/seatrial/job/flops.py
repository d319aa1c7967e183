"""How much arithmetic a model needs for a token, by the convention of MFU.

6 FLOPs a weight of the matrix products for a token (2 forward, 4 backward), 4 for a weight that is not trained, and
12 × layers × width × length for attention: PaLM (arXiv:2204.02311), appendix B. Neither activation checkpointing nor
padding counts as work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_TRAINED, _FROZEN, _ATTENTION = 6, 4, 12


def per_token(net: torch.nn.Module, task: str, lengths: np.ndarray) -> float | None:
    """FLOPs of training for one token (of images: one patch).

    Args:
        net: the model itself, not what wraps it.
        task: of the recipe.
        lengths: tokens of each training sample, shape (samples,).

    Returns:
        None for a model whose work is not that of a transformer's matrix products (convolutions).
    """
    config: Any = getattr(net, "config", None)
    layers, width = (
        _first(config, *names) for names in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"))
    )
    if not layers or not width or any(isinstance(m, torch.nn.Conv1d) for m in net.modules()):
        return None
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    if len(convolutions) > 1:  # one cuts an image into patches; more are a network of their own
        return None
    # A classifier's head reads one token of a sample.
    body = net if task == "causal-lm" else getattr(net, "base_model", net)
    flops = 0.0
    for module in body.modules():
        weights = _weights(module)
        if weights is not None:
            weight = getattr(module, "weight", None)
            trained = weight is not None and weight.requires_grad
            flops += (_TRAINED if trained else _FROZEN) * weights
    length = float(np.square(lengths, dtype=np.float64).sum() / max(1, lengths.sum()))
    return flops + _ATTENTION * layers * width * length


def _weights(module: torch.nn.Module) -> int | None:
    if isinstance(module, torch.nn.Linear):
        return module.in_features * module.out_features  # of 4 bits, and of parts: the whole matrix
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layers
        weight = module.weight
        return weight.numel() if isinstance(weight, torch.Tensor) else None
    return None


def _first(config: Any, *names: str) -> int | None:
    found = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    return found if isinstance(found, int) else None
