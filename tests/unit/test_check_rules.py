"""States that are right or wrong: each fault is found, with the part that has it, and nobody else is blamed."""

from __future__ import annotations

from typing import Any

import pytest

from seatrial.check.judge import coverage, fatal_nodes, judge
from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from tests.unit.check_samples import host, names, spec, with_value

PHASE_0 = ("report", "gpus", "gpu_idle", "versions", "shared_memory", "locked_memory", "open_files", "cpu", "clock", "ecc",
           "row_remap", "xid", "pcie", "infiniband", "rdma", "local_disk", "shared_disk", "gemm_result", "throttle")  # fmt: skip
BAD = {Verdict.FAIL, Verdict.WARN, Verdict.ERROR, Verdict.UNMEASURED}


def cluster(nodes: int = 5, **changed: Any) -> list[Sample]:
    return [sample for node in names(nodes) for sample in host(node, gpus=2, **changed)]


def say(samples: list[Sample], nodes: int = 5, **more: Any) -> list[Finding]:
    more.setdefault("profile", "gpu")
    return judge(samples, spec(*PHASE_0), expected_nodes=names(nodes), **more)


def bad(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.judge == "rule" and f.verdict in BAD]


def only(findings: list[Finding]) -> Finding:
    wrong = bad(findings)
    assert len(wrong) == 1, [f.message for f in wrong]
    return wrong[0]


def test_a_healthy_cluster_is_passed_by_every_rule() -> None:
    findings = say(cluster())
    assert bad(findings) == []
    assert {f.check for f in findings if f.verdict is Verdict.PASS} == set(PHASE_0)
    assert coverage(findings, spec(*PHASE_0), "gpu").missing == {}


FAULTS: list[tuple[str, Any, dict[str, Any], Verdict, str, str]] = [
    ("gpu_count", 1, {}, Verdict.FAIL, "lost_gpu", "1 GPUs"),
    ("driver", "470.57.02", {}, Verdict.FAIL, "driver_differs", "470.57.02; 4 of 5 nodes have 570.86.15"),
    ("kernel", "5.15", {}, Verdict.WARN, "version_differs", "kernel is 5.15"),
    ("shm_gib", 0.0625, {}, Verdict.FAIL, "small_shm", "0.0625 GiB"),
    ("shm_gib", 4.0, {}, Verdict.WARN, "small_shm", "4 GiB"),
    ("locked_memory_bytes", 65536, {}, Verdict.FAIL, "low_memlock", "64 KiB"),
    ("open_files", 1000, {}, Verdict.FAIL, "few_open_files", "1000 open files"),
    ("cores_per_gpu", 2.0, {}, Verdict.WARN, "few_cores", "2 cores"),
    ("cores_per_gpu", 0.5, {}, Verdict.FAIL, "few_cores", "0.5 cores"),
    ("governor", "powersave", {}, Verdict.WARN, "slow_governor", "powersave"),
    ("clock_skew_s", -60.0, {}, Verdict.FAIL, "clock_skew", "60 s behind"),
    ("clock_skew_s", 2.0, {}, Verdict.WARN, "clock_skew", "2 s ahead"),
    ("xids", [{"xid": 79, "device": "0000:3b:00", "seconds_after_boot": 5.0}], {}, Verdict.FAIL, "xid", "fell off the bus"),
    ("xids", [{"xid": 63, "seconds_after_boot": 5.0}], {}, Verdict.WARN, "xid", "row was remapped"),
    ("uverbs", 0, {}, Verdict.FAIL, "no_rdma", "0 RDMA devices"),
    ("peermem", None, {}, Verdict.WARN, "no_peermem", "no way to GPU memory"),
    ("acs", ["0000:00:01.0"], {}, Verdict.WARN, "acs", "1 PCIe bridges"),
    ("local_free_gib", 2.0, {}, Verdict.FAIL, "disk_full", "2 GiB free"),
]  # fmt: skip
FAULTS_OF_A_GPU: list[tuple[str, Any, dict[str, Any], Verdict, str, str]] = [
    ("gpu_opens", False, {"reason": "out of memory"}, Verdict.FAIL, "not_opened", "out of memory"),
    ("gpu_memory_used", 30000.0, {"detail": {"processes": [{"pid": 4711, "name": "python", "mib": 29000, "ours": False}]}},
     Verdict.FAIL, "foreign_process", "pid 4711"),
    ("gpu_memory_used", 30000.0, {}, Verdict.WARN, "memory_in_use", "by no process that can be seen"),
    ("ecc_uncorrected", 3, {}, Verdict.FAIL, "memory_errors", "3 uncorrected"),
    ("sram_uncorrected", 3, {}, Verdict.WARN, "memory_errors", "3 sram"),
    ("sram_uncorrected", 5, {}, Verdict.FAIL, "memory_errors", "5 sram"),
    ("row_remap_pending", True, {}, Verdict.WARN, "row_remap", "pending"),
    ("row_remap_failed", True, {}, Verdict.FAIL, "row_remap", "failed"),
    ("pcie_gen_load", 3, {}, Verdict.FAIL, "slow_pcie", "PCIe generation: 3 of 5"),
    ("pcie_width", 8, {}, Verdict.FAIL, "slow_pcie", "PCIe lanes: 8 of 16"),
    ("throttle_bits", 0x44, {}, Verdict.FAIL, "throttled", "hardware thermal slowdown"),
    ("throttle_bits", 0x20, {}, Verdict.WARN, "throttled", "heat"),
    ("throttle_bits", 0x4, {"detail": {"power_limit_w": {"median": 500}, "power_limit_default_w": {"median": 700}}},
     Verdict.WARN, "throttled", "500 of 700 W"),
    ("gemm_hash", "cd" * 32, {}, Verdict.FAIL, "wrong_result", "differs in bits from that of 9 GPUs"),
    ("gemm_hash", ["ab" * 32, "cd" * 32], {}, Verdict.FAIL, "wrong_result", "2 different results"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "value", "more", "verdict", "code", "said"),
    FAULTS,
    ids=[f"{f[0]}-{f[1]}"[:40] for f in FAULTS],
)
def test_a_fault_of_a_node_is_named(
    metric: str, value: Any, more: dict[str, Any], verdict: Verdict, code: str, said: str
) -> None:
    found = only(say(with_value(cluster(), metric, "node003", value, **more)))
    assert (found.node, found.verdict, found.code) == ("node003", verdict, code)
    assert said in found.message
    assert found.message.startswith("node003: ")
    assert found.remedy and found.blame


