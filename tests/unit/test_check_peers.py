"""Parts held to each other: the slow one is found, a healthy fleet is left alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.check.judge import judge, suspects
from seatrial.runs.acceptance import Finding, Profile
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from tests.unit.check_samples import names, rates, slowed, spec

SPEC = spec("gemm")


def peers(samples: list[Sample], nodes: int, profile: Profile = "gpu") -> list[Finding]:
    findings = judge(samples, SPEC, profile=profile, expected_nodes=names(nodes))
    return [f for f in findings if f.judge == "peers"]


def accused(
    samples: list[Sample], nodes: int, profile: Profile = "gpu"
) -> set[tuple[str | None, int | None]]:
    return {(f.node, f.gpu) for f in peers(samples, nodes, profile) if f.verdict is Verdict.FAIL}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.0, 0.001, 0.01, 0.02]))
def test_a_healthy_cluster_accuses_nobody(nodes: int, seed: int, spread: float) -> None:
    found = peers(rates(nodes, seed=seed, spread=spread), nodes)
    assert {f.verdict for f in found} == {Verdict.PASS}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_one_gpu_of_70_percent_is_always_found(nodes: int, seed: int, data: st.DataObject) -> None:
    node, gpu = data.draw(st.sampled_from(names(nodes))), data.draw(st.integers(0, 7))
    assert accused(slowed(rates(nodes, seed=seed), node, gpu, 0.7), nodes) == {(node, gpu)}


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.floats(0.6, 1.0))
def test_the_order_of_samples_says_nothing(rng: random.Random, factor: float) -> None:
    samples = slowed(rates(2), "node001", 3, factor)
    shuffled = samples.copy()
    rng.shuffle(shuffled)
    assert peers(samples, 2) == peers(shuffled, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(-8, 8), st.floats(0.6, 1.0), st.integers(0, 1000))
def test_scaling_all_rates_changes_no_verdict(power: int, factor: float, seed: int) -> None:
    samples = slowed(rates(2, seed=seed), "node001", 3, factor)
    scaled = [
        s.model_copy(update={"value": s.value * 2.0**power}) if s.check == "gemm" else s for s in samples
    ]
    words = [[(f.metric, f.node, f.gpu, f.verdict) for f in peers(all_, 2)] for all_ in (samples, scaled)]
    assert words[0] == words[1]


def test_the_message_names_the_part_and_the_figures() -> None:
    found = next(
        f for f in peers(slowed(rates(4, spread=0), "node002", 5, 0.8), 4) if f.verdict is Verdict.FAIL
    )
    assert found.message == "node002 GPU 5: gemm_bf16 is 596 TFLOP/s, 20.0% under the median of 32 (745)"
    assert (found.blame, found.code, found.expected) == ("node", "slow_against_peers", 745)
    assert found.remedy


def test_faster_than_the_others_is_no_fault() -> None:
    assert accused(slowed(rates(4), "node002", 5, 1.4), 4) == set()


def test_gpus_of_one_model_are_held_to_each_other_only() -> None:
    mixed = rates(2) + [
        s.model_copy(
            update={
                "node": f"a100-{s.node}",
                "value": "NVIDIA A100-SXM4-80GB" if s.check == "gpus" else s.value / 3,
            }
        )
        for s in rates(2)
    ]
    findings = judge(mixed, SPEC, profile="gpu", expected_nodes=[*names(2), "a100-node000", "a100-node001"])
    assert not [f for f in findings if f.judge == "peers" and f.verdict is not Verdict.PASS]


def test_one_reading_a_little_slow_warns_and_is_measured_again() -> None:
    samples = slowed(rates(4, spread=0.01), "node002", 5, 0.9)
    found = [f for f in peers(samples, 4) if f.verdict is not Verdict.PASS]
    assert {(f.node, f.gpu, f.verdict) for f in found} == {("node002", 5, Verdict.WARN)}
    assert "one reading is not enough" in found[0].message
    again, pairs = suspects(samples, SPEC, profile="gpu", expected_nodes=names(4))
    assert {(s.check, s.node, s.gpu) for s in again} == {("gemm", "node002", 5)} and pairs == []


def again(samples: list[Sample], repeats: int, factor: float = 1.0) -> list[Sample]:
    """Further readings of samples."""
    return [
        s.model_copy(update={"repeat": r, "value": s.value * factor * (1 + r / 1000)})
        for r in range(1, repeats + 1) for s in samples if s.check == "gemm"
    ]  # fmt: skip


def of(samples: list[Sample], node: str, gpu: int) -> list[Sample]:
    return [s for s in samples if (s.node, s.gpu) == (node, gpu)]


def test_readings_of_all_that_agree_convict() -> None:
    samples = slowed(rates(4, spread=0.01), "node002", 5, 0.9)
    assert accused(samples + again(samples, 2), 4) == {("node002", 5)}


def test_a_part_that_was_picked_is_convicted_once_the_first_reading_can_be_outvoted() -> None:
    samples = slowed(rates(4, spread=0.01), "node002", 5, 0.9)
    low = of(samples, "node002", 5)
    for repeats, found in ((2, set()), (6, {("node002", 5)})):
        more = samples + again(low, repeats)
        assert accused(more, 4) == found
        assert bool(suspects(more, SPEC, profile="gpu", expected_nodes=names(4))[0]) == (not found)


def test_readings_that_do_not_agree_clear() -> None:
    samples = slowed(rates(4, spread=0.01), "node002", 5, 0.9)
    clearing = samples + again(of(samples, "node002", 5), 2, 1 / 0.9)
    assert {f.verdict for f in peers(clearing, 4)} == {Verdict.PASS}


def test_few_parts_are_not_held_to_each_other() -> None:
    found = peers(slowed(rates(1, gpus=4), "node000", 1, 0.5), 1)
    assert {(f.verdict, f.code) for f in found} == {(Verdict.UNMEASURED, "too_few")}
    assert "it takes 5" in found[0].message


def test_a_rehearsal_tells_by_the_effect_alone_from_four_on() -> None:
    samples = rates(2, gpus=2, spread=0.1)
    assert accused(samples, 2, "rehearsal") == set()
    assert accused(slowed(samples, "node001", 1, 0.5), 2, "rehearsal") == {("node001", 1)}
    assert {f.code for f in peers(rates(1, gpus=3), 1, "rehearsal")} == {"too_few"}


@pytest.mark.parametrize("share", [5, 8, 11])
def test_when_most_are_slow_it_is_said_that_peers_can_not_tell(share: int) -> None:
    samples = rates(2, spread=0.005)
    for i in range(share):
        samples = slowed(samples, names(2)[i % 2], i // 2, 0.85)
    divided = [f for f in peers(samples, 2) if f.code == "divided"]
    assert bool(divided) == (share > 8)
    assert all(f.verdict is Verdict.UNMEASURED and "more than half" in f.message for f in divided)


def test_pretend_nodes_have_one_disk_in_common_and_are_not_held_to_each_other() -> None:
    samples = [
        Sample(
            check="local_disk",
            metric="local_write_gb_s",
            node=node,
            value=0.1 if i == 2 else 2.0,
            unit="GB/s",
        )
        for i, node in enumerate(names(5))
    ]
    verdicts = {}
    for profile in ("rehearsal", "gpu"):
        findings = judge(samples, spec("local_disk"), profile=profile, expected_nodes=names(5))  # type: ignore[arg-type]
        verdicts[profile] = {f.node: f.verdict for f in findings if f.judge == "peers"}
    assert verdicts["rehearsal"] == {} and verdicts["gpu"]["node002"] is Verdict.FAIL
