"""Draws what `train_speed.py --curves` printed: the loss of each seed, Trainer at its best and Seatrial, as one SVG.

    benchmarks/train_speed.py --curves > curves.jsonl
    benchmarks/draw_curves.py curves.jsonl docs/loss-curves.svg

Prints the mean loss over the last hundred steps of each.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 56, 16, 40, 44
COLOURS = {"Trainer, at its best": "#b45309", "Seatrial": "#1d4ed8"}
SMOOTHED = 5
"""Rows (of ten steps each) in the moving mean that is drawn."""

Curve = list[tuple[int, float]]


def main() -> None:
    source, target = (Path(word) for word in sys.argv[1:])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    found: dict[str, list[Curve]] = defaultdict(list)
    for row in rows:
        losses = [(int(step), float(loss)) for step, loss in row["losses"] if step >= 10]
        found[row["variant"]].append(smooth(losses))
        last = losses[-1][0]
        tail = [loss for step, loss in losses if step > last - 100]
        print(
            f"{row['variant']:<24} seed {row['seed']}   mean of the last 100 of {last} steps: {statistics.fmean(tail):.4f}"
        )
    target.write_text(drawing(found))


def smooth(losses: Curve) -> Curve:
    return [
        (step, statistics.fmean(loss for _, loss in losses[max(0, i - SMOOTHED + 1) : i + 1]))
        for i, (step, _) in enumerate(losses)
    ]


def drawing(found: dict[str, list[Curve]]) -> str:
    points = [point for curves in found.values() for curve in curves for point in curve]
    last, top = max(step for step, _ in points), max(loss for _, loss in points) * 1.05

    def x(step: float) -> float:
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - loss / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18">Training loss (nats a sample), moving mean of {SMOOTHED * 10} steps; a line a seed</text>',
    ]
    for i in range(8):
        loss = 0.1 * i
        if loss < top:
            parts.append(f'<path d="M{LEFT} {y(loss):.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.1f}</text>')
    for step in range(0, last + 1, 100):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{step}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">optimizer step</text>'
    )
    for number, (name, curves) in enumerate(found.items()):
        colour, dash = COLOURS[name], ' stroke-dasharray="6 3"' if number == 0 else ""
        for curve in curves:
            at = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)
            parts.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        left = LEFT + 380 + 150 * number
        parts.append(f'<path d="M{left - 170} {TOP - 8}h28" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{left - 136}" y="{TOP - 4}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