@pytest.mark.parametrize(
    ("metric", "value", "more", "verdict", "code", "said"),
    FAULTS_OF_A_GPU,
    ids=[f"{f[0]}-{f[1]}"[:40] for f in FAULTS_OF_A_GPU],
)
def test_a_fault_of_a_gpu_is_named(
    metric: str, value: Any, more: dict[str, Any], verdict: Verdict, code: str, said: str
) -> None:
    found = only(say(with_value(cluster(), metric, "node003", value, gpu=1, **more)))
    assert (found.node, found.gpu, found.verdict, found.code) == ("node003", 1, verdict, code)
    assert said in found.message
    assert found.message.startswith("node003 GPU 1: ")
    assert found.remedy and found.blame


@pytest.mark.parametrize(
    ("metric", "value"), [("throttle_bits", 0x4), ("xids", [{"xid": 31, "seconds_after_boot": 1.0}])]
)
def test_what_is_usual_is_passed(metric: str, value: Any) -> None:
    assert bad(say(with_value(cluster(), metric, "node003", value))) == []


def test_little_locked_memory_is_no_fault_without_infiniband() -> None:
    samples = with_value(cluster(ib_ports=[], uverbs=0), "locked_memory_bytes", "node003", 65536)
    assert bad(say(samples)) == []


def test_versions_without_a_majority_are_all_warned_of() -> None:
    findings = bad(say(with_value(cluster(2), "nccl", "node001", "2.18.1"), nodes=2))
    assert [(f.node, f.verdict) for f in findings] == [("node000", Verdict.WARN), ("node001", Verdict.WARN)]
    assert "2.18.1 on node001; 2.27.5 on node000" in findings[0].message


def test_two_results_without_a_majority_fail_and_blame_neither() -> None:
    samples = with_value(cluster(2), "gemm_hash", "node001", "cd" * 32)
    found = only(say(samples, nodes=2))
    assert (found.verdict, found.node) == (Verdict.FAIL, None)
    assert "node000 GPU 0, node000 GPU 1" in found.message and "node001 GPU 0" in found.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": "DOWN"}, "mlx5_0/1 is DOWN, active on 4 nodes"),
        ({"rate_gbps": 100.0}, "mlx5_0/1 runs at 100 Gbit/s, most at 400"),
    ],
)
def test_a_port_is_held_to_the_same_port_of_the_others(change: dict[str, Any], said: str) -> None:
    samples = cluster()
    ports = next(s.value for s in samples if s.metric == "ib_ports")
    found = only(say(with_value(samples, "ib_ports", "node003", [{**ports[0], **change}, *ports[1:]])))
    assert (found.node, found.verdict, found.code) == ("node003", Verdict.FAIL, "port")
    assert said in found.message


