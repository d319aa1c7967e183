"""What a run is trained on and held to: its data, tokenised or resized once a machine and mapped by every rank.

The look at the data before the launch (`inspect`) makes the entry of the cache and hands its record to the run
(``inputs.json``); ranks map what the record names, and make it themselves only where the cache of the launcher's
machine isn't theirs. The record holds the hashes of the samples: a run goes on with its own data or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch.distributed as dist

from seatrial.errors import SpecError
from seatrial.job import data, token_cache
from seatrial.job.images import Encoded, Imaging
from seatrial.job.token_cache import Split
from seatrial.job.tokens import Tokens, parallel_tokenizers, tokenize, tokenizer_sha256
from seatrial.job.world import World
from seatrial.runs.files import read_json, write_json
from seatrial.runs.paths import RunPaths
from seatrial.spec.run import DataSpec, RunSpec, Task

_FORMAT = 1
_EXCERPT = 240
"""Characters of a held-out text that are kept, for people to read."""
_LONGEST_PREPARATION = timedelta(hours=12)


@dataclass(frozen=True)
class Wanted:
    """Samples, before anybody has looked for them."""

    spec: DataSpec
    task: Task
    seed: int
    classes: tuple[str, ...] | None = None
    """Of a model that is there: the held-out split alone is wanted, with labels among these. None: both splits."""

    def load(self) -> tuple[dict[str, data.Samples], tuple[str, ...], dict[str, Any]]:
        """Splits by name, class names, and facts for the manifest; raises as `data.load_data`."""
        if self.classes is None:
            found = data.load_data(self.spec, self.task, self.seed)
            return {"train": found.train, "test": found.test}, found.labels, found.facts
        test = data.load_held_out(self.spec, self.task, self.classes)
        facts = {"num_samples": len(test), "sha256": test.sha256(self.classes)}
        return {"test": test}, self.classes, {"source": self.spec.path, "test": facts}


class Encoding(Protocol):
    """How samples become what a model takes: `Tokenizing` or `images.Imaging`."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest sample."""

    def sha256(self) -> str:
        """Of all that decides what comes of a sample, besides `max_length`."""

    def encode(self, samples: data.Samples, scratch: Path) -> Encoded:
        """A split as the model takes it; what is large may lie in a file in `scratch`."""


@dataclass(frozen=True)
class Tokenizing:
    """How texts become tokens."""

    tokenizer: Any
    max_length: int

    def sha256(self) -> str:
        """Of the tokenizer."""
        return tokenizer_sha256(self.tokenizer)

    def encode(self, samples: data.Samples, scratch: Path) -> Tokens:
        """In memory."""
        with parallel_tokenizers():
            return tokenize(samples, self.tokenizer, self.max_length)


def encoding(task: Task, processor: Any, max_length: int) -> Encoding:
    """That of a task: by the model's image processor, or by its tokenizer."""
    return Imaging(processor) if task == "image-classification" else Tokenizing(processor, max_length)


@dataclass(frozen=True)
class Inputs:
    """Splits of one source, as models take them."""

    splits: dict[str, Split]
    labels: tuple[str, ...]
    facts: dict[str, Any]
    """As `data.Data.facts`, with ``num_cut`` of each split."""
    tokenizer_sha256: str
    """`Encoding.sha256`: of the tokenizer, or of the image processor."""
    max_length: int

    @property
    def test(self) -> Split:
        """What is held out."""
        return self.splits["test"]


