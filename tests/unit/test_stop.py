"""A rank that is signalled waits for the agents' word, and goes on meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seatrial.job import stop
from seatrial.job.stop import StopAgreement
from seatrial.job.world import World
from seatrial.runs.files import write_json
from seatrial.runs.paths import AttemptPaths, RunPaths

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class ExitedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptPaths:
    found = RunPaths(tmp_path / "run").attempt(0)
    found.root.mkdir(parents=True)
    return found


@pytest.fixture
def agreement(attempt: AttemptPaths) -> Iterator[StopAgreement]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopAgreement(World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu")), attempt)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a rank sees, in seconds; it ends with an exception that carries its code."""
    now = [0.0]

    def leave(code: int) -> Any:
        raise ExitedError(code)

    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stop.os, "_exit", leave)
    return now


def test_all_stop_one_step_after_the_word(
    agreement: StopAgreement, attempt: AttemptPaths, clock: list[float]
) -> None:
    agreement.agreed()
    os.kill(os.getpid(), signal.SIGTERM)
    clock[0] = 4.0
    assert [agreement.agreed().stop for _ in range(3)] == [False] * 3, "the word is not there yet"
    write_json(attempt.stop_request, {"schema": 1})
    assert [agreement.agreed().stop for _ in range(2)] == [False, True]


def test_who_was_not_asked_leaves_with_the_code_of_the_signal(
    agreement: StopAgreement, clock: list[float]
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    agreement.agreed()
    clock[0] = 5.1
    with pytest.raises(ExitedError) as left:
        agreement.agreed()
    assert left.value.args == (128 + signal.SIGTERM,)


def test_training_does_not_end_before_a_signal_is_settled(
    agreement: StopAgreement, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ExitedError):
        agreement.close()
    assert clock[0] > 5.0


def test_the_end_of_training_takes_no_time_without_a_signal_or_with_the_word(
    agreement: StopAgreement, attempt: AttemptPaths, clock: list[float]
) -> None:
    agreement.close()
    os.kill(os.getpid(), signal.SIGTERM)
    write_json(attempt.stop_request, {"schema": 1})
    agreement.close()
    assert clock == [0.0]


def test_the_signal_itself_takes_no_time(
    agreement: StopAgreement, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank whose peer has died is signalled while it tells so: what waits there looks frozen."""

    def wait(seconds: float) -> None:
        pytest.fail(f"waited for {seconds} s in the handler")

    monkeypatch.setattr(stop.time, "sleep", wait)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def test_without_a_signal_a_request_is_nothing_to_a_rank(
    agreement: StopAgreement, attempt: AttemptPaths
) -> None:
    write_json(attempt.stop_request, {"schema": 1})
    assert [agreement.agreed().stop for _ in range(3)] == [False] * 3
