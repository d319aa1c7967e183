"""One rank's part of a checkpoint: a safetensors file, written from memory in one go and hashed on the way.

torch.distributed.checkpoint decides who writes which piece of which tensor, and who reads what of it on any other number
of ranks. The bytes are safetensors (https://huggingface.co/docs/safetensors), so nothing is pickled: a piece that is not
a whole tensor says in the file's own metadata where it belongs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

LOCAL = "rng."
"""Names that start so belong to the rank that wrote them; they are not planned, and not resharded."""

_BLOCK_BYTES = 4 * 2**20
_PIECES = "seatrial.pieces"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}


def file_name(rank: int) -> str:
    """``rank_00000.safetensors``."""
    return f"rank_{rank:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor, or a box cut out of one, and its place among the bytes of a rank's file."""

    tensor: str
    index: MetadataIndex
    dtype: torch.dtype
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    whole: tuple[int, ...]
    """Shape of the tensor that it is cut out of."""
    begin: int
    end: int

    @property
    def name(self) -> str:
        """Its name in the file; unique there."""
        return (
            self.tensor if self.sizes == self.whole else f"{self.tensor}@{'_'.join(map(str, self.offsets))}"
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """All pieces of one rank, end to end, wide types first so that each is aligned."""

    pieces: tuple[Piece, ...]
    num_bytes: int

    @classmethod
    def of(cls, items: Iterable[WriteItem], local: dict[str, torch.Tensor]) -> Layout:
        """The pieces that were planned for this rank, and what is the rank's own."""
        wanted = []
        for item in items:
            data = item.tensor_data
            assert data is not None, f"{item.index.fqn} is not a tensor"
            chunk = data.chunk
            wanted.append((item.index, data.properties.dtype, chunk.sizes, chunk.offsets, data.size))
        for name, tensor in local.items():
            zeros = torch.Size([0] * tensor.dim())
            wanted.append((MetadataIndex(name, zeros), tensor.dtype, tensor.shape, zeros, tensor.shape))
        wanted.sort(key=lambda row: -row[1].itemsize)
        pieces, end = [], 0
        for index, dtype, sizes, offsets, whole in wanted:
            begin, end = end, end + sizes.numel() * dtype.itemsize
            pieces.append(
                Piece(index.fqn, index, dtype, tuple(sizes), tuple(offsets), tuple(whole), begin, end)
            )
        return cls(tuple(pieces), end)

    def header(self) -> bytes:
        """What a safetensors file has in front of its data."""
        entries: dict[str, Any] = {
            p.name: {"dtype": _DTYPES[p.dtype], "shape": list(p.sizes), "data_offsets": [p.begin, p.end]}
            for p in self.pieces
        }
        parts = {
            p.name: {"tensor": p.tensor, "offsets": p.offsets, "shape": p.whole}
            for p in self.pieces
            if p.name != p.tensor
        }
        if parts:
            entries["__metadata__"] = {_PIECES: json.dumps(parts)}
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write(
    path: Path, layout: Layout, data: memoryview, midway: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Writes header and data, and waits until they are on the disk. Neither writing nor hashing holds the interpreter.

    Args:
        path: a file that is not there yet.
        layout: what lies where in `data`.
        data: ``layout.num_bytes`` bytes.
        midway: called once the first block is written, for tests.

    Returns:
        ``{"sha256", "bytes"}`` of the bytes handed to the disk, as a commit marker lists them.

    Raises:
        OSError: the disk is full or gone.
    """
    header, digest = layout.header(), hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        for start in (None, *range(0, len(data), _BLOCK_BYTES)):
            block = memoryview(header) if start is None else data[start : start + _BLOCK_BYTES]
            digest.update(block)
            while block:
                block = block[file.write(block) :]
            if start is None and midway is not None:
                midway()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": len(header) + len(data)}


def read_local(path: Path, rank: int) -> dict[str, torch.Tensor]:
    """What a rank wrote for itself, without the `LOCAL` in front; empty where there was no such rank."""
    file = path / file_name(rank)
    if not file.is_file():
        return {}
    with safe_open(file, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(LOCAL)]  # noqa: SIM118 - not a dict
        return {name.removeprefix(LOCAL): opened.get_tensor(name) for name in names}


class ShardReader(StorageReader):
    """Lets torch.distributed.checkpoint read the files of all ranks; it asks for the pieces that this rank needs.

    Opens headers first, which say what is there, then only the bytes that were planned.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._places: dict[MetadataIndex, tuple[Path, str]] = {}

    def names(self) -> list[str]:
        """The tensors in the checkpoint, apart from those that ranks wrote for themselves."""
        return sorted(self.read_metadata().state_dict_metadata)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Every tensor with its shape and its pieces, from the headers of the files."""
        found: dict[str, TensorStorageMetadata] = {}
        for file in sorted(self.path.glob("rank_*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                parts = json.loads((opened.metadata() or {}).get(_PIECES, "{}"))
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if not name.startswith(LOCAL):
                        self._add(found, file, name, opened.get_slice(name), parts.get(name))
        return Metadata(state_dict_metadata=dict(found), storage_data=self._places)

    def _add(
        self,
        found: dict[str, TensorStorageMetadata],
        file: Path,
        name: str,
        piece: Any,
        part: dict[str, Any] | None,
    ) -> None:
        sizes = torch.Size(piece.get_shape())
        tensor, offsets, whole = name, torch.Size([0] * len(sizes)), sizes
        if part is not None:
            tensor, offsets, whole = part["tensor"], torch.Size(part["offsets"]), torch.Size(part["shape"])
        entry = found.setdefault(
            tensor,
            TensorStorageMetadata(TensorProperties(dtype=_BY_NAME[piece.get_dtype()]), size=whole, chunks=[]),
        )
        entry.chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=sizes))
        self._places[MetadataIndex(tensor, offsets)] = (file, name)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copies the planned boxes into the tensors that they are for."""
        by_file: dict[Path, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self._places[item.storage_index][0], []).append(item)
        for file, items in by_file.items():
            with safe_open(file, framework="pt") as opened:
                for item in items:
                    name = self._places[item.storage_index][1]
                    box = tuple(
                        slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    read = opened.get_slice(name)[box] if box else opened.get_tensor(name)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(read)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Part of the protocol; one reader reads one directory."""

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Part of the protocol; `read_metadata` has set all up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add to a plan."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add to the plans of all ranks."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is a directory of such files."""
        return any(Path(checkpoint_id).glob("rank_*.safetensors"))
