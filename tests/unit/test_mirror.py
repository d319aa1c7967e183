"""The mirror of a run: what belongs there, what has arrived, and what comes back. On directories."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seatrial.errors import PlatformError, SpecError
from seatrial.runs import commit, mirror
from seatrial.runs.evidence import read_evidence
from seatrial.runs.mirror import Mirror, missing
from seatrial.runs.paths import RunPaths
from seatrial.runs.pull import pull
from seatrial.runs.stores import StoreError, open_store
from seatrial.runs.stores.directory import DirectoryStore
from tests.trees import make_run, read


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return make_run(tmp_path / "runs", "r-1", checkpoints=(5, 10), spec={"artifacts": str(tmp_path / "far")})


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_everything_goes_there_and_comes_back(run: RunPaths, tmp_path: Path) -> None:
    assert Mirror(run).conclude() == []
    assert missing(run) == []
    assert {row.check: row.verdict for row in read_evidence(run.evidence)}["mirror"] == "PASS"
    came = pull(open_store(str(tmp_path / "far")), "r-1", tmp_path / "back", models=True)
    here, back = files(run.root), files(tmp_path / "back" / "r-1")
    assert set(here) == set(back)
    assert {n: d for n, d in here.items() if n != mirror.STATE} == {
        n: d for n, d in back.items() if n != mirror.STATE
    }
    assert came.files == len(here) - 1 and not came.kept
    assert missing(RunPaths(tmp_path / "back" / "r-1")) == []


def test_without_models_no_weights_come(run: RunPaths, tmp_path: Path) -> None:
    Mirror(run).conclude()
    pull(open_store(str(tmp_path / "far")), "r-1", tmp_path / "back", models=False)
    assert not list((tmp_path / "back").rglob("*.safetensors"))
    assert (tmp_path / "back" / "r-1" / "comparison.json").exists()


def test_only_what_changed_is_sent_again(run: RunPaths) -> None:
    sent: list[str] = []
    Mirror(run).one_pass(say=lambda file: sent.append(file.name))
    assert len(sent) > 10
    sent.clear()
    Mirror(run).one_pass(say=lambda file: sent.append(file.name))
    assert sent == []
    with run.metrics.open("a") as file:
        file.write('{"kind": "train", "step": 11, "loss": 0.4}\n')
    assert [pending.name for pending in missing(run)] == ["metrics.jsonl"]
    Mirror(run).one_pass(say=lambda file: sent.append(file.name))
    assert sent == ["metrics.jsonl"]


def test_what_is_not_committed_does_not_go(run: RunPaths, tmp_path: Path) -> None:
    (run.checkpoints / "step_000015.writing").mkdir()
    (run.checkpoints / "step_000015.writing" / "rank_00000.safetensors").write_bytes(b"half")
    (run.checkpoints / "step_000020").mkdir()
    (run.checkpoints / "step_000020" / "rank_00000.safetensors").write_bytes(b"half")
    (run.root / "leads-out").symlink_to("/etc/passwd")
    Mirror(run).one_pass()
    there = files(tmp_path / "far" / "r-1")
    assert not [name for name in there if "000015" in name or "000020" in name or "leads-out" in name]


def test_a_marker_goes_only_after_what_it_seals(run: RunPaths, tmp_path: Path) -> None:
    class Fails(DirectoryStore):
        def put(self, path: Path, key: str, sha256: str) -> None:
            if key.endswith("step_000010/rank_00000.safetensors"):
                raise StoreError("no room", evidence="quota")
            super().put(path, key, sha256)

    sender = Mirror(run, Fails(tmp_path / "far"))
    left = sender.conclude()
    assert [pending.name for pending in left] == [
        "checkpoints/step_000010/rank_00000.safetensors", "checkpoints/step_000010/COMMITTED.json",
    ]  # fmt: skip
    assert not (tmp_path / "far" / "r-1" / "checkpoints" / "step_000010" / commit.MARKER).exists()
    assert (tmp_path / "far" / "r-1" / "checkpoints" / "step_000005" / commit.MARKER).exists()
    told = {row.check: row for row in read_evidence(run.evidence)}["mirror"]
    assert told.verdict == "WARN" and "no room (quota)" in told.message
    assert Mirror(run).conclude() == []


def test_a_checkpoint_that_is_cleared_away_meanwhile_is_no_error(run: RunPaths, tmp_path: Path) -> None:
    class Slow(DirectoryStore):
        def put(self, path: Path, key: str, sha256: str) -> None:
            shutil.rmtree(run.checkpoints / "step_000005", ignore_errors=True)
            super().put(path, key, sha256)

    sender = Mirror(run, Slow(tmp_path / "far"))
    assert sender.one_pass() == []
    assert sender.errors == []


def test_a_state_that_is_cut_in_half_means_sending_again(run: RunPaths) -> None:
    Mirror(run).conclude()
    (run.root / mirror.STATE).write_text('{"schema": 1, "fil')
    assert len(missing(run)) > 10
    assert Mirror(run).conclude() == []


def test_a_manifest_that_is_cut_in_half_goes_as_it_is(run: RunPaths, tmp_path: Path) -> None:
    run.manifest.write_text(run.manifest.read_text()[:100])
    assert Mirror(run).conclude() == []
    assert len((tmp_path / "far" / "r-1" / "manifest.json").read_text()) == 100


class TestPull:
    def test_goes_on_where_it_was_cut_off(self, run: RunPaths, tmp_path: Path) -> None:
        Mirror(run).conclude()
        store = open_store(str(tmp_path / "far"))
        weights = tmp_path / "far" / "r-1" / "models" / "trained" / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(b"damaged")
        with pytest.raises(StoreError, match="other bytes"):
            pull(store, "r-1", tmp_path / "back", models=True)
        assert not (tmp_path / "back" / "r-1" / "models" / "trained").exists()
        weights.write_bytes(whole)
        came = pull(store, "r-1", tmp_path / "back", models=True)
        assert came.files < 15
        assert commit.problems(tmp_path / "back" / "r-1" / "models" / "trained") == []
        assert not list((tmp_path / "back").rglob("*.pulling"))

    @pytest.mark.parametrize(
        "name", ["../../out", "/etc/cron.d/x", "a/../../../b", "..", "models/../../../x"]
    )
    def test_names_that_lead_out_are_refused(self, run: RunPaths, tmp_path: Path, name: str) -> None:
        Mirror(run).conclude()
        state = tmp_path / "far" / "r-1" / mirror.STATE
        known = read(state)
        known["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        state.write_text(json.dumps(known))
        with pytest.raises(SpecError, match="lead out"):
            pull(open_store(str(tmp_path / "far")), "r-1", tmp_path / "back", models=True)
        assert not (tmp_path / "back").exists()

    def test_a_link_that_leads_out_is_not_written_through(self, run: RunPaths, tmp_path: Path) -> None:
        Mirror(run).conclude()
        (tmp_path / "outside").mkdir()
        (tmp_path / "back" / "r-1").mkdir(parents=True)
        (tmp_path / "back" / "r-1" / "models").symlink_to(tmp_path / "outside")
        with pytest.raises(SpecError, match="lead out"):
            pull(open_store(str(tmp_path / "far")), "r-1", tmp_path / "back", models=True)
        assert not list((tmp_path / "outside").iterdir())

    def test_what_somebody_changed_here_stays(self, run: RunPaths, tmp_path: Path) -> None:
        Mirror(run).conclude()
        store = open_store(str(tmp_path / "far"))
        pull(store, "r-1", tmp_path / "back", models=False)
        mine = tmp_path / "back" / "r-1" / "comparison.json"
        mine.write_text("{}")
        with run.metrics.open("a") as file:
            file.write("{}\n")
        Mirror(run).conclude()
        came = pull(store, "r-1", tmp_path / "back", models=False)
        assert came.kept == ["comparison.json"] and mine.read_text() == "{}"
        assert (tmp_path / "back" / "r-1" / "metrics.jsonl").read_bytes() == run.metrics.read_bytes()

    def test_a_run_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="has no run r-9"):
            pull(open_store(str(tmp_path)), "r-9", tmp_path / "back", models=False)
        with pytest.raises(SpecError, match="no run's id"):
            pull(open_store(str(tmp_path)), "../r", tmp_path / "back", models=False)

    @pytest.mark.parametrize("text", ["", "[]", '{"files": [1]}', '{"files": {"a": {}}}', "{"])
    def test_a_list_that_cannot_be_read_is_said(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "far" / "r-1").mkdir(parents=True)
        (tmp_path / "far" / "r-1" / mirror.STATE).write_text(text)
        with pytest.raises(PlatformError, match="can't be read"):
            pull(open_store(str(tmp_path / "far")), "r-1", tmp_path / "back", models=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.sampled_from(["grow", "pass", "checkpoint", "clear", "restart", "touch"]), max_size=8)
)
def test_whatever_happens_in_between_the_last_pass_makes_them_alike(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("mirror")
    run = make_run(home / "runs", "r-1", checkpoints=(5,), spec={"artifacts": str(home / "far")})
    sender, step = Mirror(run), 5
    for deed in steps:
        if deed == "grow":
            with run.metrics.open("a") as file:
                file.write("{}\n")
        elif deed == "pass":
            sender.one_pass()
        elif deed == "checkpoint":
            step += 5
            aside = commit.start(run.checkpoints / f"step_{step:06d}")
            (aside / "rank_00000.safetensors").write_bytes(os.urandom(100))
            commit.commit(aside, run.checkpoints / f"step_{step:06d}", step=step)
        elif deed == "clear":
            for path in sorted(run.checkpoints.glob("*"))[:1]:
                shutil.rmtree(path)
        elif deed == "restart":
            sender = Mirror(run)
        else:
            os.utime(run.comparison)
    assert sender.conclude() == []
    there = files(home / "far" / "r-1")
    here = files(run.root)
    assert {name: data for name, data in here.items() if name != mirror.STATE}.items() <= there.items()
