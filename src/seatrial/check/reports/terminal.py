"""The verdict on a terminal: a line a check, a red line a failure with its remedy, the sentence last."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TextIO

import click

from seatrial.check.reports.model import SIGNS, gaps, lines, ordered, phase, printable, where
from seatrial.runs.acceptance import Acceptance, Finding
from seatrial.runs.evidence import Verdict

_MIN_WIDTH, _MAX_WIDTH = 30, 110
_MOST = 40
"""So many findings of one kind are written out."""
_COLOURS = {Verdict.PASS: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red", Verdict.ERROR: "red",
            Verdict.UNMEASURED: "yellow", Verdict.SKIP: None}  # fmt: skip


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream is a terminal whose owner has not asked for no colours (https://no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def render(acceptance: Acceptance, *, width: int = 80, colour: bool = False) -> str:
    """The whole text, each line at most `width` columns where words allow."""
    width = max(_MIN_WIDTH, min(width, _MAX_WIDTH))
    return "\n".join(_lines(acceptance, width, colour)) + "\n"


def _lines(acceptance: Acceptance, width: int, colour: bool) -> Iterator[str]:
    def paint(text: str, verdict: Verdict) -> str:
        return click.style(text, fg=_COLOURS[verdict]) if colour else text

    head = (
        f"seatrial check {acceptance.run_id}: suite {acceptance.suite}, {acceptance.platform} {acceptance.cluster}, "
        f"{_profile(acceptance)}, {acceptance.tested:%Y-%m-%d %H:%M} UTC"
    )
    yield from _wrap("", printable(head), width)
    now = ""
    column = max((len(line.check) for line in lines(acceptance)), default=0)
    for line in lines(acceptance):
        if phase(line.check) != now:
            now = phase(line.check)
            yield f"\n{now}"
        start = f"{SIGNS[line.verdict]} {line.check:<{column}}  "
        first, *rest = _wrap(start, line.counts, width)
        yield paint(first[0], line.verdict) + first[1:]
        yield from rest
    for title, verdict in (("failures", Verdict.FAIL), ("errors", Verdict.ERROR), ("warnings", Verdict.WARN)):
        found = ordered(acceptance.findings, verdict)
        if found:
            yield f"\n{title}"
        for finding in found[:_MOST]:
            for text in _wrap(f"{SIGNS[verdict]} ", _told(finding), width):
                yield paint(text, verdict)
        if len(found) > _MOST:
            yield f"and {len(found) - _MOST} more: see verdict.json"
    blanks = gaps(acceptance)
    if blanks:
        yield "\nwhat did not run"
    for verdict, check, text in blanks:
        yield from _wrap(f"{SIGNS[verdict]} ", f"{check}: {text}", width)
    yield ""
    for text in _wrap("", printable(acceptance.sentence), width):
        yield paint(text, acceptance.verdict)


def _profile(acceptance: Acceptance) -> str:
    count = len(acceptance.nodes)
    nodes = f"{count} node{'s' if count != 1 else ''}"
    if acceptance.profile == "gpu":
        return f"{nodes}, {sum(len(node.gpus) for node in acceptance.nodes)} GPUs"
    return f"{nodes}, CPUs only" if acceptance.profile == "cpu" else f"a rehearsal with {count} pretend nodes"


def _told(finding: Finding) -> str:
    told = f"{finding.check}, {where(finding)}: {printable(finding.message)}"
    return f"{told}. Next: {printable(finding.remedy)}" if finding.remedy else told


def _wrap(start: str, text: str, width: int) -> list[str]:
    indent = " " * min(len(start), width - 16)
    return textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    ) or [start.rstrip()]
