"""What healthy hardware reaches (``floors.yaml``), by GPU model and link; refused where physics forbids it.

A threshold is a number that somebody typed. One in another unit than its neighbours can't fail, or fails everything, and
nobody notices: hence each has a unit, a source and a date, and must lie between 0.3 and 1.02 times what physics allows.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast

from ruamel.yaml.comments import CommentedMap

from seatrial.check.lines import Table
from seatrial.check.metrics import COLLECTIVES, RATES
from seatrial.spec.document import read_text

Kind = Literal["measured", "datasheet", "derived", "provisional"]
Algo = Literal["any", "ring", "nvls"]
SANE = (0.3, 1.02)
"""Shares of the physical peak between which a reference must lie."""
_PATH = Path(__file__).with_name("floors.yaml")
_FIELDS = {"metric", "unit", "value", "warn", "fail", "direction", "kind", "source", "date"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Physical peaks of a GPU model."""

    name: str
    peak: dict[str, float]
    """Dense TFLOP/s by precision."""
    memory_gb: float
    memory_gb_s: float
    nvlink_gb_s: float | None
    """In one direction; None where there is none."""
    power_w: float

    def limit(self, metric: str) -> float | None:
        """What physics allows of a metric, in the metric's unit; None where the table can't tell."""
        if metric.startswith("gemm_"):
            return self.peak.get(metric.removeprefix("gemm_"))
        if metric.startswith("memory_"):
            return self.memory_gb_s
        return self.nvlink_gb_s if metric == "p2p" or metric in COLLECTIVES else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """One reference."""

    key: str
    """GPU model or link."""
    metric: str
    unit: str
    value: float
    warn: float
    fail: float
    kind: Kind
    source: str
    date: str
    algo: Algo = "any"
    ranks: int | None = None


@dataclass(frozen=True, slots=True)
class Floors:
    """The whole table."""

    gpus: dict[str, Gpu]
    names: dict[str, str]
    """Model by the driver's name of it, in capitals and without the maker."""
    floors: dict[tuple[str, str, Algo, int | None], Floor]

    def gpu(self, name: str) -> Gpu | None:
        """Peaks of a GPU by the driver's name (``NVIDIA H100 80GB HBM3``); None for one that the table lacks.

        Only whole names count: another memory size or a slice of a GPU is another model.
        """
        model = self.names.get(_plain(name))
        return None if model is None else self.gpus[model]

    def find(self, key: str, metric: str, *, algo: Algo = "any", ranks: int | None = None) -> Floor | None:
        """The reference of a GPU model or link; of a collective, for its algorithm and number of ranks."""
        return self.floors.get((key, metric, algo, ranks)) or self.floors.get((key, metric, "any", ranks))


@cache
def shipped() -> Floors:
    """The table that comes with Seatrial."""
    return parse(read_text(_PATH), _PATH.name)


def peak_tflops(gpu_name: str, dtype: str) -> float | None:
    """Dense peak of a GPU by the driver's name, in TFLOP/s; None where the table lacks it: never guessed."""
    gpu = shipped().gpu(gpu_name)
    return None if gpu is None else gpu.peak.get(dtype)


def parse(text: str, source: str = "floors.yaml") -> Floors:
    """Reads a table.

    Raises:
        SpecError: with the line: an unknown unit, metric, kind or GPU; a wrong direction; a value that physics forbids;
            bands in the wrong order; a reference given twice.
    """
    table = Table(text, source)
    gpus: dict[str, Gpu] = {}
    names: dict[str, str] = {}
    section = table.section("gpus", CommentedMap)
    for model, entry in section.items():
        gpus[model] = _gpu(table, model, entry)
        for name in entry["names"]:
            if names.setdefault(_plain(name), model) != model:
                raise table.wrong(entry, f"{model}: the name {name!r} is {names[_plain(name)]}'s, too")
    floors: dict[tuple[str, str, Algo, int | None], Floor] = {}
    for kind in ("floors", "links"):
        for entry in table.entries(kind):
            floor = _floor(table, entry, gpus, "gpu" if kind == "floors" else "link")
            key = (floor.key, floor.metric, floor.algo, floor.ranks)
            if key in floors:
                raise table.wrong(entry, f"{floor.key} {floor.metric} is given twice")
            floors[key] = floor
    return Floors(gpus, names, floors)


