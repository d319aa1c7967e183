"""Use of devices: the timeline it is counted over, the gate, and the causes, on recorded and made-up figures."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.runs.evidence import Verdict
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.telemetry import Device, Header, NodeTelemetry
from seatrial.spec.gates import UtilisationGate
from seatrial.watch.causes import causes
from seatrial.watch.judge import judge
from seatrial.watch.recorded import Attempt
from seatrial.watch.series import series
from seatrial.watch.steps import RankSteps, by_rank, mean_phases, over_steps
from seatrial.watch.timeline import Span, script_spans, spans
from seatrial.watch.use import Use, measure

BEGIN = 1_800_000_000.0
GATE = UtilisationGate(min=80)


def iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(BEGIN + seconds, UTC).isoformat()


def node(
    use: Any,
    *,
    rank: int = 0,
    metric: str = "sm_active",
    column: str = "sm_pct",
    begin: float = 0.0,
    **columns: Any,
) -> NodeTelemetry:
    """A node's samples once a second; `use` (seconds, gpus) in percent."""
    values = np.asarray(use, dtype=float)
    seconds, gpus = values.shape
    devices = tuple(
        Device(i, f"GPU-{rank}-{i}", "NVIDIA H100 80GB HBM3", "cpu" if metric == "cpu_busy" else "gpu")
        for i in range(gpus)
    )
    header = Header(rank, f"node-{rank}", "nvml+gpm", metric, 1.0, BEGIN, devices)
    times = BEGIN + begin + np.arange(1.0, seconds + 1) - 0.5
    found = {column: values} | {
        name: np.broadcast_to(np.asarray(v, dtype=float), values.shape) for name, v in columns.items()
    }
    return NodeTelemetry(header, times, np.ones(seconds), found)


def attempt(
    *nodes: NodeTelemetry, parts: tuple[tuple[str, float, float], ...] = (("training", 0, 60),), gpus: int = 0, device: str = "cuda",
    num_nodes: int | None = None, phases: dict[int, list[dict[str, Any]]] | None = None,
) -> Attempt:  # fmt: skip
    plan = LaunchPlan(
        run_id="r", run_dir=Path("/r"), attempt=0, nodes=num_nodes or len(nodes) or 1, nproc=8, device=device, threads=1,  # type: ignore[arg-type]
        stages=(), python="python", cwd=Path("/"), gpus_per_node=gpus,
    )  # fmt: skip
    end = max(part[2] for part in parts)
    found = tuple(Span(name, BEGIN + a, BEGIN + b) for name, a, b in parts)
    return Attempt(plan, BEGIN, BEGIN + end, False, found, nodes, phases or {}, {}, 0)


def steady(use: float, gpus: int = 8, seconds: int = 60, **more: Any) -> NodeTelemetry:
    return node(np.full((seconds, gpus), use), **more)


class TestTimeline:
    EVENTS = (
        {"event": "started", "stage": "train", "time": iso(2)},
        {"event": "loading", "time": iso(3)},
        {"event": "training", "time": iso(10), "from_step": 0, "num_steps": 5},
        {"event": "checkpoint", "time": iso(20)},
        {"event": "saving", "time": iso(40)},
        {"event": "finished", "stage": "train", "time": iso(45)},
        {"event": "started", "stage": "predict", "time": iso(46)},
    )

    def test_start_up_training_evaluation_and_predicting_are_told_apart(self) -> None:
        found = spans(self.EVENTS, [{"time": iso(30), "eval_s": 4}], BEGIN, BEGIN + 50)
        assert [(s.name, s.begin - BEGIN, s.end - BEGIN) for s in found] == [
            ("start-up", 0, 10), ("training", 10, 26), ("evaluation", 26, 30), ("training", 30, 40), ("saving", 40, 46),
            ("predicting", 46, 50),
        ]  # fmt: skip

    def test_ranks_that_are_started_again_start_up_again(self) -> None:
        again = (
            {"event": "started", "stage": "train", "time": iso(20)},
            {"event": "training", "time": iso(26), "from_step": 0},
        )
        found = spans((*self.EVENTS[:3], *again), [], BEGIN, BEGIN + 30)
        assert [s.name for s in found] == ["start-up", "training", "start-up", "training"]

    def test_nothing_is_known_before_the_first_event(self) -> None:
        assert [s.name for s in spans([], [], BEGIN, BEGIN + 5)] == ["start-up"]
        assert spans([], [], BEGIN, BEGIN) == []

    def test_a_script_starts_up_until_a_device_is_used(self) -> None:
        found = script_spans([(BEGIN + 1, 0), (BEGIN + 5, 30), (BEGIN + 9, 0)], BEGIN, BEGIN + 10)
        assert [(s.name, s.begin - BEGIN) for s in found] == [("start-up", 0), ("training", 5)]
        assert [s.name for s in script_spans([(BEGIN, 0)], BEGIN, BEGIN + 3)] == ["training"], (
            "idle from first to last"
        )

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["started", "training", "saving", "stopped", "note"]), st.floats(0, 100)
            ),
            max_size=12,
        ),
        st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30)), max_size=6),
    )
    def test_parts_follow_each_other_without_gap_or_overlap(
        self, events: list[tuple[str, float]], evaluations: list[tuple[float, float]]
    ) -> None:
        rows = [
            {"event": name, "stage": "train", "time": iso(t)}
            for name, t in sorted(events, key=lambda e: e[1])
        ]
        evals = [{"time": iso(t), "eval_s": took} for t, took in sorted(evaluations)]
        found = spans(rows, evals, BEGIN, BEGIN + 100)
        assert found[0].begin == BEGIN and found[-1].end == pytest.approx(BEGIN + 100)
        for one, other in itertools.pairwise(found):
            assert one.end == pytest.approx(other.begin, abs=1e-3)


