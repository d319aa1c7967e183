"""Who is behind, whether to start again, and when the deadline is: decided without ranks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from seatrial.errors import SpecError
from seatrial.job.agent import stop_time
from seatrial.job.environment import outer_environment, rank_environment, warm_environment
from seatrial.job.heartbeat import Beat, FileBeats, Heart, Watch
from seatrial.job.restarts import Restarts
from seatrial.runs.plan import LaunchPlan


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Ranks:
    """Heartbeat files of three ranks, and a watch over them with 10 s of patience."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = Clock()
        self.paths = [tmp_path / f"rank_{rank}" for rank in range(3)]
        beats = FileBeats(dict(enumerate(self.paths)), lambda pid: pid == self.halted)
        self.watch = Watch(beats, 3, 10, self.clock)
        self.halted = 0
        self.hearts = [Heart(path) for path in self.paths]

    def step(self, step: int, *ranks: int) -> None:
        for rank in ranks or range(3):
            self.hearts[rank].beat(step)
        self.watch.look()

    def after(self, seconds: float) -> tuple[int, str] | None:
        self.clock.now += seconds
        found = self.watch.look()
        return None if found is None else (found.rank, found.others)


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(tmp_path)


class TestHeartbeat:
    def test_a_beat_is_read_back_and_costs_next_to_nothing(self, tmp_path: Path) -> None:
        heart = Heart(tmp_path / "h" / "rank")
        heart.beat(7)
        heart.enter("a longer name of a phase " * 5)
        heart.enter("reducing")
        beat = Beat.read(tmp_path / "h" / "rank")
        assert beat is not None and (beat.step, beat.part, beat.phase) == (7, 2, "reducing")
        began = time.process_time()
        for step in range(2000):
            heart.beat(step)
        assert (time.process_time() - began) / 2000 < 50e-6  # some 5 µs; the bound is for slow machines

    def test_the_rank_at_the_lowest_step_holds_up_the_others(self, ranks: Ranks) -> None:
        for step in (1, 2, 3):
            ranks.step(step)
        ranks.step(4, 0, 2)  # these two wait for rank 1
        assert ranks.after(9) is None
        frozen = ranks.after(2)
        assert frozen == (1, "rank 0: step 4, training; rank 2: step 4, training")
        assert ranks.watch.step == 4

    def test_within_a_step_it_is_the_one_that_has_not_reached_the_reduction(self, ranks: Ranks) -> None:
        for step in (1, 2):
            ranks.step(step)
        ranks.hearts[0].enter("reducing")
        ranks.hearts[1].enter("reducing")
        ranks.watch.look()
        assert ranks.after(11) == (2, "rank 0: step 2, reducing; rank 1: step 2, reducing")

    def test_a_halted_rank_is_the_cause_wherever_it_is(self, ranks: Ranks) -> None:
        ranks.hearts[2]._pid = ranks.halted = 4242
        for step in (1, 2):
            ranks.step(step)
        ranks.hearts[2].enter("reducing")
        ranks.watch.look()
        found = ranks.after(11)
        assert found is not None and found[0] == 2

    def test_start_up_has_longer(self, ranks: Ranks) -> None:
        assert ranks.after(1700) is None
        ranks.step(31)  # resumed; this step compiles
        assert ranks.after(1700) is None
        ranks.step(32)
        assert ranks.after(11) is not None

    def test_a_rank_that_is_halted_while_it_starts_is_found_at_once(self, ranks: Ranks) -> None:
        assert ranks.after(11) is None
        ranks.hearts[1]._pid = ranks.halted = 4242
        ranks.hearts[1].enter("loading")
        assert ranks.after(9) is None
        found = ranks.after(11)
        assert found is not None and found[0] == 1

    def test_a_rank_that_has_finished_is_not_frozen(self, ranks: Ranks) -> None:
        for step in (1, 2):
            ranks.step(step)
        ranks.hearts[1].enter("finished")
        ranks.watch.look()
        for step in (3, 4, 5):
            ranks.clock.now += 6
            ranks.step(step, 0, 2)
        assert ranks.after(9) is None

    def test_a_rank_that_is_halted_on_its_way_out_holds_up_the_end(self, ranks: Ranks) -> None:
        for step in (1, 2):
            ranks.step(step)
        ranks.hearts[1]._pid = ranks.halted = 4242
        for heart in ranks.hearts:
            heart.enter("finished")
        ranks.watch.look()
        assert ranks.after(9) is None
        found = ranks.after(2)
        assert found is not None and found[0] == 1

    def test_a_jump_of_the_wall_clock_changes_nothing(
        self, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step, wall in ((1, 1e9), (2, 1e9 + 1), (3, 1e9 + 9e6), (4, 1e9 - 9e6)):
            monkeypatch.setattr(time, "time", lambda wall=wall: wall)
            ranks.step(step)
            assert ranks.after(5) is None
        assert ranks.after(6) is not None

    def test_beats_of_earlier_ranks_do_not_count(self, tmp_path: Path) -> None:
        Heart(tmp_path / "r").beat(99)
        watch = Watch(FileBeats({0: tmp_path / "r"}), 1, 10, Clock())
        assert watch.look() is None and watch.step == 0


def failed(exit_code: int = 4) -> dict[str, object]:
    return {"exit_code": exit_code, "what": "rank 1 was killed", "rank": 1}


class TestRestarts:
    def test_it_waits_longer_each_time_and_not_for_ever(self) -> None:
        restarts = Restarts(9)
        waits = [restarts.wait_s(failed(), step) for step in range(10, 110, 10)]
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, None]
        assert "9 restarts did not help" in restarts.reason
        assert [row["step"] for row in restarts.rows] == list(range(10, 100, 10))

    def test_the_same_step_twice_ends_it(self) -> None:
        restarts = Restarts(9)
        assert restarts.wait_s(failed(), 17) == 1
        assert restarts.wait_s(failed(), 17) is None
        assert restarts.reason == "step 17 failed twice in a row"

    def test_getting_less_far_costs_two(self) -> None:
        restarts = Restarts(3)
        assert restarts.wait_s(failed(), 17) is not None
        assert restarts.wait_s(failed(), 12) is not None
        assert restarts.wait_s(failed(), 30) is None

    @pytest.mark.parametrize("code", [1, 2, 3])
    def test_what_was_measured_or_asked_wrongly_is_not_tried_again(self, code: int) -> None:
        assert Restarts(9).wait_s(failed(code), 5) is None
        assert Restarts(0).wait_s(failed(), 5) is None


