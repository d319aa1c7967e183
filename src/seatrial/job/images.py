"""Images as the model's image processor resizes them: uint8, in memory or mapped from a file.

Decoding and resizing is done once; what is left of the processor's work is one multiplication and one addition a value,
done on the device (`normalised`). What a training image looks like in an epoch is a pure function of (seed, epoch, sample).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch

from seatrial.errors import SpecError
from seatrial.job.data import Samples
from seatrial.job.image_files import decoded
from seatrial.job.tokens import Tokens

_PATCH = 16
_COMPARED = 4
"""Images on which what comes out of the cache must be what the processor itself gives."""
_SHIFT = 8
"""A crop moves an image by up to one part in so many of its size."""


@dataclass(frozen=True)
class Images:
    """A split of images, and how their values become the model's."""

    noun: ClassVar[str] = "images"

    pixels: np.ndarray
    """uint8 [samples, 3, height, width]."""
    labels: np.ndarray
    """int64 [samples]."""
    scale: np.ndarray
    """float32 [3]: what the model takes is ``pixels × scale + shift``, by channel."""
    shift: np.ndarray
    """float32 [3]."""
    augment: str = "none"
    """none, flip or crop: of training batches."""
    seed: int = 0
    num_cut: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [samples], all equal: patches of 16 × 16 pixels, which is what a ViT counts as tokens."""
        return np.full(len(self), patches(self.pixels.shape[1:]), np.int64)

    @cached_property
    def targets(self) -> np.ndarray:
        """int64 [samples] weight of each in the loss: its label."""
        return np.ones(len(self), np.int64)

    @property
    def largest(self) -> str:
        """The size of a sample, for people."""
        return " × ".join(map(str, self.pixels.shape[1:])) + " values"

    def batch(self, indices: Sequence[int] | np.ndarray, epoch: int | None) -> dict[str, torch.Tensor]:
        """Samples for `normalised`, with ``labels`` int64 [batch].

        Args:
            indices: the samples.
            epoch: draws how each is changed; None leaves them as they are.
        """
        rows = np.asarray(indices)
        return {**self.inputs(rows, epoch), "labels": torch.from_numpy(self.labels[rows])}

    def inputs(self, rows: np.ndarray, epoch: int | None = None) -> dict[str, torch.Tensor]:
        """``pixel_values`` uint8 [batch, 3, height, width], ``scale`` and ``shift`` float32 [3]."""
        pixels = self.pixels[rows]
        if epoch is not None and self.augment != "none":
            flips, moves = self._draws(epoch)
            pixels = np.stack([changed(p, flips[i], moves[i]) for p, i in zip(pixels, rows, strict=True)])
        return {
            "pixel_values": torch.from_numpy(pixels),
            "scale": torch.from_numpy(self.scale),
            "shift": torch.from_numpy(self.shift),
        }

    def _draws(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """bool [samples], mirrored or not; int64 [samples, 2], rows and columns to move by."""
        if epoch not in self._drawn:
            rng = np.random.default_rng([self.seed, epoch, 3])
            flips = rng.random(len(self)) < 0.5
            most = np.asarray(self.pixels.shape[2:]) // _SHIFT * (self.augment == "crop")
            self._drawn.clear()
            self._drawn[epoch] = flips, rng.integers(-most, most + 1, (len(self), 2))
        return self._drawn[epoch]

    @cached_property
    def _drawn(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}


Encoded: TypeAlias = Tokens | Images
"""A split as models take it."""


def patches(shape: Sequence[int]) -> int:
    """How many areas of 16 × 16 pixels an image [3, height, width] has; at least 1."""
    return max(1, int(shape[1]) * int(shape[2]) // _PATCH**2)


def changed(pixels: np.ndarray, flip: bool, move: np.ndarray) -> np.ndarray:
    """An image [3, height, width], moved and mirrored left to right; what moves in is the mirror image of the edge."""
    if move.any():
        rows, columns = (
            _reflected(np.arange(size) + by, size) for size, by in zip(pixels.shape[1:], move, strict=True)
        )
        pixels = pixels[:, rows][:, :, columns]
    return pixels[:, :, ::-1] if flip else pixels


def _reflected(places: np.ndarray, size: int) -> np.ndarray:
    places = np.abs(places)
    found: np.ndarray = np.minimum(places, 2 * (size - 1) - places)
    return found


def normalised(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model is called with: ``pixel_values`` × ``scale`` + ``shift``, float32. Inputs of texts as they are."""
    if "pixel_values" not in inputs:
        return inputs
    rest = {k: t for k, t in inputs.items() if k not in ("pixel_values", "scale", "shift")}
    scale, shift = (inputs[name].view(1, -1, 1, 1) for name in ("scale", "shift"))
    return rest | {"pixel_values": inputs["pixel_values"].float() * scale + shift}


