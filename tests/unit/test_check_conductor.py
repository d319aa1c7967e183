"""What leads an acceptance test, without processes: its steps, whom it blames, what suites and faults may say."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import SpecError
from seatrial.job.checks import culprit
from seatrial.job.checks.again import disjoint, steps_again
from seatrial.job.checks.layout import Layout
from seatrial.job.checks.orders import End
from seatrial.job.checks.steps import Step, steps
from seatrial.job.checks.task import VARIABLE, Task
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.spec import injections
from seatrial.spec.checks import CHECKS, SUITES, CheckSpec
from seatrial.spec.suites import read_suite


def end(
    node: int,
    code: int | None = 1,
    *,
    at: float = 1.0,
    late: bool = False,
    ended: bool = False,
    last: str = "",
) -> End:
    lines = (last,) if last else ()
    return End(node, 0, code, at, late, ended, lines, at)


class TestSteps:
    def test_each_phase_comes_after_the_one_before(self) -> None:
        for name in SUITES:
            phases = [step.phase for step in steps(CheckSpec(suite=SUITES[name]), nodes=4, nproc=8)]
            assert phases == sorted(phases)

    def test_every_check_of_a_suite_is_some_steps_business(self) -> None:
        done = {
            check
            for step in steps(CheckSpec(suite=SUITES["full"]), nodes=4, nproc=8)
            for check in step.checks
        }
        assert done >= set(CHECKS)

    def test_one_node_is_not_paired_and_one_gpu_has_no_links(self) -> None:
        programs = [(s.program, s.world) for s in steps(CheckSpec(suite=SUITES["full"]), nodes=1, nproc=1)]
        assert ("pairs", "all") not in programs
        assert not [program for program, _ in programs if program in {"links", "peers"}]
        assert programs.count(("work", "all")) == 3

    def test_only_what_is_measured_is_repeated(self) -> None:
        spec = CheckSpec(suite=SUITES["quick"], repeat=3)
        repeats = [(step.program, step.repeat) for step in steps(spec, nodes=2, nproc=2)]
        assert repeats.count(("host", 0)) == 1
        assert [repeat for program, repeat in repeats if program == "speed"] == [0, 1, 2]

    def test_what_asks_no_node_starts_nothing(self) -> None:
        spec = CheckSpec(suite=read_suite("quick", only=["clock"]))
        assert list(steps(spec, nodes=2, nproc=2)) == []


class TestCulprit:
    def test_a_rank_that_was_killed_is_blamed_before_those_that_lost_it(self) -> None:
        ends = [end(0, 1, at=1.0, last="Connection closed by peer"), end(1, -9, at=1.1), end(2, 1, at=1.2)]
        found = culprit.find(ends, {})
        assert found is not None and found.node_rank == 1

    def test_a_node_whose_agent_is_gone_comes_before_all(self) -> None:
        found = culprit.find([end(0, -9, at=0.1), end(1, None, at=9.0)], {})
        assert found is not None and found.node_rank == 1

    def test_of_ranks_that_hang_the_one_behind_holds_the_others_up(self) -> None:
        ends = [end(n, -15, late=True, ended=True) for n in range(4)]
        found = culprit.find(ends, {(n, 0): 3 if n == 2 else 4 for n in range(4)})
        assert found is not None and found.node_rank == 2

    def test_ranks_that_all_hang_at_one_place_accuse_nobody(self) -> None:
        ends = [end(n, -15, late=True, ended=True) for n in range(4)]
        assert culprit.find(ends, dict.fromkeys([(n, 0) for n in range(4)], 7)) is None

    def test_ranks_that_all_say_the_same_accuse_nobody(self) -> None:
        assert culprit.find([end(n, 1, last="NCCL is not built in") for n in range(4)], {}) is None

    def test_without_a_death_the_first_to_fail_of_itself_is_blamed(self) -> None:
        ends = [
            end(0, 1, at=2.0, last="peer lost"),
            end(1, 1, at=1.0, last="CUDA error"),
            end(2, -15, ended=True),
        ]
        found = culprit.find(ends, {})
        assert found is not None and found.node_rank == 1

    @given(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
    def test_who_was_ended_on_purpose_is_never_blamed_for_it(self, killed: list[int]) -> None:
        ends = [end(n, -15, ended=True) for n in killed] + [end(9, -11, at=0.5)]
        found = culprit.find(ends, {})
        assert found is not None and found.node_rank == 9


class TestLayout:
    plan = LaunchPlan(
        run_id="r", run_dir=Path("/runs/r"), attempt=0, nodes=3, nproc=2, device="cpu", threads=1,
        stages=(Stage(name="check", argv=()),), python="python", cwd=Path("/"), conducts="checks",
    )  # fmt: skip
    layout = Layout(plan, CheckSpec(suite=SUITES["quick"]), {0: "a", 1: "b", 2: "c"})

    def test_ranks_are_counted_over_the_nodes_that_are_left(self) -> None:
        step = Step(3, "links", ("cluster_collectives",), "gpu", "all", 9.0)
        starts = self.layout.starts(step, [0, 2], {0: ("10.0.0.1", 9000)})
        ranks = {node: [p["env"]["RANK"] for p in processes] for node, processes in starts.items()}
        assert ranks == {0: ["0", "1"], 2: ["2", "3"]}
        assert {p["env"]["WORLD_SIZE"] for processes in starts.values() for p in processes} == {"4"}
        assert {p["env"]["MASTER_ADDR"] for processes in starts.values() for p in processes} == {"10.0.0.1"}

    def test_a_node_of_its_own_is_a_world_on_the_loopback(self) -> None:
        step = Step(2, "links", ("node_collectives",), "gpu", "node", 9.0)
        starts = self.layout.starts(step, [1, 2], {1: ("127.0.0.1", 9000), 2: ("127.0.0.1", 9001)})
        env = starts[2][1]["env"]
        assert (env["RANK"], env["WORLD_SIZE"], env["MASTER_PORT"]) == ("1", "2", "9001")
        assert env["GLOO_SOCKET_IFNAME"] == "lo"

    def test_a_task_survives_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        step = Step(1, "speed", ("gemm",), "gpu", "none", 9.0, options={"x": 1})
        text = self.layout.starts(step, [1], {})[1][0]["env"][VARIABLE]
        monkeypatch.setenv(VARIABLE, text)
        task = Task.from_env()
        assert (task.node, task.node_rank, task.gpu, task.checks, task.options) == (
            "b",
            1,
            0,
            ("gemm",),
            {"x": 1},
        )
        assert task.spec == SUITES["quick"]
        assert task.to_text() == text


class TestSuites:
    def test_only_and_skip(self) -> None:
        assert read_suite("quick", only=["gemm", "pairs"]).checks == ("gemm", "pairs")
        assert "gemm" not in read_suite("quick", skip=["gemm"]).checks

    def test_an_unknown_check_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(SpecError, match="did you mean 'gemm'"):
            read_suite("quick", only=["gem"])

    def test_an_unknown_suite_is_refused(self) -> None:
        with pytest.raises(SpecError) as caught:
            read_suite("quik")
        assert "did you mean 'quick'" in caught.value.remedy

    def test_nothing_left_is_refused(self) -> None:
        with pytest.raises(SpecError, match="no check is left"):
            read_suite("quick", only=["gemm"], skip=["gemm"])

    def test_a_file_changes_what_it_names(self, tmp_path: Path) -> None:
        path = tmp_path / "ours.yaml"
        path.write_text(
            "base: standard\nchecks: [gemm, pairs]\nrequired: [pairs]\ngemm_s: 30.0\nsizes_mib: [1, 2.5]\n"
        )
        suite = read_suite(str(path))
        assert (suite.name, suite.checks, suite.required, suite.gemm_s) == (
            "ours",
            ("gemm", "pairs"),
            ("pairs",),
            30,
        )
        assert suite.sizes_mib == (1.0, 2.5)
        assert suite.limit_s == SUITES["standard"].limit_s

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("base: standard\nchecks: [gemm, bandwith]\n", "'bandwith' is not a check"),
            ("base: standard\ngemms: 3\n", "unknown key 'gemms'"),
            ("base: fast\n", "base is 'fast'"),
            ("base: quick\ndtypes: [int8]\n", "'int8' is not a precision"),
            ("base: quick\nchecks: [gemm]\nrequired: [pairs]\n", "required, but not among checks: pairs"),
            ("checks: [gemm\n", "wrong.yaml:2:1"),
        ],
    )
    def test_a_wrong_file_is_refused(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "wrong.yaml"
        path.write_text(text)
        with pytest.raises(SpecError) as caught:
            read_suite(str(path))
        assert says in str(caught.value)


class TestInjections:
    def test_a_fault_is_read(self) -> None:
        fault = injections.parse("slow-gpu:node=3,gpu=1,factor=0.8")
        assert (fault.kind, fault.node, fault.gpu, fault.factor) == ("slow-gpu", 3, 1, 0.8)

    @pytest.mark.parametrize(
        "text",
        [
            "slow",
            "slow-gpu:rank=1",
            "slow-gpu:node=x",
            "slow-gpu:factor=1.5",
            "slow-link:node=1",
            "xid:gpu=1",
            "slow-gpu:node",
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=text.split(":")[0]):
            injections.parse(text)


class TestAgain:
    done = (
        Step(1, "speed", ("gemm", "memory"), "gpu", "none", 9.0),
        Step(3, "pairs", ("pairs",), "gpu", "all", 9.0),
        Step(3, "links", ("cluster_collectives",), "gpu", "all", 9.0),
    )
    numbers: ClassVar = {"a": 0, "b": 1, "c": 2, "d": 3}

    def test_a_part_that_looks_slow_is_measured_again_on_its_node_and_only_for_that(self) -> None:
        answer = {
            "again": {
                "parts": [{"check": "gemm", "node": "c", "gpu": 1}, {"check": "gemm", "node": "a", "gpu": 0}]
            }
        }
        [(step, members)] = steps_again(answer, self.done, self.numbers)
        assert (step.program, step.checks, members) == ("speed", ("gemm",), [0, 2])

    def test_pairs_are_dealt_out_so_that_nobody_is_in_two_at_once(self) -> None:
        answer = {"again": {"parts": [], "pairs": [["a", "b"], ["a", "c"], ["c", "d"]]}}
        [(step, members)] = steps_again(answer, self.done, self.numbers)
        assert step.options["rounds"] == [[[0, 1], [2, 3]], [[0, 2]]]
        assert members == [0, 1, 2, 3] and step.timeout_s > 9

    def test_a_node_that_is_out_is_not_measured_again(self) -> None:
        answer = {"again": {"parts": [{"check": "gemm", "node": "gone", "gpu": 0}], "pairs": [["a", "gone"]]}}
        assert list(steps_again(answer, self.done, self.numbers)) == []

    @given(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1]), max_size=30)
    )
    def test_every_pair_is_in_one_round(self, pairs: list[tuple[int, int]]) -> None:
        rounds = disjoint(pairs)
        assert sorted(p for r in rounds for p in r) == sorted(pairs)
        for r in rounds:
            numbers = [n for p in r for n in p]
            assert len(numbers) == len(set(numbers))
