"""A cluster as its nodes would describe it, healthy unless a test says otherwise."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from seatrial.runs.samples import Sample
from seatrial.spec.checks import SUITES, CheckSpec, SuiteSpec

H100 = "NVIDIA H100 80GB HBM3"
GEMM = {"gemm_bf16": 745.0, "gemm_tf32": 385.0}


def spec(*checks: str, suite: str = "full", **more: Any) -> CheckSpec:
    """An acceptance test of some checks, or of all that a suite has."""
    chosen = SUITES[suite]
    if checks:
        chosen = SuiteSpec(name="some", checks=checks)
    return CheckSpec(suite=chosen, **more)


def names(nodes: int) -> list[str]:
    return [f"node{i:03d}" for i in range(nodes)]


def rates(nodes: int, gpus: int = 8, model: str = H100, seed: int = 0, spread: float = 0.01) -> list[Sample]:
    """Models of the GPUs, and their rates, at most `spread` off."""
    rng = random.Random(seed)
    found = []
    for node in names(nodes):
        for gpu in range(gpus):
            found.append(Sample(check="gpus", metric="gpu_model", node=node, gpu=gpu, value=model))
            for metric, value in GEMM.items():
                found.append(
                    Sample(
                        check="gemm",
                        metric=metric,
                        node=node,
                        gpu=gpu,
                        value=value * (1 + rng.uniform(-spread, spread)),
                        unit="TFLOP/s",
                        detail={"m": 8192, "n": 8192, "k": 8192},
                    )
                )
    return found


def host(node: str, gpus: int = 8, **changed: Any) -> list[Sample]:
    """What phase 0 writes of a healthy node with InfiniBand; ``changed`` gives other values by metric."""
    port = {"port": 1, "state": "ACTIVE", "link_layer": "InfiniBand", "rate_gbps": 400.0, "link_downed": 0}
    values: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("gpus", "gpu_count", gpus, {}),
        ("versions", "driver", "570.86.15", {}),
        ("versions", "nccl", "2.27.5", {}),
        ("versions", "torch", "2.9.0", {}),
        ("versions", "kernel", "6.8.0-59", {}),
        ("shared_memory", "shm_gib", 64.0, {}),
        ("locked_memory", "locked_memory_bytes", "unlimited", {}),
        ("open_files", "open_files", 1048576, {}),
        ("cpu", "cores_per_gpu", 12.0, {}),
        ("cpu", "governor", "performance", {}),
        ("clock", "clock_skew_s", 0.004, {}),
        ("xid", "xids", [], {}),
        ("infiniband", "ib_ports", [{"device": f"mlx5_{i}", **port} for i in range(8)], {}),
        ("rdma", "uverbs", 8, {}),
        ("rdma", "peermem", "nvidia_peermem", {}),
        ("rdma", "acs", [], {}),
        ("local_disk", "local_free_gib", 2000.0, {}),
        ("shared_disk", "shared_free_gib", 90000.0, {}),
        ("shared_disk", "shared_visible", ["others"], {"missing": {}}),
    ]
    one_a_gpu: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("gpus", "gpu_model", H100, {}),
        ("gpus", "gpu_opens", True, {}),
        ("gpu_idle", "gpu_memory_used", 4.0, {"processes": []}),
        ("ecc", "ecc_uncorrected", 0, {}),
        ("ecc", "sram_uncorrected", 0, {}),
        ("row_remap", "row_remap_pending", False, {}),
        ("row_remap", "row_remap_failed", False, {}),
        ("pcie", "pcie_gen", 1, {"max_gen": 5, "max_width": 16, "under_load": False}),
        ("pcie", "pcie_width", 16, {"max_gen": 5, "max_width": 16, "under_load": False}),
        ("pcie", "pcie_gen_load", 5, {"under_load": True}),
        ("throttle", "throttle_bits", 0, {}),
        ("gemm_result", "gemm_hash", "ab" * 32, {"device": H100}),
    ]
    found = [Sample(check=c, metric=m, node=node, value=changed.get(m, v), detail=d) for c, m, v, d in values]
    for c, m, v, d in one_a_gpu:
        found += [
            Sample(check=c, metric=m, node=node, gpu=gpu, value=changed.get(m, v), detail=d)
            for gpu in range(gpus)
        ]
    return found


def with_value(
    samples: Iterable[Sample], metric: str, node: str, value: Any, gpu: int | None = None, **more: Any
) -> list[Sample]:
    """The samples with another value of one metric and part."""
    return [
        s.model_copy(update={"value": value, **more})
        if (s.metric, s.node) == (metric, node) and gpu in (None, s.gpu)
        else s
        for s in samples
    ]


def slowed(samples: Iterable[Sample], node: str, gpu: int, factor: float) -> list[Sample]:
    """The samples with one GPU's rates multiplied."""
    return [
        s.model_copy(update={"value": s.value * factor})
        if s.check == "gemm" and (s.node, s.gpu) == (node, gpu)
        else s
        for s in samples
    ]
