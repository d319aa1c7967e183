"""The own history: a baseline file that is written when asked, reviewed, and held against."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest

from seatrial.check.baseline import load_baseline, save_baseline
from seatrial.check.judge import judge
from seatrial.errors import SpecError
from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from tests.unit.check_samples import names, rates, slowed, spec

DATE = datetime.date(2026, 1, 5)


def repeats(count: int) -> list[Sample]:
    found = []
    for repeat in range(count):
        factor = 1 + 0.004 * (repeat - count // 2)
        for s in rates(1, gpus=2, spread=0):
            found.append(
                s.model_copy(
                    update={"repeat": repeat, "value": s.value * factor if s.check == "gemm" else s.value}
                )
            )
    return found


def text(count: int = 9) -> str:
    return save_baseline(
        repeats(count),
        "spring",
        date=DATE,
        fingerprints={"node000": "5f3a"},
        software={"driver": "570.86.15"},
    )


def history(samples: list[Sample], count: int = 9) -> list[Finding]:
    baseline = load_baseline(text(count))
    findings = judge(samples, spec("gemm"), profile="gpu", expected_nodes=names(1), baseline=baseline)
    return [f for f in findings if f.judge == "history"]


def test_a_baseline_is_a_file_that_people_can_review(golden: Callable[[str, str], None]) -> None:
    golden(text(), "check/baseline.yaml")
    golden(text(3), "check/baseline-few.yaml")


def test_what_was_saved_is_what_is_loaded() -> None:
    baseline = load_baseline(text())
    usual = baseline.entries["gemm", "gemm_bf16", "node000", 1, None, None, ""]
    assert (usual.median, usual.mad, usual.n, usual.unit) == (745.0, 5.96, 9, "TFLOP/s")
    assert (baseline.name, baseline.date, baseline.fingerprints) == (
        "spring",
        "2026-01-05",
        {"node000": "5f3a"},
    )


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.0, Verdict.PASS),
        (1.2, Verdict.PASS),
        (0.98, Verdict.PASS),
        (0.96, Verdict.WARN),
        (0.92, Verdict.FAIL),
    ],
)
def test_drift_is_warned_of_and_then_failed(factor: float, verdict: Verdict) -> None:
    found = {
        f.gpu: f
        for f in history(slowed(rates(1, gpus=2, spread=0), "node000", 1, factor))
        if f.metric == "gemm_bf16"
    }
    assert found[0].verdict is Verdict.PASS
    assert found[1].verdict is verdict
    if verdict is Verdict.FAIL:
        assert "8.0% worse than its own 745 of 2026-01-05" in found[1].message and found[1].code == "drift"


def test_few_readings_may_only_warn() -> None:
    found = next(
        f
        for f in history(slowed(rates(1, gpus=2, spread=0), "node000", 1, 0.5), 3)
        if f.verdict is not Verdict.PASS
    )
    assert found.verdict is Verdict.WARN and "from 3 readings: it may only warn" in found.message


def test_a_part_that_the_baseline_does_not_know_is_unmeasured() -> None:
    found = history([s.model_copy(update={"node": "node777"}) for s in rates(1, gpus=2)])
    assert {f.verdict for f in found} == {Verdict.UNMEASURED} and "node777" in found[0].message


def test_without_a_baseline_history_says_nothing() -> None:
    findings = judge(rates(1), spec("gemm"), profile="gpu", expected_nodes=names(1))
    assert not [f for f in findings if f.judge == "history"]


def test_two_repetitions_are_too_few() -> None:
    with pytest.raises(SpecError) as refused:
        text(2)
    assert "gemm_bf16 of node000: 2" in refused.value.evidence and "--repeat 8" in refused.value.remedy


ENTRY = "  - {check: gemm, metric: gemm_bf16, node: n, gpu: 0, median: 745, mad: 2, n: 9, unit: TFLOP/s}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("TFLOP/s", "GFLOP/s", "is in TFLOP/s, not 'GFLOP/s'"),
        ("median: 745", "median: .nan", "median is nan"),
        ("median: 745", "median: .inf", "median is inf"),
        ("median: 745", "median: -1", "rates and times are above 0"),
        ("mad: 2", "mad: -2", "mad is -2, less than 0"),
        ("mad: 2", "mad: true", "mad is True"),
        ("gemm_bf16", "gemm_int4", "has no rate 'gemm_int4'"),
        ("n: 9", "n: 2", "n is 2, less than 3"),
        ("gpu: 0", "gpu: first", "not an index"),
        ("node: n,", "", "node missing"),
        ("node: n,", "node: n, colour: red,", "unknown key colour"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_line(old: str, new: str, said: str) -> None:
    good = f"schema: 1\nname: x\nentries:\n{ENTRY.replace('gpu: 0', 'gpu: 1')}\n{ENTRY}\n"
    load_baseline(good)
    lines = good.splitlines()
    lines[4] = lines[4].replace(old, new, 1)
    with pytest.raises(SpecError) as refused:
        load_baseline("\n".join(lines), "mine.yaml")
    assert refused.value.evidence.startswith("mine.yaml:5: ") and said in refused.value.evidence


def test_an_entry_given_twice_is_refused() -> None:
    with pytest.raises(SpecError) as refused:
        load_baseline(f"schema: 1\nentries:\n{ENTRY}\n{ENTRY}\n", "mine.yaml")
    assert "mine.yaml:4: gemm_bf16 of n is given twice" in refused.value.evidence
