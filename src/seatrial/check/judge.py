"""The verdict on what was measured: rules, the specification, the peers and the own history, each for itself. Pure.

What a metric comes to is the worst of what its judges say; UNMEASURED by one is no verdict against another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seatrial.check import history, pairs, peers, presence, specification
from seatrial.check.baseline import Baseline
from seatrial.check.cluster import Cluster
from seatrial.check.findings import worst_of_each
from seatrial.check.metrics import RATES
from seatrial.check.presence import coverage
from seatrial.check.rules import RULES
from seatrial.runs.acceptance import Finding, Profile
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from seatrial.spec.checks import CHECKS, CheckSpec

__all__ = ["coverage", "fatal_nodes", "judge", "suspects"]

FATAL = frozenset({
    "no_report", "rank_died", "lost_gpu", "wrong_model", "not_opened", "foreign_process", "xid", "row_remap", "memory_errors",
    "torch_differs", "cuda_differs", "nccl_differs", "small_shm", "low_memlock", "not_shared", "no_rdma", "clock_skew",
})  # fmt: skip
"""Codes of FAILs with which a node would hang, break or mislead what comes after."""


def judge(
    samples: Iterable[Sample],
    spec: CheckSpec,
    *,
    profile: Profile,
    expected_nodes: Sequence[str],
    baseline: Baseline | None = None,
    last_phase: int | None = None,
) -> list[Finding]:
    """What all judges say, in the order of the checks.

    Args:
        samples: what was measured, in any order; several of one metric and part are readings of it.
        spec: which checks were wanted.
        profile: what was tested. On CPUs no speed is held to a specification.
        expected_nodes: names of all nodes that were asked, whether or not they answered.
        baseline: the own history, if there is one.
        last_phase: judges only what belongs to this phase or an earlier one.
    """
    wanted = [
        name for name in CHECKS
        if name in spec.suite.checks and (last_phase is None or CHECKS[name].phase <= last_phase)
    ]  # fmt: skip
    cluster = Cluster.of(samples, spec, profile, expected_nodes)
    # Whether its nodes answer is asked of every test.
    findings = presence.answers(cluster)
    gone: dict[str, str] = fatal_nodes(findings)
    apply = []
    for check in (name for name in wanted if name != "report"):
        why = presence.applies(cluster, check)
        if why:
            findings.append(
                Finding(check=check, verdict=Verdict.SKIP, judge="rule", message=f"{check}: {why}")
            )
            continue
        apply.append(check)
        if check in RULES:
            ruled = RULES[check](cluster)
            findings += ruled
            if CHECKS[check].phase == 0:
                gone |= fatal_nodes(ruled)
        # A node that was left out after phase 0 has nothing of the later phases to show; of phase 0 it has.
        findings += presence.unread(cluster, check, gone)
    every = [
        *specification.judge(cluster),
        *peers.judge(cluster),
        *pairs.judge(cluster),
        *history.judge(cluster, baseline),
    ]
    findings += [finding for finding in every if finding.check in apply]
    findings += _speeds_of_cpus(cluster, apply)
    order = list(CHECKS)
    place = {"rule": 0, "specification": 1, "peers": 2, "history": 3}
    return sorted(
        worst_of_each(findings),
        key=lambda f: (
            order.index(f.check), f.metric, f.node or "", -1 if f.gpu is None else f.gpu, f.peer or "",
            -1 if f.peer_gpu is None else f.peer_gpu, place[f.judge], f.message,
        ),
    )  # fmt: skip


def fatal_nodes(findings: Iterable[Finding]) -> dict[str, str]:
    """Why nodes must not go on: by node, the first message of a FAIL with which they would hang, break or mislead.

    Where every node that was judged has only faults of configuration, all go on: nobody misleads the others.
    """
    findings = list(findings)
    fatal: dict[str, Finding] = {}
    for f in findings:
        if f.verdict is Verdict.FAIL and f.node is not None and f.code in FATAL:
            held = fatal.get(f.node)
            if held is None or (f.blame == "node" and held.blame != "node"):
                fatal[f.node] = f
    everybody = {f.node for f in findings if f.node is not None}
    if fatal.keys() == everybody and len(everybody) > 1 and all(f.blame == "config" for f in fatal.values()):
        return {}
    return {node: f.message.removeprefix(f"{node}: ") for node, f in sorted(fatal.items())}


def suspects(
    samples: Iterable[Sample], spec: CheckSpec, *, profile: Profile, expected_nodes: Sequence[str]
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """What to measure again before anybody is blamed, best between two phases.

    Returns:
        Parts: one sample of each metric and part that looks slow and was read too seldom (its check, node and gpu say
        what to run again, on which process). Pairs of nodes, for the program of phase 3. Readings of both are added to
        the samples as further ones; both lists are empty once more readings would change nothing.
    """
    cluster = Cluster.of(samples, spec, profile, expected_nodes)
    wanted = set(spec.suite.checks)
    parts = [s for s in peers.suspects(cluster) if s.check in wanted]
    return parts, pairs.suspects(cluster) if "pairs" in wanted else []


def _speeds_of_cpus(cluster: Cluster, checks: Iterable[str]) -> list[Finding]:
    """On CPUs no speed has a specification: said once for each check."""
    if cluster.profile == "gpu":
        return []
    checks = set(checks)
    return [
        Finding(check=check, metric=metric, verdict=Verdict.SKIP, judge="specification",
                message=f"{metric}: a speed of CPUs is held to no specification")
        for check, metric in RATES
        if check in checks and cluster.read(check, metric)
    ]  # fmt: skip
