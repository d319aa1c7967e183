"""The index says what a plain scan says, whatever happened to runs and to itself; filters, totals, differences."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.cli.main import cli
from seatrial.cli.runs_compare import in_order
from seatrial.errors import SpecError
from seatrial.runs import where
from seatrial.runs.differences import differences
from seatrial.runs.files import write_json
from seatrial.runs.index import UNREADABLE, Index, cache_path, facts, scan
from seatrial.runs.manifest import find_run, read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from seatrial.runs.stats import collect
from tests.trees import make_run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plain(root: Path) -> list[tuple[Any, ...]]:
    """The same by reading everything."""
    rows = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        try:
            rows.append(facts(path, path.name)[0])
        except UNREADABLE:
            continue
    return rows


def indexed(root: Path) -> list[tuple[Any, ...]]:
    index = Index(root)
    rows = [tuple(row.values()) for row in index.rows()]
    index.close()
    return rows


def change(paths: RunPaths, **facts_: Any) -> None:
    manifest = read_manifest(paths)
    write_manifest(paths, manifest.model_copy(update=facts_))


class TestIndex:
    def test_only_what_changed_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(5):
            make_run(tmp_path / "runs", f"r-{number}")
        assert len(indexed(tmp_path / "runs")) == 5
        read: list[str] = []

        def noted(directory: Path, run_id: str) -> Any:
            read.append(run_id)
            return facts(directory, run_id)

        monkeypatch.setattr("seatrial.runs.index.facts", noted)
        indexed(tmp_path / "runs")
        assert read == []
        change(RunPaths(tmp_path / "runs" / "r-3"), state=RunState.FAILED)
        rows = indexed(tmp_path / "runs")
        assert read == ["r-3"]
        assert rows == plain(tmp_path / "runs")

    def test_a_directory_whose_time_is_unchanged_is_not_looked_into(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = tmp_path / "runs"
        run = make_run(root, "a")
        os.utime(root, (1e9, 1e9))
        scans: list[Path] = []

        def counted(path: Path) -> Any:
            scans.append(path)
            return scan(path)

        monkeypatch.setattr("seatrial.runs.index.scan", counted)
        indexed(root)
        indexed(root)
        assert len(scans) == 1
        change(run, tags=["seen at once"])  # tells the directory
        assert indexed(root) == plain(root)
        assert len(scans) == 2
        # What tells nobody is seen after a minute, and at once where the clock went backwards.
        for now in (time.time() + 61, time.time() - 3600):
            os.utime(root, (1e9, 1e9))
            indexed(root)
            before = len(scans)
            monkeypatch.setattr("seatrial.runs.index.time.time", lambda now=now: now)
            indexed(root)
            assert len(scans) == before + 1
            monkeypatch.undo()
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            monkeypatch.setattr("seatrial.runs.index.scan", counted)

    def test_a_manifest_that_is_cut_in_half_is_one_row_less(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            make_run(tmp_path / "runs", name)
        manifest = tmp_path / "runs" / "a" / "manifest.json"
        whole = manifest.read_text()
        manifest.write_text(whole[:200])
        index = Index(tmp_path / "runs")
        assert [row["run_id"] for row in index.rows()] == ["b"]
        assert "JSONDecodeError" in index.unreadable()["a"]
        index.close()
        manifest.write_text(whole)
        assert [row[0] for row in indexed(tmp_path / "runs")] == ["a", "b"]

    @pytest.mark.parametrize(
        "odd",
        [
            {"name": ["a"]}, {"state": {"x": 1}}, {"tags": None}, {"tags": [{"a": 1}]}, {"name": "\ud800"}, {"attempts": ["x"]}, {"attempts": 3},
            {"results": {"training": {"steps": 10**30}}}, {"results": {"training": {"last_loss": "low"}}}, {"results": [1]},
            {"environment": {"torch": {"gpus": {"a": 1}}}}, {"environment": {"torch": {"gpus": 5}}}, {"created": 5},
        ],
        ids=str,
    )  # fmt: skip
    def test_an_odd_manifest_is_one_row_less(self, tmp_path: Path, odd: dict[str, Any]) -> None:
        root = tmp_path / "runs"
        make_run(root, "good")
        known = json.loads(make_run(root, "odd").manifest.read_text())
        (root / "odd" / "manifest.json").write_text(json.dumps(known | odd))
        index = Index(root)
        assert [row["run_id"] for row in index.rows()] == ["good"]
        assert list(index.unreadable()) == ["odd"]
        assert collect(index)[0]["runs"] == 1
        index.close()

    @pytest.mark.parametrize("text", ["[1]", "null", "5", "[" * 100_000, "", '{"a": NaN}'])
    def test_what_is_no_manifest_is_one_row_less(self, tmp_path: Path, text: str) -> None:
        make_run(tmp_path / "runs", "good")
        make_run(tmp_path / "runs", "odd").manifest.write_text(text)
        assert [row[0] for row in indexed(tmp_path / "runs")] == ["good"]

    def test_a_name_that_is_not_utf8_is_told_and_ends_nothing(self, tmp_path: Path) -> None:
        root = tmp_path / "runs"
        good = make_run(root, "good")
        odd = os.fsdecode(os.fsencode(root) + b"/caf\xe9")
        shutil.copytree(good.root, odd)
        for _ in range(2):
            index = Index(root)
            assert [row["run_id"] for row in index.rows()] == ["good"]
            assert index.unreadable() == {"caf\\udce9": "ValueError: its name is not UTF-8"}
            index.close()
        shutil.rmtree(odd)
        index = Index(root)
        assert index.unreadable() == {}
        index.close()
        shutil.copytree(good.root, odd)
        command = [sys.executable, "-m", "seatrial", "runs"]
        for words in (["list"], ["stats"], ["list", "--json"], ["show", "nothing"], ["show", "last"]):
            done = subprocess.run(
                [*command, *words, "--runs-dir", str(root)], capture_output=True, text=True, check=False
            )
            assert "Traceback" not in done.stderr, done.stderr
            assert done.returncode == (2 if "nothing" in words else 0), done.stderr

    @pytest.mark.parametrize("ask", ["rows", "tags", "stats", "value"])
    def test_damage_that_shows_only_when_asked_is_made_good(self, tmp_path: Path, ask: str) -> None:
        make_run(tmp_path / "runs", "a", tags=["t"])
        index = Index(tmp_path / "runs")
        for table in ("runs", "tags"):
            index.db.execute(f"DROP TABLE {table}")
        found: dict[str, Any] = {
            "rows": lambda: [row["run_id"] for row in index.rows()], "tags": index.tags, "stats": lambda: collect(index)[0]["runs"],
            "value": lambda: index.value("a", "runs.name"),
        }  # fmt: skip
        assert found[ask]() == {"rows": ["a"], "tags": {"a": ["t"]}, "stats": 1, "value": "reviews"}[ask]
        index.close()

    def test_damaged_pages_are_made_good(self, tmp_path: Path) -> None:
        root = tmp_path / "runs"
        for number in range(200):
            make_run(root, f"r-{number:03d}")
        os.utime(root, (1e9, 1e9))
        indexed(root)
        path = cache_path(root)
        pages = bytearray(path.read_bytes())
        for start in range(4096 * 2, len(pages), 4096):
            pages[start : start + 64] = b"\xff" * 64
        path.write_bytes(bytes(pages))
        assert indexed(root) == plain(root)

    def test_what_the_index_takes_and_this_version_does_not_is_left_out_of_json(self, tmp_path: Path) -> None:
        root = tmp_path / "runs"
        make_run(root, "good")
        known = json.loads(make_run(root, "newer").manifest.read_text())
        (root / "newer" / "manifest.json").write_text(json.dumps(known | {"of_the_future": 1}))
        done = CliRunner().invoke(
            cli, ["runs", "list", "--json", "--runs-dir", str(root)], standalone_mode=False
        )
        assert [document["run_id"] for document in json.loads(done.stdout)] == ["good"]
        assert "skipped newer" in done.stderr

    @pytest.mark.parametrize("damage", ["garbage", "empty", "directory", "older schema", "a table is gone"])
    def test_a_file_that_is_no_index_is_made_anew(self, tmp_path: Path, damage: str) -> None:
        root = tmp_path / "runs"
        make_run(root, "a")
        indexed(root)
        path = cache_path(root)
        if damage == "garbage":
            path.write_bytes(os.urandom(5000))
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "directory":
            path.unlink()
            path.mkdir()
        else:
            db = sqlite3.connect(path)
            db.execute("PRAGMA user_version = 99" if damage == "older schema" else "DROP TABLE stamps")
            db.commit()
            db.close()
        change(RunPaths(root / "a"), tags=["new"])
        assert indexed(root) == plain(root)

    def test_a_cache_that_cannot_be_written_is_done_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_run(tmp_path / "runs", "a")
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert indexed(tmp_path / "runs") == plain(tmp_path / "runs")

    def test_names_may_be_odd_and_no_directory_is_no_run(self, tmp_path: Path) -> None:
        root = tmp_path / "my runs"
        for name in ("a b", "ä'\"日本", "x%_"):
            make_run(root, name)
        (root / "baselines").mkdir()
        (root / "notes.txt").write_text("")
        assert [row[0] for row in indexed(root)] == sorted(["a b", "ä'\"日本", "x%_"])
        assert indexed(tmp_path / "nothing") == []

    def test_two_at_once_and_one_killed(self, tmp_path: Path) -> None:
        root = tmp_path / "runs"
        for number in range(300):
            make_run(root, f"r-{number:03d}")
        code = "import sys; from pathlib import Path; from seatrial.runs.index import Index; print(len(list(Index(Path(sys.argv[1])).rows())))"
        argv = [sys.executable, "-c", code, str(root)]
        killed = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.15)
        killed.kill()
        killed.wait()
        both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate(timeout=60)[0].strip() for process in both] == ["300", "300"]
        assert indexed(root) == plain(root)

    @settings(max_examples=25, deadline=None)
    @given(
        deeds=st.lists(
            st.tuples(
                st.sampled_from(["make", "remove", "change", "rename", "break", "look", "swap"]),
                st.integers(0, 4),
                st.sampled_from(list(RunState)),
            ),
            max_size=12,
        )
    )
    def test_after_any_changes_it_is_what_a_scan_finds(
        self, deeds: list[tuple[str, int, RunState]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        home = tmp_path_factory.mktemp("index")
        root, path = home / "runs", home / "index.sqlite3"
        root.mkdir()
        for deed, number, state in deeds:
            directory, other = root / f"r-{number}", root / f"r-{(number + 1) % 5}"
            if deed == "make" and not directory.exists():
                make_run(root, directory.name, state=state)
            elif deed == "look":
                Index(root, path).close()
            elif not (directory / "manifest.json").exists():
                continue
            elif deed == "remove":
                shutil.rmtree(directory)
            elif deed == "change" and RunPaths(directory).manifest.stat().st_size > 200:
                change(RunPaths(directory), state=state, tags=[str(state)])
            elif deed == "rename" and not other.exists():
                directory.rename(other)
            elif deed == "break":
                (directory / "manifest.json").write_text("{")
            elif deed == "swap" and (other / "manifest.json").exists():
                # Two of one size that change places are still other files.
                (directory / "manifest.json").rename(home / "aside")
                (other / "manifest.json").rename(directory / "manifest.json")
                (home / "aside").rename(other / "manifest.json")
        index = Index(root, path)
        assert [tuple(row.values()) for row in index.rows()] == plain(root)
        index.close()


class TestWhere:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "runs"
        make_run(root, "a", tags=["infra", "x"])
        make_run(root, "b", tags=["infra"], verdict=None)
        c = make_run(root, "c", verdict="worse")
        change(c, state=RunState.FAILED, results={})
        for name in ("a",):
            change(
                RunPaths(root / name),
                results={"comparison": {"verdict": "better"}, "training": {"last_loss": 0.25, "steps": 10}},
            )
        return root

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("state = completed", "ab"), ("state != completed", "c"), ("tags contains infra", "ab"), ("tags contains inf", ""),
            ("tags is null", "c"), ("tags is not null", "ab"), ("eval.accuracy > 0.8", "a"), ("eval.accuracy > 0.9", ""),
            ("not eval.accuracy > 0.9", "a"), ("eval.accuracy is null", "bc"), ("loss <= 0.25 and steps = 10", "a"),
            ("state = failed or tags contains x", "ac"), ("not (state = failed or tags contains x)", "b"),
            ("run_id in (a, 'c')", "ac"), ("name contains view", "abc"), ("name = 'reviews' AND state in (failed)", "c"),
            ("difference.accuracy >= .05 or original.accuracy < 0", "a"), ("state = completed and (tags contains x or verdict is null)", "ab"),
            ("created > 2026-01-01", "abc"),
        ],
    )  # fmt: skip
    def test_filters(self, root: Path, text: str, found: str) -> None:
        query = where.parse(text)
        index = Index(root)
        assert "".join(row["run_id"] for row in index.rows(query.sql, query.values)) == found
        index.close()

    @pytest.mark.parametrize(
        ("text", "words", "at"),
        [
            ("stat = x", "did you mean 'state'", 0), ("state == completed", "a value was expected", 7), ("state =", "a value was expected", 7),
            ("state = a b", "'and', 'or' or the end", 10), ("(state = a", "')' was expected", 10), ("loss > high", "a number was expected", 7),
            ("tags = infra", "tags are asked for by", 5), ("", "a field was expected", 0), ("and", "a field was expected", 0),
            ("state in a", "'(' was expected", 9), ("eval.'x' > 1", "there is no field", 0), ("state = completed; drop table runs", "the end", 19),
            ("state = 'open", "can't be read", 8),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_pointed_at(self, text: str, words: str, at: int) -> None:
        with pytest.raises(SpecError) as caught:
            where.parse(text)
        assert words in caught.value.what
        assert caught.value.evidence == f"{text}\n{' ' * at}^"

    @given(st.text(max_size=40))
    def test_no_text_gets_past_the_parser(self, text: str) -> None:
        try:
            query = where.parse(text)
        except SpecError:
            return
        db = sqlite3.connect(":memory:")
        db.execute(f"CREATE TABLE runs ({', '.join(where.COLUMNS)})")
        db.execute("CREATE TABLE tags (run_id, tag)")
        db.execute("CREATE TABLE evals (run_id, metric, original, trained, difference)")
        db.execute(f"SELECT * FROM runs WHERE {query.sql}", query.values)  # one statement, and a valid one

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (" or ".join(["state = x"] * 201), "more than 200 conditions"), ("(" * 3000 + "state = x" + ")" * 3000, "more than 50 deep"),
            ("not " * 3000 + "state = x", "more than 50 deep"), (f"state in ({','.join('a' * 901)})", "more than 900 values"),
            ("name = caf\udce9", "not UTF-8"),
        ],
        ids=["or", "parentheses", "not", "in", "encoding"],
    )  # fmt: skip
    def test_what_is_too_much_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(SpecError) as caught:
            where.parse(text)
        assert words in caught.value.what
        assert len(caught.value.evidence) < 300

    def test_what_is_just_not_too_much_is_answered(self, root: Path) -> None:
        index = Index(root)
        for text in (
            " or ".join(["state = failed"] * 200), "(" * 49 + "state = failed" + ")" * 49, f"run_id in ({','.join(['c'] * 900)})",
        ):  # fmt: skip
            query = where.parse(text)
            assert [row["run_id"] for row in index.rows(query.sql, query.values)] == ["c"]
        index.close()

    def test_sorting_puts_what_was_not_measured_last(self, root: Path) -> None:
        index = Index(root)
        for sort in ("eval.accuracy", "-eval.accuracy"):
            assert [row["run_id"] for row in index.rows(order=where.order(sort))] == ["a", "b", "c"]
        with pytest.raises(SpecError, match="did you mean 'loss'"):
            where.order("-los")


def test_totals(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for number in range(3):
        run = make_run(root, f"r-{number}", tags=["t"] if number else [])
        attempt = read_manifest(run).attempts[0].model_copy(update={"device": "cuda", "nodes": 2, "nproc": 8})
        change(
            run,
            attempts=[attempt],
            results={"training": {"last_loss": float(number)}, "comparison": {"verdict": "better"}},
        )
    failed = make_run(root, "r-9", state=RunState.FAILED)
    attempt = (
        read_manifest(failed)
        .attempts[0]
        .model_copy(update={"failure": {"what": "rank 3 ended with exit code 7"}})
    )
    change(failed, attempts=[attempt], results={})
    index = Index(root)
    (row,) = collect(index, price=3.0)
    assert (row["runs"], row["completed"], row["failed"], row["better"]) == (4, 3, 1, 3)
    assert row["gpu_hours"] == pytest.approx(3 * 16 / 60) and row["cost"] == pytest.approx(3 * 16 / 60 * 3)
    assert (row["mean_loss"], row["best_loss"], row["utilisation"]) == (1.0, 0.0, None)
    assert row["failures"] == {"rank N ended with exit code N": 1}
    assert [(r["tag"], r["runs"]) for r in collect(index, by="tag")] == [(None, 2), ("t", 2)]
    assert [(r["month"], r["runs"]) for r in collect(index, by="month")] == [("2026-11", 4)]
    assert collect(index, "state = ?", ["nothing"])[0]["runs"] == 0


def test_differences_are_told_by_key(tmp_path: Path) -> None:
    first = make_run(tmp_path, "a")
    second = make_run(tmp_path, "b", weights=b"other", spec={"train": {"epochs": 5.0}})
    change(
        second,
        environment={
            "packages": {"torch": "2.14.0"},
            "torch": {"version": "2.14.0", "gpus": []},
            "python": "CPython 3.11.7",
        },
    )
    found = differences(first, second)
    assert found["recipe"] == {"train.epochs": (3.0, 5.0)}
    assert found["packages"] == {"click": ("8", None), "torch": ("2.13.0", "2.14.0")}
    assert found["environment"]["torch.version"] == ("2.13.0", "2.14.0")
    assert "data" not in found and "code" not in found
    assert differences(first, first) == {}


class TestCommands:
    def call(self, *words: str) -> Any:
        return CliRunner().invoke(cli, ["runs", *words], standalone_mode=False)

    def test_list_stats_and_diff(self, tmp_path: Path) -> None:
        root = tmp_path / "runs"
        make_run(root, "a", tags=["infra"])
        make_run(root, "b")
        at = ["--runs-dir", str(root)]
        assert self.call("list", *at).stdout.splitlines() == [
            "a  completed    not compared  infra",
            "b  completed    not compared",
        ]
        assert [
            m["run_id"]
            for m in json.loads(self.call("list", *at, "--where", "tags contains infra", "--json").stdout)
        ] == ["a"]
        assert self.call("list", *at, "--sort", "-created", "--limit", "1").stdout.startswith("a")
        assert "2: 2 completed" in self.call("stats", *at).stdout
        assert json.loads(self.call("stats", *at, "--json").stdout)[0]["runs"] == 2
        assert (
            self.call("stats", *at, "--csv", "--by", "task")
            .stdout.splitlines()[1]
            .startswith("text-classification,2,2,")
        )
        assert self.call("diff", "a", "a", *at).stdout == "nothing that is recorded differs\n"

    def test_an_active_run_is_asked_about(self, tmp_path: Path) -> None:
        """Its processes are gone: the list says so, and does not repeat an old state."""
        run = make_run(tmp_path / "runs", "a", state=RunState.RUNNING)
        manifest = read_manifest(run)
        change(
            run,
            attempts=[
                manifest.attempts[0].model_copy(
                    update={"handle": "local://999999:1", "outcome": None, "ended": None}
                )
            ],
        )
        assert "lost" in self.call("list", "--runs-dir", str(tmp_path / "runs")).stdout


def test_runs_are_compared_in_the_order_of_a_field(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", name) for name in ("a", "b", "c")]
    for run, loss in zip(runs, (0.5, 0.1, None), strict=True):
        change(run, results={"training": {"last_loss": loss}})
    assert [r.run_id for r in in_order(runs, tmp_path / "runs", "loss")] == ["b", "a", "c"]
    assert [r.run_id for r in in_order(runs[:1], tmp_path / "elsewhere", "loss")] == ["a"]


class TestFindRun:
    def test_by_id_beginning_and_last(self, tmp_path: Path) -> None:
        for name in ("demo-1", "demo-12", "other"):
            make_run(tmp_path, name)
        (tmp_path / "demo-3").mkdir()
        write_json(
            tmp_path / "demo-12" / "manifest.json",
            json.loads((tmp_path / "demo-12" / "manifest.json").read_text()),
        )
        assert find_run("demo-1", tmp_path).run_id == "demo-1"
        assert find_run("ot", tmp_path).run_id == "other"
        assert find_run("last", tmp_path).run_id == "demo-12"
        with pytest.raises(SpecError, match="2 runs are called 'demo'"):
            find_run("demo", tmp_path)
        with pytest.raises(SpecError, match="no run is called 'demo-3'") as caught:
            find_run("demo-3", tmp_path)
        assert "demo-12, other" in caught.value.evidence
