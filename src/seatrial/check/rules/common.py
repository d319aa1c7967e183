"""What rules have in common."""

from __future__ import annotations

from collections.abc import Callable

from seatrial.check.cluster import Cluster
from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict

Rule = Callable[[Cluster], list[Finding]]
"""Judges the samples of one check that have a value."""
PASS, WARN, FAIL, SKIP = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP
GIB = 2**30


def threshold(value: float, *, fail: float, warn: float) -> Verdict:
    """What a figure is that must not be low."""
    return FAIL if value < fail else WARN if value < warn else PASS