def make_plan(**more: object) -> LaunchPlan:
    return LaunchPlan(
        run_id="r", run_dir=Path("/r"), attempt=0, nodes=1, nproc=2, device="cpu", threads=3, stages=(), python="python",
        cwd=Path("/"), **more,  # type: ignore[arg-type]
    )  # fmt: skip


class TestDeadline:
    def test_the_ranks_are_stopped_some_time_before_it(self) -> None:
        left = stop_time(make_plan(stop_before_s=120), str(time.time() + 1000)) - time.monotonic()
        assert left == pytest.approx(880, abs=5)
        left = stop_time(make_plan(deadline=time.time() + 500, stop_before_s=0), "1") - time.monotonic()
        assert left == pytest.approx(500, abs=5)
        assert stop_time(make_plan(), None) == stop_time(make_plan(), "") == float("inf")

    def test_a_time_limit_is_kept_where_no_scheduler_does(self) -> None:
        plan = make_plan(time_limit_s=500, stop_before_s=100)
        assert stop_time(plan, None) == float("inf")
        assert stop_time(plan, None, limited=True) - time.monotonic() == pytest.approx(400, abs=5)
        sooner = stop_time(plan, str(time.time() + 300), limited=True) - time.monotonic()
        assert sooner == pytest.approx(200, abs=5)

    def test_one_that_is_no_number_is_refused(self) -> None:
        with pytest.raises(SpecError, match="SEATRIAL_DEADLINE"):
            stop_time(make_plan(), "tomorrow")


class TestEnvironment:
    def test_what_the_warm_process_needs_is_undone_for_the_ranks(self) -> None:
        outer = {"PATH": "/bin", "OPENBLAS_NUM_THREADS": "7"}
        warm = warm_environment(outer, 3)
        assert (warm["OPENBLAS_NUM_THREADS"], warm["OMP_NUM_THREADS"]) == ("1", "3")
        assert outer_environment(warm) == outer

    def test_an_outer_launcher_leaves_no_trace(self) -> None:
        env = rank_environment(
            make_plan(), {"RANK": "5", "PET_NNODES": "4", "TORCHELASTIC_RUN_ID": "x", "A": "b"}, 2
        )
        assert not {"RANK", "PET_NNODES", "TORCHELASTIC_RUN_ID"} & set(env)
        assert (env["A"], env["OMP_NUM_THREADS"], env["SEATRIAL_RESTART"]) == ("b", "3", "2")
