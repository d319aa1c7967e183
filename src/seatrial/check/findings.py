"""Findings, made from samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample

SEVERITY = (Verdict.SKIP, Verdict.PASS, Verdict.UNMEASURED, Verdict.WARN, Verdict.ERROR, Verdict.FAIL)
"""From best to worst."""
_FIELDS = ("check", "metric", "node", "gpu", "peer", "peer_gpu")


def part(sample: Sample | Finding) -> str:
    """The part of the cluster that is spoken of: ``node3 GPU 1``, ``node1–node4``, ``node1 GPU 0→1``."""
    if sample.node is None:
        return "the cluster"
    if sample.peer is not None:
        return f"{sample.node}–{sample.peer}"
    if sample.gpu is None:
        return sample.node
    return f"{sample.node} GPU {sample.gpu}" + ("" if sample.peer_gpu is None else f"→{sample.peer_gpu}")


def found(sample: Sample, verdict: Verdict, say: str, **more: Any) -> Finding:
    """A finding of a sample's part: `say` goes after the part's name."""
    fields = {name: getattr(sample, name) for name in _FIELDS}
    fields |= {"judge": "rule", "measured": sample.value, "unit": sample.unit} | more
    if verdict in (Verdict.PASS, Verdict.SKIP):
        fields |= {"blame": "", "code": "", "remedy": ""}
    return Finding(verdict=verdict, message=f"{part(sample)}: {say}", **fields)


def severity(finding: Finding) -> int:
    """How bad it is, for comparing."""
    return SEVERITY.index(finding.verdict)


def worst_of_each(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for each judge, metric and part: the worst, whatever the order in which they come."""
    worst: dict[tuple[Any, ...], Finding] = {}
    for one in findings:
        key = (one.judge, *(getattr(one, name) for name in _FIELDS))
        held = worst.get(key)
        if held is None or (severity(one), one.message) > (severity(held), held.message):
            worst[key] = one
    return list(worst.values())
