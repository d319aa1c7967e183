"""From a data spec to samples: two splits with ids, texts or images, and labels, checked before anything is trained.

Columns are found by name, labels become indices, limits are drawn by the seed, and what is trained on and what is
held out each get a hash. Whatever is wrong with the data is said here, once, on whichever machine asks first.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seatrial.errors import SpecError
from seatrial.job import image_files
from seatrial.job.sources import HELD_OUT_NAMES, checked_hub, hub_state, open_hub, opened
from seatrial.spec.run import DataSpec, Task, is_classification

if TYPE_CHECKING:
    import datasets  # a second of imports, which a rank that maps tokenised data need not pay: see the functions

TEXT_NAMES = ("text", "sentence", "content", "review", "document", "body", "prompt")
IMAGE_NAMES = (
    "image",
    "img",
    "images",
    "picture",
    "photo",
    "pixel_values",
    "pixels",
    "image_path",
    "file_name",
)
LABEL_NAMES = ("label", "labels", "class", "category", "target")


@dataclass(frozen=True, slots=True)
class Samples:
    """One split. Lists of equal length."""

    split: str
    ids: list[str]
    texts: list[str]
    """Of images, which are as good as equal exactly when these are: the SHA-256 of each one's encoded bytes."""
    labels: np.ndarray
    """int64 indices into `Data.labels`; empty for tasks without labels."""
    images: image_files.Images | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def sha256(self, names: tuple[str, ...]) -> str:
        """Of ids, texts and label names, in order; equal exactly when the samples are."""
        digest = hashlib.sha256()
        for i, (key, text) in enumerate(zip(self.ids, self.texts, strict=True)):
            label = names[self.labels[i]] if len(self.labels) else ""
            for part in (key, text, label):
                encoded = part.encode("utf-8", "surrogatepass")
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Data:
    """Both splits of a run."""

    train: Samples
    test: Samples
    labels: tuple[str, ...]
    facts: dict[str, Any]
    """For the manifest: source, columns, sizes, hashes, overlap."""


def load_data(spec: DataSpec, task: Task, seed: int) -> Data:
    """Both splits, ready to be tokenised or resized.

    Args:
        spec: where the samples are and what their columns are called.
        task: a classification needs labels.
        seed: draws the split (where there is one split only) and the limited samples.

    Raises:
        SpecError: whatever is wrong with the data: missing, empty, without the column, one class only, labels
            that training never saw, rows without text or image, duplicate ids.
    """
    train_raw, test_raw = _two_splits(opened(spec, task, seed), spec, seed)
    columns = _columns(train_raw, spec, task)
    names: tuple[str, ...] = ()
    if is_classification(task):
        names = _label_names(train_raw, columns["label"])
    base = _base(spec)
    train = _samples(train_raw, "train", columns, names, spec.train_samples, seed, base)
    test = _samples(test_raw, "test", columns, names, spec.test_samples, seed, base)
    if is_classification(task):
        _check_classes(train, names)
    seen = set(train.texts)
    facts = {
        "source": spec.path,
        "columns": columns,
        "labels": list(names),
        "train": {"num_samples": len(train), "sha256": train.sha256(names)},
        "test": {"num_samples": len(test), "sha256": test.sha256(names)},
        "held_out_texts_seen_in_training": sum(text in seen for text in test.texts),
    }
    return Data(train, test, names, facts)


def load_held_out(spec: DataSpec, task: Task, names: tuple[str, ...]) -> Samples:
    """Samples of other data, for a model whose class names are known: the held-out split, or all there is.

    Raises:
        SpecError: as `load_data`; a label that is not among `names`.
    """
    splits = {name: _with_rows(split) for name, split in opened(spec, task).items()}
    split = (
        next(iter(splits.values())) if len(splits) == 1 else splits[spec.test or _held_out_name(splits, spec)]
    )
    return _samples(split, "test", _columns(split, spec, task), names, spec.test_samples, 0, _base(spec))


def source_state(spec: DataSpec) -> list[list[Any]]:
    """What changes whenever the data may have changed, found without reading it.

    Returns:
        A row a file: path, size and times; for a hub id, a row a split with the fingerprint of the copy in the cache.

    Raises:
        SpecError: there is no such data.
    """
    path = Path(spec.path).expanduser()
    if path.is_dir():
        return [_file_state(file) for file in sorted(path.rglob("*")) if file.is_file()]
    if path.is_file():
        return [_file_state(path)]
    if spec.streaming:
        return [[hub_state(checked_hub(spec))]]
    return [[name, split._fingerprint] for name, split in sorted(open_hub(checked_hub(spec)).items())]


