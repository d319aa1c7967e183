"""Training by real ranks on this machine: healthy, with a slow rank, with one that dies."""

from __future__ import annotations

from pathlib import Path

from .check_ranks import run_program

NET = "train_transformer"


def test_training_is_measured(tmp_path: Path) -> None:
    samples, codes, printed = run_program(
        "work", tmp_path, "train_resnet18", NET, train_s=0.1, options={"peak_tflops": 0.1}
    )
    assert codes == [0, 0], printed
    for check in ("train_resnet18", NET):
        found = {(s.metric, s.gpu): s for s in samples if s.check == check}
        whole = (
            "samples_per_s",
            "step_s",
            "solo_samples_per_s",
            "efficiency",
            "mfu",
            "loss_finite",
            "params_equal",
        )
        assert set(found) == {(m, None) for m in whole} | {
            (m, g) for m in ("compute_s", "wait_s") for g in (0, 1)
        }
        rate, step = found["samples_per_s", None], found["step_s", None]
        assert len(rate.values) == len(step.values) == 3
        # Two ranks of four samples a step.
        assert all(abs(r * s / 8 - 1) < 1e-6 for r, s in zip(rate.values, step.values, strict=True))
        assert found["loss_finite", None].value is True and found["params_equal", None].value is True
        mfu = found["mfu", None]
        assert abs(mfu.value - rate.value * mfu.detail["flop_per_sample"] / (2 * 0.1e12)) < 1e-9


def test_a_slow_rank_computes_longest_and_waits_least(tmp_path: Path) -> None:
    samples, codes, printed = run_program(
        "work", tmp_path, NET, nodes=2, nproc=1, train_s=0.2, inject=["slow-gpu:node=1,gpu=0,factor=0.1"]
    )
    assert codes == [0, 0], printed
    found = {(s.metric, s.node): s.value for s in samples}
    assert found["compute_s", "node1"] > 2 * found["compute_s", "node0"]
    assert found["wait_s", "node1"] < found["wait_s", "node0"]
    (mfu,) = (s for s in samples if s.metric == "mfu")
    assert mfu.value is None and "peak" in mfu.reason


def test_a_rank_that_dies_frees_the_others(tmp_path: Path) -> None:
    samples, codes, printed = run_program("work", tmp_path, NET, train_s=0.1, inject=["dead-rank:gpu=1"])
    assert codes == [1, 137], printed
    (failed,) = samples
    assert failed.value is None and failed.detail["failed"] and failed.reason
