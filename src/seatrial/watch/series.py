"""Use over time, for charts. Pure."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from seatrial.watch.recorded import Attempt


def series(attempts: Sequence[Attempt], num_points: int = 400) -> dict[str, Any]:
    """Use, power, memory and so on over time, from all devices together; and by device, for the heat map.

    Returns:
        ``{"series": {…}, "heat": {…}}``, times in seconds since the first attempt began; None where nothing was told.
    """
    if not attempts:
        return {"series": {"times_s": []}, "heat": {"times_s": [], "rows": []}}
    zero, end = attempts[0].begin, max(a.end for a in attempts)
    lines = {
        name: _binned(attempts, column, zero, end, num_points, total=total)
        for name, column, total in (
            ("use_pct", None, False), ("tensor_pct", "tensor_pct", False), ("power_w", "power_w", True),
            ("memory_bytes", "memory_bytes", True), ("clock_mhz", "clock_mhz", False),
        )
    }  # fmt: skip
    edges = np.linspace(zero, end, num_points + 1)
    kept = [
        i
        for i in range(num_points)
        if any(line is not None and line[i] is not None for line in lines.values())
    ]
    times = [round(float((edges[i] + edges[i + 1]) / 2 - zero), 1) for i in kept]
    found = {name: None if line is None else [line[i] for i in kept] for name, line in lines.items()}
    return {"series": {"times_s": times, **found}, "heat": _heat(attempts, zero, end, 160)}


def _binned(
    attempts: Sequence[Attempt], column: str | None, zero: float, end: float, num: int, *, total: bool
) -> list[float | None] | None:
    """Mean by interval of time; summed over the devices where `total`."""
    rows = []
    for attempt in attempts:
        for node in attempt.nodes:
            values = node.use if column is None else node.column(column)
            rows.append(_bins(node.times, values, zero, end, num))
    if not rows or all(np.isnan(row).all() for row in rows):
        return None
    stacked = np.concatenate(rows, axis=1)
    some = ~np.isnan(stacked).all(axis=1)
    out: list[float | None] = [None] * num
    for i in np.flatnonzero(some):
        value = np.nansum(stacked[i]) if total else np.nanmean(stacked[i])
        out[i] = round(float(value), 2)
    return out


def _bins(times: np.ndarray, values: np.ndarray, zero: float, end: float, num: int) -> np.ndarray:
    """Means by interval (num, devices), NaN where there is no sample."""
    index = np.clip(((times - zero) / max(end - zero, 1e-9) * num).astype(int), 0, num - 1)
    out = np.full((num, values.shape[1]), math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is nothing
        for i in np.unique(index):
            out[i] = np.nanmean(values[index == i], axis=0)
    return out


def _heat(attempts: Sequence[Attempt], zero: float, end: float, num: int) -> dict[str, Any]:
    rows: dict[tuple[int, str, int], np.ndarray] = {}
    for attempt in attempts:
        for node in attempt.nodes:
            bins = _bins(node.times, node.use, zero, end, num)
            for i, device in enumerate(node.header.devices):
                key = (node.header.node_rank, node.header.host, device.index)
                old = rows.get(key)
                rows[key] = bins[:, i] if old is None else np.where(np.isnan(bins[:, i]), old, bins[:, i])
    edges = np.linspace(0, end - zero, num + 1)
    kind = attempts[-1].nodes[0].header.devices[0].kind if attempts[-1].nodes else "gpu"
    return {
        "times_s": [round(float((a + b) / 2), 1) for a, b in itertools.pairwise(edges)],
        "rows": [
            {
                "label": f"{host} gpu {index}" if kind == "gpu" else host,
                "use_pct": [None if math.isnan(v) else round(float(v), 1) for v in values],
            }
            for (_, host, index), values in sorted(rows.items())
        ],
    }
