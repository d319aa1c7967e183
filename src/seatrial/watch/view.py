"""The live view as lines of text for a terminal of any size. Pure: a picture and a size give the same lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from seatrial.runs.telemetry import METRICS
from seatrial.watch.marks import bar, cut, duration, fitted, parts, short, spark
from seatrial.watch.picture import DeviceNow, Picture

SORTS = ("node", "use", "memory", "power", "temperature")
LETTERS = {
    "data": "d", "forward": "f", "backward": "b", "communication": "c", "optimizer": "o", "checkpoint": "s", "evaluate": "e",
    "other": "-",
}  # fmt: skip
KEYS = "q quit   s sort   j k move   Enter a node's devices   Esc back   p ranks   ? keys"
_SMALL = (60, 12)
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class State:
    """What the person has chosen."""

    sort: str = "node"
    row: int = 0
    """The row that is marked."""
    node: str | None = None
    """The node whose devices alone are shown."""
    ranks: bool = False
    keys: bool = False
    unicode: bool = True


@dataclass(slots=True)
class _Column:
    title: str
    text: Callable[[DeviceNow], str]
    width: int
    right: bool = True
    style: Callable[[DeviceNow], str] = field(default=lambda device: "")


def render(picture: Picture, width: int, height: int, state: State | None = None) -> list[Text]:
    """At most `height` lines of at most `width` characters."""
    state = state or State()
    lines = _render(picture, width, height, state)
    if not state.unicode:
        for line in lines:
            line.plain = line.plain.replace("…", "~").encode("ascii", "replace").decode()
    return lines


def _render(picture: Picture, width: int, height: int, state: State) -> list[Text]:
    top = _head(picture, width, state) + _words(picture, width, small=width < _SMALL[0] or height < _SMALL[1])
    if width < _SMALL[0] or height < _SMALL[1]:
        return top[:height]
    room = height - len(top) - 1
    bottom = _ranks(picture, width, room) if state.ranks else _devices(picture, width, room, height, state)
    foot = Text(cut(KEYS if state.keys else "? keys   q quit", width), style="dim")
    return [*top, *bottom[:room], foot][:height]


def num_rows(picture: Picture, height: int, state: State) -> int:
    """How many rows there are to move through."""
    if state.ranks:
        return len(picture.ranks)
    chosen = _chosen(picture, state)
    return len(_nodes(chosen)) if _by_node(chosen, height, state) else len(chosen)


def node_at(picture: Picture, height: int, state: State) -> str | None:
    """The node of the marked row."""
    chosen = _sorted(_chosen(picture, state), state.sort)
    if _by_node(chosen, height, state):
        nodes = list(_nodes(chosen))
        return nodes[state.row] if state.row < len(nodes) else None
    return chosen[state.row].node if state.row < len(chosen) else None


def _head(p: Picture, width: int, state: State) -> list[Text]:
    attempt = f"attempt {p.attempt}" if p.attempt else ""
    first = fitted([p.run_id, p.state, p.phase, attempt, duration(p.elapsed_s)], width)
    done = (
        f"{p.step}/{p.num_steps} ({p.step / p.num_steps:.0%})"
        if p.num_steps
        else str(p.step)
        if p.step
        else ""
    )
    rate = (
        f"{short(p.tokens_per_s)} tokens/s"
        if p.tokens_per_s
        else f"{short(p.samples_per_s)} samples/s"
        if p.samples_per_s
        else ""
    )
    measured = f" ({p.mfu_of_measured:.0%} of the measured)" if p.mfu_of_measured is not None else ""
    mfu = f"MFU {p.mfu:.0%}{measured}" if p.mfu is not None else f"MFU{measured}" if measured else ""
    second = fitted(
        [
            f"step {done}" if done else "", f"{duration(p.eta_s)} left" if p.eta_s is not None else "",
            f"{short(p.steps_per_s)} steps/s" if p.steps_per_s else "", rate, mfu,
            f"goodput {p.goodput:.0%}" if p.goodput is not None else "",
            f"{p.gpu_hours:.1f} device-hours" if p.gpu_hours is not None and p.gpu_hours >= 0.1 else "",
        ],
        width,
    )  # fmt: skip
    lines = [Text(first, style="bold")]
    if second:
        lines.append(Text(second))
    if p.loss is not None:
        text = f"loss {p.loss:.4g}  "
        curve = spark(p.loss_history, min(60, width - len(text)), unicode=state.unicode)
        lines.append(Text(cut(text + curve, width)))
    if p.phases:
        lines += _phases(p, width)
    return lines


def _phases(p: Picture, width: int) -> list[Text]:
    total = sum(p.phases.values())
    if total <= 0:
        return []
    shares = [(name, seconds / total) for name, seconds in p.phases.items() if name in LETTERS]
    size = min(40, width - 24)
    head = f"a step {total * 1e3:.3g} ms  "
    drawn = parts([(LETTERS[name], share) for name, share in shares], size) if size > 8 else ""
    named = [
        f"{LETTERS[name]} {name} {share:.0%}"
        for name, share in sorted(shares, key=lambda s: -s[1])
        if share >= 0.01
    ]
    first = f"{head}[{drawn.ljust(size)}]" if drawn else head.rstrip()
    rest = fitted(named, width - len(first) - 2)
    if rest and len(named) and rest.count("%") == len(named):
        return [Text(cut(f"{first}  {rest}", width))]
    return [Text(cut(first, width)), Text(cut("  " + fitted(named, width - 2), width))]


def _words(p: Picture, width: int, *, small: bool) -> list[Text]:
    lines = []
    if p.cause:
        lines.append(Text(cut(f"cause: {p.cause}", width), style="yellow"))
    if p.gate is not None and p.gate.get("mean_pct") is not None:
        verdict = p.gate["verdict"]
        style = {"PASS": "green", "FAIL": "red"}.get(verdict, "")
        text = "use" if verdict == "SKIP" else f"gate {verdict}"
        lines.append(
            Text(
                cut(f"{text}: {p.gate['message'].removesuffix(': nothing was required')}", width), style=style
            )
        )
    if p.reason and p.state not in ("running", "completed"):
        lines.append(Text(cut(f"why: {p.reason.splitlines()[0]}", width)))
    most = 1 if small else 4
    for warning in p.warnings[:most]:
        lines.append(Text(cut(f"warning: {warning}", width), style="red"))
    if len(p.warnings) > most:
        lines.append(Text(cut(f"and {len(p.warnings) - most} more warnings", width), style="red"))
    return lines


def _devices(p: Picture, width: int, room: int, height: int, state: State) -> list[Text]:
    if not p.devices:
        say = "no samples yet" if p.state in ("running", "submitting", "pending") else "no samples were taken"
        return [Text(""), Text(cut(say, width), style="dim")]
    chosen = _sorted(_chosen(p, state), state.sort)
    metric = METRICS[chosen[0].metric][1] if chosen else ""
    where = f" of {state.node}" if state.node else ""
    what = "1 device" if len(chosen) == 1 else f"{len(chosen)} devices"
    title = f"{what}{where} by {metric}, sorted by {state.sort}"
    lines = [Text(""), Text(cut(title, width), style="bold")]
    rows = room - len(lines)
    if _by_node(chosen, height, state):
        return lines + _node_rows(chosen, width, rows, state)
    return lines + _device_rows(chosen, width, rows, state)


def _device_rows(devices: Sequence[DeviceNow], width: int, rows: int, state: State) -> list[Text]:
    columns = _columns(devices, width, state)
    header = Text(_join([(c.title, c) for c in columns], width), style="dim")
    first, shown, more = _window(len(devices), rows - 1, state.row)
    lines = [header]
    for i, device in enumerate(devices[first : first + shown], first):
        line = Text()
        for j, column in enumerate(columns):
            text = cut(column.text(device), column.width)
            text = text.rjust(column.width) if column.right else text.ljust(column.width)
            line.append((" " if j else "") + text, style=column.style(device))
        if i == state.row:
            line.stylize("reverse")
        lines.append(line)
    return lines + _more(more, "devices", width)


def _columns(devices: Sequence[DeviceNow], width: int, state: State) -> list[_Column]:
    """Those that fit; the ones that matter least go first, whole."""
    gpu = any(d.kind == "gpu" for d in devices)
    names = _names(devices, max(8, width // 5))
    named = max(map(len, names.values()))
    label = max(6, named + (7 if gpu else 0))
    unicode = state.unicode
    wanted: list[tuple[int, _Column]] = [
        (0, _Column("device", lambda d: names[d.node] + (f" gpu {d.index}" if d.kind == "gpu" else ""), label, right=False)),
        (0, _Column("use", lambda d: _percent(d.use_pct), 5, style=_style)),
        (2, _Column("", lambda d: bar(d.use_pct, 10, unicode=unicode), 10, right=False, style=_style)),
        (4, _Column("lately", lambda d: spark(d.history, 20, 100, unicode=unicode), 20, style=_style)),
        (1, _Column("mean", lambda d: _percent(d.mean_pct), 5)),
        (3, _Column("memory GiB", _memory, 11)),
        (5, _Column("W", _power, 9)),
        (8, _Column("MHz", lambda d: "" if d.clock_mhz is None else f"{d.clock_mhz:.0f}", 5)),
        (6, _Column("°C" if unicode else "C", lambda d: "" if d.temperature_c is None else f"{d.temperature_c:.0f}", 3)),
        (7, _Column("procs", lambda d: "" if d.processes is None else str(d.processes), 5)),
        (9, _Column("tensor", lambda d: "" if d.tensor_pct is None else _percent(d.tensor_pct), 6)),
        (10, _Column("busy", lambda d: "" if d.busy_pct is None or d.metric != "sm_active" else _percent(d.busy_pct), 5)),
        (3, _Column("held back by", lambda d: ", ".join(d.throttled), 26, right=False, style=lambda d: "red")),
    ]  # fmt: skip
    told = [
        (rank, column)
        for rank, column in wanted
        if rank <= 2 or any(column.text(device) for device in devices)
    ]
    kept = [column for rank, column in told if rank == 0]
    for _, column in sorted((pair for pair in told if pair[0] > 0), key=lambda pair: pair[0]):
        if sum(c.width + 1 for c in kept) + column.width <= width:
            kept.append(column)
    return [column for _, column in told if column in kept]


def _node_rows(devices: Sequence[DeviceNow], width: int, rows: int, state: State) -> list[Text]:
    nodes = list(_nodes(devices).items())
    names = _names(devices, max(8, width // 3))
    named = max(4, *map(len, names.values()))
    header = f"{'node'.ljust(named)}  gpus   min  mean   max  each"
    lines = [Text(cut(header, width), style="dim")]
    first, shown, more = _window(len(nodes), rows - 1, state.row)
    for i, (name, own) in enumerate(nodes[first : first + shown], first):
        told = [d.use_pct for d in own if d.use_pct is not None]
        figures = [min(told), sum(told) / len(told), max(told)] if told else [None] * 3
        cells = spark([d.use_pct for d in own], len(own), 100, unicode=state.unicode)
        held = sorted({word for d in own for word in d.throttled if word != "power cap"})
        text = f"{names[name].ljust(named)}  {len(own):4d} " + " ".join(_percent(f).rjust(5) for f in figures)
        line = Text(fitted([text, cells, ", ".join(held)], width), style=_style_of(figures[1]))
        if i == state.row:
            line.stylize("reverse")
        lines.append(line)
    return lines + _more(more, "nodes", width)


def _ranks(p: Picture, width: int, room: int) -> list[Text]:
    ranks = sorted(p.ranks, key=lambda r: (r.step, -r.age_s))
    lines = [Text(""), Text(cut(f"{len(ranks)} ranks, the furthest behind first", width), style="bold"),
             Text(cut("rank     step  silent  phase", width), style="dim")]  # fmt: skip
    for r in ranks[: max(0, room - len(lines) - 1)]:
        lines.append(Text(cut(f"{r.rank:4d} {r.step:8d} {r.age_s:5.0f} s  {r.phase}", width)))
    left = len(ranks) - max(0, room - len(lines) - 1)
    return lines + (
        [Text(cut(f"… {left} more ranks", width), style="dim")] if left > 0 and len(ranks) > room - 4 else []
    )


def _window(num: int, rows: int, marked: int) -> tuple[int, int, int]:
    """First row, number of rows, and how many are out of sight; a line is kept for saying so."""
    if num <= rows:
        return 0, num, 0
    shown = max(1, rows - 1)
    first = min(max(0, marked - shown // 2), num - shown)
    return first, shown, num - shown


def _more(num: int, what: str, width: int) -> list[Text]:
    return [Text(cut(f"… {num} more {what} (j, k)", width), style="dim")] if num else []


def _by_node(devices: Sequence[DeviceNow], height: int, state: State) -> bool:
    """Whether a line is a node: many devices on several nodes."""
    return state.node is None and len(_nodes(devices)) > 1 and len(devices) > max(4, height - 14)


def _chosen(p: Picture, state: State) -> list[DeviceNow]:
    return [d for d in p.devices if state.node is None or d.node == state.node]


def _nodes(devices: Sequence[DeviceNow]) -> dict[str, list[DeviceNow]]:
    found: dict[str, list[DeviceNow]] = {}
    for device in devices:
        found.setdefault(device.node, []).append(device)
    return found


def _sorted(devices: Sequence[DeviceNow], by: str) -> list[DeviceNow]:
    keys: dict[str, Callable[[DeviceNow], float]] = {
        "use": lambda d: -1.0 if d.use_pct is None else d.use_pct,
        "memory": lambda d: -(d.memory_bytes or 0.0),
        "power": lambda d: -(d.power_w or 0.0),
        "temperature": lambda d: -(d.temperature_c or 0.0),
    }
    place = sorted(devices, key=lambda d: (d.node_rank, d.node, d.index))
    return sorted(place, key=keys[by]) if by in keys else place


def _names(devices: Sequence[DeviceNow], width: int) -> dict[str, str]:
    """Names of nodes that fit: without their domain where that tells them apart, and then by their ends."""
    names = list(dict.fromkeys(d.node for d in devices))
    hosts = [name.split(".")[0] for name in names]
    shown = hosts if len(set(hosts)) == len(names) else names
    return {
        name: s if len(s) <= width else "…" + s[1 - width :] for name, s in zip(names, shown, strict=True)
    }


def _join(pairs: Sequence[tuple[str, _Column]], width: int) -> str:
    cells = [cut(t, c.width).rjust(c.width) if c.right else cut(t, c.width).ljust(c.width) for t, c in pairs]
    return cut(" ".join(cells), width)


def _memory(d: DeviceNow) -> str:
    if d.memory_bytes is None:
        return ""
    total = "" if d.memory_total_bytes is None else f"/{d.memory_total_bytes / _GIB:.0f}"
    return f"{d.memory_bytes / _GIB:.1f}{total}"


def _power(d: DeviceNow) -> str:
    if d.power_w is None:
        return ""
    return f"{d.power_w:.0f}" + ("" if d.power_limit_w is None else f"/{d.power_limit_w:.0f}")


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f} %"


def _style(d: DeviceNow) -> str:
    return _style_of(d.use_pct)


def _style_of(percent: float | None) -> str:
    return "dim" if percent is None else "green" if percent >= 80 else "yellow" if percent >= 50 else "red"
