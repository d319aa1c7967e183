"""Images that a small model learns to tell apart, drawn anew for each test run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ("circle", "cross", "square")


def drawn(shape: str, rng: np.random.Generator) -> Any:
    """A ``PIL.Image`` of 40 × 36 pixels: a light shape somewhere on a dark ground."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (40, 36), tuple(rng.integers(0, 100, 3).tolist()))
    pen = ImageDraw.Draw(image)
    (x, y), size = rng.integers(4, 14, 2).tolist(), int(rng.integers(12, 18))
    colour = tuple(rng.integers(160, 255, 3).tolist())
    if shape == "circle":
        pen.ellipse((x, y, x + size, y + size), fill=colour)
    elif shape == "square":
        pen.rectangle((x, y, x + size, y + size), fill=colour)
    else:
        pen.line((x, y, x + size, y + size), fill=colour, width=3)
        pen.line((x + size, y, x, y + size), fill=colour, width=3)
    return image


def write_folders(root: Path, seed: int = 0, **splits: int) -> Path:
    """``root/SPLIT/SHAPE/0000.png``; or ``root/SHAPE/0000.png`` for a split called ``whole``."""
    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        for i in range(count):
            folder = (root if split == "whole" else root / split) / SHAPES[i % len(SHAPES)]
            folder.mkdir(parents=True, exist_ok=True)
            drawn(SHAPES[i % len(SHAPES)], rng).save(folder / f"{i:04d}.png")
    return root


def save_vit(path: Path) -> Path:
    """A small ViT with random weights, without a head and without dropout."""
    import torch
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def save_resnet(path: Path) -> Path:
    """A small ResNet with random weights: convolutions, and running statistics."""
    import torch
    from transformers import ResNetConfig, ResNetModel
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(path)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(path)
    return path
