"""What may be cleared away, and what never is: on random trees, too."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seatrial.cli.main import cli
from seatrial.errors import SpecError
from seatrial.runs import commit, lock, mirror, released
from seatrial.runs.files import write_json
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.pull import pull
from seatrial.runs.state import RunState
from seatrial.runs.stores import StoreError, open_store
from seatrial.runs.stores.directory import DirectoryStore
from seatrial.ship.prune import TRASH, Candidate, Rules, plan, prune, size_of
from tests.trees import make_run

DAY_S = 86_400


def as_it_says(paths: RunPaths) -> Manifest:
    return read_manifest(paths)


def names(root: Path, rules: Rules | None = None, now: float | None = None) -> list[str]:
    found = plan(root, rules or Rules(), time.time() if now is None else now, settle=as_it_says)
    return [f"{c.run_id}/{c.name}" for c in found.candidates]


def checkpoint(paths: RunPaths, step: int, loss: float | None = None) -> Path:
    final = paths.checkpoints / f"step_{step:06d}"
    aside = commit.start(final)
    (aside / "rank_00000.safetensors").write_bytes(b"x" * step)
    commit.commit(aside, final, step=step, held_out_loss=loss)
    return final


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-1")
    for step, loss in ((5, 0.9), (10, 0.2), (15, 0.5), (20, 0.6)):
        checkpoint(run, step, loss)
    assert names(tmp_path) == ["r-1/checkpoints/step_000005", "r-1/checkpoints/step_000015"]
    assert names(tmp_path, Rules(keep_last=2)) == ["r-1/checkpoints/step_000005"]
    assert names(tmp_path, Rules(keep_best=2)) == ["r-1/checkpoints/step_000005"]
    freed, stayed = prune(
        tmp_path,
        plan(tmp_path, Rules(), time.time(), settle=as_it_says).candidates,
        Rules(),
        time.time(),
        settle=as_it_says,
    )
    assert stayed == [] and freed > 20
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_000010", "step_000020"]
    assert not (tmp_path / TRASH).exists()


def test_age_and_size(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-1")
    for step in (500, 5000, 6000):
        checkpoint(run, step)
    assert names(tmp_path, Rules(larger_than=3000)) == ["r-1/checkpoints/step_005000"]
    assert names(tmp_path, Rules(older_than_s=DAY_S)) == []
    assert len(names(tmp_path, Rules(older_than_s=DAY_S), time.time() + 2 * DAY_S)) == 2
    # A clock that went backwards makes nothing old.
    assert names(tmp_path, Rules(older_than_s=1), time.time() - 10 * DAY_S) == []
    assert names(tmp_path, Rules(runs="other-*")) == []


@pytest.mark.parametrize("state", [s for s in RunState if not s.is_terminal])
def test_an_active_run_is_kept(tmp_path: Path, state: RunState) -> None:
    make_run(tmp_path, "r-1", checkpoints=(5, 10), state=state)
    found = plan(tmp_path, Rules(), time.time(), settle=as_it_says)
    assert found.candidates == () and found.kept == {"r-1": f"it is {state}"}


def test_a_run_that_is_locked_released_or_goes_on_is_kept(tmp_path: Path) -> None:
    for name in ("r-lock", "r-released", "r-continues", "r-half"):
        make_run(tmp_path, name, checkpoints=(5, 10))
    released.record(tmp_path / "r-released", "promoting", target="/deploy", name="m")
    attempt = RunPaths(tmp_path / "r-continues").attempt(0)
    attempt.root.mkdir()
    write_json(attempt.exit, {"outcome": "preempted", "continues": {"handle": "slurm://2/x"}})
    half = RunPaths(tmp_path / "r-half").manifest
    half.write_text(half.read_text()[:50])
    with lock.hold(RunPaths(tmp_path / "r-lock").lock, "attempt 0"):
        found = plan(tmp_path, Rules(), time.time(), settle=as_it_says)
    assert found.candidates == ()
    assert found.kept["r-released"] == "its model was packaged or promoted"
    assert found.kept["r-continues"] == "its job goes on by itself"
    assert "in use" in found.kept["r-lock"] and "not JSON" in found.kept["r-half"]


def test_what_the_mirror_does_not_have_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "r-1", checkpoints=(5, 10), spec={"artifacts": str(tmp_path / "far")})
    assert names(tmp_path / "runs") == []
    mirror.Mirror(run).conclude()
    assert names(tmp_path / "runs") == ["r-1/checkpoints/step_000005"]
    checkpoint(run, 15)
    # Step 10 is there, 15 is not: 15 stays as the newest, and 10 may go.
    assert names(tmp_path / "runs") == ["r-1/checkpoints/step_000005", "r-1/checkpoints/step_000010"]


def test_what_is_not_ours_is_kept(tmp_path: Path) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    run = make_run(root, "r-1", checkpoints=(5, 10, 15))
    (run.checkpoints / "step_000005" / "notes.txt").write_text("mine")
    (run.checkpoints / "my-best").mkdir()
    (run.checkpoints / "step_000002").mkdir()  # never committed
    outside.mkdir()
    make_run(outside, "r-2", checkpoints=(5, 10))
    (root / "r-2").symlink_to(outside / "r-2")
    (root / "thesis").mkdir()
    (root / "thesis" / "step_000001.writing").mkdir()
    linked = make_run(root, "r-3")
    shutil.move(str(outside / "r-2" / "checkpoints"), str(outside / "checkpoints"))
    linked.checkpoints.symlink_to(outside / "checkpoints")
    assert names(root) == ["r-1/checkpoints/step_000010"]


def test_leftovers_of_broken_writers_go(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-1")
    checkpoint(run, 5)
    for name in ("step_000010.writing", "step_000007.damaged"):
        (run.checkpoints / name).mkdir()
    (run.root / "models" / "trained.writing").mkdir()
    (run.root / "models" / "mine.writing").mkdir()
    assert sorted(names(tmp_path)) == [
        "r-1/checkpoints/step_000007.damaged", "r-1/checkpoints/step_000010.writing", "r-1/models/trained.writing",
    ]  # fmt: skip


def test_no_older_checkpoint_goes_for_a_damaged_newest(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-1", checkpoints=(5, 10))
    (run.checkpoints / "step_000010" / "rank_00000.safetensors").write_bytes(b"?")
    found = plan(tmp_path, Rules(), time.time(), settle=as_it_says)
    assert len(found.candidates) == 1
    freed, stayed = prune(tmp_path, found.candidates, Rules(), time.time(), settle=as_it_says)
    assert freed == 0 and "newest checkpoint is damaged" in stayed[0]
    assert (run.checkpoints / "step_000005").exists()


class TestRuns:
    def test_whole_runs_go_only_without_a_model(self, tmp_path: Path) -> None:
        make_run(tmp_path, "r-model")
        make_run(tmp_path, "r-checkpoint", checkpoints=(5,))
        shutil.rmtree(tmp_path / "r-checkpoint" / "models")
        make_run(tmp_path, "r-empty", state=RunState.FAILED)
        shutil.rmtree(tmp_path / "r-empty" / "models")
        make_run(tmp_path, "r-foreign")
        shutil.rmtree(tmp_path / "r-foreign" / "models")
        (tmp_path / "r-foreign" / "notes.txt").write_text("mine")
        assert names(tmp_path, Rules(what="runs")) == ["r-empty/"]

    def test_to_an_archive_all_go_and_come_back(self, tmp_path: Path) -> None:
        root, store = tmp_path / "runs", open_store(str(tmp_path / "archive"))
        run = make_run(root, "r-1", checkpoints=(5, 10))
        before = {p.relative_to(run.root): p.read_bytes() for p in run.root.rglob("*") if p.is_file()}
        rules = Rules(what="runs")
        found = plan(root, rules, time.time(), settle=as_it_says, archived=True)
        assert [c.run_id for c in found.candidates] == ["r-1"]
        assert prune(root, found.candidates, rules, time.time(), store=store, settle=as_it_says)[1] == []
        assert not run.root.exists()
        pull(store, "r-1", root, models=True)
        after = {p.relative_to(run.root): p.read_bytes() for p in run.root.rglob("*") if p.is_file()}
        after.pop(Path(mirror.STATE))
        assert after == before

    def test_what_does_not_arrive_in_the_archive_stays(self, tmp_path: Path) -> None:
        class Fails(DirectoryStore):
            def put(self, path: Path, key: str, sha256: str) -> None:
                if key.endswith("model.safetensors"):
                    raise StoreError("no room", evidence="quota")
                super().put(path, key, sha256)

        run = make_run(tmp_path / "runs", "r-1")
        rules = Rules(what="runs")
        found = plan(tmp_path / "runs", rules, time.time(), settle=as_it_says, archived=True)
        freed, stayed = prune(
            tmp_path / "runs",
            found.candidates,
            rules,
            time.time(),
            store=Fails(tmp_path / "a"),
            settle=as_it_says,
        )
        assert freed == 0 and "no room (quota)" in stayed[0]
        assert commit.problems(run.model("trained")) == []

    def test_a_verdict_that_holds_stays(self, tmp_path: Path) -> None:
        for name, days in (("c-old", -1), ("c-new", 1)):
            run = make_run(tmp_path, name)
            shutil.rmtree(run.root / "models")
            expires = datetime.now(UTC) + timedelta(days=days)
            write_json(run.verdict, {"expires": expires.isoformat()})
        assert names(tmp_path, Rules(what="runs")) == ["c-old/"]


class TestAct:
    def test_what_became_active_meanwhile_stays(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, "r-1", checkpoints=(5, 10))
        found = plan(tmp_path, Rules(), time.time(), settle=as_it_says)
        released.record(run.root, "promoting", target="/deploy", name="m")
        freed, stayed = prune(tmp_path, found.candidates, Rules(), time.time(), settle=as_it_says)
        assert freed == 0 and "packaged or promoted" in stayed[0]
        assert (run.checkpoints / "step_000005").exists()

    @pytest.mark.parametrize(
        "name", ["../outside", "models/trained", "checkpoints/step_000010", "checkpoints"]
    )
    def test_a_candidate_that_no_plan_has_stays(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "outside").mkdir()
        make_run(tmp_path / "runs", "r-1", checkpoints=(5, 10))
        made_up = Candidate("r-1", name, 0, "")
        freed, stayed = prune(tmp_path / "runs", [made_up], Rules(), time.time(), settle=as_it_says)
        assert freed == 0 and len(stayed) == 1
        assert (tmp_path / "outside").exists()

    @pytest.mark.parametrize("marker", ["{}", "[]", "{", '{"files": 3}'])
    def test_a_marker_that_lists_nothing_keeps_what_lies_there(self, tmp_path: Path, marker: str) -> None:
        run = make_run(tmp_path, "r-1", checkpoints=(5, 10))
        (run.checkpoints / "step_000005" / commit.MARKER).write_text(marker)
        for rules in (Rules(), Rules(what="runs")):
            assert plan(tmp_path, rules, time.time(), settle=as_it_says).candidates == ()

    def test_two_at_once(self, tmp_path: Path) -> None:
        make_run(tmp_path, "r-1")
        with lock.hold(tmp_path / ".prune.lock", "prune"), pytest.raises(SpecError, match="in use"):
            prune(tmp_path, [], Rules(), time.time(), settle=as_it_says)

    def test_one_that_was_killed_is_finished(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, "r-1", checkpoints=(5, 10))
        (tmp_path / TRASH).mkdir()
        (run.checkpoints / "step_000005").rename(tmp_path / TRASH / "step_000005-abcd")  # and killed
        prune(tmp_path, [], Rules(), time.time(), settle=as_it_says)
        assert not (tmp_path / TRASH).exists()

    def test_nobody_is_asked_where_nobody_is(self, tmp_path: Path) -> None:
        make_run(tmp_path, "r-1", checkpoints=(5, 10))
        done = CliRunner().invoke(cli, ["prune", "--runs-dir", str(tmp_path)])
        assert isinstance(done.exception, SpecError) and "nobody is here" in str(done.exception)
        assert (tmp_path / "r-1" / "checkpoints" / "step_000005").exists()
        shown = CliRunner().invoke(
            cli, ["prune", "--runs-dir", str(tmp_path), "--dry-run", "--json"], standalone_mode=False
        )
        assert json.loads(shown.stdout)["candidates"][0]["name"] == "checkpoints/step_000005"
        CliRunner().invoke(cli, ["prune", "--runs-dir", str(tmp_path), "-y"], standalone_mode=False)
        assert not (tmp_path / "r-1" / "checkpoints" / "step_000005").exists()


RUNS = st.fixed_dictionaries(
    {
        "state": st.sampled_from(list(RunState)),
        "losses": st.lists(st.none() | st.floats(0, 10), max_size=5),
        "released": st.booleans(),
        "foreign": st.lists(
            st.sampled_from(["notes.txt", "checkpoints/mine/x", "checkpoints/step_000001/x", "models/own/x"]),
            max_size=2,
        ),
        "leftovers": st.lists(
            st.sampled_from(["step_000099.writing", "step_000098.damaged"]), unique=True, max_size=2
        ),
        "linked": st.booleans(),
        "model": st.booleans(),
    }
)
RULES = st.builds(
    Rules, what=st.sampled_from(["checkpoints", "runs"]), keep_last=st.integers(1, 3), keep_best=st.integers(1, 3),
    larger_than=st.sampled_from([0, 100, 10**9]), older_than_s=st.sampled_from([0.0, 3600.0]),
)  # fmt: skip

OWN_FILE_AMONG_CHECKPOINTS: dict[str, Any] = {
    "state": RunState.COMPLETED, "losses": [], "released": False, "foreign": ["checkpoints/mine/x"],
    "leftovers": [], "linked": False, "model": False,
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@example(trees=[OWN_FILE_AMONG_CHECKPOINTS], rules=Rules(what="runs"), later_s=0.0)
@given(
    trees=st.lists(RUNS, min_size=1, max_size=4), rules=RULES, later_s=st.sampled_from([-100.0, 0.0, 7200.0])
)
def test_on_any_tree_the_rules_hold(
    trees: list[dict[str, Any]], rules: Rules, later_s: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("prune")
    root, outside = home / "runs", home / "outside"
    outside.mkdir()
    precious: set[Path] = set()
    for number, tree in enumerate(trees):
        run = make_run(root, f"r-{number}", state=tree["state"])
        if not tree["model"]:
            shutil.rmtree(run.root / "models")
        made = [(checkpoint(run, 10 * (i + 1), loss), loss) for i, loss in enumerate(tree["losses"])]
        if tree["released"]:
            released.record(run.root, "packaged", target="/x")
        for name in tree["leftovers"]:
            (run.checkpoints / name).mkdir(parents=True)
        for name in tree["foreign"]:
            path = run.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
            precious.add(path)
        if tree["linked"]:
            target = outside / f"data-{number}"
            target.mkdir()
            (target / "keep").write_text("all")
            (run.root / "linked").symlink_to(target)
            precious.add(target / "keep")
        if made:
            precious.add(made[-1][0])
            known = [(loss, -i, path) for i, (path, loss) in enumerate(made) if loss is not None]
            precious |= {min(known)[2]} if known else set()
        if tree["model"]:
            precious.add(run.model("trained"))
        if tree["released"] or not tree["state"].is_terminal:
            precious.add(run.root)
            precious |= {path for path, _ in made}
    now = time.time() + later_s
    found = plan(root, rules, now, settle=as_it_says)
    sizes = {c: size_of(c.path(root)) for c in found.candidates}
    freed, stayed = prune(root, found.candidates, rules, now, settle=as_it_says)
    assert all(path.exists() for path in precious)
    assert stayed == []
    assert freed == sum(sizes.values()) == found.bytes
    assert not any(c.path(root).exists() for c in found.candidates)
    assert plan(root, rules, now, settle=as_it_says).candidates == ()
    if rules.older_than_s and later_s <= 0:
        assert found.candidates == ()
    shutil.rmtree(home)
    assert not os.path.lexists(home)
