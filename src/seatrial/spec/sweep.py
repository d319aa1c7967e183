"""A sweep: some keys of a recipe with several values each, and every combination of these. Pure.

sweep = parse(["lr=1e-5,3e-5", "seed=0..4"], short={"lr": "train.learning_rate", "seed": "train.seed"})
[point.words for point in sweep.points]     # ("train.learning_rate=1e-5", "train.seed=0"), …
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seatrial.errors import SpecError
from seatrial.spec.document import parse_yaml
from seatrial.spec.explain import valid_keys
from seatrial.spec.load import load_values
from seatrial.spec.run import RunSpec

MAX_RUNS = 1000
SECTIONS = ("train", "data", "adapter", "model_options")
"""Sections whose keys a sweep may vary, beside ``model``."""
_FOR_ALL = ("resources", "slurm", "kubernetes")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_CLOSES = {"[": "]", "{": "}"}
_FORM = "seatrial train RECIPE --sweep lr=1e-5,3e-5 seed=0..4"


@dataclass(frozen=True, slots=True)
class Axis:
    """One key and its values."""

    key: str
    """The recipe's, with dots."""
    texts: tuple[str, ...]
    """The values as YAML, in the order given."""
    word: str
    """As it was typed."""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination."""

    words: tuple[str, ...]
    """``key=value`` for each axis, to lay over the recipe."""
    values: dict[str, Any]
    """The same as data."""

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True, slots=True)
class Sweep:
    """All combinations, the last axis the fastest."""

    axes: tuple[Axis, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The recipe's keys that it varies."""
        return tuple(axis.key for axis in self.axes)

    @property
    def points(self) -> tuple[Point, ...]:
        """Every combination once."""
        choices = [
            [(axis.key, text, parse_yaml(text, axis.word)) for text in axis.texts] for axis in self.axes
        ]
        return tuple(
            Point(tuple(f"{key}={text}" for key, text, _ in chosen), {key: value for key, _, value in chosen})
            for chosen in itertools.product(*choices)
        )