class TestUse:
    def test_start_up_and_evaluation_do_not_count(self) -> None:
        use = np.concatenate([np.zeros((20, 8)), np.full((30, 8), 90.0), np.zeros((10, 8))])
        parts = (("start-up", 0, 20), ("training", 20, 50), ("evaluation", 50, 60))
        assert measure([attempt(node(use), parts=parts)]).mean_pct == 90
        assert measure([attempt(node(use), parts=parts)], "all").mean_pct == 45

    def test_each_device_weighs_the_same_and_rows_by_their_samples(self) -> None:
        one = node([[100.0], [0.0]])
        halved = replace(one, counts=np.array([3.0, 1.0]))
        assert measure([attempt(halved, parts=(("training", 0, 4),))]).mean_pct == 75

    def test_a_node_that_sends_nothing_lowers_the_coverage(self) -> None:
        found = measure([attempt(steady(90), num_nodes=2, gpus=8)])
        assert (found.num_expected, len(found.devices)) == (16, 8)
        assert found.coverage == pytest.approx(0.5)

    def test_attempts_are_joined_by_device(self) -> None:
        first, second = (
            attempt(steady(100, 1)),
            attempt(steady(50, 1, begin=100), parts=(("training", 100, 160),)),
        )
        found = measure([first, second])
        assert found.mean_pct == 75 and found.coverage == 1 and len(found.devices) == 1

    def test_the_weakest_metric_of_all_nodes_is_the_runs(self) -> None:
        busy = node(np.full((60, 8), 99.0), rank=1, metric="gpu_busy", column="busy_pct")
        strong = steady(40, busy_pct=98.0)
        found = measure([attempt(strong, busy)])
        assert found.metric == "gpu_busy" and found.mean_pct == pytest.approx(98.5)

    def test_throttling_is_a_part_of_the_samples(self) -> None:
        bits = np.zeros((60, 8))
        bits[:30, 3] = 0x80 | 0x04
        found = measure([attempt(steady(90, reasons=bits))])
        assert found.devices[3].throttled == {"power cap": 0.5, "power brake": 0.5}
        assert found.devices[0].throttled == {}

    def test_charts_keep_what_is_missing_missing(self) -> None:
        use = np.full((60, 2), 80.0)
        use[20:40] = math.nan
        found = series([attempt(node(use), parts=(("training", 0, 60),))], 12)
        assert found["series"]["use_pct"].count(80.0) == len(found["series"]["times_s"]) == 8
        assert found["heat"]["rows"][1]["label"] == "node-0 gpu 1"
        assert None in found["heat"]["rows"][0]["use_pct"]
        assert found["series"]["power_w"] is None
        assert series([])["heat"]["rows"] == []


