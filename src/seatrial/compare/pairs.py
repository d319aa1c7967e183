"""Two prediction files joined sample by sample, or the reason why they can't be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seatrial.errors import SpecError
from seatrial.runs.prediction_checks import Table, label_codes
from seatrial.runs.predictions import PredictionsInfo, read_predictions

_REMEDY = "run both models over the same held-out samples: seatrial predict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two files, with its rows sorted by id."""

    path: Path
    info: PredictionsInfo
    table: Table
    """Without the excerpts."""
    file_rows: npt.NDArray[np.int64]
    """``[n]``: where each row of `table` stands in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The same samples through two models: row i of both tables is the same sample."""

    original: Side
    trained: Side

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return int(self.original.table.num_rows)


def load_pairs(original: Path, trained: Path) -> Pairs:
    """Reads both files and pairs their rows by id.

    Sorting by id makes every later step, random draws included, independent of the order of the rows.

    Raises:
        SpecError: either file is unusable, or the two are not about the same samples: another task, other
            classes, other data, other ids, other true labels or other numbers of tokens.
    """
    sides = _load(original), _load(trained)
    first, second = sides[0].info, sides[1].info
    _same(sides, "task", first.task, second.task)
    _same(sides, "labels", first.labels, second.labels)
    _same(sides, "held-out data (SHA-256)", first.data_sha256, second.data_sha256)
    _same_ids(sides)
    _same_truth(sides)
    return Pairs(original=sides[0], trained=sides[1])


def _load(path: Path) -> Side:
    info, table = read_predictions(path, with_text=False)
    rows: npt.NDArray[np.int64] = pc.sort_indices(table.column("id")).to_numpy().astype(np.int64)
    if not np.array_equal(rows, np.arange(len(rows))):
        table = table.take(rows)
    return Side(path=path, info=info, table=table, file_rows=rows)


def _refusal(sides: tuple[Side, Side], what: str, evidence: str) -> SpecError:
    return SpecError(
        f"the two prediction files {what}",
        evidence=f"original: {sides[0].path}\ntrained:  {sides[1].path}\n{evidence}",
        remedy=_REMEDY,
    )


def _same(sides: tuple[Side, Side], what: str, original: Any, trained: Any) -> None:
    if original != trained:
        shown = [list(value) if isinstance(value, tuple) else value for value in (original, trained)]
        raise _refusal(
            sides, f"have different {what}", f"original has {shown[0]!r}\ntrained has  {shown[1]!r}"
        )


def _same_ids(sides: tuple[Side, Side]) -> None:
    ids = [side.table.column("id") for side in sides]
    if ids[0].equals(ids[1]):
        return
    lines = []
    for name, mine, other in (("original", ids[0], ids[1]), ("trained", ids[1], ids[0])):
        alone = mine.filter(pc.invert(pc.is_in(mine, value_set=other.combine_chunks())))
        examples = ", ".join(map(repr, alone[:3].to_pylist()))
        lines.append(
            f"{len(alone)} of {len(mine)} ids are only in {name}" + (f": {examples}" if examples else "")
        )
    raise _refusal(sides, "are not about the same samples", "\n".join(lines))


def _same_truth(sides: tuple[Side, Side]) -> None:
    """What belongs to the sample and not to the model must be equal: its true label, its target tokens."""
    labels = sides[0].info.labels
    if labels is not None:
        what, remark = "true labels", ""
        values = [label_codes(side.table.column("label"), labels) for side in sides]
    else:
        what, remark = "numbers of tokens", "\nlikelihoods per token compare only under the same tokenizer"
        values = [side.table.column("num_tokens").to_numpy() for side in sides]
    differ = np.flatnonzero(values[0] != values[1])
    if len(differ):
        examples = ", ".join(map(repr, sides[0].table.column("id").take(pa.array(differ[:3])).to_pylist()))
        raise _refusal(
            sides,
            f"give the same samples different {what}",
            f"{len(differ)} of {len(values[0])} samples differ, such as {examples}{remark}",
        )
