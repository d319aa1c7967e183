"""A cluster's own history as a file that people review: median and MAD of each rate of each part.

Written when asked and at no other time: a baseline that learned by itself would take slow drift for normal.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from statistics import median
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from seatrial.check.lines import Table
from seatrial.check.metrics import RATES, number, rate, variant
from seatrial.errors import SpecError
from seatrial.runs.samples import Sample

MIN_READINGS = 3
ENOUGH_READINGS = 8
"""Readings below which a baseline may only warn."""
Key = tuple[str, str, str, int | None, str | None, int | None, str]
"""Check, metric, node, GPU, the other end's node and GPU, and variant."""
_NEEDED = {"check", "metric", "node", "median", "mad", "n", "unit"}
_OPTIONAL = {"gpu", "peer", "peer_gpu", "variant"}


@dataclass(frozen=True, slots=True)
class Usual:
    """What a rate of a part usually is."""

    median: float
    mad: float
    n: int
    """Readings."""
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One baseline."""

    name: str
    date: str
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """By node, the hash of its hardware."""
    software: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[Key, Usual]


def key_of(sample: Sample) -> Key:
    """What a sample's figure is compared with."""
    return sample.check, sample.metric, sample.node, sample.gpu, sample.peer, sample.peer_gpu, variant(sample)


def save_baseline(
    samples: Iterable[Sample],
    name: str,
    *,
    date: datetime.date,
    fingerprints: Mapping[str, str] | None = None,
    software: Mapping[str, str] | None = None,
) -> str:
    """The text of a baseline file.

    Args:
        samples: of at least three repetitions, in one run or several.
        name: for people.
        date: of the newest run.
        fingerprints: by node, the hash of its hardware, as in the verdict.
        software: versions that figures depend on (driver, NCCL, torch).

    Raises:
        SpecError: a rate was read less than three times, or none was.
    """
    readings: dict[Key, list[float]] = defaultdict(list)
    for sample in samples:
        if rate(sample) and (value := number(sample)) is not None:
            readings[key_of(sample)].append(value)
    few = {key: values for key, values in readings.items() if len(values) < MIN_READINGS}
    if few or not readings:
        said = "; ".join(
            f"{key[1]} of {key[2]}: {len(values)}" for key, values in sorted(few.items(), key=str)[:3]
        )
        raise SpecError(
            f"a baseline takes {MIN_READINGS} readings of each rate", evidence=said or "no rate was measured",
            remedy=f"seatrial check --repeat {ENOUGH_READINGS} --save-baseline {name}",
        )  # fmt: skip
    least = min(map(len, readings.values()))
    head: dict[str, Any] = {"schema": 1, "name": name, "date": date, "fingerprints": dict(sorted((fingerprints or {}).items())),
                            "software": dict(sorted((software or {}).items()))}  # fmt: skip
    yaml = YAML()
    yaml.width = 1000
    out = StringIO()
    out.write(
        "# What this cluster reaches when it is healthy: seatrial check --baseline FILE holds later runs to it.\n"
    )
    out.write(f"# {len(readings)} rates, {least} or more readings each.")
    if least < ENOUGH_READINGS:
        out.write(f" With less than {ENOUGH_READINGS} a rate may only warn.")
    out.write("\n")
    yaml.dump(head, out)
    out.write("entries:\n")
    for key, values in sorted(readings.items(), key=lambda item: tuple(map(str, item[0]))):
        out.write(f"  - {_flow(key, values)}\n")
    return out.getvalue()


def load_baseline(text: str, source: str = "baseline") -> Baseline:
    """Reads a baseline file.

    Raises:
        SpecError: with the line: a unit other than the metric's, a figure that is not finite, a negative MAD, an unknown
            metric, too few readings, a rate given twice.
    """
    table = Table(text, source)
    entries: dict[Key, Usual] = {}
    for entry in table.entries("entries"):
        table.keys(entry, _NEEDED, _OPTIONAL)
        kind = RATES.get((str(entry["check"]), str(entry["metric"])))
        if kind is None:
            raise table.wrong(entry, f"{entry['check']} has no rate {entry['metric']!r}")
        if entry["unit"] != kind.unit:
            raise table.wrong(entry, f"{entry['metric']} is in {kind.unit}, not {entry['unit']!r}")
        usual = Usual(
            median=table.number(entry, "median"),
            mad=table.number(entry, "mad", at_least=0),
            n=int(table.number(entry, "n", at_least=MIN_READINGS)),
            unit=kind.unit,
        )
        if usual.median <= 0:
            raise table.wrong(entry, f"median is {usual.median:g}; rates and times are above 0")
        key = _key(table, entry)
        if key in entries:
            raise table.wrong(entry, f"{entry['metric']} of {entry['node']} is given twice")
        entries[key] = usual
    return Baseline(
        name=str(table.data.get("name", source)), date=str(table.data.get("date", "")), entries=entries,
        fingerprints={str(k): str(v) for k, v in (table.data.get("fingerprints") or {}).items()},
        software={str(k): str(v) for k, v in (table.data.get("software") or {}).items()},
    )  # fmt: skip


def _key(table: Table, entry: CommentedMap) -> Key:
    ends: list[int | None] = []
    for name in ("gpu", "peer_gpu"):
        value = entry.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise table.wrong(entry, f"{name} is {value!r}, not an index")
        ends.append(None if value is None else int(value))
    peer = None if entry.get("peer") is None else str(entry["peer"])
    return (
        str(entry["check"]),
        str(entry["metric"]),
        str(entry["node"]),
        ends[0],
        peer,
        ends[1],
        str(entry.get("variant", "")),
    )


def _flow(key: Key, values: list[float]) -> str:
    middle = median(values)
    names = ("check", "metric", "node", "gpu", "peer", "peer_gpu", "variant")
    row: dict[str, Any] = {
        name: value for name, value in zip(names, key, strict=True) if value not in (None, "")
    }
    mad = median(abs(value - middle) for value in values)
    row |= {
        "median": float(f"{middle:.6g}"),
        "mad": float(f"{mad:.3g}"),
        "n": len(values),
        "unit": RATES[key[0], key[1]].unit,
    }
    yaml = YAML()
    yaml.default_flow_style = True
    yaml.width = 1000
    out = StringIO()
    yaml.dump(row, out)
    return out.getvalue().strip()
