"""The demo, as the README promises it."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.runs.files import read_json

from .conftest import Seatrial

pytest.importorskip("torch", reason="the demo needs the extra 'train'")


def test_the_demo_tells_the_whole_story_and_can_be_told_again(seatrial: Seatrial) -> None:
    done = seatrial("demo", timeout=500)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "result", "verdict", "use", "page", "again"]
    assert "verdict  better; gate passed" in done.stdout
    accuracy = read_json(done.run.comparison)["metrics"]["accuracy"]
    assert accuracy["original"] < 0.3 < 0.55 < accuracy["trained"] < 0.95
    assert accuracy["interval"][0] > 0.3
    assert Path(lines[4].split(maxsplit=1)[1]).is_file()
    assert seatrial.runs_dir.joinpath(".demo", "seed-0", "COMMITTED.json").is_file()


def test_the_same_seed_builds_the_same_data_and_model(tmp_path: Path) -> None:
    from seatrial.job.demo import build
    from seatrial.runs.commit import read_marker

    build(tmp_path / "a", 3)
    build(tmp_path / "b", 3)
    markers = [read_marker(tmp_path / name) or {} for name in "ab"]
    assert markers[0]["files"] == markers[1]["files"]
    again = build(tmp_path / "a", 3)
    assert again["num_test"] > 400
