"""What the supervisor of a Slurm job does about a step that does not end, and about a start that has no time."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from seatrial import command
from seatrial.backends.slurm import step
from seatrial.errors import PlatformError
from tests.unit.test_slurm_script import PLAN


class Step:
    """An srun and its step; what is asked of them is written down."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.kills = 0
        self.signals: list[int] = []
        self.said: list[str] = []
        self.time_s = 0.0

    def kill(self) -> None:
        self.kills += 1
        if self.refuses:
            raise PlatformError("the controller does not answer")

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class Srun(command.Process):
    def __init__(self, owner: Step) -> None:
        self._owner = owner

    def send_signal(self, number: int) -> None:
        self._owner.send_signal(number)


def left_over(owner: Step) -> step.LeftOver:
    return step.LeftOver(Srun(owner), owner.kill, owner.said.append, lambda: owner.time_s)


def test_a_step_whose_leading_agent_works_is_left_alone() -> None:
    owner = Step()
    left = left_over(owner)
    for owner.time_s in range(0, 10_000, 100):
        left.look(lead_ended=False)
    assert (owner.kills, owner.signals) == (0, [])


def test_agents_that_follow_the_leading_one_are_given_time() -> None:
    owner = Step()
    left = left_over(owner)
    for owner.time_s in (100.0, 110.0, 119.9):
        left.look(lead_ended=True)
    assert owner.kills == 0
    owner.time_s = 120.0
    left.look(lead_ended=True)
    assert (owner.kills, owner.signals) == (1, [])


def test_an_srun_that_outlives_its_step_is_killed_too() -> None:
    owner = Step()
    left = left_over(owner)
    for owner.time_s in (0.0, 20.0, 39.0, 40.0):
        left.look(lead_ended=True)
    assert (owner.kills, owner.signals) == (2, [signal.SIGKILL])


def test_a_controller_that_does_not_answer_is_said_and_srun_killed_in_the_end() -> None:
    owner = Step(refuses=True)
    left = left_over(owner)
    for owner.time_s in (0.0, 20.0, 40.0):
        left.look(lead_ended=True)
    assert owner.signals == [signal.SIGKILL]
    assert any("does not answer" in line for line in owner.said)


@pytest.mark.parametrize(("left_s", "starts"), [(90.0, True), (60.0, False), (5.0, False), (-3.0, False)])
def test_a_start_without_time_is_refused(left_s: float, starts: bool) -> None:
    plan = replace(PLAN, stop_before_s=60)
    if starts:
        step.check_time(plan, "7", left_s)
        return
    with pytest.raises(PlatformError, match="no time to run") as caught:
        step.check_time(plan, "7", left_s)
    assert f"job 7 ends in {left_s:.0f} s" in caught.value.evidence
    assert "resume" in caught.value.remedy


def test_an_acceptance_test_may_start_with_any_time() -> None:
    step.check_time(replace(PLAN, stop_before_s=60, conducts="checks"), "7", 5.0)
