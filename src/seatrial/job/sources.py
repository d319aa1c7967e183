"""From a data spec to data sets by split, wherever they are: a file, a directory, folders of images, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seatrial.errors import SpecError
from seatrial.job import image_files
from seatrial.spec.run import DataSpec, Task

if TYPE_CHECKING:
    import datasets  # a second of imports, which a rank that maps tokenised data need not pay: see the functions

BUILDERS = {
    ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow",
    ".txt": "text",
}  # fmt: skip
HELD_OUT_NAMES = ("test", "validation", "valid", "dev", "val", "eval")
"""Splits that are held out when none is named, the first that has labels."""
_MULTI = {"glue", "super_glue"}  # hub ids whose configurations are commonly written as glue/sst2


_AHEAD = 10_000
"""Samples of a stream that are held to draw the next from."""


def opened(spec: DataSpec, task: Task, seed: int = 0) -> dict[str, datasets.Dataset]:
    """Splits by name; ``""`` is the name of the only one.

    Args:
        spec: where they are.
        task: images may lie in folders.
        seed: draws the samples of a stream.

    Raises:
        SpecError: there are none, or they can't be read.
    """
    path = Path(spec.path).expanduser()
    if spec.streaming:
        return _streamed(spec, seed)
    if path.is_dir():
        if task == "image-classification" and not _has_data_files(path):
            splits = (spec.train or "train", *filter(None, [spec.test]), *HELD_OUT_NAMES)
            return image_files.open_folders(path, splits)
        return _open_directory(path)
    if path.is_file():
        return {"": _open_file(path)}
    return open_hub(checked_hub(spec))


def checked_hub(spec: DataSpec) -> DataSpec:
    """The spec, unless its path can only be meant as one of this machine; raises `SpecError` then."""
    path = Path(spec.path).expanduser()
    if looks_local(spec.path):
        there = sorted(p.name for p in path.parent.iterdir())[:12] if path.parent.is_dir() else []
        raise SpecError(
            f"there is no data at {spec.path}",
            evidence=f"{path.parent.absolute()} has: {', '.join(there) or 'nothing, or is not there'}",
            remedy="data.path=FILE or DIRECTORY, or a hub id such as stanfordnlp/imdb",
        )
    return spec


def looks_local(name: str) -> bool:
    """Whether `name` can only be meant as a path: hub ids have at most one slash and no data suffix."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).suffix.lower() in BUILDERS


def _has_data_files(path: Path) -> bool:
    saved = (path / "dataset_dict.json", path / "state.json")
    return any(p.is_file() for p in saved) or any(
        p.stem == "train" and p.suffix.lower() in BUILDERS for p in path.iterdir()
    )


def _open_directory(path: Path) -> dict[str, datasets.Dataset]:
    import datasets

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = datasets.load_from_disk(str(path))
        return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    files = _split_files(path)
    if "train" not in files:
        raise SpecError(
            f"{path} has no training data",
            evidence=f"files there: {', '.join(sorted(p.name for p in path.iterdir())[:12]) or 'none'}",
            remedy="a data directory holds train.* and test.* or validation.* (csv, tsv, jsonl, parquet, arrow, txt)"
            + (
                "\n(images in folders of classes: --task image-classification)"
                if (path / "train").is_dir()
                else ""
            ),
        )
    return {name: _open_file(file) for name, file in files.items() if name in ("train", *HELD_OUT_NAMES)}


def _split_files(path: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(path.iterdir()) if p.suffix.lower() in BUILDERS}


