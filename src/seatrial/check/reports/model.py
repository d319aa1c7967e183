"""What every report shows of a verdict: check by node, and in what order. Pure."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from seatrial.check.verdict import by_metric, natural, worst
from seatrial.runs.acceptance import Acceptance, Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from seatrial.spec.checks import CHECKS, PHASES

CLUSTER = "the cluster"
"""Stands in the place of a node for what was found of all of them together."""
SIGNS = {Verdict.PASS: "✓", Verdict.WARN: "!", Verdict.FAIL: "✗", Verdict.ERROR: "E", Verdict.UNMEASURED: "?",
         Verdict.SKIP: "–"}  # fmt: skip
"""Beside every colour: not everybody sees those."""
BAD = (Verdict.FAIL, Verdict.ERROR, Verdict.WARN)
_PLURALS = {"node": "nodes", "gpu": "GPUs", "link": "links", "cluster": "clusters"}
_WORDS = {Verdict.PASS: "pass", Verdict.WARN: "warn", Verdict.FAIL: "fail", Verdict.ERROR: "could not be judged",
          Verdict.UNMEASURED: "not measured", Verdict.SKIP: "skipped"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One check, over all of the cluster."""

    check: str
    verdict: Verdict
    counts: str
    """How many of what came out how: ``7 GPUs pass, 1 fails``."""


def printable(text: str) -> str:
    """On one line, with what would steer a terminal, or is not allowed in XML, written out."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def where(finding: Finding) -> str:
    """The part that a finding is of: ``node3, GPU 1``, ``node0–node2``."""
    here = finding.node or CLUSTER
    if finding.gpu is not None:
        here += f", GPU {finding.gpu}"
    if finding.peer_gpu is not None:
        here += f"–GPU {finding.peer_gpu}"
    return printable(f"{here}–{finding.peer}" if finding.peer is not None else here)


def cells(acceptance: Acceptance) -> dict[tuple[str, str], Verdict]:
    """By check and node (or `CLUSTER`), the worst of its metrics; a link's trouble stands at both of its ends."""
    heard: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for (check, node, _, peer, _, _), verdict in by_metric(acceptance.findings).items():
        heard[check, node or CLUSTER].append(verdict)
        if peer is not None and verdict in BAD:
            heard[check, peer].append(verdict)
    for check in acceptance.coverage.missing:
        if not any(key[0] == check for key in heard):
            heard[check, CLUSTER].append(Verdict.UNMEASURED)
    return {key: worst(verdicts) for key, verdicts in heard.items()}


def checks(acceptance: Acceptance) -> list[str]:
    """The checks that there is something to say of, in the order in which they run."""
    named = {f.check for f in acceptance.findings} | set(acceptance.coverage.missing)
    return [name for name in CHECKS if name in named] + sorted(named - set(CHECKS))


def phase(check: str) -> str:
    """For people, when a check runs."""
    return PHASES[CHECKS[check].phase] if check in CHECKS else "others"


