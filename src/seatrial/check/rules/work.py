"""Rules on what was computed: that it is right, that it scales, and who holds the others up."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from seatrial.check import peers
from seatrial.check.cluster import Cluster
from seatrial.check.findings import found
from seatrial.check.metrics import number
from seatrial.check.rules.common import FAIL, PASS, SKIP, WARN
from seatrial.runs.acceptance import Finding
from seatrial.runs.samples import Sample

EFFICIENCY = ((64, 0.80), (32, 0.85), (16, 0.90), (8, 0.95))
"""From so many GPUs on, the least share of their number times one GPU's rate."""
VARIATION = (0.05, 0.10)
"""(slowest - fastest) / median of the repetitions' step times: above the first WARN, above the second FAIL."""


def gemm_result(cluster: Cluster) -> list[Finding]:
    """The same product has the same bits on every GPU of a model; those with a hash that few have are wrong."""
    groups: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for s in cluster.read("gemm_result", "gemm_hash"):
        key = [s.detail.get(name) for name in ("device", "dtype", "shape", "torch")]
        groups[(cluster.model(s.node, s.gpu), *map(str, key))].append(s)
    return [finding for samples in groups.values() for finding in _equal(samples)]


def _equal(samples: list[Sample]) -> list[Finding]:
    hashes: dict[tuple[str, int | None], set[str]] = defaultdict(set)
    for s in samples:
        hashes[s.node, s.gpu] |= set(s.value) if isinstance(s.value, list) else {s.value}
    votes = Counter(next(iter(own)) for own in hashes.values() if len(own) == 1)
    ranked = votes.most_common()
    tied = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
    usual = ranked[0][0] if ranked and not tied else None
    findings = []
    for s in {(s.node, s.gpu): s for s in samples}.values():
        own = hashes[s.node, s.gpu]
        more: dict[str, Any] = {
            "blame": "node", "code": "wrong_result", "measured": sorted(h[:12] for h in own),
            "expected": usual and usual[:12], "remedy": f"take {s.node} GPU {s.gpu} out of use; dcgmi diag -r 3 on {s.node}",
        }  # fmt: skip
        if len(own) > 1:
            findings.append(found(s, FAIL, f"the same product gave {len(own)} different results", **more))
        elif usual is not None and own != {usual}:
            say = f"its product differs in bits from that of {votes[usual]} GPUs of its model"
            findings.append(found(s, FAIL, say, **more))
        elif usual is not None:
            say = (
                f"the same bits as {votes[usual]} of {len(hashes)}"
                if len(hashes) > 1
                else "the same bits every time"
            )
            findings.append(found(s, PASS, say, measured=sorted(h[:12] for h in own)))
    if tied:
        sides = "; ".join(
            f"{vote[:8]} on "
            + ", ".join(
                f"{node} GPU {gpu}" for (node, gpu), own in sorted(hashes.items(), key=str) if own == {vote}
            )
            for vote, _ in sorted(ranked)
        )
        findings.append(
            Finding(
                check="gemm_result",
                metric="gemm_hash",
                verdict=FAIL,
                judge="rule",
                blame="node",
                code="wrong_result",
                message=f"the same product gives different bits, and neither side has a majority: {sides}",
                remedy="seatrial check --only gemm_result with a third node",
            )
        )
    return findings


def training(check: str, cluster: Cluster) -> list[Finding]:
    """One network: loss and weights are sound, it scales, its steps are even, and nobody holds the others up."""
    findings = []
    network = check.removeprefix("train_")
    for s in cluster.read(check, "loss_finite", "params_equal"):
        good = s.value is True
        word = "loss" if s.metric == "loss_finite" else "weights"
        state = {
            "loss": ("is finite", "is not finite"),
            "weights": ("are equal on all ranks", "differ between ranks"),
        }[word]
        findings.append(
            found(
                s,
                PASS if good else FAIL,
                f"{network}: the {word} {state[not good]}",
                blame="node",
                code=s.metric,
                expected=True,
                remedy="seatrial check --only gemm_result,node_data,cluster_data    (which GPU computes wrongly)",
            )
        )
    findings += [_efficiency(cluster, network, s) for s in cluster.read(check, "efficiency")]
    findings += [_variation(cluster, network, s) for s in cluster.read(check, "step_s")]
    return findings + _stragglers(check, cluster)


