"""The live view on a terminal; plain lines where there is none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console, Group
from rich.live import Live

from seatrial.watch.judge import DEFAULT_FLOOR_PCT
from seatrial.watch.keys import Keys
from seatrial.watch.marks import duration, fitted, short
from seatrial.watch.picture import Picture
from seatrial.watch.view import SORTS, State, node_at, num_rows, render

_LINE_EVERY_S = 10.0
_OVER = ("completed", "failed", "interrupted", "preempted", "lost")


def watch_live(look: Callable[[], Picture], every_s: float) -> None:
    """Until ``q`` or Ctrl-C; the run goes on."""
    console = Console(no_color=_no_colour())
    state = State(unicode=_has_unicode(console))
    picture = look()
    looked = time.monotonic()
    try:
        with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                width, height = console.size
                lines = render(picture, width, height, state)
                live.update(Group(*lines), refresh=True)
                key = keys.within(max(0.05, looked + every_s - time.monotonic()))
                if key == "q":
                    break
                if key is not None:
                    state = pressed(key, state, picture, height)
                if time.monotonic() - looked >= every_s:
                    picture, looked = look(), time.monotonic()
    except KeyboardInterrupt:
        pass
    over = picture.state in _OVER
    left = "" if over else "    (it goes on; stop it: seatrial runs cancel)"
    console.print(f"{picture.run_id}: {picture.state}{left}", highlight=False, markup=False)


def pressed(key: str, state: State, picture: Picture, height: int) -> State:
    """What a key makes of the state."""
    rows = num_rows(picture, height, state)
    match key:
        case "j":
            return replace(state, row=min(state.row + 1, max(0, rows - 1)))
        case "k":
            return replace(state, row=max(0, state.row - 1))
        case "s":
            return replace(state, sort=SORTS[(SORTS.index(state.sort) + 1) % len(SORTS)], row=0)
        case "p":
            return replace(state, ranks=not state.ranks, row=0)
        case "?":
            return replace(state, keys=not state.keys)
        case "enter" if not state.ranks and state.node is None:
            return replace(state, node=node_at(picture, height, state), row=0)
        case "escape":
            return replace(state, node=None, ranks=False, row=0)
    return state


def show_once(look: Callable[[], Picture]) -> None:
    """One look, as wide as the terminal and as long as it is."""
    console = Console(no_color=_no_colour(), soft_wrap=True)
    picture = look()
    width = console.width if console.is_terminal else max(100, console.width)
    lines = render(picture, width, 24 + len(picture.devices), State(unicode=_has_unicode(console), row=-1))
    console.print(Group(*lines[:-1]))  # without the keys


def plain_lines(look: Callable[[], Picture], every_s: float) -> None:
    """A line when the phase changes and every ten seconds, warnings once, until the run ends. Ctrl-C leaves it."""
    said: set[str] = set()
    last, line_at = "", float("-inf")
    while True:
        picture = look()
        key = f"{picture.state} {picture.phase} {picture.attempt}"
        now = time.monotonic()
        over = picture.state in _OVER
        if key != last or now - line_at >= _LINE_EVERY_S or over:
            last, line_at = key, now
            _say(line(picture))
        for words in (*picture.warnings, f"cause: {picture.cause}" if picture.cause else ""):
            topic = words.split(":")[0] + words.partition(": ")[2].split(" ")[0]
            if words and topic not in said:
                said.add(topic)
                _say(f"  {words}")
        if over:
            return
        time.sleep(every_s)


def line(p: Picture) -> str:
    """A picture in one line."""
    told = [d.use_pct for d in p.devices if d.use_pct is not None]
    low = sum(use < DEFAULT_FLOOR_PCT for use in told)
    use = (
        f"use {sum(told) / len(told):.0f} % of {len(told)} devices ({low} under {DEFAULT_FLOOR_PCT:.0f} %)"
        if told
        else ""
    )
    return fitted(
        [
            p.state, p.phase if p.phase != p.state else "", f"step {p.step}" + (f"/{p.num_steps}" if p.num_steps else "") if p.step else "",
            f"loss {p.loss:.4g}" if p.loss is not None else "", f"{short(p.steps_per_s)} steps/s" if p.steps_per_s else "", use,
            f"{duration(p.eta_s)} left" if p.eta_s is not None else "",
        ],
        10_000,
    )  # fmt: skip


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what the command is for


def _no_colour() -> bool:
    return bool(os.environ.get("NO_COLOR"))


def _has_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
