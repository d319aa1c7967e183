"""Encoded images, wherever they lie: in folders by class, in a column of bytes, or named by a column of paths.

Nothing is decoded here but by `decoded`, which needs Pillow; finding, hashing and counting images does not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from seatrial.errors import SpecError

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PATH_COLUMN = "__path__"
"""Of a data set made from folders: each file's path below the directory, which is its id."""
_BLOCK = 256
_Result = TypeVar("_Result")


def open_folders(path: Path, splits: tuple[str, ...]) -> dict[str, datasets.Dataset]:
    """Data sets of the columns image (absolute paths) and label (the folder's name).

    Args:
        path: holds ``SPLIT/CLASS/*.png``, or ``CLASS/*.png`` alone, which is the split ``""``.
        splits: names that a split may have, the training one first.

    Raises:
        SpecError: there are no images, or they lie in no folders of classes.
    """
    import datasets

    there = [name for name in dict.fromkeys(splits) if (path / name).is_dir()]
    roots = {name: path / name for name in there} if splits[0] in there else {"": path}
    found = {}
    for name, root in roots.items():
        files = [
            (file, folder.name)
            for folder in sorted(root.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        if not files:
            listed = ", ".join(sorted(p.name for p in root.iterdir())[:12]) or "nothing"
            raise SpecError(
                f"there are no images in folders of classes in {root}",
                evidence=f"it has: {listed}; images end in {', '.join(SUFFIXES)}",
                remedy="a data directory holds train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png alone",
            )
        found[name] = datasets.Dataset.from_dict(
            {
                "image": [str(file.absolute()) for file, _ in files],
                "label": [label for _, label in files],
                PATH_COLUMN: [file.relative_to(path).as_posix() for file, _ in files],
            }
        )
    return found


@dataclass(frozen=True)
class Images:
    """The encoded images of a split, read from where they are as they are asked for."""

    split: datasets.Dataset
    column: str
    """Of bytes, of ``{"bytes", "path"}`` as `datasets.Image` keeps them, or of paths."""
    base: Path
    """What relative paths start from."""

    def __len__(self) -> int:
        return len(self.split)

    def map(self, work: Callable[[int, bytes], _Result]) -> Iterator[_Result]:
        """`work` of each position and its bytes, in order, on all cores where it lets go of the interpreter's lock.

        Raises:
            SpecError: a file is missing, or a cell holds no image.
        """
        arrow = self.split.with_format("arrow")  # as it is stored: nothing is decoded
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(self), _BLOCK):
                cells = arrow[start : start + _BLOCK][self.column].to_pylist()
                yield from pool.map(
                    lambda pair, first=start: work(first + pair[0], self._bytes(pair[1])),
                    enumerate(cells),
                )

    def hashes(self) -> list[str]:
        """SHA-256 of each image's bytes; raises as `map`."""
        return list(self.map(lambda _, content: hashlib.sha256(content).hexdigest()))

    def _bytes(self, cell: Any) -> bytes:
        if isinstance(cell, dict) and cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if isinstance(cell, bytes):
            return cell
        path = cell.get("path") if isinstance(cell, dict) else cell
        if not isinstance(path, str) or not path:
            raise SpecError(
                "a sample has no image",
                evidence=f"column {self.column!r} holds {str(cell)[:80]}",
                remedy="data.image=COLUMN: encoded images, or paths to them",
            )
        try:
            return (self.base / path).read_bytes()
        except OSError as error:
            raise SpecError("an image file can't be read", evidence=str(error)) from error


def check_pillow() -> None:
    """Raises `SpecError` where Pillow is missing."""
    if find_spec("PIL") is None:
        raise SpecError(
            "images need Pillow", evidence="there is no package 'PIL'", remedy="pip install 'seatrial[images]'"
        )  # fmt: skip


def decoded(content: bytes) -> Any:
    """A ``PIL.Image`` in RGB, upright, of its first frame. Raises whatever Pillow raises for what is damaged."""
    from PIL import Image, ImageOps

    with Image.open(BytesIO(content)) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would clip all that is above 255 to white
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("RGB")
