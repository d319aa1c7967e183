"""Which attempt a start of a pod is, from what lies in the run's directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seatrial.backends.kubernetes.parcel import Parcel
from seatrial.backends.kubernetes.starts import Start, lost_a_node
from seatrial.backends.ssh import tree
from seatrial.errors import PlatformError
from seatrial.runs.files import read_json, write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import read_plan

from .kubernetes_samples import order


class Volume:
    def __init__(self, root: Path) -> None:
        self.paths = RunPaths(root / "volume" / "runs" / "r")
        self.cargo, self.parcels = root / "cargo", root / "parcels"
        for path in (self.cargo, self.parcels):
            path.mkdir(parents=True)
        self.plan = replace(order().plan, run_dir=Path("/elsewhere/r"))
        write_json(self.cargo / "plan.json", self.plan.to_dict())
        (self.cargo / "spec.json").write_text("{}")
        (self.cargo / "manifest.json").write_text("{}")

    def start(self, pod: str, rank: int = 0, first: int = 0) -> Start:
        return Start(
            self.paths, first, rank, pod, f"node-of-{pod}", "k8s://ml/job/r-a0/fake", self.cargo, self.parcels
        )

    def end(self, attempt: int, **more: Any) -> None:
        write_json(
            self.paths.attempt(attempt).exit, {"outcome": "preempted", "job": {}, "exit_code": 75, **more}
        )


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def nothing() -> None:
    return


def begin(volume: Volume, pod: str) -> int | None:
    plan = volume.start(pod).begin(nothing)
    return None if plan is None else plan.attempt


def test_the_first_start_brings_the_runs_files(volume: Volume) -> None:
    assert begin(volume, "a") == 0
    assert read_plan(volume.paths.root, 0).run_dir == volume.paths.root
    assert volume.paths.spec.exists()


def test_a_run_that_was_asked_to_leave_goes_on(volume: Volume) -> None:
    assert begin(volume, "a") == 0
    volume.end(0, continues={})
    assert begin(volume, "b") == 1
    volume.end(1, continues={})
    assert begin(volume, "c") == 2


def test_a_start_that_left_no_word_is_lost(volume: Volume) -> None:
    assert begin(volume, "a") == 0
    assert begin(volume, "b") == 1
    lost = read_json(volume.paths.attempt(0).exit)
    assert (lost["outcome"], lost["continues"]["handle"]) == ("lost", "k8s://ml/job/r-a0/fake")


def test_a_grace_that_was_over_too_soon_ends_nothing(volume: Volume) -> None:
    """The agents have saved and said so; the pod was killed before it could."""
    begin(volume, "a")
    write_json(volume.paths.attempt(0).exit, {"outcome": "preempted", "exit_code": 75, "failure": None})
    assert begin(volume, "b") == 1
    assert read_json(volume.paths.attempt(0).exit)["continues"]["handle"]


def test_it_does_not_go_on_for_ever(volume: Volume) -> None:
    most = volume.plan.platform["spec"]["max_requeues"]
    for i in range(most + 1):
        assert begin(volume, f"pod-{i}") == i
    last = volume.start("one too many")
    assert last.begin(nothing) is None
    assert (
        last.ended is not None
        and last.ended["failure"]["what"] == f"its pods were started again {most} times"
    )


def test_a_run_that_has_ended_is_not_begun_again(volume: Volume) -> None:
    """As a TrainJob's pods are, which its runtime starts again whatever they say."""
    assert begin(volume, "a") == 0
    volume.end(0, outcome="failed", exit_code=4)
    again = volume.start("b")
    assert again.begin(nothing) is None
    assert again.ended is not None and again.ended["exit_code"] == 4
    other = volume.start("c", 1)
    assert other.join(5, lambda: False) is None
    assert other.ended is not None


def test_another_pod_takes_part_once(volume: Volume) -> None:
    begin(volume, "a")
    plan = volume.start("x", 1).join(5, lambda: False)
    assert plan is not None and plan.attempt == 0
    with pytest.raises(PlatformError, match="the first pod has not begun"):
        volume.start("y", 1).join(0.5, lambda: False)  # the attempt of its earlier start still runs
    volume.end(0, continues={})
    begin(volume, "b")
    plan = volume.start("y", 1).join(5, lambda: False)
    assert plan is not None and plan.attempt == 1


def test_a_pod_that_is_asked_to_leave_while_it_waits(volume: Volume) -> None:
    assert volume.start("x", 1).join(60, lambda: True) is None


def test_nodes_are_known_by_those_who_came(volume: Volume) -> None:
    start = volume.start("a")
    plan = start.begin(nothing)
    assert plan is not None
    assert start.nodes(plan, 0, lambda: False) == ["node-of-a", "pod-1"]
    volume.start("x", 1).join(5, lambda: False)
    assert start.nodes(plan, 5, lambda: False) == ["node-of-a", "node-of-x"]


def test_code_comes_once_and_whole(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('x')\n" * 1000)
    packed = tree.make([tree.look("script.py", tmp_path / "script.py")])  # type: ignore[list-item]
    parcel = Parcel.of("code", packed, "code")
    import base64

    for body in parcel.config_maps("ml"):
        for name, data in body["binaryData"].items():
            (volume.parcels / name).write_bytes(base64.b64decode(data))
    begin(volume, "a")
    found = tmp_path / "volume" / "code" / packed.sha256 / "script.py"
    assert found.read_text() == (tmp_path / "script.py").read_text()
    assert Parcel.of("code", packed, "code") == parcel, "equal trees are equal ConfigMaps"


def test_evidence_goes_on_and_loses_no_row(volume: Volume) -> None:
    (volume.cargo / "evidence.jsonl").write_text('{"a": 1}\n')
    begin(volume, "a")
    with volume.paths.evidence.open("a") as file:
        file.write('{"b": 2}\n')
    volume.end(0, outcome="failed")
    (volume.cargo / "evidence.jsonl").write_text(
        '{"a": 1}\n{"c": 3}\n'
    )  # what came to the submitter was not all
    write_json(volume.cargo / "plan.json", {**volume.plan.to_dict(), "attempt": 1})
    assert volume.start("b", first=1).begin(nothing) is not None
    assert [json.loads(line) for line in volume.paths.evidence.read_text().splitlines()] == [
        {"a": 1},
        {"b": 2},
        {"c": 3},
    ]


def test_what_the_agents_say_of_a_lost_node() -> None:
    assert lost_a_node({"failure": {"what": "the agent of node 1 (gpu-7) is gone"}})
    assert not lost_a_node({"failure": {"what": "rank 3 failed"}})
    assert not lost_a_node({"failure": None})
