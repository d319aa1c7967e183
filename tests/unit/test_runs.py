"""The run directory: whole files, whole directories, one holder, readable records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seatrial.errors import SpecError
from seatrial.runs import commit, lock
from seatrial.runs.evidence import Evidence, Verdict, read_evidence, record
from seatrial.runs.files import (
    append_json_line,
    read_json,
    read_json_lines,
    replacing,
    write_json,
    write_text,
)
from seatrial.runs.manifest import (
    AttemptRecord,
    Manifest,
    find_run,
    iter_manifests,
    read_manifest,
    write_manifest,
)
from seatrial.runs.metrics import read_metrics
from seatrial.runs.paths import RunPaths


def manifest(run_id: str, **more: object) -> Manifest:
    fields = {"name": "n", "task": "text-classification", "command": ["seatrial"], "cwd": "/", "spec_sha256": "0",
              "seatrial_version": "0", "python": "3.12"} | more  # fmt: skip
    return Manifest(run_id=run_id, **fields)  # type: ignore[arg-type]


def make_run(root: Path, run_id: str, **more: object) -> RunPaths:
    paths = RunPaths(root / run_id)
    paths.root.mkdir(parents=True)
    write_manifest(paths, manifest(run_id, **more))
    return paths


class TestFiles:
    def test_a_failed_write_leaves_the_old_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        write_json(path, {"x": 1})
        with pytest.raises(ValueError, match="Out of range"):
            write_json(path, {"x": float("nan")})
        with pytest.raises(UnicodeEncodeError):
            write_text(path, "\ud800")
        assert read_json(path) == {"x": 1}
        assert os.listdir(tmp_path) == ["a.json"]

    def test_replacing_removes_what_was_not_finished(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), replacing(tmp_path / "b") as aside:
            aside.write_text("half")
            raise RuntimeError
        assert os.listdir(tmp_path) == []

    def test_a_line_cut_off_by_a_crash_is_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        append_json_line(path, {"a": 1})
        append_json_line(path, {"a": "ü"})
        with path.open("a") as file:
            file.write('{"a": 3, "b')
        assert list(read_json_lines(path)) == [{"a": 1}, {"a": "ü"}]
        assert list(read_json_lines(tmp_path / "none")) == []


class TestCommit:
    @pytest.fixture
    def sealed(self, tmp_path: Path) -> Path:
        final = tmp_path / "step_000010"
        aside = commit.start(final)
        (aside / "model.safetensors").write_bytes(b"weights")
        (aside / "config.json").write_text("{}")
        commit.commit(aside, final, step=10)
        return final

    def test_nothing_counts_before_the_marker(self, tmp_path: Path) -> None:
        final = tmp_path / "model"
        aside = commit.start(final)
        (aside / "x").write_text("1")
        assert not final.exists()
        assert not commit.is_committed(aside)
        assert commit.problems(aside)

    def test_a_committed_directory_is_sound(self, sealed: Path) -> None:
        assert commit.problems(sealed) == []
        assert (commit.read_marker(sealed) or {})["step"] == 10
        assert os.listdir(sealed.parent) == [sealed.name]

    @pytest.mark.parametrize(
        ("harm", "said"),
        [
            (lambda d: (d / "model.safetensors").write_bytes(b"weightz"), "SHA-256 differs"),
            (lambda d: (d / "model.safetensors").write_bytes(b"weight"), "6 bytes, 7 were written"),
            (lambda d: (d / "config.json").unlink(), "config.json is missing"),
            (lambda d: (d / commit.MARKER).unlink(), "never committed"),
            (lambda d: (d / commit.MARKER).write_text("{"), "not JSON"),
        ],
    )
    def test_damage_is_named(self, sealed: Path, harm: object, said: str) -> None:
        harm(sealed)  # type: ignore[operator]
        assert said in commit.problems(sealed)[0]

    def test_the_weights_hash_ignores_everything_else(self, sealed: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        aside = commit.start(other)
        (aside / "model.safetensors").write_bytes(b"weights")
        (aside / "README.md").write_text("another")
        commit.commit(aside, other)
        assert commit.weights_sha256(sealed) == commit.weights_sha256(other)

    def test_a_broken_writers_remains_are_replaced(self, tmp_path: Path) -> None:
        final = tmp_path / "m"
        (commit.start(final) / "half").write_text("")
        final.mkdir()
        aside = commit.start(final)
        (aside / "whole").write_text("1")
        commit.commit(aside, final)
        assert sorted(p.name for p in final.iterdir()) == [commit.MARKER, "whole"]


class TestLock:
    def test_a_second_holder_is_refused_and_told_who_holds_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lock, "_PATIENCE_S", 0.1)
        path = tmp_path / "run-1" / ".lock"
        path.parent.mkdir()
        code = (
            "import sys; from pathlib import Path; from seatrial.runs import lock\n"
            "with lock.hold(Path(sys.argv[1]), 'attempt 0'):\n"
            "    print('held', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None and other.stdout.readline() == b"held\n"
            with pytest.raises(SpecError, match="in use") as caught:
                lock.check_free(path)
            assert str(other.pid) in caught.value.evidence
            other.kill()
        lock.check_free(path)  # the kernel let go of it


class TestRecords:
    def test_the_latest_verdict_of_a_check_holds(self, tmp_path: Path) -> None:
        path = tmp_path / "evidence.jsonl"
        record(path, Evidence(check="loss_finite", verdict=Verdict.FAIL, attempt=0))
        record(path, Evidence(check="ranks_present", verdict=Verdict.PASS))
        record(path, Evidence(check="loss_finite", verdict=Verdict.PASS, attempt=1))
        assert [(e.check, e.verdict) for e in read_evidence(path)] == [
            ("loss_finite", "PASS"),
            ("ranks_present", "PASS"),
        ]

    def test_a_resumed_run_has_one_row_a_step(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        for attempt, step, loss in [(0, 10, 3.0), (0, 20, 2.0), (0, 30, 9.0), (1, 30, 1.0)]:
            append_json_line(path, {"kind": "train", "step": step, "loss": loss, "attempt": attempt})
        append_json_line(path, {"kind": "eval", "step": 20, "loss": 2.5})
        found = read_metrics(path)
        assert [row["loss"] for row in found["train"]] == [3.0, 2.0, 1.0]
        assert len(found["eval"]) == 1

    def test_a_running_manifest_can_be_read_back(self, tmp_path: Path) -> None:
        paths = make_run(tmp_path, "r-1", attempts=[AttemptRecord(index=0)])
        assert read_manifest(paths).attempt.ended is None
        assert json.loads(paths.manifest.read_text())["schema"] == 1

    def test_an_unreadable_manifest_does_not_hide_the_others(self, tmp_path: Path) -> None:
        make_run(tmp_path, "r-1")
        make_run(tmp_path, "r-2").manifest.write_text('{"schema": 99}')
        make_run(tmp_path, "r-3")
        found = {paths.run_id: entry for paths, entry in iter_manifests(tmp_path)}
        assert isinstance(found["r-2"], SpecError)
        assert isinstance(found["r-3"], Manifest)

    def test_runs_are_found_by_id_beginning_directory_and_last(self, tmp_path: Path) -> None:
        first, second = make_run(tmp_path, "sst2-1"), make_run(tmp_path, "imdb-1")
        os.utime(first.manifest, (1, 1))
        assert find_run("sst2", tmp_path) == first
        assert find_run("imdb-1", tmp_path) == second
        assert find_run(str(first.root), Path("/nowhere")).run_id == "sst2-1"
        assert find_run("last", tmp_path) == second
        make_run(tmp_path, "sst2-2")
        for wrong in ("sst2", "cola"):
            with pytest.raises(SpecError) as caught:
                find_run(wrong, tmp_path)
            assert "sst2-1" in caught.value.evidence
