"""The acceptance test's programs on a real GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..integration.check_ranks import run_program

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here"),
]
CHECKS = ("gemm", "gemm_result", "throttle", "memory", "host_copy")


def test_a_gpu_multiplies_and_copies(tmp_path: Path) -> None:
    samples, codes, printed = run_program(
        "speed", tmp_path, *CHECKS, nproc=1, device="cuda", gemm_s=2.0, timeout_s=240
    )
    assert codes == [0], printed
    found = {s.metric: s for s in samples}
    assert all(s.value is not None for s in samples), samples
    assert found["gemm_fp32"].value < found["gemm_tf32"].value < found["gemm_bf16"].value
    assert isinstance(found["gemm_hash"].value, str) and found["throttle_bits"].detail["readings"] > 2
    assert found["h2d"].value > 1 and found["d2h"].value > 1


def test_collectives_of_one_gpu_give_the_right_numbers_and_no_rate(tmp_path: Path) -> None:
    checks = ("node_collectives", "node_data", "transport")
    samples, codes, printed = run_program(
        "links",
        tmp_path,
        *checks,
        nproc=1,
        device="cuda",
        sizes_mib=(16.0,),
        options={"scope": "node"},
        timeout_s=240,
    )
    assert codes == [0], printed
    assert [s.value for s in samples if s.metric == "wrong_elements"] == [0] * 4
    rates = [s for s in samples if s.check == "node_collectives"]
    assert len(rates) == 4 and all(s.value is None and s.reason for s in rates)
    (transport,) = (s for s in samples if s.check == "transport")
    assert transport.detail["nccl"] or transport.reason


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_collectives_and_copies_of_two_gpus(tmp_path: Path) -> None:
    checks = ("node_collectives", "node_data", "transport")
    samples, codes, printed = run_program(
        "links",
        tmp_path,
        *checks,
        nproc=2,
        device="cuda",
        sizes_mib=(16.0, 256.0),
        options={"scope": "node"},
        timeout_s=240,
    )
    assert codes == [0, 0], printed
    assert {s.value for s in samples if s.metric == "wrong_elements"} == {0}
    assert all(s.value > 0.1 for s in samples if s.check == "node_collectives")
    (transport,) = (s for s in samples if s.check == "transport")
    assert "P2P" in transport.value or "SHM" in transport.value


def test_networks_train(tmp_path: Path) -> None:
    checks = ("train_resnet18", "train_resnet50", "train_transformer")
    samples, codes, printed = run_program(
        "work",
        tmp_path,
        *checks,
        nproc=1,
        device="cuda",
        train_s=2.0,
        options={"peak_tflops": 989.0},
        timeout_s=400,
    )
    assert codes == [0], printed
    for check in checks:
        found = {s.metric: s.value for s in samples if s.check == check}
        assert found["samples_per_s"] > 10 and 0 < found["mfu"] < 1
        assert found["loss_finite"] is True and found["params_equal"] is True and found["efficiency"] is None
