"""Verdicts to test with: a small cluster with one of each kind of trouble, and hostile names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from seatrial.check import verdict
from seatrial.runs.acceptance import Acceptance, Coverage, Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from seatrial.spec.checks import SUITES

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PASS, WARN, FAIL, ERROR, SKIP, UNMEASURED = (
    Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.ERROR, Verdict.SKIP, Verdict.UNMEASURED,
)  # fmt: skip
HOSTILE = '<script>alert("x")</script> & ]]> \x1b[31m\x00'


def finding(check: str, verdict: Verdict, node: str | None = "node0", **more: Any) -> Finding:
    more.setdefault("judge", "rule")
    more.setdefault("message", f"{check} of {node}")
    return Finding(check=check, verdict=verdict, node=node, **more)


def healthy(num_nodes: int = 4, num_gpus: int = 2) -> list[Finding]:
    found = []
    for i in range(num_nodes):
        found += [finding(check, PASS, f"node{i}") for check in ("report", "versions", "shared_memory")]
        for gpu in range(num_gpus):
            more: dict[str, Any] = {
                "gpu": gpu,
                "metric": "gemm_bf16",
                "unit": "TFLOP/s",
                "measured": 700.0 + gpu,
            }
            found.append(finding("gemm", PASS, f"node{i}", judge="peers", **more))
    return found


def troubled() -> list[Finding]:
    return [
        *healthy(),
        finding(
            "gemm", FAIL, "node3", gpu=1, metric="gemm_bf16", judge="specification", blame="node", code="below_floor",
            message="GPU 1 of node3 does 563 TFLOP/s in bf16, the floor is 642", measured=563.0, expected=642.0,
            unit="TFLOP/s", source="https://example.org/h100", remedy="nvidia-smi -q -d PERFORMANCE on node3, then drain it",
        ),
        finding(
            "locked_memory", FAIL, "node1", blame="config", metric="locked_memory_bytes", measured=65536,
            expected="unlimited", unit="bytes", message="node1 may lock 64 KiB of memory", remedy="ulimit -l unlimited",
        ),
        finding(
            "pairs", FAIL, "node0", peer="node2", blame="link", metric="pair", measured=21.0, expected=45.0, unit="GB/s",
            message="node0 and node2 send 21 GB/s to each other, their others 45", remedy="look at the cable of node0–node2",
        ),
        finding("clock", WARN, "node2", blame="config", message="node2's clock is 3 s ahead", remedy="chronyc makestep"),
        finding("xid", UNMEASURED, "node0", code="not_read", message=f"dmesg: {HOSTILE}", remedy="sysctl kernel.dmesg_restrict=0"),
        finding("row_remap", ERROR, "node0", gpu=0, message="nvidia-smi answered with an error"),
        finding("infiniband", SKIP, None, message="no InfiniBand"),
        finding("cluster_collectives", PASS, None, metric="all_reduce", measured=44.0, unit="GB/s"),
    ]  # fmt: skip


def conclude(findings: list[Finding], **more: Any) -> Acceptance:
    names = sorted({f.node for f in findings if f.node})
    values: dict[str, Any] = {
        "coverage": Coverage(), "run_id": "check-20260301-120000-abcd", "suite": SUITES["quick"], "platform": "slurm",
        "cluster": "hal", "profile": "gpu", "tested": NOW,
        "hardware": {name: {"cpu": "EPYC", "gpus": {f"GPU-{name}": "H100"}} for name in names},
        "gpus": dict.fromkeys(names, ("NVIDIA H100 80GB HBM3",) * 2),
    }  # fmt: skip
    return verdict.conclude(findings, **(values | more))


def pair_samples(num_nodes: int, slow: tuple[int, int] = (0, 2)) -> list[Sample]:
    return [
        Sample(
            check="pairs", metric="pair", node=f"node{i}", peer=f"node{j}", unit="GB/s",
            value=21.0 if {i, j} == set(slow) else 44.0 + (i * 7 + j * 3) % 5 / 2,
        )
        for i in range(num_nodes) for j in range(num_nodes) if i != j
    ]  # fmt: skip
