"""From findings to the verdict: who fails, who is innocent, which exit code."""

from __future__ import annotations

import json
import math
import random
from datetime import timedelta, timezone

import pytest

from seatrial.check.verdict import ceilings, worst
from seatrial.errors import ExitCode
from seatrial.runs import hardware
from seatrial.runs.acceptance import Acceptance, Coverage
from seatrial.runs.samples import Sample
from seatrial.testing import FakeRunner

from .acceptance_samples import (
    ERROR,
    FAIL,
    NOW,
    PASS,
    SKIP,
    UNMEASURED,
    WARN,
    conclude,
    finding,
    healthy,
    troubled,
)  # fmt: skip


def of_node(acceptance: Acceptance, name: str) -> tuple[str, str]:
    node = next(n for n in acceptance.nodes if n.name == name)
    return str(node.verdict), node.reason


class TestOutcome:
    def test_a_healthy_cluster_passes(self) -> None:
        found = conclude(healthy())
        assert (found.verdict, found.exit_code) == (PASS, ExitCode.OK)
        assert found.sentence == "PASS: 4 of 4 nodes pass"
        assert [n.name for n in found.nodes] == ["node0", "node1", "node2", "node3"]

    def test_failing_nodes_are_named_with_what_failed(self) -> None:
        found = conclude(troubled())
        assert (found.verdict, found.exit_code) == (FAIL, ExitCode.FAILED)
        assert found.sentence == (
            "FAIL: 2 of 4 nodes fail: node1 (locked_memory), node3 (gemm of GPU 1); "
            "1 link fails: node0–node2; warnings of node0, node2"
        )

    def test_a_required_check_that_did_not_run_is_exit_code_3(self) -> None:
        coverage = Coverage(required=("gemm", "xid"), missing={"xid": "dmesg: not permitted"})
        found = conclude(healthy(), coverage=coverage)
        assert (found.verdict, found.exit_code) == (UNMEASURED, ExitCode.INCOMPLETE)
        assert "1 of 2 required checks ran; not: xid" in found.sentence

    def test_a_failure_wins_over_what_did_not_run(self) -> None:
        coverage = Coverage(required=("gemm", "xid"), missing={"xid": "not read"})
        found = conclude(troubled(), coverage=coverage)
        assert (found.verdict, found.exit_code) == (FAIL, ExitCode.FAILED)
        assert "not: xid" in found.sentence

    def test_nothing_measured_is_never_a_pass(self) -> None:
        assert conclude([]).exit_code == ExitCode.INCOMPLETE
        assert conclude([finding("ecc", SKIP), finding("xid", UNMEASURED)]).exit_code == ExitCode.INCOMPLETE

    @pytest.mark.parametrize(("strict", "code"), [(False, ExitCode.OK), (True, ExitCode.FAILED)])
    @pytest.mark.parametrize("verdict", [WARN, ERROR])
    def test_warnings_fail_only_a_strict_test(self, strict: bool, code: ExitCode, verdict: str) -> None:
        found = conclude([*healthy(), finding("clock", verdict, "node2")], strict=strict)  # type: ignore[arg-type]
        assert (found.verdict, found.exit_code) == (WARN, code)
        assert "warnings of node2" in found.sentence

    def test_the_order_of_findings_says_nothing(self) -> None:
        expected = conclude(troubled())
        for seed in range(5):
            shuffled = random.Random(seed).sample(troubled(), len(troubled()))
            found = conclude(shuffled)
            assert (found.sentence, [n.verdict for n in found.nodes]) == (
                expected.sentence, [n.verdict for n in expected.nodes],
            )  # fmt: skip

    def test_many_names_are_cut_and_counted(self) -> None:
        found = conclude([finding("report", FAIL, f"n{i}", blame="node") for i in range(100)])
        assert "100 of 100 nodes fail: n0 (report), n1 (report), n2" in found.sentence
        assert found.sentence.endswith("and 68 more")


