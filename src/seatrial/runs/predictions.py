"""``predictions/<model>.parquet``: what one model said about each held-out sample, one row a sample.

    text-classification, image-classification   id, label, prediction, probabilities [, text]
    causal-lm                                   id, num_tokens, nll [, text] [, generation]

The rows are in no particular order; two files are joined by ``id``. What the file is about (task, labels,
which samples, which model) is JSON in the Parquet metadata under ``seatrial``. The functions
`classification_table` and `language_table` build the rows; `write_predictions` (a whole table), `stream_predictions`
(a part of the rows at a time) and `read_predictions` check them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seatrial.errors import SpecError
from seatrial.runs.files import replacing
from seatrial.runs.prediction_checks import Table, check_rows, refusal

SCHEMA = 1
METADATA_KEY = b"seatrial"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionsInfo:
    """What a prediction file is about."""

    task: str
    """``text-classification``, ``image-classification`` or ``causal-lm``."""
    labels: tuple[str, ...] | None
    """The classes, in the order of the columns of ``probabilities``; None for causal-lm."""
    data_sha256: str
    """Of the held-out samples: equal in two files only if they were predicted on the same data."""
    model_name: str
    model_sha256: str
    """Of the model's weights."""
    run_id: str
    split: str
    num_samples: int
    options: dict[str, Any] = field(default_factory=dict)
    """What else decides about the rows: precision, how texts were continued. Plain data."""

    def to_json(self) -> str:
        """The text stored in the file's metadata."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "task": self.task,
                "labels": None if self.labels is None else list(self.labels),
                "data_sha256": self.data_sha256,
                "model": {"name": self.model_name, "sha256": self.model_sha256},
                "run_id": self.run_id,
                "split": self.split,
                "num_samples": self.num_samples,
                "options": self.options,
            }
        )


def classification_table(
    ids: Sequence[str],
    label: npt.NDArray[np.integer[Any]],
    prediction: npt.NDArray[np.integer[Any]],
    probabilities: npt.NDArray[np.floating[Any]],
    labels: Sequence[str],
    text: Sequence[str | None] | None = None,
) -> Table:
    """The rows of a file of a classification.

    Args:
        ids: ``[n]``, unique.
        label: ``[n]``, the true class as an index into `labels`.
        prediction: ``[n]``, the most probable class as an index into `labels`.
        probabilities: ``[n, num_classes]``, columns in the order of `labels`.
        labels: the names of the classes.
        text: ``[n]``, an excerpt of each text, or the id of each image, for people.
    """
    flat = pa.array(np.ascontiguousarray(probabilities, dtype=np.float32).reshape(-1))
    columns = {
        "id": pa.array(ids, pa.string()),
        "label": _dictionary(label, labels),
        "prediction": _dictionary(prediction, labels),
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, len(labels)),
    }
    return pa.table(columns | _text_column(text))


def language_table(
    ids: Sequence[str],
    num_tokens: npt.NDArray[np.integer[Any]],
    nll: npt.NDArray[np.floating[Any]],
    text: Sequence[str | None] | None = None,
    generation: Sequence[str] | None = None,
) -> Table:
    """The rows of a causal-lm file.

    Args:
        ids: ``[n]``, unique.
        num_tokens: ``[n]``, the predicted tokens of each sample; 0 for a text too short to have any.
        nll: ``[n]``, negative log-likelihood in nats, summed over those tokens.
        text: ``[n]``, an excerpt of each sample for people.
        generation: ``[n]``, how the model went on from each prompt.
    """
    columns = {
        "id": pa.array(ids, pa.string()),
        "num_tokens": pa.array(num_tokens, pa.int64()),
        "nll": pa.array(nll, pa.float64()),
    }
    more = {} if generation is None else {"generation": pa.array(generation, pa.string())}
    return pa.table(columns | _text_column(text) | more)


def write_predictions(path: Path, table: Table, info: PredictionsInfo) -> None:
    """Checks the rows, then writes them beside `path`, syncs and renames.

    Raises:
        SpecError: the rows are not what `info` says, or hold what `read_predictions` would refuse.
    """
    check_rows(path, table, info.task, info.labels, info.num_samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside, _writer(aside, table.schema, info) as writer:
        writer.write_table(table)


def stream_predictions(path: Path, groups: Iterable[Table], info: PredictionsInfo) -> None:
    """As `write_predictions`, with one group of rows in memory at a time; a group of the file each.

    That no id comes twice is checked within a group only: the caller knows that its samples are different ones.

    Raises:
        SpecError: as `write_predictions`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    num_rows, num_targets = 0, 0
    with replacing(path) as aside, contextlib.ExitStack() as stack:
        writer = None
        for group in groups:
            check_rows(path, group, info.task, info.labels, group.num_rows, whole=False)
            writer = writer or stack.enter_context(_writer(aside, group.schema, info))
            writer.write_table(group)
            num_rows += group.num_rows
            num_targets += 1 if info.labels is not None else int(group["num_tokens"].to_numpy().sum())
        if num_rows != info.num_samples or num_rows == 0:
            raise refusal(path, f"{num_rows} rows came; {info.num_samples} samples were announced")
        if num_targets == 0:
            raise refusal(path, "no sample has a target token")


