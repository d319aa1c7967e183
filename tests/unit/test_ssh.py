"""Reaching a login node: the command that ssh gets, what its failures mean, and a copy that is brought up to date in pieces."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seatrial import __version__, command
from seatrial.backends import registry
from seatrial.backends.base import JobHandle, Mirrors
from seatrial.backends.ssh import connection, store, wire
from seatrial.backends.ssh.backend import SshBackend, login_of, values_of
from seatrial.backends.ssh.connection import control_options, program, socket_directory
from seatrial.backends.ssh.failures import Login, explain
from seatrial.backends.ssh.mirror import Mirror, Remote
from seatrial.errors import PlatformError, SpecError, UnreachableError
from seatrial.launch import launcher, outside, snapshot
from seatrial.runs import lock
from seatrial.runs.manifest import AttemptRecord, Manifest, read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from seatrial.spec.load import load
from seatrial.spec.run import DataSpec, ResourcesSpec, RunSpec, ScriptSpec
from seatrial.spec.slurm import RemoteSpec, SlurmSpec
from seatrial.testing import FakeRunner

LOGIN = Login("me@login:2222", "/shared/my venv/bin/python", "/shared/me")
REMOTE = SlurmSpec(remote=RemoteSpec(python="/p", directory="/d"), partition="main")
CHANGED = """@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
The fingerprint for the ED25519 key sent by the remote host is
SHA256:abc.
Offending ED25519 key in /home/me/.ssh/known_hosts:3
Host key verification failed."""


class TestReaching:
    @pytest.mark.parametrize(
        ("code", "said", "what", "remedy", "again"),
        [
            (255, "ssh: Could not resolve hostname login: Name or service not known", "can't be reached", "ssh", True),
            (255, "ssh: connect to host login port 22: Connection refused", "can't be reached", "true", True),
            (255, "ssh: connect to host login port 22: Connection timed out", "can't be reached", "true", True),
            (255, "kex_exchange_identification: read: Connection reset by peer", "can't be reached", "true", True),
            (255, "me@login: Permission denied (publickey).", "refused to let you in", "ssh-add", False),
            (255, "Received disconnect: 2: Too many authentication failures", "refused to let you in", "ssh-add", False),
            (255, "No ED25519 host key is known for login and you have requested strict checking.\nHost key verification failed.",
             "is not known yet", "fingerprint", False),
            (255, CHANGED, "is not the one that is known", "ssh-keygen -R", False),
            (255, "Bad configuration option: foo", "failed", "true", False),
            (127, "bash: line 1: /shared/venv/bin/python: No such file or directory", "can't run", "slurm.remote.python", False),
            (1, "/usr/bin/python3: Error while finding module specification (ModuleNotFoundError: No module named 'seatrial')",
             "has no Seatrial", "pip install 'seatrial[train]==", False),
            (1, "", "did not start", "seatrial doctor", False),
        ],
    )  # fmt: skip
    def test_each_failure_has_its_name(
        self, code: int, said: str, what: str, remedy: str, again: bool
    ) -> None:
        error = explain(LOGIN, code, said)
        assert what in error.what and remedy in error.remedy and error.evidence
        assert isinstance(error, UnreachableError) is again

    def test_evidence_of_a_changed_key_names_the_line(self) -> None:
        assert "known_hosts:3" in explain(LOGIN, 255, CHANGED).evidence

    def test_what_breaks_after_it_had_begun_may_be_tried_again(self) -> None:
        assert isinstance(
            explain(LOGIN, 255, "client_loop: send disconnect: Broken pipe", begun=True), UnreachableError
        )
        assert isinstance(explain(LOGIN, -9, "", begun=True), UnreachableError)

    def test_nothing_reaches_the_remote_shell_unquoted(self) -> None:
        odd = Login("h", "~/my venv/bin/py;thon", "/a b/$(touch x)")
        assert program(odd) == "exec ~/'my venv/bin/py;thon' -m seatrial.cli.login_node '/a b/$(touch x)'"

    def test_the_users_own_connection_sharing_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        theirs = FakeRunner({"ssh -G": "host login\ncontrolmaster auto\ncontrolpath /home/me/.ssh/cm-%C\n"})
        monkeypatch.setattr(command, "run", theirs)
        assert control_options(LOGIN) == []
        assert theirs.calls == [("ssh", "-G", "--", "ssh://me@login:2222")]
        monkeypatch.setattr(command, "run", FakeRunner({"ssh -G": "host login\ncontrolmaster false\n"}))
        assert "ControlMaster=auto" in control_options(LOGIN)

    def test_sockets_lie_where_nobody_else_looks(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        short = Path("/tmp") / f"s{os.getpid()}"
        short.mkdir(mode=0o700)
        try:
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
            found = socket_directory()
            assert found is not None and found.parent == short and found.stat().st_mode & 0o777 == 0o700
            found.chmod(0o755)
            assert socket_directory() != found, "somebody else's may not be used"
        finally:
            (short / f"seatrial-ssh-{os.getuid()}").rmdir()
            short.rmdir()


class TestSpec:
    def test_any_host_resolves_to_the_one_backend(self) -> None:
        backend = registry.get("ssh://somebody@login")
        assert backend is registry.get("ssh") and backend.keeps_jobs and isinstance(backend, Mirrors)
        handle = JobHandle.parse("ssh://login/slurm://12/run-1")
        assert (handle.backend, str(handle)) == ("ssh", "ssh://login/slurm://12/run-1")

    def test_where_seatrial_is_there_has_to_be_said(self) -> None:
        spec = ScriptSpec(name="s", command=("x.py",), cwd="/", resources=ResourcesSpec(on="ssh://login"))
        with pytest.raises(SpecError, match=r"slurm\.remote\.python is not set") as caught:
            login_of(spec)
        assert "config.yaml" in caught.value.remedy
        assert login_of(spec.model_copy(update={"slurm": REMOTE})) == Login("login", "/p", "/d")

    def test_only_what_was_said_lies_over_the_clusters_own_defaults(self, tmp_path: Path) -> None:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            "{model: m, data: {path: d}, resources: {on: 'ssh://login', nodes: 2}, slurm: {remote: {python: /p, directory: /d}}}"
        )
        values = values_of(load(recipe).spec)
        assert values == {
            "name": "r",
            "model": "m",
            "data": {"path": "d"},
            "resources": {"on": "slurm", "nodes": 2},
        }

    @pytest.mark.parametrize("value", ["venv/bin/python", "", "/a\nb"])
    def test_odd_paths_are_refused(self, value: str) -> None:
        with pytest.raises(ValueError):
            RemoteSpec(python=value)


class TestOrder:
    def test_paths_that_are_only_here_are_sent_and_named_there(self, tmp_path: Path) -> None:
        project, data = tmp_path / "project", tmp_path / "reviews.csv"
        project.mkdir()
        (project / "a.py").write_text("")
        data.write_text("text,label\n")
        spec = RunSpec(name="n", model="cluster:/models/bert", data=DataSpec(path=str(data)), slurm=REMOTE)
        parcel = outside.pack(spec, project, project / "runs", outside.limits_of(spec))
        assert parcel.paths == {"model": "/models/bert"}
        given = outside.order(
            spec, parcel, "/d", run_id="n-1", argv=["seatrial"], then=["predict"], after=None
        )
        sha256 = snapshot.of_path(data, limit_bytes=99, key="data.path").sha256
        assert given["values"]["data"]["path"] == f"/d/data/{sha256}/reviews.csv"
        assert given["values"]["model"] == "/models/bert"
        assert given["cwd"] == f"/d/code/{parcel.code.tree.sha256}"
        assert given["code"]["sent"] == {str(data): f"/d/data/{sha256}/reviews.csv"}
        assert json.loads(json.dumps(given)) == given

    def test_a_scripts_own_path_moves_with_the_code(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.py").write_text("")
        spec = ScriptSpec(
            name="s",
            command=(str(tmp_path / "sub" / "a.py"), "/elsewhere"),
            cwd=str(tmp_path / "sub"),
            slurm=REMOTE,
        )
        parcel = outside.pack(spec, tmp_path, tmp_path / "runs", outside.limits_of(spec))
        given = outside.order(spec, parcel, "/d", run_id="s-1", argv=[], then=[], after=None)
        there = f"/d/code/{parcel.code.tree.sha256}"
        assert given["values"]["command"] == [f"{there}/sub/a.py", "/elsewhere"]


class FakeLogin:
    """A login node's answers from a run directory on this machine, cut off as often as asked."""

    def __init__(self, there: RunPaths) -> None:
        self.there = there
        self.fail_after = -1
        self.reads: list[tuple[str, int]] = []
        self.login = Login("login", "/p", "/d")

    def ask(self, do: str, *, feed: Any = None, **given: Any) -> tuple[Any, bytes]:
        if do == "look":
            if not self.there.manifest.exists():
                return None, b""
            manifest = read_manifest(self.there).model_dump(mode="json", by_alias=True)
            return {"manifest": manifest, "files": store.listing(self.there.root)}, b""
        assert do == "read"
        if self.fail_after == 0:
            raise UnreachableError("the connection was lost")
        self.fail_after -= 1
        self.reads.append((given["name"], given["offset"]))
        return None, store.read(self.there.root, given["name"], given["offset"], min(given["size"], 4))

    def close(self) -> int:
        return 0