# --- from files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imaging:
    """How images become a model's: its image processor, as far as the cache."""

    processor: Any
    """A Transformers image processor (Pillow's backend)."""

    @property
    def max_length(self) -> int:
        """The patches of an image; see `Images.lengths`."""
        return patches(self.shape)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """[3, height, width] of every image.

        Raises:
            SpecError: the processor lets it depend on the image.
        """
        from PIL import Image

        shapes = {self._resized(Image.new("RGB", size)).shape for size in ((97, 131), (131, 97))}
        if len(shapes) > 1 or next(iter(shapes))[0] != 3:
            raise SpecError(
                "the image processor does not give images of one size",
                evidence=f"{type(self.processor).__name__} gives {', '.join(map(str, sorted(shapes)))}",
                remedy="preprocessor_config.json: size of height and width, or do_center_crop with crop_size",
            )
        channels, height, width = next(iter(shapes))
        return int(channels), int(height), int(width)

    def sha256(self) -> str:
        """Of all that decides which values an image gets: the processor's configuration."""
        config = {k: v for k, v in self.processor.to_dict().items() if k != "transformers_version"}
        return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()

    def encode(self, samples: Samples, scratch: Path) -> Images:
        """Decodes and resizes a split into a file in `scratch`, which the pixels are then mapped from.

        Raises:
            SpecError: images are damaged; the processor does more than can be taken apart.
        """
        source = samples.images
        assert source is not None
        scale, shift = self._affine()
        pixels = np.lib.format.open_memmap(
            scratch / f"{samples.split}.npy", mode="w+", dtype=np.uint8, shape=(len(samples), *self.shape)
        )
        damaged: list[tuple[int, Exception]] = []

        def fill(i: int, content: bytes) -> None:
            try:
                image = decoded(content)
            except Exception as error:  # Pillow raises what its decoders raise
                damaged.append((i, error))
                return
            pixels[i] = self._resized(image)
            if i < _COMPARED:
                self._check(image, pixels[i] * scale[:, None, None] + shift[:, None, None])

        for _ in source.map(fill):
            pass
        if damaged:
            first, error = min(damaged, key=lambda pair: pair[0])
            raise SpecError(
                f"{len(damaged)} {samples.split} images can't be decoded",
                evidence=f"the first is {samples.ids[first]}: {type(error).__name__}: {str(error)[:200]}",
                remedy="remove or repair them",
            )
        pixels.flush()
        return Images(pixels, samples.labels, scale, shift)

    def _resized(self, image: Any) -> np.ndarray:
        """uint8 [3, height, width]."""
        found = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        return np.asarray(found["pixel_values"][0])

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """(x × factor − mean) / std as a scale and a shift, float32 [3] each."""
        options = self.processor
        factor = options.rescale_factor if getattr(options, "do_rescale", False) else 1.0
        mean, std = (
            np.broadcast_to(np.asarray(values, np.float64), 3)
            for values in ((options.image_mean, options.image_std) if getattr(options, "do_normalize", False) else (0.0, 1.0))
        )  # fmt: skip
        return (factor / std).astype(np.float32), (-mean / std).astype(np.float32)

    def _check(self, image: Any, ours: np.ndarray) -> None:
        expected = np.asarray(self.processor(image, return_tensors="np")["pixel_values"][0])
        if ours.shape != expected.shape or not np.allclose(ours, expected, atol=1e-4, rtol=1e-4):
            raise SpecError(
                f"the image processor {type(self.processor).__name__} does more than resize, rescale and normalise",
                evidence=f"its values of an image and those of the cache differ by up to {np.abs(ours - expected).max():.3g}"
                if ours.shape == expected.shape
                else f"its values have the shape {expected.shape}, those of the cache {ours.shape}",
            )


def check_fits(meta: Any, shape: Sequence[int]) -> None:
    """Sends an image of the processor's size through a model without weights.

    Raises:
        SpecError: the model takes another one.
    """
    try:
        with torch.no_grad():
            meta.eval()(pixel_values=torch.empty((1, *shape), device="meta"))
    except (ValueError, RuntimeError) as error:
        raise SpecError(
            "the image processor does not fit the model",
            evidence=f"it gives images of {list(shape)}: {' '.join(str(error).split())[:200]}",
            remedy="preprocessor_config.json: the size that config.json says",
        ) from error