def _gpu(table: Table, model: str, entry: CommentedMap) -> Gpu:
    if not isinstance(entry, CommentedMap):
        raise table.refusal(f"{model} is not a mapping", None)
    table.keys(entry, {"names", "peak", "memory_gb", "memory_gb_s", "power_w"}, {"nvlink_gb_s"})
    return Gpu(
        name=model,
        peak={dtype: table.number(entry["peak"], dtype, at_least=1) for dtype in entry["peak"]},
        memory_gb=table.number(entry, "memory_gb", at_least=1),
        memory_gb_s=table.number(entry, "memory_gb_s", at_least=100),
        nvlink_gb_s=table.number(entry, "nvlink_gb_s", at_least=10) if "nvlink_gb_s" in entry else None,
        power_w=table.number(entry, "power_w", at_least=10),
    )


def _floor(table: Table, entry: CommentedMap, gpus: dict[str, Gpu], of: str) -> Floor:
    table.keys(entry, _FIELDS | {of}, {"algo", "ranks"} if of == "gpu" else {"peak"})
    key, metric = str(entry[of]), str(entry["metric"])
    known = {name: rate for (_, name), rate in RATES.items()}
    if metric not in known:
        raise table.wrong(entry, f"{metric!r} is not a metric that has references")
    if entry["unit"] != known[metric].unit:
        raise table.wrong(entry, f"{key} {metric} is in {known[metric].unit}, not {entry['unit']!r}")
    if entry["direction"] != ("higher" if known[metric].higher else "lower"):
        raise table.wrong(entry, f"{key} {metric}: direction {entry['direction']!r} is the wrong way")
    if entry["kind"] not in ("measured", "datasheet", "derived", "provisional"):
        raise table.wrong(entry, f"{key} {metric}: kind {entry['kind']!r}")
    if entry.get("algo", "any") not in ("any", "ring", "nvls"):
        raise table.wrong(entry, f"{key} {metric}: algo {entry['algo']!r}")
    if not str(entry["source"]).strip() or not isinstance(entry["date"], datetime.date):
        raise table.wrong(entry, f"{key} {metric} has no source, or no date")
    if of == "gpu" and key not in gpus:
        raise table.wrong(entry, f"{key!r} is not among the GPUs")
    peak = gpus[key].limit(metric) if of == "gpu" else table.number(entry, "peak")
    if peak is None:
        raise table.wrong(entry, f"{key} {metric}: the table has no physical peak to hold it to")
    value, warn, fail = (table.number(entry, name) for name in ("value", "warn", "fail"))
    # Reduction inside the switch moves fewer bytes than the formula of bus bandwidth counts.
    top = float("inf") if entry.get("algo") == "nvls" else SANE[1] * peak
    for name, figure in (("value", value), ("warn", warn), ("fail", fail)):
        if not SANE[0] * peak <= figure <= top:
            raise table.wrong(
                entry,
                f"{key} {metric}: {name} {figure:g} {entry['unit']} is not within "
                f"{SANE[0]:g} to {SANE[1]:g} times the physical peak of {peak:g}",
            )
    if not fail <= warn <= value:
        raise table.wrong(
            entry, f"{key} {metric}: fail {fail:g}, warn {warn:g}, value {value:g} are out of order"
        )
    return Floor(
        key=key, metric=metric, unit=entry["unit"], value=value, warn=warn, fail=fail, kind=cast(Kind, entry["kind"]),
        source=str(entry["source"]), date=str(entry["date"]), algo=cast(Algo, entry.get("algo", "any")),
        ranks=int(entry["ranks"]) if "ranks" in entry else None,
    )  # fmt: skip


def _plain(name: str) -> str:
    words = name.upper().split()
    return " ".join(words[1:] if words[:1] in (["NVIDIA"], ["TESLA"]) else words)
