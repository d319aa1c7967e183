"""The table of references: what it knows, and what its loader refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.check import floors
from seatrial.check.judge import coverage, judge
from seatrial.errors import SpecError
from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from tests.unit.check_samples import H100, names, rates, spec

GPU = "{names: [H200], peak: {bf16: 989}, memory_gb: 141, memory_gb_s: 4800, nvlink_gb_s: 450, power_w: 700}"
GOOD = {
    "gpu": "h200", "metric": "gemm_bf16", "unit": "TFLOP/s", "value": "730", "warn": "679", "fail": "642", "direction": "higher",
    "kind": "measured", "source": "somewhere", "date": "2025-06-01",
}  # fmt: skip


def table(*changes: dict[str, str]) -> str:
    entries = [
        "{" + ", ".join(f"{k}: {v}" for k, v in (GOOD | change).items() if v) + "}" for change in changes
    ]
    return "\n".join(
        ["schema: 1", f"gpus:\n  h200: {GPU}", "floors:", *(f"  - {e}" for e in entries), "links: []", ""]
    )


def test_a_good_table_is_read() -> None:
    found = floors.parse(table({})).find("h200", "gemm_bf16")
    assert found is not None and (found.value, found.fail, found.kind) == (730, 642, "measured")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # The unit bug that a vendor's table has had: MB/s for all GPUs but one, which so could never fail.
        ({"metric": "memory_copy", "unit": "MB/s", "value": "3110000", "warn": "2861000", "fail": "2333000"}, "is in GB/s, not 'MB/s'"),
        ({"metric": "memory_copy", "unit": "GB/s", "value": "3110000", "warn": "2861000", "fail": "2333000"}, "times the physical peak of 4800"),
        ({"metric": "memory_copy", "unit": "GB/s", "value": "3.11", "warn": "2.8", "fail": "2.33"}, "times the physical peak of 4800"),
        ({"unit": "GFLOP/s"}, "is in TFLOP/s, not 'GFLOP/s'"),
        ({"value": "1100"}, "value 1100 TFLOP/s is not within 0.3 to 1.02"),
        ({"fail": "200"}, "fail 200 TFLOP/s is not within"),
        ({"fail": "700"}, "are out of order"),
        ({"value": ".nan"}, "value is nan, not a finite number"),
        ({"value": "fast"}, "value is 'fast', not a finite number"),
        ({"direction": "lower"}, "is the wrong way"),
        ({"kind": "guessed"}, "kind 'guessed'"),
        ({"metric": "gemm_int4"}, "is not a metric"),
        ({"metric": "gemm_fp8"}, "no physical peak"),
        ({"gpu": "h300"}, "'h300' is not among the GPUs"),
        ({"source": "''"}, "has no source"),
        ({"date": "yesterday"}, "no date"),
        ({"date": ""}, "date missing"),
        ({"colour": "red"}, "unknown key colour"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_with_its_line(change: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        floors.parse(table({}, change), "mine.yaml")
    assert refused.value.evidence.startswith("mine.yaml:6: ")
    assert said in refused.value.evidence


def test_a_reference_given_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="can't be used") as refused:
        floors.parse(table({}, {}), "mine.yaml")
    assert "mine.yaml:6: h200 gemm_bf16 is given twice" in refused.value.evidence


@pytest.mark.parametrize(
    "text", ["", "schema: 2", "schema: 1\ngpus: [", "[1]", "schema: 1\ngpus: {}\nfloors: 3\nlinks: []"]
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        floors.parse(text)


def test_reduction_in_the_switch_may_exceed_the_link() -> None:
    change = {
        "metric": "all_reduce",
        "unit": "GB/s",
        "value": "473",
        "warn": "460",
        "fail": "430",
        "ranks": "8",
    }
    assert floors.parse(table({**change, "algo": "nvls"})).find("h200", "all_reduce", algo="nvls", ranks=8)
    with pytest.raises(SpecError):
        floors.parse(table({**change, "algo": "ring"}))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        (H100, "h100-sxm"), ("NVIDIA H200", "h200-sxm"), ("NVIDIA A100-SXM4-80GB", "a100-sxm-80"), ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("Tesla T4", "t4"), ("Tesla V100-SXM2-16GB", "v100-sxm"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80"), ("NVIDIA A10G", "a10g"), ("NVIDIA B200", "b200"),
    ],
)  # fmt: skip
def test_gpus_are_known_by_the_drivers_name(name: str, model: str) -> None:
    found = floors.shipped().gpu(name)
    assert found is not None and found.name == model


@pytest.mark.parametrize(
    "name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H1000", "AMD Instinct MI300X", "NVIDIA L400", ""]
)
def test_other_gpus_are_not_taken_for_those(name: str) -> None:
    assert floors.shipped().gpu(name) is None and floors.peak_tflops(name, "bf16") is None


def test_the_peak_is_dense_and_never_guessed() -> None:
    assert floors.peak_tflops(H100, "bf16") == 989
    assert floors.peak_tflops("Tesla T4", "bf16") is None


def specification(samples: list[Sample], *checks: str, nodes: int = 1) -> list[Finding]:
    findings = judge(samples, spec(*checks), profile="gpu", expected_nodes=names(nodes))
    return [f for f in findings if f.judge == "specification"]


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(745.0, Verdict.PASS), (620.0, Verdict.WARN), (600.0, Verdict.FAIL), (1100.0, Verdict.WARN)],
)
def test_a_rate_is_held_to_its_floor_and_to_physics(rate: float, verdict: Verdict) -> None:
    samples = [
        s.model_copy(update={"value": rate}) if s.metric == "gemm_bf16" else s for s in rates(1, gpus=1)
    ]
    found = next(f for f in specification(samples, "gemm") if f.metric == "gemm_bf16")
    assert found.verdict is verdict
    if verdict is Verdict.FAIL:
        assert found.code == "below_floor" and "gpu-fryer" in found.source and found.remedy


def test_another_shape_has_no_reference() -> None:
    samples = [s.model_copy(update={"detail": {"m": 4096, "n": 4096, "k": 4096}}) for s in rates(1, gpus=1)]
    assert {f.verdict for f in specification(samples, "gemm")} == {Verdict.UNMEASURED}


@given(st.text(min_size=1, max_size=30), st.floats(1e-3, 1e5))
def test_an_unknown_gpu_is_never_passed_by_the_specification(name: str, rate: float) -> None:
    model = "NVIDIA X" + name
    samples = [
        s.model_copy(update={"value": rate}) if s.check == "gemm" else s
        for s in rates(2, gpus=4, model=model)
    ]
    assert {f.verdict for f in specification(samples, "gemm", nodes=2)} == {Verdict.UNMEASURED}


def test_an_unknown_gpu_alone_leaves_the_check_without_a_result() -> None:
    findings = judge(
        rates(1, gpus=1, model="NVIDIA X1"), spec("gemm"), profile="gpu", expected_nodes=names(1)
    )
    missing = coverage(findings, spec("gemm"), "gpu").missing
    assert "no reference for NVIDIA X1" in missing["gemm"]
    assert (
        coverage(
            judge(rates(1, model="NVIDIA X1"), spec("gemm"), profile="gpu", expected_nodes=names(1)),
            spec("gemm"),
            "gpu",
        ).missing
        == {}
    )


def test_a_provisional_reference_only_warns() -> None:
    samples = [
        Sample(check="gpus", metric="gpu_model", node="node000", gpu=0, value="NVIDIA B200"),
        Sample(check="gemm", metric="gemm_bf16", node="node000", gpu=0, value=900.0, unit="TFLOP/s"),
    ]
    assert [f.verdict for f in specification(samples, "gemm")] == [Verdict.WARN]


def collective(check: str, value: float, size: int, **detail: object) -> list[Sample]:
    model = Sample(check="gpus", metric="gpu_model", node="node000", gpu=0, value=H100)
    more = {"bytes": size, **detail}
    two = [Sample(check="gpus", metric="gpu_model", node="node000", gpu=1, value=H100)]
    return [
        model,
        *two,
        Sample(check=check, metric="all_reduce", node="node000", value=value, unit="GB/s", detail=more),
    ]


@pytest.mark.parametrize(
    ("value", "size", "nvls", "verdict"),
    [
        (480.0, 8 << 30, True, Verdict.PASS), (400.0, 8 << 30, True, Verdict.FAIL), (400.0, 8 << 30, False, Verdict.PASS),
        (345.0, 8 << 30, False, Verdict.WARN), (345.0, 1 << 30, False, Verdict.PASS), (345.0, 256 << 20, False, Verdict.UNMEASURED),
    ],
)  # fmt: skip
def test_a_nodes_all_reduce_is_judged_by_size_and_algorithm(
    value: float, size: int, nvls: bool, verdict: Verdict
) -> None:
    samples = collective("node_collectives", value, size, ranks=8)
    said = "P2P/CUMEM, NVLS" if nvls else "P2P/CUMEM"
    samples.append(Sample(check="transport", metric="transport", node="node000", value=said))
    assert [f.verdict for f in specification(samples, "node_collectives")] == [verdict]


@pytest.mark.parametrize(
    ("value", "algo", "verdict"),
    [
        (366.0, "Ring", Verdict.PASS),
        (345.0, "Ring", Verdict.WARN),
        (300.0, "Ring", Verdict.FAIL),
        (470.0, "", Verdict.UNMEASURED),
    ],
)
def test_the_clusters_ring_is_judged_by_its_network_interfaces(
    value: float, algo: str, verdict: Verdict
) -> None:
    ports = [{"device": f"mlx5_{i}", "port": 1, "state": "ACTIVE", "rate_gbps": 400.0} for i in range(8)]
    samples = collective("cluster_collectives", value, 8 << 30, ranks=16, algo=algo)
    samples += [Sample(check="infiniband", metric="ib_ports", node=n, value=ports) for n in names(2)]
    assert [f.verdict for f in specification(samples, "cluster_collectives", nodes=2)] == [verdict]


def test_host_copies_are_judged_by_the_pcie_link() -> None:
    for generation, verdict in ((5, Verdict.FAIL), (4, Verdict.PASS)):
        samples = [
            Sample(check="gpus", metric="gpu_model", node="node000", gpu=0, value=H100),
            Sample(check="pcie", metric="pcie_gen_load", node="node000", gpu=0, value=generation),
            Sample(check="host_copy", metric="h2d", node="node000", gpu=0, value=26.0, unit="GB/s"),
        ]
        assert [f.verdict for f in specification(samples, "host_copy")] == [verdict]


def test_the_shipped_table_is_whole() -> None:
    table = floors.shipped()
    assert len(table.floors) > 40 and {"h100-sxm", "h200-sxm", "a100-sxm-80", "t4"} <= set(table.gpus)
    assert all(f.source and f.date for f in table.floors.values())
    assert Path(floors.__file__).with_name("floors.yaml").is_file()
