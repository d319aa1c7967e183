"""Probes of a node beside one another, and a GPU's own: one that fails doesn't take the others along."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from seatrial.errors import PlatformError
from seatrial.job.checks import gpu
from seatrial.job.checks.host import PROBES, Probe, measure
from seatrial.job.checks.place import Place
from seatrial.runs.samples import Sample
from seatrial.spec.checks import CHECKS, SUITES

from .check_nodes import by_metric, make_place, make_task


def test_every_check_of_a_node_alone_has_a_probe() -> None:
    elsewhere = {"report", "clock"}  # the conductor's
    assert {probe.check for probe in PROBES} == {n for n, c in CHECKS.items() if c.phase == 0} - elsewhere


def test_one_that_raises_and_one_that_hangs_do_not_hold_up_the_others(tmp_path: Path) -> None:
    release = threading.Event()

    def hangs(place: Place) -> Iterable[Sample]:
        release.wait(20)
        return [place.sample("cpu", "governor", "late")]

    def breaks(place: Place) -> Iterable[Sample]:
        yield place.sample("xid", "first", 1)
        raise PlatformError("the disk is dead", evidence="EIO\nagain")

    def works(place: Place) -> Iterable[Sample]:
        return [place.sample("ecc", "ecc_corrected", 0)]

    suite = SUITES["quick"].model_copy(update={"probe_timeout_s": 0.5}).model_dump(mode="json")
    place = make_place(tmp_path, suite=suite, checks=("cpu", "xid", "ecc"))
    probes = (
        Probe("cpu", hangs, ("governor", "cores_per_gpu")), Probe("xid", breaks, ("first", "second")),
        Probe("ecc", works, ("ecc_corrected",)), Probe("rdma", breaks, ("not wanted",)),
    )  # fmt: skip
    start = time.monotonic()
    found = by_metric([sample for some in measure(place, probes) for sample in some])
    assert time.monotonic() - start < 5
    release.set()
    assert set(found) == {
        (name, None) for name in ("governor", "cores_per_gpu", "first", "second", "ecc_corrected")
    }
    assert found["ecc_corrected", None].value == 0 and found["first", None].value == 1
    assert (
        found["second", None].value is None and found["second", None].reason == "the disk is dead: EIO again"
    )
    assert (
        found["governor", None].value is None and found["governor", None].reason == "did not end within 0.4 s"
    )


def test_a_bare_machine_gives_reasons_and_no_values(tmp_path: Path) -> None:
    checks = ("gpus", "gpu_idle", "ecc", "row_remap", "pcie", "xid", "rdma")
    found = [sample for some in measure(make_place(tmp_path, checks=checks)) for sample in some]
    assert {sample.check for sample in found} == set(checks)
    assert all(sample.value in (None, 0, []) for sample in found)
    assert all(sample.reason for sample in found if sample.value is None)


def test_a_cpu_rank_opens_and_computes(tmp_path: Path) -> None:
    found = by_metric(gpu.look(make_task(tmp_path, device="cpu", gpu=0, rehearse=True)))
    assert found["gpu_opens", 0].value is True
    assert 0 < found["gpu_memory_free_gib", 0].value <= found["gpu_memory_free_gib", 0].detail["total_gib"]
    assert found["cuda", None].value is None and found["nccl", None].reason
    assert set(
        by_metric(gpu.look(make_task(tmp_path, device="cpu", gpu=1, checks=("gpus", "versions"))))
    ) == {("gpu_opens", 1)}


def test_a_gpu_that_does_not_open_is_said_to_be_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = by_metric(gpu.look(make_task(tmp_path, device="cuda", gpu=0)))
    assert found["gpu_opens", 0].value is False
    assert "CUDA" in found["gpu_opens", 0].reason or "NVIDIA" in found["gpu_opens", 0].reason
    assert found["gpu_memory_free_gib", 0].value is None


def test_a_gpu_that_is_lost_on_purpose_does_not_open(tmp_path: Path) -> None:
    task = make_task(tmp_path, device="cpu", gpu=1, inject=("lost-gpu:node=0,gpu=1",))
    found = by_metric(gpu.look(task))
    assert (
        found["gpu_opens", 1].value is False
        and found["gpu_opens", 1].detail["injected"] == "lost-gpu:node=0,gpu=1"
    )


def test_a_gpu_that_computes_wrongly_does_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    true_product = torch.Tensor.__matmul__

    def wrong(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = true_product(left, right)
        if product.dtype == torch.float32:
            product[3, 4] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    found = by_metric(gpu.look(make_task(tmp_path, device="cpu", gpu=0)))
    assert found["gpu_opens", 0].value is False and "1 of 65536 entries" in found["gpu_opens", 0].reason