class TestGate:
    def verdict(self, use: Use, gate: UtilisationGate = GATE, steps: int | None = 100) -> tuple[str, str]:
        found = judge(use, gate, steps)
        return str(found.verdict), found.message

    def test_pass_names_metric_mean_and_coverage(self) -> None:
        verdict, message = self.verdict(measure([attempt(steady(91.3))]))
        assert verdict == "PASS"
        assert message == "SM activity 91.3 % (mean of 8 devices over 60 s, coverage 100%): 80 % is required"

    def test_one_idle_gpu_of_eight_is_named(self) -> None:
        use = np.full((60, 8), 95.0)
        use[:, 5] = 3
        processes = np.ones((60, 8))
        processes[:, 5] = 0
        verdict, message = self.verdict(measure([attempt(node(use, processes=processes))]))
        assert verdict == "FAIL" and message.endswith("each must reach 50 %; node-0 gpu 5: 3 %, no process")

    def test_a_mean_under_the_minimum_fails(self) -> None:
        assert self.verdict(measure([attempt(steady(79.9))]))[0] == "FAIL"

    def test_a_floor_can_be_chosen_and_is_never_above_the_minimum(self) -> None:
        use = np.full((60, 8), 95.0)
        use[:, 5] = 30
        found = measure([attempt(node(use))])
        assert self.verdict(found, UtilisationGate(min=80, floor=20))[0] == "PASS"
        assert self.verdict(measure([attempt(steady(35))]), UtilisationGate(min=30))[0] == "PASS"

    def test_missing_samples_are_never_passed(self) -> None:
        use = np.full((60, 8), 95.0)
        use[5:20] = math.nan
        verdict, message = self.verdict(measure([attempt(node(use))]))
        assert verdict == "UNMEASURED" and "only 75% of the samples" in message
        assert (
            self.verdict(measure([attempt(steady(95, seconds=3), parts=(("training", 0, 3),))]))[0]
            == "UNMEASURED"
        )
        assert self.verdict(measure([]))[0] == "UNMEASURED"

    def test_a_node_that_was_never_heard_of_fails(self) -> None:
        verdict, message = self.verdict(measure([attempt(steady(95), num_nodes=2, gpus=8)]))
        assert verdict == "FAIL" and "nothing was heard of 8 of 16 devices" in message

    def test_use_without_progress_fails(self) -> None:
        """A hung collective spins at 100 %."""
        verdict, message = self.verdict(measure([attempt(steady(100))]), steps=0)
        assert verdict == "FAIL" and "no step was made" in message
        assert self.verdict(measure([attempt(steady(100))]), steps=None)[0] == "PASS", (
            "a script tells no steps"
        )

    def test_a_better_metric_than_there_is_can_be_demanded(self) -> None:
        busy = measure([attempt(node(np.full((60, 8), 99.0), metric="gpu_busy", column="busy_pct"))])
        assert self.verdict(busy)[0] == "PASS" and "GPU busy" in self.verdict(busy)[1]
        assert self.verdict(busy, UtilisationGate(min=80, metric="sm_active"))[0] == "UNMEASURED"

    def test_nothing_required_is_neither_passed_nor_failed(self) -> None:
        assert self.verdict(measure([attempt(steady(10))]), UtilisationGate())[0] == "SKIP"

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.floats(0, 100), min_size=1, max_size=16), st.floats(1, 100))
    def test_a_pass_means_what_it_says(self, uses: list[float], wanted: float) -> None:
        found = measure([attempt(node(np.tile(uses, (20, 1))), parts=(("training", 0, 20),))])
        judged = judge(found, UtilisationGate(min=wanted), 1)
        floor = min(50.0, wanted)
        good = np.mean(uses) >= wanted - 1e-6 and min(uses) >= floor - 1e-6
        bad = (np.mean(uses) < wanted + 1e-6 and (np.mean(uses) < wanted - 1e-6)) or min(uses) < floor - 1e-6
        assert (judged.verdict is Verdict.PASS) <= good
        assert bad <= (judged.verdict is Verdict.FAIL)


def rank(number: int, wall: float = 0.4, *, starved: float | None = None, **seconds: float) -> RankSteps:
    return RankSteps(number, 100, wall, seconds, starved)


HEALTHY = {"data": 0.01, "forward": 0.12, "backward": 0.22, "communication": 0.02, "optimizer": 0.02}