def _streamed(spec: DataSpec, seed: int) -> dict[str, datasets.Dataset]:
    """As many samples of each split as are wanted, drawn on the way; what is not looked at stays where it is."""
    path = Path(spec.path).expanduser()
    if path.is_dir():
        files = _split_files(path)
        splits = {name: _file_stream(file) for name, file in files.items()}
    elif path.is_file():
        splits = {"train": _file_stream(path)}
    else:
        splits = open_hub(checked_hub(spec))
    train = spec.train or "train"
    test = spec.test or next((name for name in HELD_OUT_NAMES if name in splits), HELD_OUT_NAMES[0])
    for name in (train, test):
        if name not in splits:
            raise SpecError(
                f"the stream has no split {name!r}",
                evidence=f"{spec.path} has: {', '.join(splits)}; a stream is not split in two",
                remedy="data.train=SPLIT data.test=SPLIT, or data.streaming=false",
            )
    wanted = {train: spec.train_samples, test: spec.test_samples}
    try:
        return {name: _drawn(splits[name], int(count or 0), seed) for name, count in wanted.items()}
    except Exception as error:
        raise SpecError(
            f"the data at {spec.path} can't be read as a stream",
            evidence=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            remedy="data.streaming=false reads it whole",
        ) from error


def _file_stream(path: Path) -> datasets.IterableDataset:
    import datasets

    builder, options = _how_to_read(path)
    return datasets.load_dataset(
        builder, data_files={"train": str(path)}, split="train", streaming=True, **options
    )


def _drawn(stream: datasets.IterableDataset, count: int, seed: int) -> datasets.Dataset:
    import datasets

    rows = list(stream.shuffle(seed=seed, buffer_size=_AHEAD).take(count))
    return datasets.Dataset.from_list(rows, features=stream.features)


def _open_file(path: Path) -> datasets.Dataset:
    import datasets

    builder, options = _how_to_read(path)
    try:
        loaded = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except Exception as error:
        cause = error.__cause__ or error
        if "no data" in str(cause):  # a header without rows
            raise _no_rows(path) from error
        raise SpecError(
            f"the data file {path} can't be read as {builder}",
            evidence=f"{type(cause).__name__}: {str(cause).splitlines()[0][:300]}"
            if str(cause)
            else repr(cause),
        ) from error
    if builder == "text":
        loaded = loaded.filter(lambda row: bool(row["text"].strip()))
    if len(loaded) == 0:
        raise _no_rows(path)
    return loaded


def _how_to_read(path: Path) -> tuple[str, dict[str, Any]]:
    """The builder of `datasets` for a file, and its options."""
    builder = BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise SpecError(
            f"{path.name} is not a data file that can be read",
            evidence=f"suffix {path.suffix or '(none)'}; known: {', '.join(BUILDERS)}",
        )
    if path.stat().st_size == 0:
        raise SpecError(f"the data file {path} is empty", evidence="0 bytes", remedy="data.path=ANOTHER")
    options: dict[str, Any] = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    if builder == "csv":
        # Without these, pandas reads the words NA, null and None as missing, and texts vanish.
        options |= {"keep_default_na": False, "na_values": [""]}
    return builder, options


def _no_rows(path: Path) -> SpecError:
    return SpecError(f"the data file {path} has no rows", evidence=f"{path.stat().st_size} bytes, 0 samples")


def open_hub(spec: DataSpec) -> dict[str, datasets.Dataset]:
    """The splits of a hub id; raises `SpecError` where it can't be loaded."""
    import datasets

    name, subset = _hub_name(spec)
    try:
        return dict(datasets.load_dataset(name, subset, streaming=spec.streaming))
    except Exception as error:
        raise _unreachable(spec, error) from error


def hub_state(spec: DataSpec) -> str:
    """What changes when the files of a hub id do, without downloading them; raises as `open_hub`."""
    import datasets

    try:
        return str(datasets.load_dataset_builder(*_hub_name(spec)).hash)
    except Exception as error:
        raise _unreachable(spec, error) from error


def _hub_name(spec: DataSpec) -> tuple[str, str | None]:
    owner, _, rest = spec.path.partition("/")
    if owner in _MULTI and rest and spec.subset is None:
        return owner, rest
    return spec.path, spec.subset


def _unreachable(spec: DataSpec, error: Exception) -> SpecError:
    return SpecError(
        f"the data set {spec.path!r} could not be loaded from the hub",
        evidence=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        remedy="pass a local path: --data FILE.csv or a directory with train.* and test.*\n"
        "(or, for a hub id: check the name, the network and HF_ENDPOINT)",
    )