def lines(acceptance: Acceptance) -> list[Line]:
    """Each check with how many of its parts came out how."""
    parts: dict[str, dict[Any, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    for (check, node, gpu, peer, _, _), verdict in by_metric(acceptance.findings).items():
        scope = CHECKS[check].scope if check in CHECKS else "node"
        part: Any = (
            None if node is None
            else (node, gpu) if scope == "gpu"
            else tuple(sorted((node or "", peer or ""))) if scope == "link" and verdict in BAD
            else node
        )  # fmt: skip
        parts[check][part].append(verdict)
    found = []
    for check in checks(acceptance):
        if set(parts[check]) - {None} and set(parts[check].get(None, [])) <= {
            Verdict.SKIP,
            Verdict.UNMEASURED,
        }:
            parts[check].pop(None, None)  # a judge that has nothing to say of any part counts for none
        blank = {Verdict.SKIP} if check in acceptance.coverage.missing else {Verdict.SKIP, Verdict.UNMEASURED}
        came = Counter(
            worst([v for v in verdicts if v not in blank] or verdicts) for verdicts in parts[check].values()
        )
        whole = not set(parts[check]) - {None}
        scope = "cluster" if whole else CHECKS[check].scope if check in CHECKS else "node"
        found.append(Line(check, worst(came), _counts(came, scope, check, acceptance)))
    return found


def _counts(came: Mapping[Verdict, int], scope: str, check: str, acceptance: Acceptance) -> str:
    if not came:
        return printable(acceptance.coverage.missing.get(check, ""))
    if scope == "cluster":
        return _verb(worst(came), 1)
    words = []
    for verdict in (
        Verdict.PASS,
        Verdict.WARN,
        Verdict.FAIL,
        Verdict.ERROR,
        Verdict.UNMEASURED,
        Verdict.SKIP,
    ):
        count = came.get(verdict, 0)
        if not count:
            continue
        # Of links that pass, the verdict keeps no more than one for each node.
        what = "node" if scope == "link" and verdict not in BAD else scope
        unit = what.replace("gpu", "GPU") if count == 1 else _PLURALS[what]
        words.append(f"{count} {unit} {_verb(verdict, count)}")
    return ", ".join(words)


def _verb(verdict: Verdict, count: int) -> str:
    word = _WORDS[verdict]
    ending = {Verdict.PASS: "es", Verdict.WARN: "s", Verdict.FAIL: "s"}.get(verdict, "") if count == 1 else ""
    return word + ending


def ordered(findings: Iterable[Finding], *verdicts: Verdict) -> list[Finding]:
    """Findings of some verdicts: the worst first, then by check and node."""
    rank = {name: i for i, name in enumerate(CHECKS)}
    return sorted(
        (f for f in findings if f.verdict in verdicts),
        key=lambda f: (verdicts.index(f.verdict), rank.get(f.check, len(rank)), natural(f.node or ""), f.gpu or 0,
                       natural(f.peer or ""), f.metric),
    )  # fmt: skip


def gaps(acceptance: Acceptance) -> list[tuple[Verdict, str, str]]:
    """Each check that has no result somewhere, with the commonest reason and on how many parts; required ones first."""
    missing = acceptance.coverage.missing
    found = [
        (Verdict.UNMEASURED, printable(check), f"required; {printable(why)}")
        for check, why in missing.items()
    ]
    told = {(f.check, f.metric) for f in acceptance.findings if f.verdict in {Verdict.PASS, *BAD}}
    for verdict in (Verdict.UNMEASURED, Verdict.SKIP):
        by_check: dict[str, list[str]] = defaultdict(list)
        for f in ordered(acceptance.findings, verdict):
            # Where one judge could tell, that others could not is no gap.
            if f.node is not None or (f.check, f.metric) not in told:
                by_check[f.check].append(printable(f.message))
        for check, messages in by_check.items():
            if check not in missing:
                more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
                found.append((verdict, check, Counter(messages).most_common(1)[0][0] + more))
    return found


@dataclass(frozen=True, slots=True)
class Pairs:
    """What pairs of nodes sent to each other, GB/s (1e9 bytes): by ``(from, to)``, and which nodes there are."""

    nodes: tuple[str, ...]
    rates: Mapping[tuple[str, str], float]

    @property
    def median(self) -> float:
        """Of all pairs; 0 without any."""
        return statistics.median(self.rates.values()) if self.rates else 0.0


def pairs(samples: Iterable[Sample]) -> Pairs:
    """The pairs among samples; of one that was measured again, the median."""
    readings: dict[tuple[str, str], list[float]] = defaultdict(list)
    for s in samples:
        if s.check == "pairs" and s.metric == "pair" and s.peer and isinstance(s.value, int | float):
            readings[s.node, s.peer].append(float(s.value))
    nodes = sorted({name for pair in readings for name in pair}, key=natural)
    return Pairs(tuple(nodes), {pair: statistics.median(values) for pair, values in readings.items()})