class TestCauses:
    def kinds(self, use: Use, ranks: list[RankSteps]) -> list[str]:
        return [cause.kind for cause in causes(use, ranks, 8)]

    def test_a_healthy_run_has_none(self) -> None:
        assert self.kinds(measure([attempt(steady(92))]), [rank(i, **HEALTHY) for i in range(8)]) == []

    def test_the_loader(self) -> None:
        ranks = [rank(i, 0.41, data=0.26, forward=0.05, backward=0.08, optimizer=0.02) for i in range(8)]
        found = causes(measure([attempt(steady(35))]), ranks, 8)
        assert found[0].sentence == "data-bound: 260 of 410 ms in the loader"

    def test_communication_is_what_even_the_last_rank_waits(self) -> None:
        ranks = [rank(i, **HEALTHY | {"communication": 0.15}) for i in range(8)]
        assert self.kinds(measure([attempt(steady(60))]), ranks) == ["communication-bound"]

    def test_one_straggler_is_not_the_network(self) -> None:
        ranks = [rank(i, **HEALTHY | {"communication": 0.15}) for i in range(16)]
        ranks[11] = rank(11, **HEALTHY | {"forward": 0.26, "communication": 0.01})
        found = causes(measure([attempt(steady(60), steady(60, rank=1))]), ranks, 8)
        assert [c.kind for c in found] == ["straggler"]
        assert (
            found[0].sentence == "one straggler: rank 11 on node-1"
            and "most of it more in forward" in found[0].evidence[0]
        )

    def test_gpus_without_a_process(self) -> None:
        use, processes = np.zeros((60, 8)), np.zeros((60, 8))
        use[:, 0], processes[:, 0] = 90, 1
        found = causes(measure([attempt(node(use, processes=processes))]), [], 1)
        assert found[0].sentence == "7 of 8 GPUs have no process"
        assert found[0].evidence[0] == "node-0 gpu 1: 0 %, no process"

    def test_idle_gpus_with_a_process_do_nothing(self) -> None:
        use = np.full((60, 8), 90.0)
        use[:, 2] = 0
        found = causes(measure([attempt(node(use, processes=1))]), [], 8)
        assert found[0].sentence == "1 of 8 GPUs do nothing"

    def test_throttling_names_reason_and_node(self) -> None:
        bits = np.zeros((60, 8))
        bits[:, 3] = 0x80
        found = causes(measure([attempt(steady(80), steady(80, rank=1, reasons=bits, clock_mhz=900))]), [], 8)
        assert found[0].sentence == "throttled: power brake on node-1"
        assert found[0].evidence[0] == "node-1 gpu 3: 100% of the samples, 900 MHz"

    def test_a_power_cap_is_normal_unless_it_takes_the_clock(self) -> None:
        assert self.kinds(measure([attempt(steady(95, reasons=0x4, clock_mhz=1700))]), []) == []
        clocks = np.full((60, 8), 1700.0)
        clocks[:, 6] = 900
        found = causes(measure([attempt(steady(95, reasons=0x4, clock_mhz=clocks))]), [], 8)
        assert [c.sentence for c in found] == ["throttled: power cap on node-0"]

    def test_checkpoints_and_evaluations(self) -> None:
        ranks = [rank(i, 0.6, **HEALTHY, checkpoint=0.06, evaluate=0.15) for i in range(2)]
        assert self.kinds(measure([attempt(steady(60))]), ranks) == ["evaluation", "checkpoint-stalls"]

    def test_a_gpu_that_runs_dry_is_launch_bound(self) -> None:
        ranks = [
            rank(i, 0.02, starved=0.95, data=0.0005, forward=0.008, backward=0.01, optimizer=0.001)
            for i in range(8)
        ]
        assert self.kinds(measure([attempt(steady(40))]), ranks) == ["launch-bound"]
        assert self.kinds(measure([attempt(steady(90))]), ranks) == [], (
            "dry at the end of a step is no harm at 90 %"
        )

    def test_the_dearest_comes_first(self) -> None:
        use = np.full((60, 8), 90.0)
        use[:, 2] = 0
        ranks = [rank(i, 0.41, data=0.26, forward=0.05, backward=0.08, optimizer=0.02) for i in range(8)]
        assert self.kinds(measure([attempt(node(use, processes=1))]), ranks) == ["data-bound", "idle-gpus"]


class TestSteps:
    ROWS = (
        {"step": 10, "steps": 10, "wall_s": 9.0, "s": {"data": 1.0, "forward": 4.0}},
        {"step": 20, "steps": 10, "wall_s": 4.0, "s": {"data": 1.0, "forward": 2.0}},
        {"step": 40, "steps": 20, "wall_s": 8.0, "s": {"data": 2.0, "forward": 4.0}},
    )

    def test_slow_first_steps_are_left_out(self) -> None:
        (found,) = by_rank(attempt(phases={0: list(self.ROWS)}))
        assert found.wall_s == pytest.approx(0.4)
        assert found.seconds == pytest.approx({"data": 0.1, "forward": 0.2, "other": 0.1})
        assert mean_phases([found, found]) == pytest.approx(found.seconds)

    def test_a_chart_has_every_row_up_to_a_limit(self) -> None:
        found = over_steps([attempt(phases={0: list(self.ROWS)})])
        assert found["steps"] == [10, 20, 40] and found["seconds"]["other"] == pytest.approx([0.4, 0.1, 0.1])
        assert over_steps([attempt(phases={0: list(self.ROWS) * 300})], 100)["steps"][-1] == 40
        assert len(over_steps([attempt(phases={0: list(self.ROWS) * 300})], 100)["steps"]) <= 100
        assert over_steps([attempt()])["steps"] == []
