"""Several runs side by side, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from seatrial.compare.metrics import METRICS, Metric, change_unit, format_change, format_p, format_value
from seatrial.compare.verdict import percent


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What `several.compare_runs` found: the runs, the best against the others, the seeds.

    Args:
        result: as it returned it.
    """
    metric = METRICS[result["metric"]]
    interval = f"{percent(result['confidence'])} interval"
    names = short_names(result["keys"])
    rows = [["run", *names, "state", metric.name, interval, "original", "verdict"]]
    rows += [_run(row, metric) for row in result["runs"]]
    yield from aligned(rows)
    if result["best"] is not None:
        yield f"best     {result['best']}"
    if result["pairs"]:
        yield ""
        yield from _pairs(result, metric, interval)
    if result["groups"]:
        yield ""
        yield from _groups(result, metric)


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key where that is clear, else the whole."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells with equal widths, two spaces apart; a row may be shorter."""
    widths = [
        max(len(row[i]) for row in rows if i < len(row) - 1 or len(row) == len(rows[0]))
        for i in range(len(rows[0]))
    ]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip()


def _run(row: dict[str, Any], metric: Metric) -> list[str]:
    head = [row["run_id"], *(value_text(value) for value in row["values"].values()), row["state"]]
    found = row["measured"]
    if found is None:
        return [*head, f"not measured: {row['why']}"]
    low, high = found["trained_interval"]
    value, *ends = (format_value(x, metric, high - low) for x in (found["trained"], low, high))
    original = format_value(found["original"], metric, high - low)
    return [*head, value, f"{ends[0].removesuffix(' %')} to {ends[1]}", original, found["verdict"]]


def value_text(value: Any) -> str:
    """A value as it stands in a recipe."""
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _pairs(result: dict[str, Any], metric: Metric, interval: str) -> Iterator[str]:
    num = result["num_pairs"]
    yield (
        f"the best against each other run, on the same samples ({metric.test}; p by Holm for "
        + ("the one pair)" if num == 1 else f"all {num:,} pairs, since the best was found by looking)")
    )
    rows = [
        ["run", f"difference{change_unit(metric).replace(' ', ', ')}", interval, "adjusted p", "the best is"]
    ]
    for row in result["pairs"]:
        if row["refused"]:
            rows.append([row["run_id"], f"not comparable: {row['refused']}"])
            continue
        low, high = row["interval"]
        change, *ends = (
            format_change(x, metric, (high - low) or abs(row["difference"]))
            for x in (row["difference"], low, high)
        )
        p_value = format_p(row["p_adjusted"]).removeprefix("p ").removeprefix("= ")
        rows.append([row["run_id"], change, f"{ends[0]} to {ends[1]}", p_value, row["verdict"]])
    yield from aligned(rows)


def _groups(result: dict[str, Any], metric: Metric) -> Iterator[str]:
    yield f"over seeds: mean ± standard deviation of the trained models' {metric.name}"
    keys = list(result["groups"][0]["values"])
    rows = [[*short_names(keys), metric.name, "runs"]]
    for group in result["groups"]:
        spread = group["standard_deviation"]
        width = 2 * (spread or 0)
        text = "not measured" if group["mean"] is None else format_value(group["mean"], metric, width)
        if spread is not None:
            text = f"{text.removesuffix(' %')} ± {format_value(spread, metric, width)}"
        count = str(group["num_measured"])
        if group["num_measured"] < group["num_runs"]:
            count += f" of {group['num_runs']}"
        rows.append([*(value_text(value) for value in group["values"].values()), text, count])
    yield from aligned(rows)