def test_a_port_that_goes_down_again_and_again_is_warned_of() -> None:
    samples = cluster()
    ports = next(s.value for s in samples if s.metric == "ib_ports")
    found = only(
        say(with_value(samples, "ib_ports", "node003", [{**ports[0], "link_downed": 9}, *ports[1:]]))
    )
    assert (found.verdict, found.code) == (Verdict.WARN, "flapping")


def test_who_does_not_see_the_others_is_blamed_and_not_they() -> None:
    others = {name: "No such file" for name in names(5) if name != "node003"}
    samples = with_value(cluster(), "shared_visible", "node003", [], detail={"missing": others})
    for name in others:
        samples = with_value(
            samples, "shared_visible", name, ["x"], detail={"missing": {"node003": "No such file"}}
        )
    found = only(say(samples))
    assert (found.node, found.code) == ("node003", "not_shared")


@pytest.mark.parametrize(
    ("check", "value", "verdict"),
    [
        ("cluster_transport", "Socket", Verdict.FAIL),
        ("cluster_transport", "IB", Verdict.PASS),
        ("transport", "NET/Socket", Verdict.FAIL),
        ("transport", "SHM", Verdict.WARN),
    ],
)
def test_sockets_where_infiniband_is_active_fail(check: str, value: str, verdict: Verdict) -> None:
    metric, usual = ("network", "IB") if check == "cluster_transport" else ("transport", "P2P/CUMEM, NVLS")
    samples = cluster()
    samples += [
        Sample(check=check, metric=metric, node=n, value=value if n == "node003" else usual) for n in names(5)
    ]
    findings = judge(samples, spec(check), profile="gpu", expected_nodes=names(5))
    assert {f.node: f.verdict for f in findings if f.check == check and f.node}["node003"] is verdict
    assert len(bad(findings)) == (verdict is not Verdict.PASS)


def test_wrong_numbers_fail_with_the_operation_and_the_size() -> None:
    more = {"op": "all_reduce", "bytes": 1048576}
    samples = cluster() + [
        Sample(check="node_data", metric="wrong_elements", node=n, value=7 if n == "node003" else 0, detail=more) for n in names(5)
    ]  # fmt: skip
    found = only(judge(samples, spec("node_data"), profile="gpu", expected_nodes=names(5)))
    assert (found.node, found.code, found.blame) == ("node003", "wrong_data", "node")
    assert "7 wrong numbers in all_reduce of 1048576 bytes" in found.message


def test_wrong_numbers_of_all_nodes_blame_nobody_where_nobody_can_be_told() -> None:
    samples = [
        Sample(
            check="cluster_data",
            metric="wrong_elements",
            node="node000",
            value=7,
            detail={"op": "all_reduce"},
        )
    ]
    found = only(judge([*cluster(), *samples], spec("cluster_data"), profile="gpu", expected_nodes=names(5)))
    assert (found.node, found.verdict, found.blame) == (None, Verdict.FAIL, "fabric")


@pytest.mark.parametrize(
    ("ranks", "efficiency", "verdict"),
    [
        (8, 0.96, Verdict.PASS),
        (8, 0.94, Verdict.FAIL),
        (64, 0.81, Verdict.PASS),
        (64, 0.79, Verdict.FAIL),
        (4, 0.5, Verdict.PASS),
    ],
)
def test_scaling_has_a_gate_by_the_number_of_gpus(ranks: int, efficiency: float, verdict: Verdict) -> None:
    sample = Sample(
        check="train_resnet50", metric="efficiency", node="node000", value=efficiency, detail={"ranks": ranks}
    )
    findings = judge([sample], spec("train_resnet50"), profile="gpu", expected_nodes=["node000"])
    assert next(f.verdict for f in findings if f.metric == "efficiency") is verdict
    on_cpu = judge([sample], spec("train_resnet50"), profile="cpu", expected_nodes=["node000"])
    assert next(f.verdict for f in on_cpu if f.metric == "efficiency") is Verdict.SKIP


