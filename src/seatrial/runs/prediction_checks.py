"""What a prediction file must hold for a comparison to mean something; checked on writing and on reading."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seatrial.errors import SpecError
from seatrial.spec.run import is_classification

Table: TypeAlias = Any
"""A ``pyarrow.Table``; pyarrow ships no types."""

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
# Loose enough for probabilities computed in bfloat16, tight enough to catch logits and unsorted columns.
_SUM_TOLERANCE = 0.02
_TOP_TOLERANCE = 1e-3


def refusal(path: Path, evidence: str, remedy: str = "") -> SpecError:
    """The error for a file that is there and can't be used."""
    return SpecError(
        f"{path} is not a usable prediction file",
        evidence=evidence,
        remedy=remedy or "seatrial predict    (writes it again)",
    )


def check_rows(
    path: Path,
    table: Table,
    task: str,
    labels: tuple[str, ...] | None,
    num_samples: int,
    *,
    whole: bool = True,
) -> None:
    """Raises `SpecError` at the first thing that would make a comparison meaningless; `whole`: these are all rows."""
    schema = _schema(path, task, labels)
    for name, expected in schema.items():
        if name not in table.column_names:
            raise refusal(path, f"column {name!r} is missing; it has: {', '.join(table.column_names)}")
        if table.schema.field(name).type != expected:
            raise refusal(path, f"column {name!r} is {table.schema.field(name).type}, not {expected}")
        if table.column(name).null_count:
            raise refusal(path, f"column {name!r} lacks {table.column(name).null_count} values")
    if table.num_rows == 0:
        raise refusal(path, "it has no rows")
    if table.num_rows != num_samples:
        raise refusal(path, f"it has {table.num_rows} rows; its metadata says {num_samples}")
    _check_ids(path, table.column("id"))
    if labels is not None:
        _check_classification(path, labels, table)
    else:
        _check_language(path, table, whole=whole)


def _schema(path: Path, task: str, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """The columns of a task and their Arrow types."""
    if task == "causal-lm" and labels is None:
        return {"id": pa.string(), "num_tokens": pa.int64(), "nll": pa.float64()}
    if is_classification(task) and labels is not None:
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise refusal(path, f"its labels are not two or more different names: {list(labels)}")
        probabilities = pa.list_(pa.float32(), len(labels))
        return {
            "id": pa.string(),
            "label": _DICTIONARY,
            "prediction": _DICTIONARY,
            "probabilities": probabilities,
        }
    known = "known are text-classification and image-classification with labels, and causal-lm without"
    raise refusal(path, f"its task is {task!r}, its labels are {labels}; {known}")


def _check_ids(path: Path, ids: Any) -> None:
    # Sorting is several times faster than a hash table where the ids are nearly in order, as they mostly are.
    ordered = ids.take(pc.sort_indices(ids)).combine_chunks()
    repeated = ordered[1:].filter(pc.equal(ordered[1:], ordered[:-1]))
    if len(repeated):
        examples = ", ".join(map(repr, repeated.unique()[:3].to_pylist()))
        raise refusal(path, f"{len(repeated)} rows repeat an id, such as {examples}")


def _check_classification(path: Path, labels: tuple[str, ...], table: Table) -> None:
    for name in ("label", "prediction"):
        unknown = sorted(set(pc.unique(table.column(name)).cast(pa.string()).to_pylist()) - set(labels))
        if unknown:
            raise refusal(path, f"column {name!r} holds {unknown[:3]}; the labels are {list(labels)}")
    probabilities = probability_matrix(table.column("probabilities"), len(labels))
    # NaN fails every comparison, so each test asks for what must hold.
    sound = np.abs(probabilities @ np.ones(len(labels), np.float32) - 1) <= _SUM_TOLERANCE
    if not probabilities.min() >= 0:
        sound &= (probabilities >= 0).all(axis=1)
    if not sound.all():
        row = int(np.argmin(sound))
        raise refusal(
            path,
            f"{int((~sound).sum())} rows have probabilities that are NaN, negative or don't add up to 1, "
            f"such as {table.column('id')[row].as_py()!r}: {probabilities[row, :5].tolist()}",
        )
    predicted = label_codes(table.column("prediction"), labels)
    of_predicted = probabilities[np.arange(len(predicted)), predicted]
    other = of_predicted < largest_of_rows(probabilities) - _TOP_TOLERANCE
    if other.any():
        row = int(np.argmax(other))
        raise refusal(
            path,
            f"in {int(other.sum())} rows the prediction is not the most probable class, such as "
            f"{table.column('id')[row].as_py()!r}: are the columns in the order of the labels?",
        )


def _check_language(path: Path, table: Table, *, whole: bool) -> None:
    nll = table.column("nll").to_numpy()
    num_tokens = table.column("num_tokens").to_numpy()
    for what, bad in (
        ("an nll that is NaN, infinite or negative", ~(np.isfinite(nll) & (nll >= 0))),
        ("a negative number of tokens", num_tokens < 0),
        ("an nll without a token", (num_tokens == 0) & (nll > 0)),
    ):
        if bad.any():
            example = table.column("id")[int(np.argmax(bad))].as_py()
            raise refusal(path, f"{int(bad.sum())} rows have {what}, such as {example!r}")
    if whole and not num_tokens.any():
        raise refusal(path, "no sample has a target token")


def label_codes(column: Any, labels: Sequence[str]) -> npt.NDArray[np.int32]:
    """A dictionary column ``[n]`` as indices into `labels`, whatever the order of its own dictionary."""
    array = column.unify_dictionaries().combine_chunks()
    position = {label: i for i, label in enumerate(labels)}
    # A dictionary may list values that no row uses; -1 stands for those.
    codes = np.array([position.get(value, -1) for value in array.dictionary.to_pylist()], dtype=np.int32)
    taken: npt.NDArray[np.int32] = codes[array.indices.to_numpy(zero_copy_only=False)]
    return taken


def probability_matrix(column: Any, num_classes: int) -> npt.NDArray[np.float32]:
    """A fixed_size_list column as ``float32[n, num_classes]``."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat: npt.NDArray[np.float32] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return flat.reshape(-1, num_classes)


def largest_of_rows(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The largest value of each row, ``[n]``."""
    largest: npt.NDArray[np.float32]
    if probabilities.shape[1] > 32:
        largest = probabilities.max(axis=1)
    else:  # NumPy is several times slower along a short axis than along a long one.
        largest = reduce(np.maximum, probabilities.T)
    return largest