def prepare(wanted: Wanted, how: Encoding) -> dict[str, Any]:
    """Finds the samples in the cache, or loads, checks and encodes them into it.

    Returns:
        The record: ``{"schema", "entry", "labels", "facts", "tokenizer_sha256", "max_length"}``; plain data.

    Raises:
        SpecError: as `data.load_data`; the cache can't be written.
    """
    encoding_hash = how.sha256()
    options = [_FORMAT, wanted.task, how.max_length, encoding_hash]
    asked = [
        wanted.spec.model_dump(mode="json", exclude={"augment"}),
        wanted.seed,
        wanted.classes,
        data.source_state(wanted.spec),
    ]
    source = _sha256([*options, *asked])
    known = token_cache.recall(source)
    if known is not None and token_cache.is_sound(known["entry"]):
        return known
    samples, labels, facts = wanted.load()
    hashes = {name: facts[name]["sha256"] for name in samples}
    entry = _sha256([*options, labels, hashes])
    splits = token_cache.open_entry(entry) if token_cache.is_sound(entry) else {}
    if not splits:
        with token_cache.scratch(entry) as scratch:
            splits = {name: _encoded(name, split, how, scratch) for name, split in samples.items()}
            token_cache.write_entry(entry, splits)
    for name, split in splits.items():
        facts[name]["num_cut"] = split.tokens.num_cut
    record = {
        "schema": 1, "entry": entry, "labels": list(labels), "facts": facts, "tokenizer_sha256": encoding_hash,
        "max_length": how.max_length,
    }  # fmt: skip
    token_cache.remember(source, record)
    return record


def of_run(spec: RunSpec, paths: RunPaths, world: World, how: Callable[[], Encoding]) -> Inputs:
    """The data of a run, on every rank; one rank a machine does what is left to do. All ranks call this.

    Args:
        spec: names the data.
        paths: holds the record of the data, once there is one.
        world: this rank's place.
        how: makes tokenizer and length; called only where something is left to do.

    Raises:
        SpecError: the data isn't what the run began with, or as `prepare`.
    """
    wanted = Wanted(spec.data, spec.task, spec.train.seed)

    def recorded() -> dict[str, Any]:
        record = read_json(paths.inputs)
        if record is None:
            record = prepare(wanted, how())
            write_json(paths.inputs, record)
        return dict(record)

    return shared(wanted, world, recorded, how)


def shared(
    wanted: Wanted, world: World, record: Callable[[], dict[str, Any]], how: Callable[[], Encoding]
) -> Inputs:
    """Maps one source on every rank. All ranks call this; rank 0 calls `record`.

    Raises:
        SpecError: a machine finds other samples than the record has, or as `prepare`.
    """
    group = dist.new_group(backend="gloo", timeout=_LONGEST_PREPARATION)
    agreed: list[Any] = [record() if world.is_main else None]
    dist.broadcast_object_list(agreed, group=group)
    found: dict[str, Any] = agreed[0]
    if world.local_rank == 0 and not token_cache.is_sound(found["entry"]):
        _same(prepare(wanted, how()), found)
    dist.barrier(group=group)
    dist.destroy_process_group(group)
    splits = token_cache.open_entry(found["entry"])
    return Inputs(
        splits, tuple(found["labels"]), found["facts"], found["tokenizer_sha256"], found["max_length"]
    )


def _same(made: dict[str, Any], recorded: dict[str, Any]) -> None:
    if made["entry"] == recorded["entry"]:
        return
    for name, facts in recorded["facts"].items():
        if isinstance(facts, dict) and "sha256" in facts and facts["sha256"] != made["facts"][name]["sha256"]:
            raise SpecError(
                f"the {name} samples are not those that the run began with",
                evidence=f"SHA-256 {made['facts'][name]['sha256'][:12]} of {made['facts'][name]['num_samples']} samples "
                f"in {made['facts']['source']}; the run has {facts['sha256'][:12]} of {facts['num_samples']}",
                remedy="put the data back, or start a new run",
            )
    raise SpecError(
        "the samples would be tokenised or resized in another way than when the run began",
        evidence=f"tokenizer or image processor {made['tokenizer_sha256'][:12]}, at most {made['max_length']} tokens; the run has "
        f"{recorded['tokenizer_sha256'][:12]} and {recorded['max_length']}",
        remedy="start a new run",
    )


def _encoded(name: str, samples: data.Samples, how: Encoding, scratch: Path) -> Split:
    shown = samples.texts if samples.images is None else samples.ids
    texts = pa.array([text[:_EXCERPT] for text in shown]) if name == "test" else None
    return Split(pa.array(samples.ids, pa.string()), texts, how.encode(samples, scratch))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
