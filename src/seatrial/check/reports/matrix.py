"""The pair matrix: who sends how fast to whom, as a picture that needs no script.

Few nodes are drawn as SVG with a figure for each pair on hover; many as a PNG of one pixel a pair, which a browser scales.
A rate's colour is its part of the median of all pairs: blues are as fast as others, oranges slower. The two hues keep apart
for all common kinds of colour blindness (ColorBrewer's PuOr and Blues: https://colorbrewer2.org).
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

from markupsafe import Markup, escape

from seatrial.check.reports.model import Pairs, printable

BANDS = (
    ("p4", 0.95, "#9ecae1", "≥ 95 % of the median"),
    ("p3", 0.90, "#deebf7", "90 to 95 %"),
    ("p2", 0.70, "#fdb863", "70 to 90 %"),
    ("p1", 0.0, "#b35806", "< 70 %"),
)
"""CSS class, smallest part of the median, colour, legend; from fast to slow."""
NONE = ("p0", "#8b949e", "not measured")
_MOST_IN_SVG = 32
_LEAST_SHOWN = 0.2
_SIGNS = {"p1": "✗", "p2": "!"}
_CELL, _LEFT = 16, 96


def band(rate: float | None, median: float) -> str:
    """CSS class of a rate."""
    if rate is None or median <= 0:
        return NONE[0]
    return next((name for name, least, _, _ in BANDS if rate >= least * median), BANDS[-1][0])


def slowest(pairs: Pairs, most: int = 20) -> list[tuple[str, str, float, float]]:
    """The slowest pairs: both ends, GB/s, and the part of the median that it is."""
    median = pairs.median
    ranked = sorted(pairs.rates.items(), key=lambda item: (item[1], item[0]))[:most]
    return [(a, b, rate, rate / median if median else 0.0) for (a, b), rate in ranked]


def draw(pairs: Pairs) -> Markup:
    """The picture; empty where so few pairs were measured that it would show nothing."""
    count = len(pairs.nodes)
    cells = count * (count - 1)
    if not cells or (count > _MOST_IN_SVG and len(pairs.rates) < _LEAST_SHOWN * cells):
        return Markup("")
    slow = slowest(pairs, 1)[0]
    told = (
        f"{count} by {count} nodes, {len(pairs.rates)} of {cells} pairs measured, median {pairs.median:.3g} GB/s; "
        f"the slowest is {slow[0]} to {slow[1]} with {slow[2]:.3g} GB/s"
    )
    picture = _svg(pairs, told) if count <= _MOST_IN_SVG else _image(pairs, told)
    keys = [(name, text) for name, _, _, text in BANDS] + [(NONE[0], NONE[2])]
    legend = "".join(
        f'<span class="band {name}"><i>{_SIGNS.get(name, "")}</i>{escape(text)}</span>' for name, text in keys
    )
    return Markup(f"<figure>{picture}<figcaption>{legend}</figcaption></figure>")


def _svg(pairs: Pairs, told: str) -> str:
    size = _LEFT + _CELL * len(pairs.nodes)
    parts = []
    for i, a in enumerate(pairs.nodes):
        y = _CELL * i + 4
        name = escape(_short(a))
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 12}">{name}</text>')
        middle = _LEFT + _CELL * i + 12
        top = _CELL * len(pairs.nodes) + 10
        parts.append(f'<text class="end" transform="translate({middle} {top}) rotate(-90)">{name}</text>')
        for j, b in enumerate(pairs.nodes):
            if a == b:
                continue
            rate = pairs.rates.get((a, b))
            kind = band(rate, pairs.median)
            says = NONE[2] if rate is None else f"{rate:.3g} GB/s"
            x = _LEFT + _CELL * j
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}">'
                f"<title>{escape(printable(a))} to {escape(printable(b))}: {says}</title></rect>"
            )
            if kind in _SIGNS:
                parts.append(f'<text class="sign mid" x="{x + 7.5}" y="{y + 12}">{_SIGNS[kind]}</text>')
    return (
        f'<svg class="pairs" style="max-width:{round(size * 1.4)}px" viewBox="0 0 {size} {size + 8}" role="img" '
        f'aria-label="{escape(printable(told))}">{"".join(parts)}</svg>'
    )


def _image(pairs: Pairs, told: str) -> str:
    order = [NONE[0], *(name for name, _, _, _ in BANDS)]
    palette = [NONE[1], *(colour for _, _, colour, _ in BANDS)]
    median = pairs.median
    rows = [
        bytes(order.index(band(pairs.rates.get((a, b)), median)) for b in pairs.nodes) for a in pairs.nodes
    ]
    data = base64.b64encode(png(rows, palette)).decode()
    return f'<img class="pairs" alt="{escape(printable(told))}" src="data:image/png;base64,{data}">'


def png(rows: Sequence[bytes], palette: Sequence[str]) -> bytes:
    """A picture of one byte a pixel, each an index into colours ``#rrggbb`` (PNG, ISO/IEC 15948: IHDR, PLTE, IDAT, IEND)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    colours = b"".join(bytes.fromhex(colour.removeprefix("#")) for colour in palette)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header) + chunk(b"PLTE", colours) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )  # fmt: skip


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 12 else f"…{name[-11:]}"