def _efficiency(cluster: Cluster, network: str, s: Sample) -> Finding:
    share, ranks = float(s.value), int(s.detail.get("ranks", 1))
    say = f"{network}: {share:.1%} of {ranks} times one GPU's rate"
    gate = next((gate for least, gate in EFFICIENCY if ranks >= least), None)
    if cluster.profile != "gpu":
        return found(s, SKIP, f"{say}; ranks that share one machine's cores can't scale")
    if gate is None:
        return found(s, PASS, f"{say}; asked for from {EFFICIENCY[-1][0]} GPUs on")
    return found(
        s, PASS if share >= gate else FAIL, f"{say}, {gate:.0%} asked", blame="fabric", code="scales_badly", expected=gate,
        remedy="seatrial check --only node_collectives,pairs,scaling    (where the time goes)",
    )  # fmt: skip


def _variation(cluster: Cluster, network: str, s: Sample) -> Finding:
    times = sorted(s.values)
    if len(times) < 3:
        return found(s, SKIP, f"{network}: {len(times)} repetitions are too few for their variation")
    spread = (times[-1] - times[0]) / times[len(times) // 2]
    say = f"{network}: step times vary by {spread:.1%} over {len(times)} repetitions"
    if cluster.profile != "gpu":
        return found(s, SKIP, f"{say}; others use this machine, too")
    verdict = FAIL if spread > VARIATION[1] else WARN if spread > VARIATION[0] else PASS
    return found(
        s, verdict, say, blame="fabric", code="uneven", measured=round(spread, 4), unit="", expected=VARIATION[0],
        remedy=f"seatrial check --only {s.check} --repeat 3; look for others' traffic and for throttling",
    )  # fmt: skip


def _stragglers(check: str, cluster: Cluster) -> list[Finding]:
    """Ranks whose computing takes longest and who wait least: step times are equal where ranks wait for each other."""
    computing: dict[peers.Key, list[float]] = defaultdict(list)
    waiting: dict[peers.Key, list[float]] = defaultdict(list)
    first: dict[peers.Key, Sample] = {}
    for metric, into in (("compute_s", computing), ("wait_s", waiting)):
        for s in cluster.read(check, metric):
            if (value := number(s)) is not None:
                into[s.node, s.gpu, None, None] += s.values if len(s.values) > 1 else [value]
                first.setdefault((s.node, s.gpu, None, None), s)
    needed = peers.MIN_PARTS_REHEARSED if cluster.profile == "rehearsal" else peers.MIN_PARTS
    if not computing or len(computing) < needed or set(computing) != set(waiting):
        return []
    noisy = cluster.profile != "gpu"
    work = peers.compare(computing, peers.effect(check, cluster.profile), higher=False, noisy=noisy)
    wait = {key: sorted(values)[len(values) // 2] for key, values in waiting.items()}
    quarter = sorted(wait.values())[max(len(wait) // 4 - 1, 0)]
    findings = []
    for key, s in first.items():
        d, word = work.deficit[key], work.word[key]
        say = (
            f"computes {abs(d):.1%} {'longer' if d > 0 else 'shorter'} than the median of {len(first)} ranks"
        )
        if word == "good":
            findings.append(found(s, PASS, say, metric="compute_s"))
            continue
        least = wait[key] <= quarter
        say += ", and waits least" if least else ", yet does not wait least"
        findings.append(
            found(
                s,
                FAIL if word == "slow" and least else WARN,
                say,
                metric="compute_s",
                blame="node",
                code="straggler",
                judge="peers",
                expected=round(work.median, 6),
                remedy=f"seatrial check --only gemm,throttle,host_copy    (why {s.node} GPU {s.gpu} is slow)",
            )
        )
    return findings
