"""Trackers are told of a run, and nothing that they do reaches it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from seatrial.job.track import Teller, rows_of, summary_of, tellers_of, well
from seatrial.job.trackers import About
from seatrial.launch.plan import afterwards
from seatrial.runs import tracking
from seatrial.runs.files import append_json_line, write_json
from tests.trees import make_run

ABOUT = About("r-1", "reviews", ("infra",), {"train.epochs": 3.0}, Path())
Rows = list[tuple[int, float, dict[str, float]]]


class Recorder:
    """A tracker that keeps what it is told, and fails when it is told to."""

    def __init__(self) -> None:
        self.down = False
        self.begun: list[str | None] = []
        self.rows: Rows = []
        self.ended: list[tuple[dict[str, float], bool]] = []

    def begin(self, about: About, known: str | None) -> tuple[str, str]:
        self._up()
        self.begun.append(known)
        return known or "id-1", "http://tracker/id-1"

    def log(self, rows: Rows) -> None:
        self._up()
        self.rows += rows

    def finish(self, summary: Mapping[str, float], *, well: bool) -> None:
        self._up()
        self.ended.append((dict(summary), well))

    def _up(self) -> None:
        if self.down:
            raise ConnectionError("refused")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def rows(*steps: int) -> Rows:
    return [(step, 0.0, {"train/loss": 1.0 / step}) for step in steps]


def test_each_row_is_told_once_and_a_later_attempt_goes_on() -> None:
    tracker = Recorder()
    teller = Teller("mlflow", ABOUT, {}, lambda name: tracker)
    teller.tell(rows(1, 2))
    teller.tell(rows(1, 2, 3))
    assert [step for step, _, _ in tracker.rows] == [1, 2, 3]
    again = Teller("mlflow", ABOUT, teller.state, lambda name: tracker)
    again.tell(rows(1, 2, 3, 4))
    assert [step for step, _, _ in tracker.rows] == [1, 2, 3, 4]
    assert tracker.begun == [None, "id-1"]


def test_one_that_is_down_is_left_alone_for_a_while_and_told_all_later() -> None:
    tracker, clock = Recorder(), Clock()
    tracker.down = True
    teller = Teller("wandb", ABOUT, {}, lambda name: tracker, clock)
    teller.tell(rows(1))
    assert teller.state["error"] == "ConnectionError: refused"
    tracker.down = False
    teller.tell(rows(1, 2))
    assert tracker.rows == []
    clock.now_s = 6.0
    teller.tell(rows(1, 2))
    assert len(tracker.rows) == 2 and teller.state["error"] is None


def test_the_last_word_is_tried_at_once() -> None:
    tracker, clock = Recorder(), Clock()
    tracker.down = True
    teller = Teller("wandb", ABOUT, {}, lambda name: tracker, clock)
    teller.tell(rows(1))
    teller.finish({"trained/accuracy": 0.9}, well=True)  # nothing was begun
    tracker.down = False
    teller.tell(rows(1), at_once=True)
    teller.finish({"trained/accuracy": 0.9}, well=True)
    assert tracker.ended == [({"trained/accuracy": 0.9}, True)]


def test_rows_come_as_they_were_written_without_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(
        path,
        {
            "kind": "train",
            "step": 1,
            "loss": 2.0,
            "note": "x",
            "attempt": 0,
            "time": "2026-11-26T10:00:00.000+00:00",
        },
    )
    with path.open("a") as file:
        file.write('{"kind": "eval", "step": 1, "loss": NaN, "accuracy": 0.5}\n{"kind": "train", "st')
    found = rows_of(path)
    assert [(step, values) for step, _, values in found] == [
        (1, {"train/loss": 2.0}),
        (1, {"eval/accuracy": 0.5}),
    ]
    assert found[0][1] == pytest.approx(1795687200, abs=86400)


def test_what_a_run_is_told_as(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-1", spec={"track": ["mlflow", "tensorboard"], "tags": ["infra"]})
    tracking.write(run.root, {"mlflow": {"id": "known", "url": "u", "rows": 7, "error": None}})
    first, second = tellers_of(run)
    assert (first.name, first.state["id"], first.state["rows"]) == ("mlflow", "known", 7)
    assert second.state["id"] is None
    assert summary_of(run)["trained/accuracy"] == 0.85
    assert not well(run)
    run.attempt(0).root.mkdir()
    write_json(run.attempt(0).exit, {"outcome": "completed"})
    assert well(run)


def test_a_state_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    tracking.path_of(tmp_path).write_text("{")
    assert tracking.read(tmp_path) == {}


def test_what_follows_a_job_is_in_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-1")
    words = [
        " ".join(argv[1:3]) for argv in afterwards(run, ("predict", "compare", "report", "track", "push"))
    ]
    assert words == ["seatrial compare", "seatrial report", f"seatrial.job.track {run.root}", "seatrial runs"]
    assert json.dumps(afterwards(run, ())) == "[]"


def test_scripts_and_unknown_trackers(tmp_path: Path) -> Any:
    with pytest.raises(Exception, match="track"):
        make_run(tmp_path, "r-2", spec={"track": ["excel"]})
