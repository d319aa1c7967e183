"""One self-contained HTML page of a verdict: no script, no font, no request."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup

from seatrial.check.reports import matrix
from seatrial.check.reports.model import (
    BAD,
    CLUSTER,
    SIGNS,
    Pairs,
    cells,
    checks,
    gaps,
    lines,
    ordered,
    phase,
    printable,
    where,
)  # fmt: skip
from seatrial.check.verdict import natural
from seatrial.runs.acceptance import Acceptance
from seatrial.runs.evidence import Verdict

_MOST_ROWS = 200
_MOST_FINDINGS = 500


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the heat map: a node with something to say, or all nodes of which the same is to be said."""

    name: str
    names: tuple[str, ...]
    cells: tuple[Verdict | None, ...]


def render(acceptance: Acceptance, pairs: Pairs | None = None) -> str:
    """The page.

    Args:
        acceptance: the verdict.
        pairs: what pairs of nodes sent to each other, as `model.pairs` gives it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("seatrial.check.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["printable"] = printable
    style = resources.files("seatrial.check.reports").joinpath("page.css").read_text(encoding="utf-8")
    style += "".join(f".{name}{{fill:{colour}}}.band.{name} i{{background:{colour}}}"
                     for name, colour in [(b[0], b[2]) for b in matrix.BANDS] + [matrix.NONE[:2]])  # fmt: skip
    worth = ordered(acceptance.findings, *BAD)
    told = pairs or Pairs((), {})
    rows, more = heat_map(acceptance)
    return environment.get_template(
        "page.html.j2"
    ).render(
        style=Markup(style),  # noqa: S704 - our own file and constants
        a=acceptance,
        signs=SIGNS,
        lines=lines(acceptance),
        phase=phase,
        columns=checks(acceptance),
        rows=rows,
        more_rows=more,
        findings=worth[:_MOST_FINDINGS],
        more_findings=max(0, len(worth) - _MOST_FINDINGS),
        gaps=gaps(acceptance),
        where=where,
        pairs=told,
        matrix=matrix.draw(told),
        slowest=matrix.slowest(told),
        titles=_titles(acceptance),
    )


def heat_map(acceptance: Acceptance) -> tuple[list[Row], int]:
    """The rows, and how many nodes in trouble were left out: the worst first, then the others, equal ones together."""
    verdicts = cells(acceptance)
    columns = checks(acceptance)
    names = [node.name for node in acceptance.nodes]
    if any(node == CLUSTER for _, node in verdicts):
        names.append(CLUSTER)
    patterns = {name: tuple(verdicts.get((check, name)) for check in columns) for name in names}
    troubled = [name for name in names if set(patterns[name]) & set(BAD) and name != CLUSTER]
    weight = {verdict: i for i, verdict in enumerate(BAD)}
    troubled.sort(key=lambda n: (min(weight.get(v, 9) for v in patterns[n] if v), natural(n)))
    rows = [Row(name, (name,), patterns[name]) for name in troubled[:_MOST_ROWS]]
    if CLUSTER in patterns:
        rows.append(Row(CLUSTER, (CLUSTER,), patterns[CLUSTER]))
    alike: dict[tuple[Verdict | None, ...], list[str]] = defaultdict(list)
    for name in names:
        if name != CLUSTER and name not in set(troubled):
            alike[patterns[name]].append(name)
    rows += [
        Row(group[0] if len(group) == 1 else f"{len(group)} nodes alike", tuple(group), pattern)
        for pattern, group in sorted(alike.items(), key=lambda item: -len(item[1]))
    ]
    return rows, max(0, len(troubled) - _MOST_ROWS)


def _titles(acceptance: Acceptance) -> dict[tuple[str, str], str]:
    """What is shown on hover over a cell in trouble."""
    told: dict[tuple[str, str], list[str]] = defaultdict(list)
    for f in ordered(acceptance.findings, *BAD, Verdict.UNMEASURED, Verdict.SKIP):
        for end in {f.node or CLUSTER, f.peer or f.node or CLUSTER}:
            told[f.check, end].append(f"{f.verdict} {where(f)}: {printable(f.message)}")
    return {key: "\n".join(texts[:5]) for key, texts in told.items()}
