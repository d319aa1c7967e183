"""The own history's verdict: drift against a baseline that somebody saved and reviewed."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any

from seatrial.check.baseline import ENOUGH_READINGS, Baseline, Key, key_of
from seatrial.check.cluster import Cluster
from seatrial.check.findings import found
from seatrial.check.metrics import number, rate
from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample

WARN_AT = (3.0, 0.03)
"""MADs and share of the median, the larger of which warns."""
FAIL_AT = (5.0, 0.07)
"""The same to fail."""


def judge(cluster: Cluster, baseline: Baseline | None) -> list[Finding]:
    """Drift of each rate that the baseline knows; nothing without one."""
    if baseline is None:
        return []
    parts: dict[Key, list[Sample]] = defaultdict(list)
    for samples in cluster.by_metric.values():
        for sample in samples:
            if rate(sample) and number(sample) is not None:
                parts[key_of(sample)].append(sample)
    findings = []
    unknown: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key, samples in parts.items():
        if key in baseline.entries:
            findings.append(_drift(baseline, key, samples))
        else:
            unknown[key[0], key[1]].add(key[2])
    for (check, metric), nodes in unknown.items():
        named = ", ".join(sorted(nodes)[:4]) + (" …" if len(nodes) > 4 else "")
        findings.append(
            Finding(
                check=check,
                metric=metric,
                verdict=Verdict.UNMEASURED,
                judge="history",
                code="no_baseline",
                message=f"{metric}: the baseline {baseline.name} does not know it for {named}",
                remedy=f"seatrial check --repeat {ENOUGH_READINGS} --save-baseline NAME",
            )
        )
    return findings


def _drift(baseline: Baseline, key: Key, samples: list[Sample]) -> Finding:
    usual = baseline.entries[key]
    sample = samples[0]
    kind = rate(sample)
    assert kind is not None
    value = median(float(s.value) for s in samples)
    worse = (usual.median - value if kind.higher else value - usual.median) / usual.median
    warn, fail = (max(mads * usual.mad / usual.median, share) for mads, share in (WARN_AT, FAIL_AT))
    side = "worse" if worse > 0 else "better"
    say = f"{sample.metric} is {value:.4g} {usual.unit}, {abs(worse):.1%} {side} than its own {usual.median:.4g} of {baseline.date}"
    few = usual.n < ENOUGH_READINGS
    common: dict[str, Any] = {
        "judge": "history", "measured": value, "expected": usual.median, "source": f"baseline {baseline.name}, {usual.n} readings",
    }  # fmt: skip
    if worse < warn:
        return found(sample, Verdict.PASS, say, **common)
    verdict = Verdict.FAIL if worse >= fail and not few else Verdict.WARN
    if worse >= fail and few:
        say += f" (from {usual.n} readings: it may only warn)"
    blame = (
        "link" if sample.peer else "fabric" if sample.check in ("cluster_collectives", "scaling") else "node"
    )
    return found(
        sample, verdict, say, blame=blame, code="drift",
        remedy=f"what changed since {baseline.date}: driver, firmware, cooling, cables? then seatrial check --only {sample.check}", **common,
    )  # fmt: skip
