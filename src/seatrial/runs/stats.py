"""Many runs in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from seatrial.runs.index import Index

_STATES = ("completed", "failed", "interrupted", "preempted", "lost")
_GROUPS = {"month": "substr(created, 1, 7)", "tag": "t.tag"}


def collect(
    index: Index,
    where: str = "1",
    values: Iterable[Any] = (),
    *,
    by: str | None = None,
    price: float | None = None,
) -> list[dict[str, Any]]:
    """Totals of the runs that fit a condition.

    Args:
        index: of the runs directory.
        where: a condition of `where.parse`.
        values: the condition's.
        by: a column, ``month`` or ``tag``, for a row for each of its values; a run with two tags counts in both rows.
        price: of a GPU-hour; the cost is None without one.

    Returns:
        One row (also where no run fits), or one for each group by size: counts by state and by verdict, ``run_time_h``, ``gpu_hours``,
        ``cost``, ``mean_loss`` and ``best_loss`` of the last training loss, ``utilisation`` (None: not measured), ``failures`` by cause.
    """
    values = tuple(values)
    group = _GROUPS.get(by, f"runs.{by}") if by else "NULL"
    source = "runs LEFT JOIN tags t ON t.run_id = runs.run_id" if by == "tag" else "runs"
    states = ", ".join(f"sum(state = '{state}')" for state in _STATES)
    verdicts = "sum(verdict = 'better'), sum(verdict = 'no evidence'), sum(verdict = 'worse')"
    rows = index.query(
        f"SELECT {group} g, count(*), {states}, {verdicts}, sum(run_time_s) / 3600, sum(gpu_hours), avg(loss), min(loss), avg(utilisation)"
        f" FROM {source} WHERE {where} GROUP BY g ORDER BY count(*) DESC, g",
        values,
    )
    failures: dict[Any, dict[str, int]] = {}
    for key, what, count in index.query(
        f"SELECT {group} g, failure, count(*) FROM {source} WHERE {where} AND failure IS NOT NULL GROUP BY g, failure ORDER BY count(*) DESC, failure",
        values,
    ):
        failures.setdefault(key, {})[what] = count
    return [
        _row(row, failures.get(row[0], {}), by, price)
        for row in rows or [(None, 0, *[0] * 8, 0, 0, None, None, None)]
    ]


def _row(
    row: tuple[Any, ...], failures: dict[str, int], by: str | None, price: float | None
) -> dict[str, Any]:
    key, count, *rest = row
    states, verdicts = rest[:5], rest[5:8]
    hours, gpu_hours, mean, best, utilisation = rest[8:]
    return {
        **({by: key} if by else {}), "runs": count, **{s: n or 0 for s, n in zip(_STATES, states, strict=True)},
        **{v: n or 0 for v, n in zip(("better", "no_evidence", "worse"), verdicts, strict=True)},
        "run_time_h": hours or 0.0, "gpu_hours": gpu_hours or 0.0, "cost": None if price is None else price * (gpu_hours or 0.0),
        "mean_loss": mean, "best_loss": best, "utilisation": utilisation, "failures": failures,
    }  # fmt: skip