class TestMirror:
    @pytest.fixture
    def there(self, tmp_path: Path) -> RunPaths:
        paths = RunPaths(tmp_path / "there" / "run-1")
        (paths.attempt(0).logs).mkdir(parents=True)
        write_manifest(paths, manifest(RunState.RUNNING, "slurm://7/run-1"))
        paths.metrics.write_text('{"step": 1}\n')
        paths.attempt(0).exit.write_text("{}")
        return paths

    @pytest.fixture
    def copy(
        self, tmp_path: Path, there: RunPaths, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[Mirror, FakeLogin]:
        here = RunPaths(tmp_path / "here" / "run-1")
        here.root.mkdir(parents=True)
        write_manifest(here, manifest(RunState.SUBMITTING, None))
        Remote("login", "/p", "/d").write(here)
        fake = FakeLogin(there)
        monkeypatch.setattr(Mirror, "connection", fake)
        return Mirror(here), fake

    def test_files_come_first_and_handles_say_where(
        self, copy: tuple[Mirror, FakeLogin], there: RunPaths
    ) -> None:
        mirror, fake = copy
        found = mirror.look(anyway=True)
        assert found.attempt.handle == "ssh://login/slurm://7/run-1"
        assert mirror.paths.metrics.read_bytes() == there.metrics.read_bytes()
        assert mirror.paths.attempt(0).exit.stat().st_mtime_ns == there.attempt(0).exit.stat().st_mtime_ns
        fake.reads.clear()
        mirror.look(anyway=True)
        assert fake.reads == [], "what is here is not copied again"

    def test_what_grows_goes_on_where_it_was(self, copy: tuple[Mirror, FakeLogin], there: RunPaths) -> None:
        mirror, fake = copy
        mirror.look(anyway=True)
        fake.reads.clear()
        with there.metrics.open("a") as file:
            file.write('{"step": 2}\n')
        mirror.look(anyway=True)
        assert fake.reads[0] == ("metrics.jsonl", 12)
        assert mirror.paths.metrics.read_bytes() == there.metrics.read_bytes()
        there.metrics.write_text("{}\n")
        mirror.look(anyway=True)
        assert mirror.paths.metrics.read_text() == "{}\n", "begun anew there"

    def test_a_copy_that_was_cut_off_goes_on_and_half_a_file_is_never_seen(
        self, copy: tuple[Mirror, FakeLogin], there: RunPaths
    ) -> None:
        mirror, fake = copy
        there.predictions("trained").parent.mkdir()
        there.predictions("trained").write_bytes(bytes(range(100)))
        write_manifest(there, manifest(RunState.COMPLETED, "slurm://7/run-1"))
        cuts = 0
        while True:
            fake.fail_after = 3
            try:
                state = mirror.look(anyway=True).state
                break
            except UnreachableError:
                cuts += 1
                assert not mirror.paths.predictions("trained").exists()
                assert read_manifest(mirror.paths).state is RunState.SUBMITTING, (
                    "the end is told when all is here"
                )
        assert cuts > 3 and state is RunState.COMPLETED
        assert mirror.paths.predictions("trained").read_bytes() == bytes(range(100))
        assert [path.name for path in mirror.paths.predictions("trained").parent.iterdir()] == [
            "trained.parquet"
        ]
        offsets = [offset for name, offset in fake.reads if name == "predictions/trained.parquet"]
        assert offsets == sorted(set(offsets)), "nothing came twice"

    def test_a_run_that_never_got_there_is_lost_in_the_end(
        self, copy: tuple[Mirror, FakeLogin], there: RunPaths
    ) -> None:
        mirror, _ = copy
        there.manifest.unlink()
        assert mirror.look(anyway=True).state is RunState.SUBMITTING
        long_ago = time.time() - 3600
        os.utime(mirror.paths.remote, (long_ago, long_ago))
        assert mirror.look(anyway=True).state is RunState.LOST

    def test_two_commands_do_not_write_to_it_at_once(
        self, copy: tuple[Mirror, FakeLogin], there: RunPaths
    ) -> None:
        mirror, fake = copy
        with lock.copying(mirror.paths.root, wait=True) as alone:
            assert alone
            assert mirror.look().state is RunState.SUBMITTING, (
                "as it is; the other one is bringing it up to date"
            )
            assert fake.reads == []
        assert mirror.look(anyway=True).state is RunState.RUNNING

    def test_a_handle_finds_its_copy(self, copy: tuple[Mirror, FakeLogin], there: RunPaths) -> None:
        mirror, _ = copy
        backend = SshBackend()
        handle = JobHandle.parse("ssh://login/slurm://7/run-1/alps")
        with pytest.raises(PlatformError, match="where the copy"):
            backend.state(handle)
        backend.look(mirror.paths)
        assert backend.state(handle).state is RunState.RUNNING

    def test_names_that_lead_out_of_the_run_are_refused(self, copy: tuple[Mirror, FakeLogin]) -> None:
        mirror, _ = copy
        for name in ("../evil.json", "/tmp/evil.json"):
            with pytest.raises(SpecError):
                mirror.copy({name: (1, 1)})

    def test_settle_asks_the_login_node_until_the_end_is_here(
        self, copy: tuple[Mirror, FakeLogin], there: RunPaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mirror, _ = copy
        monkeypatch.setattr("seatrial.backends.ssh.mirror.EVERY_S", 0.0)
        monkeypatch.setattr("seatrial.backends.ssh.mirror._SHARE", 0.0)
        assert launcher.settle(mirror.paths).state is RunState.RUNNING
        write_manifest(there, manifest(RunState.FAILED, "slurm://7/run-1"))
        assert launcher.settle(mirror.paths).state is RunState.FAILED
        monkeypatch.setattr(FakeLogin, "ask", None)
        assert launcher.settle(mirror.paths).state is RunState.FAILED, "an end is not asked about again"


def manifest(state: RunState, handle: str | None) -> Manifest:
    attempts = [] if handle is None else [AttemptRecord(index=0, handle=handle, stages=["train"])]
    return Manifest(
        run_id="run-1", name="run", task="text-classification", state=state, command=["seatrial"], cwd="/", spec_sha256="0",
        seatrial_version="0", python="3", attempts=attempts,
    )  # fmt: skip


class TestConnection:
    @pytest.fixture
    def talk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], connection.Connection]:
        """A connection through an ``ssh`` that is a script."""

        def with_ssh(script: str) -> connection.Connection:
            program = tmp_path / "ssh"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
            monkeypatch.setattr(connection, "control_options", lambda login: [])
            return connection.Connection(LOGIN)

        return with_ssh

    def test_another_version_is_refused(self, talk: Callable[[str], connection.Connection]) -> None:
        script = 'echo \'seatrial-login-node {"seatrial": "0.0.1", "protocol": 1}\'; cat'
        with pytest.raises(PlatformError, match=r"has Seatrial 0\.0\.1, and here is") as caught:
            talk(script).ask("look")
        assert "pip install" in caught.value.remedy

    def test_silence_has_an_end(
        self, talk: Callable[[str], connection.Connection], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "ANSWER_S", 0.2)
        with pytest.raises(UnreachableError, match="did not answer"):
            talk("exec sleep 60").ask("look")

    def test_silence_in_the_middle_is_a_lost_connection(
        self, talk: Callable[[str], connection.Connection], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "ANSWER_S", 0.5)
        hello = json.dumps({"seatrial": __version__, "protocol": wire.PROTOCOL})
        asked = talk(
            f"echo '{wire.MARK}{hello}'; read line; echo '{{\"note\": \"looking\"}}'; exec sleep 60 <&-"
        )
        notes: list[str] = []
        asked.say = notes.append
        with pytest.raises(UnreachableError, match="has stopped answering"):
            asked.ask("look")
        assert notes == ["looking"]

    def test_a_failure_holds_for_the_next_one_who_asks(
        self, talk: Callable[[str], connection.Connection]
    ) -> None:
        asked = talk("echo x >> $0.calls; echo 'Connection refused' >&2; exit 255")
        for _ in range(3):
            with pytest.raises(UnreachableError, match="can't be reached"):
                asked.ask("look")
        import shutil

        calls = Path(shutil.which("ssh") + ".calls").read_text()  # type: ignore[operator]
        assert calls == "x\n"