def divide(words: Iterable[str], short: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Words after the recipe, where there is a ``--sweep``: those that belong to it, and those that hold for all runs.

    Ranges and lists with commas belong to it; not those of ``slurm``, where a comma is Slurm's own sign.
    """
    swept: list[str] = []
    others: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        several = bool(equals) and (len(_split(text, word)) > 1 or bool(_RANGE.fullmatch(text.strip())))
        to_slurm = short.get(key.strip(), key.strip()).startswith("slurm.")
        (swept if several and not to_slurm else others).append(word)
    return swept, others


def parse(words: Iterable[str], short: Mapping[str, str]) -> Sweep:
    """The sweep that some words describe.

    Args:
        words: ``KEY=V1,V2,…``, each value read as YAML (commas in brackets or quotes don't separate), or ``KEY=a..b``,
            whole numbers from a to b.
        short: names that stand for a recipe's key.

    Raises:
        SpecError: an unknown key (with the nearest), one that holds for all runs of a sweep, a key or value given twice,
            or more than `MAX_RUNS` runs.
    """
    axes = [_axis(word, short) for word in words]
    for i, axis in enumerate(axes):
        twice = [other.word for other in axes[:i] if other.key == axis.key]
        if twice:
            raise SpecError(f"{axis.key} is swept twice", evidence=f"{twice[0]}\n{axis.word}")
    num_runs = math.prod(len(axis.texts) for axis in axes)
    if num_runs > MAX_RUNS:
        sizes = " × ".join(str(len(axis.texts)) for axis in axes)
        raise _too_many(f"{sizes} = {num_runs} combinations")
    return Sweep(tuple(axes))


def specs_of(first: RunSpec, points: Sequence[Point]) -> list[RunSpec]:
    """The recipe of each combination.

    Args:
        first: that of the first one.
        points: all of them.

    Raises:
        SpecError: a combination is not a valid recipe, or two come to the same.
    """
    base = first.model_dump(mode="json", by_alias=True)
    specs = []
    seen: dict[str, Point] = {}
    for i, point in enumerate(points):
        try:
            spec = load_values(base, point.words)
        except SpecError as error:
            raise SpecError(
                f"combination {i + 1} of {len(points)} is not a valid recipe: {point}",
                evidence=error.evidence or error.what,
                remedy=error.remedy,
            ) from error
        same = seen.setdefault(json.dumps(spec.model_dump(mode="json"), sort_keys=True), point)
        if same is not point:
            raise SpecError("two combinations are the same run", evidence=f"{same}\n{point}")
        specs.append(spec)
    return specs


def _axis(word: str, short: Mapping[str, str]) -> Axis:
    name, equals, text = (part.strip() for part in word.partition("="))
    if not equals or not name:
        raise SpecError(f"--sweep {word!r} is not KEY=VALUES", evidence="no '='", remedy=_FORM)
    key = _key(name, word, short)
    texts: list[str] = []
    for item in _split(text, word):
        span = _RANGE.fullmatch(item)
        if not item:
            raise SpecError(f"{word}: a value is empty", evidence="nothing between two commas", remedy=_FORM)
        texts += _whole_numbers(int(span[1]), int(span[2]), word) if span else [item]
    values = [json.dumps(parse_yaml(item, word), sort_keys=True, default=str) for item in texts]
    twice = next((texts[i] for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise SpecError(f"{word}: {twice} is given twice", evidence="each combination is one run")
    return Axis(key, tuple(texts), word)


def _key(name: str, word: str, short: Mapping[str, str]) -> str:
    key = short.get(name, name)
    section, dot, last = key.partition(".")
    if section in _FOR_ALL:
        raise SpecError(
            f"{key} can't be swept: {section} holds for all runs of a sweep",
            evidence=word,
            remedy=f"one value for all: {key}=VALUE, not after --sweep",
        )
    known = [f"{part}.{field}" for part in SECTIONS for field in valid_keys(RunSpec, [part])]
    if key == "model" or key in known:
        return key
    if section in RunSpec.model_fields and section not in SECTIONS and not (section == "model" and dot):
        raise SpecError(
            f"{key} can't be swept",
            evidence=f"{word}; keys of {', '.join(SECTIONS)}, and model, can",
            remedy=_FORM,
        )
    candidates = [*(flag for flag, full in short.items() if full in known), *known, "model"]
    near = difflib.get_close_matches(name, candidates, n=1) or [
        full for full in known if full.rpartition(".")[2] == (last or name)
    ]
    raise SpecError(
        f"there is no key {name!r} to sweep",
        evidence=f"{word}; keys of {', '.join(SECTIONS)}, model, and the names of flags can be swept",
        remedy=f"did you mean {near[0]!r}?" if near else _FORM,
    )


def _whole_numbers(first: int, last: int, word: str) -> list[str]:
    if last < first:
        raise SpecError(f"{word}: the range is empty", evidence=f"{last} is less than {first}")
    if last - first >= MAX_RUNS:
        raise _too_many(f"{word} has {last - first + 1} values")
    return [str(number) for number in range(first, last + 1)]


def _too_many(evidence: str) -> SpecError:
    return SpecError(
        f"a sweep has at most {MAX_RUNS:,} runs", evidence=evidence, remedy="sweep in several commands"
    )


def _split(text: str, word: str) -> list[str]:
    """The parts between commas that stand in neither brackets nor quotes."""
    parts = [""]
    closing: list[str] = []
    quote = ""
    i = 0
    while i < len(text):
        char = text[i]
        if quote:
            if char == "\\" and quote == '"' and i + 1 < len(text):
                char += text[i + 1]
            elif text.startswith("''", i) and quote == "'":
                char = "''"
            elif char == quote:
                quote = ""
        elif char in "'\"" and not re.search(r"[^\s,\[{:]\s*$", parts[-1]):
            quote = char  # at the beginning of a value; elsewhere it is a sign like any other: it's
        elif char in _CLOSES:
            closing.append(_CLOSES[char])
        elif closing and char == closing[-1]:
            closing.pop()
        if char == "," and not quote and not closing:
            parts.append("")
        else:
            parts[-1] += char
        i += len(char)
    if quote or closing:
        raise SpecError(
            f"{word}: {quote or closing[-1]} is missing at the end",
            evidence="commas in brackets and quotes don't separate values",
        )
    return [part.strip() for part in parts]
