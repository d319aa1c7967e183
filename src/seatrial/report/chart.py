"""Line charts as inline SVG: colours come from the page's style, so that they follow the reader's theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 36
MAX_POINTS = 600
_MOST_DOTS = 80

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `style` names a CSS class: ``a`` is drawn through, ``b`` dashed and with dots."""

    name: str
    points: Sequence[Point]
    style: str = "a"


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    x_name: str = "step",
    shaded: Sequence[tuple[float, float, str]] = (),
) -> Markup:
    """A chart of one or more lines over a common x axis; an empty text when there is nothing to draw.

    Args:
        title: over it.
        unit: of the y axis.
        series: the lines.
        x_name: of the x axis.
        shaded: parts of the x axis with a name, drawn behind the lines.
    """
    drawn = [Series(s.name, downsample(s.points, MAX_POINTS), s.style) for s in series if s.points]
    if not drawn:
        return Markup("")
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_of = _scale(min(*xs, x_ticks[0]), max(*xs, x_ticks[-1]), _LEFT, WIDTH - _RIGHT)
    y_of = _scale(min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]), HEIGHT - _BOTTOM, _TOP)
    parts = [_shade(x_of, xs, begin, end, name) for begin, end, name in shaded]
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{label(tick)}</text>')
    for tick in x_ticks:
        anchor = "end" if x_of(tick) > WIDTH - 2 * _RIGHT else "mid"
        parts.append(f'<text class="{anchor}" x="{x_of(tick):.1f}" y="{HEIGHT - 18}">{label(tick)}</text>')
    for s in drawn:
        at = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in s.points)
        parts.append(f'<polyline class="line {escape(s.style)}" points="{at}"/>')
        if (s.style == "b" and len(s.points) <= _MOST_DOTS) or len(s.points) == 1:
            parts += [
                f'<circle class="dot {escape(s.style)}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5">'
                f"<title>{escape(s.name)} at {escape(x_name)} {label(x)}: {y:.4g}</title></circle>"
                for x, y in s.points
            ]
    first, last = drawn[0].points[0], drawn[0].points[-1]
    told = (
        f"{title}: {first[1]:.4g} at {x_name} {label(first[0])}, {last[1]:.4g} at {x_name} {label(last[0])}"
    )
    legend = "".join(f'<span class="key {escape(s.style)}">{escape(s.name)}</span>' for s in drawn)
    return Markup(
        f'<figure><figcaption><b>{escape(title)}</b> <span class="unit">{escape(unit)}</span> {legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">{"".join(parts)}'
        f'<text class="end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 1}">{escape(x_name)}</text></svg></figure>'
    )


def _shade(x_of: Callable[[float], float], xs: Sequence[float], begin: float, end: float, name: str) -> str:
    low, high = max(begin, min(xs)), min(end, max(xs))
    if high <= low:
        return ""
    return (
        f'<rect class="shade" x="{x_of(low):.1f}" y="{_TOP}" width="{x_of(high) - x_of(low):.1f}" height="{HEIGHT - _BOTTOM - _TOP}">'
        f"<title>{escape(name)}</title></rect>"
    )


def interval_plot(rows: Sequence[tuple[str, float, Sequence[float]]], unit: str) -> Markup:
    """Values with their intervals, one below the other on one axis: ``(name, value, (low, high))`` each."""
    low = min(r[2][0] for r in rows)
    high = max(r[2][1] for r in rows)
    margin = max((high - low) * 0.08, 1e-9)
    axis = ticks(low, high, 5)
    x_of = _scale(min(low, axis[0]) - margin, max(high, axis[-1]) + margin, 80, WIDTH - 24)
    bottom = 34 * len(rows) + 12
    show = (lambda v: f"{100 * v:.4g} %") if unit == "fraction" else label
    parts = [
        f'<path class="grid" d="M{x_of(t):.1f} 4V{bottom}"/><text class="mid" x="{x_of(t):.1f}" y="{bottom + 18}">'
        f"{show(t)}</text>"
        for t in axis
    ]
    for i, (name, value, (left, right)) in enumerate(rows):
        y = 34 * i + 24
        style = "ab"[i % 2]
        parts.append(
            f'<text x="0" y="{y + 4}">{escape(name)}</text>'
            f'<path class="bar {style}" d="M{x_of(left):.1f} {y}H{x_of(right):.1f}"/>'
            f'<circle class="dot {style}" cx="{x_of(value):.1f}" cy="{y}" r="6"/>'
        )
    told = "; ".join(f"{name}: {value:.4g}, interval {b[0]:.4g} to {b[1]:.4g}" for name, value, b in rows)
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {bottom + 26}" role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that span ``[low, high]``; always at least two."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def downsample(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` points that keep both ends and every bucket's lowest and highest value: no spike is lost."""
    if len(points) <= limit:
        return list(points)
    buckets = max(1, (limit - 2) // 2)
    inner = points[1:-1]
    kept = [points[0]]
    for b in range(buckets):
        bucket = inner[b * len(inner) // buckets : (b + 1) * len(inner) // buckets]
        if bucket:
            ends = {min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}
            kept += sorted(ends)
    return [*kept, points[-1]]


def label(value: float) -> str:
    """A tick's number, short."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _scale(low: float, high: float, at_low: float, at_high: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: at_low + (value - low) / span * (at_high - at_low)
