"""What was to be measured and was not: a missing node fails, a missing figure is UNMEASURED, and what does not apply is SKIP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from seatrial.check.cluster import Cluster
from seatrial.check.findings import found
from seatrial.check.metrics import RATES, TRAININGS
from seatrial.runs.acceptance import Coverage, Finding, Profile
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from seatrial.spec.checks import CHECKS, CheckSpec

OPTIONAL = frozenset({
    ("rdma", "acs"), ("rdma", "peermem"), ("cpu", "governor"), ("versions", "vbios"), ("versions", "transformers"),
    ("versions", "driver"), ("versions", "cuda"), ("versions", "nccl"), ("versions", "cudnn"), ("ecc", "ecc_corrected"),
    ("ecc", "sram_uncorrected"), ("pcie", "pcie_gen"), ("pcie", "pcie_width"), ("gpu_idle", "gpu_memory_free_gib"),
    ("local_disk", "local_read_gb_s"), *((net, "mfu") for net in TRAININGS),
})  # fmt: skip
"""Metrics without which a check still says what it is for: ``acs`` can be read by root only, a desktop has no governor."""
_GPU_ONLY = {("versions", name) for name in ("driver", "cuda", "nccl", "cudnn", "vbios")}
_UNSUPPORTED = (
    "not available for this GPU",
    "there is no other node",
    "one rank sends nothing",
    "one rank waits",
)
_DESCRIBED = {("ecc", "ECC is off")}
_OWN_RULE = {"rdma"}


def applies(cluster: Cluster, check: str) -> str:
    """Why a check has no use here; empty where it has."""
    what = CHECKS[check]
    if what.nodes > len(cluster.nodes):
        return f"takes {what.nodes} nodes"
    ranks = {(s.node, s.gpu) for samples in cluster.by_metric.values() for s in samples if s.gpu is not None}
    count: dict[str, int] = defaultdict(int)
    for node, _ in ranks:
        count[node] += 1
    most = max(count.values(), default=0)
    if 0 < most < what.ranks:
        return f"takes {what.ranks} {'GPUs' if cluster.profile == 'gpu' else 'ranks'} on a node"
    if what.gpu and cluster.profile != "gpu" and not cluster.read(check):
        return "no GPU is tested here"
    return ""


def answers(cluster: Cluster) -> list[Finding]:
    """Check ``report``: each node has written something, and no probe or rank was ended or died."""
    findings = []
    spoke = {s.node for samples in cluster.by_metric.values() for s in samples if s.value is not None}
    failed: set[str] = set()
    for s in cluster.all("report"):
        if s.value in (None, False):
            failed.add(s.node)
            what = s.reason or f"{s.metric} did not end"
            findings.append(
                found(
                    s,
                    Verdict.FAIL,
                    what,
                    blame="node",
                    code=str(s.detail.get("code", "no_report")),
                    remedy=f"look at the logs of {s.node} in the run directory, and whether it answers: ssh {s.node} nvidia-smi",
                )
            )
    for node in cluster.nodes:
        if node not in spoke and node not in failed:
            findings.append(
                Finding(
                    check="report",
                    metric="report",
                    node=node,
                    verdict=Verdict.FAIL,
                    judge="rule",
                    blame="node",
                    code="no_report",
                    message=f"{node}: it never reported",
                    remedy=f"see whether {node} is up, and reaches the run directory",
                )
            )
        elif node not in failed:
            findings.append(
                Finding(
                    check="report",
                    metric="report",
                    node=node,
                    verdict=Verdict.PASS,
                    judge="rule",
                    message=f"{node}: it answers",
                )
            )
    return findings


def unread(cluster: Cluster, check: str, gone: Mapping[str, str]) -> list[Finding]:
    """Samples of a check that have no value, and nodes that should have samples of it and have none.

    Args:
        cluster: the samples.
        check: its name; it applies.
        gone: why, by node, those that were left out can't have any.
    """
    findings = [
        _without_value(cluster, s) for s in cluster.all(check) if s.value is None and check not in _OWN_RULE
    ]
    samples = cluster.all(check)
    scope, name = CHECKS[check].scope, check
    if scope == "cluster" or name == "pairs":
        if not samples:
            findings.append(_nothing(check, None, "nothing was measured", "not_read"))
        return [f for f in findings if f is not None]
    have = {s.node for s in samples}
    # A check that one process does for all (the clock) may name only some nodes; it has been done.
    for node in cluster.nodes:
        if node not in have:
            why = gone.get(node)
            code = "left_out" if why else "not_read"
            findings.append(
                _nothing(check, node, f"left out ({why})" if why else "nothing was measured", code)
            )
    return [f for f in findings if f is not None]


def coverage(findings: list[Finding], spec: CheckSpec, profile: Profile) -> Coverage:
    """Which required checks have no result, and why.

    A check has one where every part that should be measured was, and some judge could say something of it. What the
    hardware has no use for (SKIP), and nodes that are failed and so were left out, are not missing.
    """
    required = spec.suite.required or spec.suite.checks
    missing: dict[str, str] = {}
    for check in required:
        own = [f for f in findings if f.check == check]
        holes = [
            f for f in own
            if f.judge == "rule" and f.verdict is Verdict.UNMEASURED and f.code != "left_out" and (f.check, f.metric) not in OPTIONAL
        ]  # fmt: skip
        judged = [f for f in own if f.verdict not in (Verdict.UNMEASURED, Verdict.ERROR)]
        if holes:
            more = f" (and {len(holes) - 1} more)" if len(holes) > 1 else ""
            missing[check] = sorted(f.message for f in holes)[0] + more
        elif not judged:
            why = sorted({f.message for f in own})
            missing[check] = "; ".join(why[:2]) if why else "it did not run"
    return Coverage(required=tuple(required), missing=missing)


def _without_value(cluster: Cluster, s: Sample) -> Finding | None:
    if (s.check, s.reason) in _DESCRIBED:
        return None
    on_cpu = cluster.profile != "gpu" and (
        CHECKS[s.check].gpu or s.metric == "mfu" or (s.check, s.metric) in _GPU_ONLY
    )
    useless = (
        on_cpu
        or any(word in s.reason for word in _UNSUPPORTED)
        or (len(cluster.nodes) == 1 and s.metric.startswith("shared_r"))
    )
    if useless:
        return found(s, Verdict.SKIP, f"{s.metric}: {'no GPU is tested here' if on_cpu else s.reason}")
    rate = RATES.get((s.check, s.metric))
    return found(
        s, Verdict.UNMEASURED, f"{s.metric} could not be read: {s.reason or 'no reason was given'}", code="not_read",
        unit=rate.unit if rate else s.unit, remedy=f"seatrial check --only {s.check}",
    )  # fmt: skip


def _nothing(check: str, node: str | None, why: str, code: str) -> Finding:
    return Finding(
        check=check, node=node, verdict=Verdict.UNMEASURED, judge="rule", code=code,
        message=f"{node or 'the cluster'}: {why} for {check}", remedy=f"seatrial check --only {check}",
    )  # fmt: skip