def _file_state(path: Path) -> list[Any]:
    found = path.stat()
    return [str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _check_classes(train: Samples, names: tuple[str, ...]) -> None:
    counts = np.bincount(train.labels, minlength=len(names))
    present = [f"{names[i]!r} ({n} samples)" for i, n in enumerate(counts) if n]
    if len(present) < 2:
        raise SpecError(
            "the training data has one class only",
            evidence=f"every training sample is {present[0]}",
            remedy="a sorted file cut by train_samples looks like this; check data.label and the file",
        )


def _base(spec: DataSpec) -> Path:
    """What relative paths of a column start from."""
    path = Path(spec.path).expanduser().absolute()
    return path.parent if path.is_file() else path


# --- splits and columns ----------------------------------------------------------------------------------------


def _two_splits(
    splits: dict[str, datasets.Dataset], spec: DataSpec, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    splits = {name: _with_rows(split) for name, split in splits.items()}
    if set(splits) == {""} or (set(splits) == {"train"} and spec.test is None):
        whole = next(iter(splits.values()))
        if len(whole) < 2:
            raise SpecError("one sample can't be split into training and held-out data", evidence=spec.path)
        order = np.random.default_rng([seed, 1]).permutation(len(whole))
        held_out = max(1, round(len(whole) * spec.test_fraction))
        return whole.select(np.sort(order[held_out:])), whole.select(np.sort(order[:held_out]))
    train_name = spec.train or "train"
    test_name = spec.test or _held_out_name(splits, spec)
    for name in (train_name, test_name):
        if name not in splits:
            raise SpecError(
                f"the data has no split {name!r}", evidence=f"{spec.path} has: {', '.join(splits)}",
                remedy="data.train=SPLIT data.test=SPLIT",
            )  # fmt: skip
    if train_name == test_name:
        raise SpecError("training and held-out split are the same", evidence=f"both are {train_name!r}")
    return splits[train_name], splits[test_name]


def _with_rows(split: datasets.Dataset) -> datasets.Dataset:
    """Adds each sample's row number in its split, which stays with it when samples are drawn."""
    return split.add_column("__row__", np.arange(len(split)))


def _held_out_name(splits: dict[str, datasets.Dataset], spec: DataSpec) -> str:
    there = [name for name in HELD_OUT_NAMES if name in splits]
    for name in there:
        label = spec.label or next((c for c in LABEL_NAMES if c in splits[name].column_names), None)
        # Public benchmarks hide the labels of their test split: all are -1.
        if label is None or splits[name].unique(label) != [-1]:
            return name
    raise SpecError(
        "the data has no held-out split",
        evidence=f"{spec.path} has: {', '.join(splits)}"
        + (f"; {there[0]} has no labels (all -1)" if there else ""),
        remedy="add test.* beside train.*, or name a split: data.test=SPLIT",
    )


def _columns(split: datasets.Dataset, spec: DataSpec, task: Task) -> dict[str, str]:
    wanted: dict[str, tuple[str | None, tuple[str, ...]]] = {"text": (spec.text, TEXT_NAMES)}
    if task == "image-classification":
        wanted = {"image": (spec.image, IMAGE_NAMES)}
    if is_classification(task):
        wanted["label"] = (spec.label, LABEL_NAMES)
    if spec.id is not None:
        wanted["id"] = (spec.id, ())
    there = [name for name in split.column_names if not name.startswith("__")]
    found = {}
    for role, (chosen, plain) in wanted.items():
        name = chosen or next((candidate for candidate in plain if candidate in there), None)
        if name is None or name not in there:
            raise SpecError(
                f"the data has no column {name!r}" if name else f"the data has no plain {role} column",
                evidence=f"{spec.path} has the columns: {', '.join(there)}",
                remedy=f"data.{role}=COLUMN",
            )
        found[role] = name
    if image_files.PATH_COLUMN in split.column_names:
        found.setdefault("id", image_files.PATH_COLUMN)
    return found


# --- rows ------------------------------------------------------------------------------------------------------


def _label_names(split: datasets.Dataset, column: str) -> tuple[str, ...]:
    import datasets

    feature = split.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = split.unique(column)
    odd = [v for v in values if not isinstance(v, str | int | bool)]
    if odd:
        raise SpecError(
            f"the label column {column!r} does not hold classes",
            evidence=f"it has {odd[0]!r} ({type(odd[0]).__name__})"
            + (": a row without a label" if None in odd else ""),
            remedy="labels are words or whole numbers: data.label=COLUMN",
        )
    return tuple(str(v) for v in sorted(values, key=lambda v: (isinstance(v, str), v)))


def _samples(
    split: datasets.Dataset,
    role: str,
    columns: dict[str, str],
    names: tuple[str, ...],
    limit: int | None,
    seed: int,
    base: Path,
) -> Samples:
    if limit is not None and limit < len(split):
        drawn = np.random.default_rng([seed, 2]).permutation(len(split))[:limit]
        split = split.select(np.sort(drawn))
    rows = split["__row__"][:]
    images = image_files.Images(split, columns["image"], base) if "image" in columns else None
    texts = split[columns["text"]][:] if images is None else images.hashes()
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if bad:
        raise SpecError(
            f"{len(bad)} {role} samples have no text",
            evidence=f"the first is row {rows[bad[0]]}: {texts[bad[0]]!r} in column {columns['text']!r}",
            remedy="remove those rows, or name another column: data.text=COLUMN",
        )
    ids = (
        [str(v) for v in split[columns["id"]][:]]
        if "id" in columns
        else [f"{role}-{row:07d}" for row in rows]
    )
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise SpecError(
            f"ids of {role} samples are not unique",
            evidence=f"{len(repeated)} ids appear more than once, such as {repeated[0]!r}",
            remedy="data.id=ANOTHER, or leave it out: rows are numbered then",
        )
    labels = np.empty(0, dtype=np.int64)
    if names:
        labels = _label_indices(split, columns["label"], names, role)
    return Samples(role, ids, texts, labels, images)


def _label_indices(split: datasets.Dataset, column: str, names: tuple[str, ...], role: str) -> np.ndarray:
    import datasets

    values = split[column][:]
    if isinstance(split.features[column], datasets.ClassLabel):
        values = [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in values]
    index = {name: i for i, name in enumerate(names)}
    unknown = Counter(str(v) for v in values if str(v) not in index)
    if unknown:
        listed = ", ".join(f"{label!r} ({count} samples)" for label, count in unknown.most_common(5))
        raise SpecError(
            f"the {role} split has labels that training never saw",
            evidence=f"{listed}; training has: {', '.join(names[:12])}",
            remedy="map or remove those samples, or check data.label",
        )
    return np.asarray([index[str(v)] for v in values], dtype=np.int64)


def quiet_libraries() -> None:
    """Progress bars and advice of libraries do not belong into a rank's log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
