"""Drawings of the use of devices, as inline SVG: a heat map device × time, and phases stacked over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from seatrial.report.chart import HEIGHT, WIDTH, downsample, label, ticks

CLASSES = (5, 20, 50, 80, 95)
"""Bounds of the colours, in percent: under the first a device does nothing."""
_WIDE, _LEFT, _BOTTOM = 900, 150, 22
_TALLEST, _SHORTEST, _ROOM = 18.0, 1.5, 520.0
_MOST_LABELS = 40
_PHASES = ("data", "forward", "backward", "communication", "optimizer", "checkpoint", "evaluate", "other")


def colour_class(percent: float | None) -> int | None:
    """0 for idle to 5 for fully used; None for what was not told."""
    return None if percent is None else sum(percent >= bound for bound in CLASSES)


def runs(values: Sequence[float | None]) -> list[tuple[int | None, int, int]]:
    """Neighbours of one colour together: ``(class, first, number)``."""
    found, at = [], 0
    for kind, group in groupby(values, colour_class):
        number = sum(1 for _ in group)
        found.append((kind, at, number))
        at += number
    return found


def heat_map(heat: Mapping[str, Any], name: str) -> Markup:
    """A row for each device, a column for each time; an empty text when there is nothing to draw."""
    times, rows = heat["times_s"], heat["rows"]
    if not rows or not times or all(v is None for row in rows for v in row["use_pct"]):
        return Markup("")
    tall = max(_SHORTEST, min(_TALLEST, _ROOM / len(rows)))
    wide = (_WIDE - _LEFT) / len(times)
    paths: dict[int, list[str]] = {}
    for i, row in enumerate(rows):
        for kind, first, number in runs(row["use_pct"]):
            if kind is not None:
                x, y = _LEFT + first * wide, i * tall
                paths.setdefault(kind, []).append(
                    f"M{x:.1f} {y:.1f}h{number * wide:.1f}v{tall:.1f}h-{number * wide:.1f}z"
                )
    parts = [f'<path class="h{kind}" d="{"".join(d)}"/>' for kind, d in sorted(paths.items())]
    parts += _labels(rows, tall)
    height = len(rows) * tall + _BOTTOM
    axis = ticks(0, times[-1], 6)
    end = times[-1] + times[0]
    parts += [
        f'<text class="mid" x="{_LEFT + t / end * (_WIDE - _LEFT):.1f}" y="{height - 6:.1f}">{label(t)} s</text>'
        for t in axis
        if 0 <= t <= end * 0.97
    ]
    means = [[v for v in row["use_pct"] if v is not None] for row in rows]
    told = [sum(values) / len(values) for values in means if values]
    words = f"{name} of {len(rows)} devices over {end:.0f} s: mean {sum(told) / len(told):.0f} %, least used {min(told):.0f} %"
    bounds = ("under 5 %", "5 to 20", "20 to 50", "50 to 80", "80 to 95", "95 and more")
    legend = "".join(f'<span class="swatch h{i}">{text}</span>' for i, text in enumerate(bounds))
    return Markup(
        f"<figure><figcaption><b>{escape(name)} by device</b> {legend}</figcaption>"
        f'<svg viewBox="0 0 {_WIDE} {height:.0f}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg></figure>'
    )


def _labels(rows: Sequence[Mapping[str, Any]], tall: float) -> list[str]:
    """Each device's name where there is room, else each node's, at its first device."""
    named = [(i, str(row["label"])) for i, row in enumerate(rows)]
    if len(rows) > _MOST_LABELS or tall < 11:
        nodes = [(i, name.rpartition(" gpu ")[0] or name) for i, name in named]
        named = [pair for k, pair in enumerate(nodes) if k == 0 or nodes[k - 1][1] != pair[1]]
        apart = -(-len(named) // _MOST_LABELS)
        named = named[::apart]
    out = []
    for i, name in named:
        shown = name if len(name) <= 22 else "…" + name[-21:]
        y = i * tall + max(11.0, tall * 0.75)
        out.append(
            f'<text class="end small" x="{_LEFT - 6}" y="{y:.1f}">{escape(shown)}<title>{escape(name)}</title></text>'
        )
    return out


def phase_chart(phases: Mapping[str, Any]) -> Markup:
    """Milliseconds of a step by phase, one on top of the other, over steps; an empty text when there is nothing to draw."""
    steps = phases.get("steps", [])
    names = [name for name in _PHASES if any(phases.get("seconds", {}).get(name) or [])]
    if not steps or not names:
        return Markup("")
    totals = [sum((phases["seconds"][n][i] or 0.0) for n in names) * 1e3 for i in range(len(steps))]
    shown = sorted({x for x, _ in downsample([(i, t) for i, t in enumerate(totals)], 200)})
    left, bottom = 58, HEIGHT - 36
    low, high = steps[0], steps[-1] if len(steps) > 1 else steps[0] + 1
    marks = ticks(0, max(totals) or 1.0)

    def x_of(step: float) -> float:
        return float(left + (step - low) / ((high - low) or 1) * (WIDTH - 12 - left))

    def y_of(ms: float) -> float:
        return bottom - ms / marks[-1] * (bottom - 12)

    parts = [
        f'<path class="grid" d="M{left} {y_of(t):.1f}H{WIDTH - 12}"/><text class="end" x="{left - 8}" y="{y_of(t) + 4:.1f}">{label(t)}</text>'
        for t in marks
    ]
    under = [0.0] * len(steps)
    at = [int(i) for i in shown]
    if len(at) == 1:
        at = at * 2
    for name in names:
        over = [u + (phases["seconds"][name][i] or 0.0) * 1e3 for i, u in enumerate(under)]
        xs = [x_of(steps[i]) for i in at]
        if len(set(xs)) == 1:
            xs = [left, WIDTH - 12]
        top = " ".join(f"{x:.1f},{y_of(over[i]):.1f}" for x, i in zip(xs, at, strict=True))
        back = " ".join(
            f"{x:.1f},{y_of(under[i]):.1f}" for x, i in zip(reversed(xs), reversed(at), strict=True)
        )
        parts.append(f'<polygon class="p-{name}" points="{top} {back}"><title>{name}</title></polygon>')
        under = over
    parts += [
        f'<text class="mid" x="{x_of(t):.1f}" y="{HEIGHT - 18}">{label(t)}</text>'
        for t in ticks(low, high)
        if low <= t <= high
    ]
    share = {n: sum(v or 0.0 for v in phases["seconds"][n]) / (sum(totals) / 1e3 or 1.0) for n in names}
    words = "; ".join(f"{name} {part:.0%}" for name, part in share.items())
    legend = "".join(f'<span class="swatch p-{name}">{name}</span>' for name in names)
    return Markup(
        f'<figure><figcaption><b>A step by phase</b> <span class="unit">ms</span> {legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(parts)}'
        f'<text class="end" x="{WIDTH - 12}" y="{HEIGHT - 1}">step</text></svg></figure>'
    )