def read_info(path: Path) -> PredictionsInfo:
    """What the file says that it is about; its rows are not looked at.

    Raises:
        SpecError: the file is missing, or is not a prediction file.
    """
    with _opened(path) as file:
        return _parse_info(path, (file.schema_arrow.metadata or {}).get(METADATA_KEY))


def read_predictions(path: Path, *, with_text: bool = True) -> tuple[PredictionsInfo, Table]:
    """What the file is about, and its rows.

    Args:
        path: a file from `write_predictions`.
        with_text: False leaves the excerpts on disk; `read_texts` fetches single ones.

    Raises:
        SpecError: the file is missing, is not a prediction file, has another schema, is empty, repeats an
            id, lacks a value, or holds numbers that cannot be probabilities or likelihoods.
    """
    with _opened(path) as file:
        info = _parse_info(path, (file.schema_arrow.metadata or {}).get(METADATA_KEY))
        names = [n for n in file.schema_arrow.names if with_text or n != "text"]
        try:
            table = file.read(columns=names)
        except (pa.ArrowException, OSError) as error:
            raise refusal(path, f"its rows can't be read: {error}") from error
    check_rows(path, table, info.task, info.labels, info.num_samples)
    return info, table


def read_texts(path: Path, rows: Sequence[int]) -> list[str | None]:
    """The excerpts of a few rows, by row number in the file; None where there is none."""
    with _opened(path) as file:
        if "text" not in file.schema_arrow.names:
            return [None] * len(rows)
        texts: dict[int, str | None] = {}
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        start = 0
        # A batch at a time: the excerpts of millions of samples need not be in memory at once.
        for batch in file.iter_batches(columns=["text"]):
            here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
            texts.update((int(row), batch.column(0)[int(row) - start].as_py()) for row in here)
            start += batch.num_rows
        return [texts[row] for row in rows]


def _dictionary(codes: npt.NDArray[np.integer[Any]], labels: Sequence[str]) -> Any:
    indices = pa.array(np.asarray(codes, dtype=np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array(labels, pa.string()))


def _writer(path: Path, schema: Any, info: PredictionsInfo) -> Any:
    dictionaries = [name for name in ("label", "prediction") if name in schema.names]
    schema = schema.with_metadata({METADATA_KEY: info.to_json()})
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionaries)


def _text_column(text: Sequence[str | None] | None) -> dict[str, Any]:
    return {} if text is None else {"text": pa.array(text, pa.string())}


def _opened(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise SpecError(
            f"there is no prediction file {path}",
            evidence="no such file",
            remedy="seatrial predict    (writes it)",
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise refusal(path, f"not Parquet: {error}") from error


def _parse_info(path: Path, raw: bytes | None) -> PredictionsInfo:
    if raw is None:
        raise refusal(path, "Parquet, but without the 'seatrial' metadata of a prediction file")
    try:
        data = json.loads(raw)
        if data["schema"] != SCHEMA:
            raise refusal(
                path,
                f"it has schema {data['schema']!r}; this version reads schema {SCHEMA}",
                "use the Seatrial version that wrote it, or write it again with seatrial predict",
            )
        labels = data["labels"]
        return PredictionsInfo(
            task=str(data["task"]),
            labels=None if labels is None else tuple(str(label) for label in labels),
            data_sha256=str(data["data_sha256"]),
            model_name=str(data["model"]["name"]),
            model_sha256=str(data["model"]["sha256"]),
            run_id=str(data["run_id"]),
            split=str(data["split"]),
            num_samples=int(data["num_samples"]),
            options=dict(data.get("options", {})),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise refusal(path, f"its metadata is broken: {type(error).__name__}: {error}") from error
