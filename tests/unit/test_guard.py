"""What the guard decides, on one rank and without a model: skip, go back, stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the job side needs the extra 'train'")

import torch.distributed as dist

from seatrial.errors import MeasuredFailure, PlatformError
from seatrial.job.guard import Guard, Window, spike_limit
from seatrial.job.proof import RankComparison, checksums, odd_ones
from seatrial.job.reporter import Reporter
from seatrial.job.world import World
from seatrial.runs.commit import commit, start
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.files import append_json_line, read_json, write_json
from seatrial.runs.paths import RunPaths
from seatrial.spec.run import TrainSpec

NAN, INF = math.nan, math.inf
FP32 = torch.amp.GradScaler("cpu", enabled=False)
ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    return Reporter(RunPaths(tmp_path), 0, 0)


def guard(reporter: Reporter, **train: Any) -> Guard:
    return Guard.open(TrainSpec(**train), ALONE, reporter)


def window(first: int, *steps: tuple[float, float]) -> Window:
    """Steps of (loss, norm), ten samples each."""
    made = Window()
    for step, (loss, norm) in enumerate(steps, first):
        made.add(step, 10, torch.tensor(10 * loss), torch.tensor(norm))
    return made


def healthy(found: Guard, first: int, *steps: tuple[float, float], whole: bool = True) -> bool:
    return found.healthy(window(first, *steps), FP32, whole=whole)


def checkpoints(reporter: Reporter, *steps: int) -> None:
    for step in steps:
        final = reporter.paths.checkpoints / f"step_{step:06d}"
        commit(start(final), final)


def kept(reporter: Reporter) -> list[str]:
    return sorted(p.name for p in reporter.paths.checkpoints.iterdir())


class TestNonFinite:
    def test_stop_names_the_first_step_and_the_checkpoint(self, reporter: Reporter) -> None:
        checkpoints(reporter, 10, 20)
        with pytest.raises(MeasuredFailure, match="not finite at step 22") as caught:
            healthy(guard(reporter), 21, (1.0, 1.0), (1.0, INF), (NAN, NAN))
        assert "last good checkpoint: step 20" in caught.value.evidence

    def test_skip_counts_once_whatever_is_repeated_after_a_resume(self, reporter: Reporter) -> None:
        first = guard(reporter, on_nonfinite="skip", max_skips=2)
        assert healthy(first, 1, (1.0, INF), (2.0, 1.0))
        second = guard(reporter, on_nonfinite="skip", max_skips=2)
        assert healthy(second, 1, (1.0, INF), (2.0, 1.0), (NAN, NAN))
        assert read_json(reporter.paths.guard)["skipped"] == [1, 3]
        with pytest.raises(
            MeasuredFailure, match="too many steps were not finite, the last one step 9"
        ) as caught:
            healthy(second, 8, (1.0, 1.0), (NAN, NAN))
        assert "3 updates were skipped (train.max_skips is 2)" in caught.value.evidence
        assert read_evidence(reporter.paths.evidence)[0].verdict is Verdict.FAIL

    def test_a_row_of_skips_is_no_accident(self, reporter: Reporter) -> None:
        found = guard(reporter, on_nonfinite="skip", max_skips=100)
        assert healthy(found, 1, *[(NAN, NAN)] * 4)
        with pytest.raises(MeasuredFailure, match="too many"):
            healthy(found, 5, (NAN, NAN))

    def test_an_update_that_was_made_cannot_be_skipped(self, reporter: Reporter) -> None:
        with pytest.raises(MeasuredFailure, match="at step 1"):
            healthy(guard(reporter, on_nonfinite="skip"), 1, (INF, 1.0))

    def test_a_window_without_its_bad_steps_has_a_loss(self) -> None:
        read = window(1, (NAN, NAN), (1.0, 1.0), (3.0, 1.0))
        assert (len(read.read()), read.read(), read.loss) == (3, [], 2.0)
        assert window(1).loss is None

    def test_rollback_is_on_record_before_a_checkpoint_goes(self, reporter: Reporter) -> None:
        checkpoints(reporter, 10, 20)
        found = guard(reporter, on_nonfinite="rollback", max_rollbacks=1)
        assert not healthy(found, 11, (1.0, 1.0), (NAN, NAN))
        assert kept(reporter) == ["step_000010"]
        again = guard(reporter, on_nonfinite="rollback", max_rollbacks=1)
        assert again.left_out == {12}
        assert again.num_without_update == 1
        with pytest.raises(MeasuredFailure, match="went back 1 times already"):
            healthy(again, 13, (NAN, NAN))

    def test_a_rollback_cut_short_is_completed(self, reporter: Reporter) -> None:
        """Killed after the record was written: the checkpoints that hold the bad step must not be resumed from."""
        checkpoints(reporter, 10, 20)
        row = {
            "steps": [15],
            "why": "loss spike",
            "seen_at_step": 22,
            "attempt": 0,
            "time": "",
            "done": False,
        }
        write_json(reporter.paths.guard, {"schema": 1, "skipped": [], "rollbacks": [row]})
        assert guard(reporter).left_out == {15}
        assert kept(reporter) == ["step_000010"]
        checkpoints(reporter, 20)  # saved again, without the step
        guard(reporter)
        assert kept(reporter) == ["step_000010", "step_000020"]

    def test_fp16_skips_until_its_scale_is_at_the_floor(self, reporter: Reporter) -> None:
        class Scaler:
            scale = 1.0

            def is_enabled(self) -> bool:
                return True

            def get_scale(self) -> float:
                return self.scale

        scaler: Any = Scaler()
        found = guard(reporter)
        assert found.healthy(window(1, (1.0, INF)), scaler, whole=True)
        scaler.scale = 1e-5
        with pytest.raises(MeasuredFailure, match="scale is at its floor at step 2"):
            found.healthy(window(2, (1.0, INF)), scaler, whole=True)


class TestSpike:
    def steady(self, found: Guard) -> None:
        for i in range(12):
            assert healthy(found, 10 * i + 1, *[(2.0 + 0.1 * math.sin(i + j), 1.0) for j in range(10)])

    def test_warn_says_it_once_and_goes_on(self, reporter: Reporter) -> None:
        found = guard(reporter)
        self.steady(found)
        assert read_evidence(reporter.paths.evidence) == []
        assert healthy(found, 121, *[(2.0, 1.0)] * 9, (200.0, 1.0))
        assert healthy(found, 131, *[(9.0, 1.0)] * 10)
        (spike,) = read_evidence(reporter.paths.evidence)
        assert (spike.check, spike.verdict) == ("loss_steady", Verdict.WARN)
        assert "the steps up to 130 is 21.8; the median of those before is 2" in spike.message
        found.conclude()
        assert (
            "stood out from those before it at step 130" in read_evidence(reporter.paths.evidence)[0].message
        )

    def test_rollback_leaves_out_the_window_and_the_update_before_it(self, reporter: Reporter) -> None:
        checkpoints(reporter, 100, 125)
        found = guard(reporter, on_spike="rollback")
        self.steady(found)
        assert healthy(found, 121, *[(200.0, 1.0)] * 5, whole=False), "judged when the window is whole"
        assert not healthy(found, 121, *[(200.0, 1.0)] * 10)
        assert guard(reporter).left_out == frozenset(range(120, 131))
        assert kept(reporter) == ["step_000100"]

    def test_off_does_not_look(self, reporter: Reporter) -> None:
        found = guard(reporter, on_spike="off")
        self.steady(found)
        assert healthy(found, 121, (1e6, 1.0))

    def test_a_resumed_run_remembers_what_it_had_logged(self, reporter: Reporter) -> None:
        for step in range(10, 310, 10):
            append_json_line(
                reporter.paths.metrics, {"kind": "train", "step": step, "loss": 1.0 if step <= 200 else 50.0}
            )
        found = guard(reporter)
        found.remember(200)
        assert healthy(found, 201, (2.0, 1.0))
        assert read_evidence(reporter.paths.evidence)[0].verdict is Verdict.WARN

    def test_the_limit(self) -> None:
        assert spike_limit([1.0] * 9) == INF
        assert spike_limit([1.0] * 10) == 1.5  # hardly varies: half of the median
        assert spike_limit([0.01] * 10) == pytest.approx(0.21)  # near zero: a fifth of a nat
        assert spike_limit([1.0, 3.0] * 10) == pytest.approx(2 + 11.8608)


class TestRanks:
    def test_any_flipped_bit_changes_the_checksum(self) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            tensor = torch.randn(101).to(dtype)
            before = checksums([tensor])
            for place in (0, 50, 100):
                other = tensor.clone()
                bits = other.view(torch.uint8)
                bits[place * tensor.element_size()] ^= 1
                assert checksums([other]) != before
        assert checksums([torch.randn(9)[1:]]).shape == (1,)  # not on a word's boundary

    def test_the_odd_one_is_named(self) -> None:
        assert odd_ones([7, 7, 7]) == []
        assert odd_ones([7, 8]) == [1]
        assert odd_ones([8, 7, 7, 7]) == [0]
        assert odd_ones([8, 7, 7, 9]) == [0, 3]

    def test_a_drifted_rank_stops_the_run(self, reporter: Reporter) -> None:
        """Two ranks that are threads of one process would share it; so the gathered answer is replaced."""
        comparison = RankComparison(torch.nn.Linear(3, 2), ALONE, 7)
        comparison.finish(reporter)  # alone: nothing to compare
        from seatrial.job.proof import drifted

        error = drifted(reporter, [2], "step 7", "1 of 2 tensors differ, the first: weight")
        assert (
            isinstance(error, PlatformError)
            and error.what == "rank 2 has other weights than the rest at step 7"
        )
        assert read_evidence(reporter.paths.evidence)[0].verdict is Verdict.FAIL
