"""What is sent to a cluster: exactly what lies here, named by its content, within a limit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from seatrial.backends.ssh import store, tree, wire
from seatrial.backends.ssh.store import Store
from seatrial.backends.ssh.tree import Tree
from seatrial.errors import PlatformError, SpecError
from seatrial.launch import snapshot
from seatrial.launch.ignore import Ignore

MIB = 2**20


def names(found: Tree) -> list[str]:
    return [item.name for item in found.items]


def packed(found: Tree) -> list[bytes]:
    parts: list[bytes] = []
    tree.pack(found, parts.append)
    return parts


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class TestIgnore:
    @pytest.mark.parametrize(
        ("lines", "ignored", "kept"),
        [
            (["*.ckpt"], ["a.ckpt", "deep/b.ckpt"], ["a.ckpt.py"]),
            (["/data"], ["data", "data/x"], ["src/data"]),
            (["data/"], ["data/x", "src/data/x"], ["data"]),
            (["src/*.csv"], ["src/a.csv"], ["a.csv", "src/deep/a.csv"]),
            (["**/cache"], ["cache", "a/b/cache"], ["a/cachet"]),
            (["logs/**"], ["logs/a/b"], ["log"]),
            (["a/**/z"], ["a/z", "a/b/c/z"], ["b/z"]),
            (["*.big", "!keep.big"], ["x.big"], ["keep.big"]),
            (["# note", "", "te?t[0-9]", "\\#x"], ["test1", "#x"], ["test", "note"]),
            (["file[!0-9].txt"], ["filea.txt"], ["file1.txt"]),
        ],
    )
    def test_patterns_are_those_of_git(self, lines: list[str], ignored: list[str], kept: list[str]) -> None:
        rules = Ignore(lines)
        assert [name for name in ignored if not rules.file(name)] == []
        assert [name for name in kept if rules.file(name)] == []

    def test_git_agrees(self, tmp_path: Path) -> None:
        patterns = ["*.big", "!keep.big", "/top", "dir/", "a/*.x", "**/deep/y", "q/**", "[ab].c"]
        files = [
            "x.big",
            "keep.big",
            "top",
            "s/top",
            "dir/f",
            "s/dir/f",
            "a/1.x",
            "a/b/1.x",
            "p/deep/y",
            "q/r/s",
            "a.c",
            "c.c",
        ]
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        (tmp_path / ".gitignore").write_text("\n".join(patterns))
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        theirs = subprocess.run(
            ["git", "-C", str(tmp_path), "ls-files", "-oi", "--exclude-standard"], capture_output=True, text=True, check=True
        ).stdout.split()  # fmt: skip
        ours = [name for name in files if Ignore(patterns).file(name)]
        assert sorted(ours) == sorted(theirs)


class TestCode:
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        root = tmp_path / "repository"
        write(root, main_py="print(1)", pkg__mod_py="x = 1", gone_py="")
        run = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        subprocess.run([*run, "add", "."], check=True)
        subprocess.run([*run, "commit", "-qm", "first"], check=True)
        return root

    def test_it_is_the_work_tree_not_the_commit(self, repository: Path) -> None:
        committed = snapshot.of_code(repository, limit_bytes=MIB)
        (repository / "gone.py").unlink()
        write(repository, main_py="print(2)", new_py="", ignored_txt="", _gitignore="ignored.txt")
        found = snapshot.of_code(repository / "pkg", limit_bytes=MIB)
        assert names(found.tree) == [".gitignore", "main.py", "new.py", "pkg/mod.py"]
        assert found.inside(repository / "pkg") == "pkg"
        assert found.tree.sha256 != committed.tree.sha256

    def test_runs_and_what_seatrialignore_names_stay_here(self, repository: Path) -> None:
        write(repository, runs__one__manifest_json="{}", big_bin="x", _seatrialignore="*.bin\n")
        found = snapshot.of_code(repository, limit_bytes=MIB, leave_out=[repository / "runs"])
        assert names(found.tree) == [".seatrialignore", "gone.py", "main.py", "pkg/mod.py"]

    def test_without_git_it_is_the_directory(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            a_py="",
            b__c_py="",
            venv__pyvenv_cfg="",
            venv__lib_py="",
            __pycache____x_pyc="",
            skip__x="",
            _seatrialignore="skip/",
        )
        found = snapshot.of_code(tmp_path, limit_bytes=MIB)
        assert names(found.tree) == [".seatrialignore", "a.py", "b/c.py"]

    def test_too_much_is_refused_with_the_largest(self, tmp_path: Path) -> None:
        write(tmp_path, small_py="x", large_bin="x" * 3000)
        with pytest.raises(SpecError) as caught:
            snapshot.of_code(tmp_path, limit_bytes=2000)
        assert "large.bin (2.9 KiB)" in caught.value.evidence
        assert ".seatrialignore" in caught.value.remedy

    def test_times_and_owners_do_not_count_but_modes_and_links_do(self, tmp_path: Path) -> None:
        write(tmp_path, a_sh="echo")
        first = snapshot.of_code(tmp_path, limit_bytes=MIB).tree.sha256
        os.utime(tmp_path / "a.sh", (1, 1))
        assert snapshot.of_code(tmp_path, limit_bytes=MIB).tree.sha256 == first
        (tmp_path / "a.sh").chmod(0o755)
        second = snapshot.of_code(tmp_path, limit_bytes=MIB).tree.sha256
        (tmp_path / "l").symlink_to("a.sh")
        third = snapshot.of_code(tmp_path, limit_bytes=MIB).tree.sha256
        assert len({first, second, third}) == 3


class TestStore:
    @pytest.fixture
    def sent(self, tmp_path: Path) -> Tree:
        root = tmp_path / "model"
        write(root, config_json="{}", deep__weights_bin="w" * 700_000, empty="")
        (root / "run.sh").write_text("echo")
        (root / "run.sh").chmod(0o755)
        return snapshot.of_path(root, limit_bytes=MIB, key="model")

    def test_what_is_sent_arrives(self, tmp_path: Path, sent: Tree) -> None:
        kept = Store.at(str(tmp_path / "store"))
        kept.receive("data", sent.sha256, packed(sent))
        there = kept.path("data", sent.sha256) / "model"
        assert (there / "deep/weights.bin").read_text() == "w" * 700_000
        assert os.access(there / "run.sh", os.X_OK) and not (there / "empty").stat().st_size
        assert [path.name for path in (kept.root / "data").iterdir()] == [sent.sha256]
        kept.receive("data", sent.sha256, packed(sent))  # somebody else was faster

    def test_what_was_cut_off_or_changed_gets_no_name(self, tmp_path: Path, sent: Tree) -> None:
        kept = Store.at(str(tmp_path / "store"))
        parts = iter(packed(sent)[:-1])
        with pytest.raises((PlatformError, Exception)):
            kept.receive("data", sent.sha256, parts)
        with pytest.raises(PlatformError, match="not what was announced"):
            kept.receive("data", "0" * 64, packed(sent))
        assert [*(kept.root / "data").iterdir()] == []

    def test_a_stream_can_not_leave_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("x")
        for name in ("../f", "/tmp/f"):
            evil = Tree("0" * 64, (tree.Item(name, tmp_path / "f", 1),))
            target = tmp_path / "target"
            target.mkdir(exist_ok=True)
            with pytest.raises(ValueError, match="leads out"):
                tree.unpack(packed(evil), target)

    def test_no_room_is_said_before_anything_is_sent(self, tmp_path: Path) -> None:
        kept = Store.at(str(tmp_path / "store"))
        with pytest.raises(PlatformError) as caught:
            kept.check_room(1 << 60)
        assert "MiB are free" in caught.value.evidence and "slurm.remote.directory" in caught.value.remedy

    def test_a_directory_that_can_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PlatformError, match="can't be written on the login node"):
            Store.at(str(tmp_path / "file" / "below"))

    def test_a_run_is_listed_without_weights_and_what_is_being_written(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        write(run, manifest_json="{}", metrics_jsonl="{}", models__trained__model_bin="", checkpoints__s__x="",
              heartbeats__r="", _lock="", predictions__trained_parquet="p", predictions__trained_parts__0="")  # fmt: skip
        (run / "predictions" / ".trained.parts").mkdir()
        (run / "predictions" / ".trained.parts" / "0.arrow").touch()
        assert sorted(store.listing(run)) == [
            "metrics.jsonl",
            "predictions/trained.parquet",
            "predictions/trained.parts/0",
        ]
        assert sorted(store.listing(run, models=True)) == ["checkpoints/s/x", "models/trained/model.bin"]


class TestWire:
    def test_messages_and_bytes_in_pieces(self) -> None:
        sent = wire.encode({"a": 1}) + wire.encode({"b": "ü\n"}, b"\n{raw}") + wire.encode({}, b"")
        data = iter([sent[i : i + 3] for i in range(0, len(sent), 3)])
        reader = wire.Reader(lambda size: next(data, b""))
        assert [reader.message() for _ in range(3)] == [
            ({"a": 1}, b""),
            ({"b": "ü\n"}, b"\n{raw}"),
            ({}, b""),
        ]
        with pytest.raises(EOFError):
            reader.message()

    def test_something_else_than_messages_ends_it(self) -> None:
        data = iter([b"Last login: Tue\n"])
        with pytest.raises(EOFError):
            wire.Reader(lambda size: next(data, b"")).message()
