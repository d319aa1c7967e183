"""Predictions while they are being made: parts that survive a kill, and the one file that comes of them.

    predictions/.trained.parts/key.json                     what the parts are about
    predictions/.trained.parts/000000000017-<hash>.arrow    rows and their results, one file every few seconds and rank

A part is written aside, synced and renamed, and bears a hash of its bytes in its name: whatever is there counts, or is
thrown away. The rows of a part are in the order in which they were computed; the file that is made of all parts has
them in the order of the samples, a group of rows at a time, from parts that are mapped, not read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from seatrial.errors import PlatformError
from seatrial.job.reporter import Reporter
from seatrial.job.token_cache import Split
from seatrial.job.world import World
from seatrial.runs.evidence import Verdict
from seatrial.runs.files import read_json, replacing, write_json
from seatrial.runs.predictions import PredictionsInfo, classification_table, language_table

FLUSH_S = 5.0
"""What a kill costs at most, besides the batch at hand."""
_GROUP = 2**16
"""Rows of the finished file that are in memory together."""
_HASH_DIGITS = 16


def parts_directory(target: Path) -> Path:
    """Where the parts of a prediction file lie until it is whole."""
    return target.with_name(f".{target.stem}.parts")


class Parts:
    """What one rank adds, and what all ranks and the attempts before have added."""

    def __init__(self, target: Path, info: PredictionsInfo, world: World) -> None:
        """All ranks call this. Parts that are about something else, or damaged, are deleted."""
        self._directory, self._world = parts_directory(target), world
        found: list[Any] = [None]
        if world.is_main:
            self._claim(json.loads(info.to_json()))
            found[0] = np.packbits(self._rows_there(info.num_samples))
        dist.broadcast_object_list(found)
        self.done: np.ndarray = np.unpackbits(found[0], count=info.num_samples).astype(bool)
        """bool [samples]: predicted by an attempt before."""
        self._rows: list[np.ndarray] = []
        self._values: list[torch.Tensor] = []
        self._generations: list[str] = []
        self._flushed = -FLUSH_S  # the first batch at once: a disk without room shows before an hour's work

    def add(self, rows: np.ndarray, values: torch.Tensor, generations: list[str]) -> None:
        """Results of a batch; they may still be on their way on the device. Written down every few seconds.

        Args:
            rows: int64 [n] of the split.
            values: float32 [n, classes] probabilities, or float64 [n] nats of each sample.
            generations: [n] texts, or empty when none were asked for.
        """
        self._rows.append(rows)
        self._values.append(values)
        self._generations += generations
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes down what was added since the last time."""
        if self._rows:
            values = torch.cat(self._values).cpu().numpy()
            columns = {"row": pa.array(np.concatenate(self._rows)), "value": _array(values)}
            if self._generations:
                columns["generation"] = pa.array(self._generations, pa.string())
            _write_part(self._directory, int(self._rows[0][0]), pa.record_batch(columns))
        self._rows, self._values, self._generations = [], [], []
        self._flushed = time.monotonic()

    def remove(self) -> None:
        """Once the prediction file is whole."""
        shutil.rmtree(self._directory)

    def whole(self, num_samples: int, reporter: Reporter, name: str) -> tuple[Any, np.ndarray]:
        """All parts as one mapped table, and for each sample where in it its result is.

        Raises:
            PlatformError: a sample is missing or came twice.
        """
        files = _files(self._directory)
        table = pa.concat_tables([_mapped(path) for path in files])
        rows = table["row"].to_numpy()
        times = np.bincount(rows, minlength=num_samples)
        exact = len(times) == num_samples and bool((times == 1).all())
        reporter.evidence(
            f"predictions_cover_{name}", Verdict.PASS if exact else Verdict.FAIL, measured=len(rows),
            expected=num_samples, unit="samples", source=f"{len(files)} parts of {self._world.world_size} ranks",
            message=f"{name}: each of {num_samples} held-out samples was predicted exactly once"
            if exact else f"{name}: {int((times == 0).sum())} samples missing, {int((times > 1).sum())} repeated",
        )  # fmt: skip
        if not exact:
            raise PlatformError(
                f"the predictions of {name} are not whole", evidence=f"{len(rows)} rows, {num_samples} samples",
                remedy=f"rm -r {self._directory}    (then predict again)",
            )  # fmt: skip
        places = np.empty(num_samples, np.int64)
        places[rows] = np.arange(num_samples)
        return table, places

    def _claim(self, key: dict[str, Any]) -> None:
        path = self._directory / "key.json"
        if self._directory.exists() and _read_key(path) != key:
            shutil.rmtree(self._directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        write_json(path, key)

    def _rows_there(self, num_samples: int) -> np.ndarray:
        done = np.zeros(num_samples, bool)
        for path in _files(self._directory):
            if _hash(path.read_bytes()) != path.stem.rpartition("-")[2]:
                path.unlink()
                continue
            done[_mapped(path)["row"].to_numpy()] = True
        return done


def groups(table: Any, places: np.ndarray, split: Split, labels: tuple[str, ...]) -> Iterator[Any]:
    """The rows of the prediction file in the order of the samples, some at a time; see `runs.predictions`."""
    for start in range(0, len(split), _GROUP):
        stop = min(start + _GROUP, len(split))
        part = table.take(places[start:stop]).combine_chunks()
        ids, texts = split.ids[start:stop], split.texts[start:stop]
        values = part["value"].chunk(0)
        if labels:
            probabilities = values.flatten().to_numpy().reshape(-1, len(labels))
            yield classification_table(
                ids, split.tokens.labels[start:stop], probabilities.argmax(1), probabilities, labels, texts
            )
        else:
            generations = part["generation"] if "generation" in part.column_names else None
            yield language_table(ids, split.tokens.targets[start:stop], values.to_numpy(), texts, generations)


def _array(values: np.ndarray) -> Any:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _write_part(directory: Path, first_row: int, batch: Any) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    with replacing(directory / f"{first_row:012d}-{_hash(content)}.arrow") as aside:
        aside.write_bytes(content)


def _mapped(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.arrow") if not path.name.startswith("."))


def _hash(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]


def _read_key(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError:
        return None
