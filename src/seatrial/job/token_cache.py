"""Tokenised texts and resized images on disk, to be mapped, not read: ``$SEATRIAL_CACHE`` or ``~/.cache/seatrial/tokens``.

    <key>/train.arrow test.arrow COMMITTED.json    an entry: Arrow IPC, one record batch a split
    <key>/train.npy test.npy                       of images: their pixels
    sources/<key>.json                             which entry belongs to which source, so that nothing is read again

An entry's name is a hash of all that decides what is in it. Entries are written aside and renamed, and checked against
the hashes of their files before they are used; what is damaged is made anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seatrial.errors import SpecError
from seatrial.job.images import Encoded, Images
from seatrial.job.tokens import Tokens
from seatrial.runs import commit
from seatrial.runs.files import read_json, write_json

VARIABLE = "SEATRIAL_CACHE"
CAP_BYTES = 20 * 2**30
"""Beyond so much, the entries that were used least recently are dropped."""
_KIND = "seatrial-tokens"
_ABANDONED_S = 24 * 3600


@dataclass(frozen=True)
class Split:
    """A split as models take it, with what is known of its samples."""

    ids: Any
    """``pyarrow.Array`` of strings."""
    texts: Any
    """``pyarrow.Array`` of strings: the beginnings of the texts, or the ids of the images, for people; None for a split
    nobody looks at."""
    tokens: Encoded

    def __len__(self) -> int:
        return len(self.tokens)


def cache_root() -> Path:
    """Where the entries lie."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/seatrial/tokens").expanduser().absolute()


def is_sound(key: str) -> bool:
    """Whether the entry is there, and every file has the bytes that were written. Reads them all."""
    path = cache_root() / key
    return commit.is_committed(path) and not commit.problems(path)


def write_entry(key: str, splits: dict[str, Split], cap_bytes: int = CAP_BYTES) -> None:
    """Makes an entry, in place of a damaged one; drops old entries when there are too many bytes of them.

    Raises:
        SpecError: the cache can't be written.
    """
    final = cache_root() / key
    with scratch(key) as aside:
        try:
            for name, split in splits.items():
                _write_split(aside / f"{name}.arrow", split)
            if not is_sound(key):
                shutil.rmtree(final, ignore_errors=True)
                _commit_unless_there(aside, final)
        except OSError as error:
            raise _unwritable(error) from error
    drop_old(cap_bytes, keep=key)


@contextlib.contextmanager
def scratch(key: str) -> Iterator[Path]:
    """A directory beside the entry, for what becomes part of it; gone after the block. Raises `SpecError` as `write_entry`."""
    path = cache_root() / f".{key}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(error) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def open_entry(key: str) -> dict[str, Split]:
    """The splits of a sound entry, mapped: the arrays are read from disk as they are touched."""
    path = cache_root() / key
    with contextlib.suppress(OSError):  # a cache that is read-only here keeps no account of its use
        (path / commit.MARKER).touch()
    return {file.stem: _map_split(file) for file in sorted(path.glob("*.arrow"))}


def drop_old(cap_bytes: int, keep: str) -> None:
    """Deletes entries from the one that was used longest ago on, until the rest has at most `cap_bytes`.

    Only what bears Seatrial's own marker is deleted, and what a builder that died a day ago left behind. On POSIX, a
    process that has mapped an entry keeps it.
    """
    root = cache_root()
    entries = []
    for path in root.iterdir():
        if path.name.startswith(".") and len(path.name.split(".")[1]) == len(keep):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)
            continue
        marker = commit.read_marker(path) if path.is_dir() else None
        if marker is not None and marker.get("kind") == _KIND:
            size = sum(file["bytes"] for file in marker["files"].values())
            entries.append(((path / commit.MARKER).stat().st_mtime, size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= cap_bytes:
            return
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True)
            total -= size


def remember(source: str, record: dict[str, Any]) -> None:
    """Notes which entry belongs to a source; the record is JSON. Raises `SpecError` as `write_entry`."""
    path = cache_root() / "sources" / f"{source}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise _unwritable(error) from error


def recall(source: str) -> dict[str, Any] | None:
    """What `remember` noted of a source, or None. A damaged note is none."""
    try:
        record = read_json(cache_root() / "sources" / f"{source}.json")
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _unwritable(error: OSError) -> SpecError:
    return SpecError(
        "the cache of prepared data can't be written",
        evidence=str(error),
        remedy=f"{VARIABLE}=DIRECTORY    (with room for it)",
    )


def _commit_unless_there(aside: Path, final: Path) -> None:
    try:
        commit.commit(aside, final, kind=_KIND)
    except OSError:
        if not commit.is_committed(final):  # else another process was as quick with the same entry
            raise


def _write_split(path: Path, split: Split) -> None:
    tokens = split.tokens
    columns, metadata = {"id": split.ids}, {"num_cut": str(tokens.num_cut)}
    if isinstance(tokens, Images):
        _write_pixels(path.with_suffix(".npy"), tokens.pixels)
        metadata["affine"] = json.dumps([tokens.scale.tolist(), tokens.shift.tolist()])
    else:
        columns["tokens"] = pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(tokens.ids))
    if len(tokens.labels):
        columns["label"] = pa.array(tokens.labels)
    if split.texts is not None:
        columns["text"] = split.texts
    batch = pa.record_batch(columns)
    schema = batch.schema.with_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _write_pixels(path: Path, pixels: np.ndarray) -> None:
    """A second name for the file that they are mapped from, or a file of their own."""
    try:
        os.link(pixels.filename, path)  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        np.save(path, pixels, allow_pickle=False)


def _map_split(path: Path) -> Split:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    batch = reader.get_batch(0)
    names = batch.schema.names
    labels = batch["label"].to_numpy() if "label" in names else np.empty(0, np.int64)
    metadata = batch.schema.metadata
    found: Encoded
    if b"affine" in metadata:
        pixels = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        scale, shift = (np.asarray(values, np.float32) for values in json.loads(metadata[b"affine"]))
        found = Images(pixels, labels, scale, shift)
    else:
        tokens = batch["tokens"]
        found = Tokens(tokens.values.to_numpy(), tokens.offsets.to_numpy(), labels, int(metadata[b"num_cut"]))
    return Split(batch["id"], batch["text"] if "text" in names else None, found)