def test_the_straggler_computes_longest_and_waits_least() -> None:
    samples = []
    for i, node in enumerate(names(4)):
        for gpu in range(2):
            slow = (i, gpu) == (2, 1)
            for metric, value in (("compute_s", 0.13 if slow else 0.1), ("wait_s", 0.001 if slow else 0.031)):
                samples.append(
                    Sample(
                        check="train_resnet18",
                        metric=metric,
                        node=node,
                        gpu=gpu,
                        value=value,
                        values=[value] * 3,
                    )
                )
    findings = judge(samples, spec("train_resnet18"), profile="gpu", expected_nodes=names(4))
    failed = [f for f in findings if f.verdict is Verdict.FAIL]
    assert [(f.node, f.gpu, f.code) for f in failed] == [("node002", 1, "straggler")]


def test_steps_that_vary_are_warned_of_and_then_failed() -> None:
    for times, verdict in (
        ([1.0, 1.01, 1.02], Verdict.PASS),
        ([1.0, 1.03, 1.07], Verdict.WARN),
        ([1.0, 1.1, 1.2], Verdict.FAIL),
    ):
        sample = Sample(
            check="train_resnet18", metric="step_s", node="node000", value=times[1], values=times, unit="s"
        )
        findings = judge([sample], spec("train_resnet18"), profile="gpu", expected_nodes=["node000"])
        assert next(f.verdict for f in findings if f.metric == "step_s" and f.judge == "rule") is verdict


def test_a_node_that_never_reports_fails_and_goes_no_further() -> None:
    samples = [s for s in cluster() if s.node != "node003"]
    findings = say(samples)
    assert [(f.node, f.code) for f in findings if f.verdict is Verdict.FAIL] == [("node003", "no_report")]
    assert fatal_nodes(findings) == {"node003": "it never reported"}
    assert coverage(findings, spec(*PHASE_0), "gpu").missing == {}, (
        "the failure says it; nothing else is missing"
    )


def test_a_probe_that_was_ended_fails_with_its_reason() -> None:
    hung = Sample(
        check="report", metric="gpu_probe", node="node003", gpu=1, reason="the probe was ended after 30 s"
    )
    findings = say([*cluster(), hung])
    found = only(findings)
    assert (found.node, found.gpu, found.verdict) == ("node003", 1, Verdict.FAIL)
    assert "ended after 30 s" in found.message
    assert list(fatal_nodes(findings)) == ["node003"]


def test_what_could_not_be_read_is_unmeasured_and_missing() -> None:
    samples = with_value(cluster(), "xids", "node003", None, reason="dmesg: Operation not permitted")
    findings = say(samples)
    found = only(findings)
    assert (found.verdict, found.code) == (Verdict.UNMEASURED, "not_read")
    missing = coverage(findings, spec(*PHASE_0), "gpu").missing
    assert list(missing) == ["xid"] and "Operation not permitted" in missing["xid"]


def test_a_check_without_any_sample_is_unmeasured() -> None:
    samples = [s for s in cluster() if s.check != "ecc"]
    findings = bad(say(samples))
    assert {(f.check, f.verdict, f.code) for f in findings} == {("ecc", Verdict.UNMEASURED, "not_read")}
    assert len(findings) == 5


def test_what_does_not_apply_is_skipped_with_the_reason() -> None:
    samples = [Sample(check="shared_memory", metric="shm_gib", node="node000", value=64.0)]
    wanted = spec("shared_memory", "ecc", "pairs", "node_collectives")
    findings = judge(samples, wanted, profile="cpu", expected_nodes=["node000"])
    skipped = {f.check: f.message for f in findings if f.verdict is Verdict.SKIP}
    assert skipped["ecc"] == "ecc: no GPU is tested here" and skipped["pairs"] == "pairs: takes 2 nodes"
    assert "pairs" not in coverage(findings, wanted, "cpu").missing
    assert "node_collectives" in coverage(findings, wanted, "cpu").missing, (
        "nobody said that there is one rank only"
    )


def test_faults_that_all_nodes_have_in_common_stop_nobody() -> None:
    findings = say(cluster(shm_gib=0.0625))
    assert len([f for f in findings if f.code == "small_shm"]) == 5
    assert fatal_nodes(findings) == {}


def test_every_check_that_is_no_rate_has_a_rule() -> None:
    from seatrial.check.metrics import RATES
    from seatrial.check.rules import RULES
    from seatrial.spec.checks import CHECKS

    rated = {check for check, _ in RATES}
    assert set(CHECKS) - rated - set(RULES) == {"report"}