class TestBlame:
    def test_a_slow_link_blames_both_ends_as_a_warning(self) -> None:
        found = conclude(troubled())
        for end, other in (("node0", "node2"), ("node2", "node0")):
            verdict, reason = of_node(found, end)
            assert verdict in {WARN, ERROR}
            if verdict == WARN:
                assert other in reason or "clock" in reason

    def test_a_link_alone_fails_the_test_but_no_node(self) -> None:
        link = finding("pairs", FAIL, "node0", peer="node1", blame="link", metric="pair", message="slow")
        found = conclude([*healthy(2), link])
        assert found.exit_code == ExitCode.FAILED
        assert of_node(found, "node0") == (WARN, "link to node1: slow")
        assert of_node(found, "node1") == (WARN, "link to node0: slow")
        assert (
            found.sentence == "FAIL: 1 link fails: node0–node1; 0 of 2 nodes pass; warnings of node0, node1"
        )

    @pytest.mark.parametrize("blame", ["fabric", "user"])
    def test_what_is_not_the_nodes_fault_is_not_laid_at_its_door(self, blame: str) -> None:
        found = conclude([*healthy(2), finding("cluster_data", FAIL, "node1", blame=blame)])
        assert of_node(found, "node1")[0] == PASS
        assert found.exit_code == ExitCode.FAILED
        assert "cluster_data fails" in found.sentence

    @pytest.mark.parametrize("blame", ["node", "config", ""])
    def test_what_is_fails_it(self, blame: str) -> None:
        found = conclude([*healthy(2), finding("open_files", FAIL, "node1", blame=blame)])
        assert of_node(found, "node1") == (FAIL, "open_files of node1")

    def test_one_judge_that_could_tell_is_enough(self) -> None:
        more = {"gpu": 0, "metric": "gemm_bf16"}
        told = [finding("gemm", UNMEASURED, judge="specification", code="unknown_hardware", **more),
                finding("gemm", PASS, judge="peers", **more)]  # fmt: skip
        assert conclude(told).exit_code == ExitCode.OK
        assert conclude(told[:1]).exit_code == ExitCode.INCOMPLETE

    def test_an_optional_check_that_could_not_be_read_leaves_the_node_as_it_is(self) -> None:
        told = [*healthy(2), finding("xid", UNMEASURED, "node1")]
        assert of_node(conclude(told), "node1")[0] == PASS
        missing = Coverage(required=("xid",), missing={"xid": "not read"})
        assert of_node(conclude(told, coverage=missing), "node1")[0] == UNMEASURED

    def test_a_node_of_which_nothing_was_found_is_not_passed(self) -> None:
        found = conclude(healthy(1), hardware={"node0": {}, "node9": {}}, gpus={})
        assert of_node(found, "node9") == (UNMEASURED, "nothing was measured")

    def test_worst(self) -> None:
        assert worst([PASS, UNMEASURED, WARN, ERROR, FAIL, SKIP]) == FAIL
        assert worst([PASS, UNMEASURED]) == UNMEASURED
        assert worst([SKIP, PASS]) == PASS
        assert worst([]) == UNMEASURED


class TestFile:
    def test_a_pass_is_kept_once_for_each_part(self) -> None:
        twice = [finding("gemm", PASS, gpu=g, metric=f"gemm_{d}") for g in (0, 1) for d in ("bf16", "fp16")]
        links = [finding("pairs", PASS, "node0", peer=f"node{i}") for i in range(1, 50)]
        assert [(f.gpu, f.metric) for f in conclude(twice).findings] == [(0, "gemm_bf16"), (1, "gemm_bf16")]
        assert len(conclude(links).findings) == 1
        failing = [finding("gemm", FAIL, gpu=0, metric=m) for m in "ab"]
        assert len(conclude(failing).findings) == 2

    def test_figures_that_json_lacks_become_words(self) -> None:
        odd = finding("gemm", FAIL, measured=[math.nan, {"a": math.inf}], expected=(1, {2}))
        text = json.dumps(conclude([odd]).model_dump(mode="json"), allow_nan=False)
        assert '"nan"' in text and '"inf"' in text

    def test_the_best_rates_of_a_node(self) -> None:
        def sample(metric: str, value: object, node: str = "b") -> Sample:
            return Sample(check="gemm", metric=metric, node=node, gpu=0, value=value)

        found = ceilings([sample("gemm_bf16", 700), sample("gemm_bf16", 712.5), sample("gemm_hash", "ab"),
                          sample("gemm_bf16", math.nan), sample("memory_copy", 2900.0, "a"), sample("h2d", 50.0),
                          sample("gemm_fp8", None)])  # fmt: skip
        assert found == {"a": {"memory_copy": 2900.0}, "b": {"gemm_bf16": 712.5}}

    def test_times_are_utc(self) -> None:
        east = NOW.astimezone(timezone(timedelta(hours=5)))
        assert f"{conclude(healthy(), tested=east).tested:%H:%M %Z}" == "12:00 UTC"

    def test_it_expires_and_says_what_was_asked(self) -> None:
        found = conclude(healthy(), valid_days=2)
        assert (found.expires - found.tested).days == 2
        assert len(found.suite_sha256) == 64


class TestHardware:
    SMI = "nvidia-smi --query-gpu"

    def test_this_machine(self) -> None:
        runner = FakeRunner(
            {self.SMI: "GPU-aa, NVIDIA H100 80GB HBM3, 550.54\nGPU-bb, NVIDIA H100 80GB HBM3, 550.54\n"}
        )
        found = hardware.read(runner)
        assert found["gpus"] == {"GPU-aa": "NVIDIA H100 80GB HBM3", "GPU-bb": "NVIDIA H100 80GB HBM3"}
        assert found["driver"] == "550.54" and found["memory_gib"] > 0 and found["cores"] > 0
        assert hardware.fingerprint(found) == hardware.fingerprint(dict(reversed(found.items())))

    def test_without_gpus_and_without_proc(self, tmp_path: object) -> None:
        from pathlib import Path

        assert set(hardware.read(FakeRunner(), Path(str(tmp_path)))) == {"cores"}
        assert "gpus" not in hardware.read(FakeRunner({self.SMI: (9, "", "no devices")}))

    def test_what_differs_is_named(self) -> None:
        tested = {"gpus": {"GPU-aa": "H100"}, "cpu": "EPYC", "driver": "550"}
        assert hardware.differences(tested, {"gpus": {"GPU-aa": "H100"}, "cpu": "EPYC"}) == []
        assert hardware.differences(tested, {"gpus": {"GPU-bb": "H100"}, "memory_gib": 3}) == [
            "gpus: GPU-aa was tested, GPU-bb is here"
        ]
