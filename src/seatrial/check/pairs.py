"""The pair scan's verdict: which node is slow, which link is, and that an innocent partner is not blamed."""

from __future__ import annotations

from typing import Any

import numpy as np

from seatrial.check import pair_model
from seatrial.check.cluster import Cluster
from seatrial.check.findings import found
from seatrial.check.metrics import number
from seatrial.check.peers import EFFECT_CPU
from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample

LIMIT = 0.05
"""The deficit of a node or link that matters: between the noise of a few readings and the -10 % that must be found."""
MIN_NODES = {"gpu": 4, "cpu": 3, "rehearsal": 3}
"""Below, a node and its links can't be told from each other."""


def judge(cluster: Cluster) -> list[Finding]:
    """Findings on nodes (FAIL, WARN or PASS each), on links that are slow, and on what this scan can't tell."""
    samples = _samples(cluster)
    if not samples:
        return []
    names, readings = _readings(samples)
    least = MIN_NODES[cluster.profile]
    pairs = int(np.isfinite(readings[:, :, 0]).sum()) // 2
    every = len(names) * (len(names) - 1) // 2
    if len(names) < least:
        say = f"pairs of {len(names)} nodes can't tell a slow node from a slow link; it takes {least}"
        return [_whole(Verdict.UNMEASURED, say, "too_few")]
    told = pair_model.tell(readings, _limit(cluster), noisy=cluster.profile != "gpu")
    findings = [
        _node(cluster, names, told, i, samples) for i in range(len(names)) if np.isfinite(told.node[i])
    ]
    for i, j in np.argwhere(np.triu(told.slow_link | told.doubtful_link, 1)):
        findings.append(_link(cluster, names, told, readings, int(i), int(j), samples))
    if pairs < every:
        say = (
            f"{pairs} of {every} links were measured: slow nodes are told, a slow link only where it was one of these; "
            "a suite with 'pairs: full' measures all"
        )
        findings.append(_whole(Verdict.SKIP, say, ""))
    behind = float(np.nanpercentile(told.node, 75))
    if np.nansum(told.node <= (1 - _limit(cluster)) * behind) * 2 > len(names):
        say = "more than half of the nodes are far behind the fastest quarter: peers can't tell which half is healthy"
        findings.append(_whole(Verdict.UNMEASURED, say, "divided"))
    return findings


def suspects(cluster: Cluster) -> list[tuple[str, str]]:
    """Pairs of nodes to measure (again) before anybody is blamed; `pair_model.rounds` puts them side by side."""
    samples = _samples(cluster)
    if not samples:
        return []
    names, readings = _readings(samples)
    if len(names) < MIN_NODES[cluster.profile]:
        return []
    told = pair_model.tell(readings, _limit(cluster), noisy=cluster.profile != "gpu")
    return [(names[i], names[j]) for i, j in told.again]


def _limit(cluster: Cluster) -> float:
    return LIMIT if cluster.profile == "gpu" else EFFECT_CPU


def _samples(cluster: Cluster) -> list[Sample]:
    return [s for s in cluster.read("pairs", "pair") if s.peer is not None and number(s) is not None]


def _readings(samples: list[Sample]) -> tuple[list[str], pair_model.Floats]:
    names = sorted({s.node for s in samples} | {s.peer for s in samples if s.peer})
    place = {name: i for i, name in enumerate(names)}
    by_pair: dict[tuple[int, int], list[float]] = {}
    for s in samples:
        i, j = sorted((place[s.node], place[str(s.peer)]))
        by_pair.setdefault((i, j), []).append(float(s.value))
    deep = max(map(len, by_pair.values()))
    readings = np.full((len(names), len(names), deep), np.nan)
    for (i, j), values in by_pair.items():
        readings[i, j, : len(values)] = readings[j, i, : len(values)] = values
    return names, readings


def _node(
    cluster: Cluster, names: list[str], told: pair_model.Told, i: int, samples: list[Sample]
) -> Finding:
    d, rate = float(told.node_deficit[i]), float(told.node[i])
    usual = rate / (1 - d)
    unit = samples[0].unit
    say = f"{names[i]}: {rate:.4g} {unit} with other nodes, {abs(d):.1%} {'under' if d >= 0 else 'over'} the median node ({usual:.4g})"
    more: dict[str, Any] = {
        "check": "pairs", "metric": "pair", "judge": "peers", "node": names[i], "measured": rate, "expected": usual, "unit": unit,
        "source": f"median of {len(names)} nodes",
    }  # fmt: skip
    if told.slow_node[i]:
        remedy = (
            f"ibstat and ethtool on {names[i]}; compare its PCIe link and its cables; leave it out until then"
        )
        return Finding(
            verdict=Verdict.FAIL, message=say, blame="node", code="slow_node", remedy=remedy, **more
        )
    if told.doubtful_node[i]:
        say += "; it met too few others to be sure"
        remedy = "seatrial check --only pairs --repeat 3"
        return Finding(
            verdict=Verdict.WARN, message=say, blame="node", code="slow_node", remedy=remedy, **more
        )
    return Finding(verdict=Verdict.PASS, message=say, **more)


def _link(
    cluster: Cluster,
    names: list[str],
    told: pair_model.Told,
    readings: pair_model.Floats,
    i: int,
    j: int,
    samples: list[Sample],
) -> Finding:
    sample = next(s for s in samples if {s.node, s.peer} == {names[i], names[j]})
    d, rate = float(told.link_deficit[i, j]), float(np.nanmedian(readings[i, j]))
    slower = float(min(told.node[i], told.node[j]))
    count = int(np.isfinite(readings[i, j]).sum())
    say = (
        f"{rate:.4g} {sample.unit}, {d:.1%} under what both nodes reach with others ({slower:.4g}), "
        f"over {count} reading{'s' if count > 1 else ''}"
    )
    common: dict[str, Any] = {
        "judge": "peers",
        "measured": rate,
        "expected": slower,
        "blame": "link",
        "code": "slow_link",
    }
    common["source"] = "min of both nodes' rates with others"
    if told.slow_link[i, j]:
        remedy = f"ibtracert or mtr from {names[i]} to {names[j]}; look at the switches and cables that only they share"
        return found(sample, Verdict.FAIL, say, remedy=remedy, **common)
    return found(
        sample,
        Verdict.WARN,
        f"{say}; not enough to tell",
        remedy="seatrial check --only pairs --repeat 3",
        **common,
    )


def _whole(verdict: Verdict, say: str, code: str) -> Finding:
    return Finding(check="pairs", metric="scan", verdict=verdict, judge="peers", message=say, code=code)
