"""Speed of each GPU on real processes of this machine, healthy and with faults on purpose."""

from __future__ import annotations

from pathlib import Path

from .check_ranks import run_program

CHECKS = ("gemm", "gemm_result", "throttle", "memory")


def test_every_rank_is_measured(tmp_path: Path) -> None:
    samples, codes, printed = run_program("speed", tmp_path, *CHECKS, gemm_s=0.2)
    assert codes == [0, 0], printed
    found = {(s.gpu, s.metric): s for s in samples}
    metrics = ("gemm_fp32", "gemm_hash", "memory_copy", "memory_triad")
    assert set(found) == {(gpu, metric) for gpu in (0, 1) for metric in metrics}, printed
    assert found[0, "gemm_hash"].value == found[1, "gemm_hash"].value
    assert found[0, "gemm_fp32"].detail["processes"] == 2
    for metric, unit in (("gemm_fp32", "TFLOP/s"), ("memory_copy", "GB/s"), ("memory_triad", "GB/s")):
        sample = found[0, metric]
        assert sample.unit == unit and min(sample.values) <= sample.value <= max(sample.values)


def test_faults_show_where_they_are(tmp_path: Path) -> None:
    faults = ["slow-gpu:gpu=1,factor=0.2", "wrong-result:gpu=0", "throttling:gpu=1"]
    samples, codes, printed = run_program("speed", tmp_path, *CHECKS[:3], gemm_s=0.2, inject=faults)
    assert codes == [0, 0], printed
    found = {(s.gpu, s.metric): s.value for s in samples}
    assert found[1, "gemm_fp32"] < 0.5 * found[0, "gemm_fp32"]
    assert found[1, "throttle_bits"] == 0x40 and (0, "throttle_bits") not in found
    assert isinstance(found[1, "gemm_hash"], str)
    assert isinstance(found[0, "gemm_hash"], list) and found[1, "gemm_hash"] in found[0, "gemm_hash"]
