"""What can be wrong between here and a login node: each time three parts, and nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ssh.sshd import Sshd

from .conftest import Done, Seatrial

pytestmark = pytest.mark.slurm


@pytest.fixture
def project(tmp_path: Path) -> Seatrial:
    root = tmp_path / "project"
    root.mkdir()
    (root / "hello.py").write_text("print('hello')")
    return Seatrial(root)


@pytest.fixture
def refused(project: Seatrial, login: Sshd) -> Callable[..., Done]:
    """Runs something that is to fail without a trace."""

    def run(*words: str, host: str = "login", code: int = 4) -> Done:
        done = project("run", "--on", f"ssh://{host}", "--gpus", "0", *words, "--", "hello.py")
        assert done.code == code, done.stderr
        assert done.stderr.count("evidence:") == 1 and done.stderr.count("next:") == 1
        assert not project.runs_dir.exists() or not [*project.runs_dir.iterdir()]
        return done

    return run


def remote(project_root: Path, **values: str) -> None:
    """Changes slurm.remote in the config.yaml of the test."""
    config = Path(os.environ["SEATRIAL_CONFIG"])
    settings = {"python": sys.executable, "directory": str(project_root.parent / "cluster"), **values}
    pairs = ", ".join(f"{key}: {value}" for key, value in settings.items())
    config.write_text(f"defaults: {{slurm: {{remote: {{{pairs}}}}}}}")


def test_the_way_there(refused: Callable[..., Done], login: Sshd) -> None:
    assert "can't be reached" in refused(host="no-such-host.invalid").stderr
    login.client(key="stranger")
    assert "refused to let you in" in refused().stderr
    login.client()
    login.know(None)
    assert "is not known yet" in refused().stderr
    login.know("other_host")
    changed = refused().stderr
    assert "is not the one that is known" in changed and str(login.known_hosts) in changed
    login.know("host")
    login.stop()
    assert "can't be reached" in refused().stderr
    assert login.known_hosts.read_text().count("\n") == 1, "nothing was added to the known hosts"


def test_what_is_there(refused: Callable[..., Done], project: Seatrial, login: Sshd, tmp_path: Path) -> None:
    remote(project.cwd, python="/no/such/python")
    assert "can't run /no/such/python" in refused().stderr
    bare = tmp_path / "bare python"
    bare.write_text(
        f'#!/bin/sh\nunset PYTHONPATH; exec {shutil.which("python3", path="/usr/bin:/bin") or sys.executable} -S "$@"\n'
    )
    bare.chmod(0o755)
    remote(project.cwd, python=f'"{bare}"')
    assert "has no Seatrial" in refused().stderr
    older = tmp_path / "older"
    shutil.copytree(Path(sys.modules["seatrial"].__file__ or "").parent, older / "seatrial")
    (older / "seatrial" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    (tmp_path / "py").write_text(f'#!/bin/sh\nexport PYTHONPATH={older}; exec {sys.executable} "$@"\n')
    (tmp_path / "py").chmod(0o755)
    remote(project.cwd, python=str(tmp_path / "py"))
    assert "has Seatrial 0.0.9, and here is" in refused().stderr
    (tmp_path / "file").touch()
    remote(project.cwd, directory=str(tmp_path / "file" / "x"))
    assert "can't be written on the login node" in refused().stderr
    remote(project.cwd)
    assert "there is no partition nowhere" in refused("--partition", "nowhere", code=2).stderr


def test_a_login_node_without_slurm(refused: Callable[..., Done], login: Sshd, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "bash", "git"):
        if path := shutil.which(name):
            (programs / name).symlink_to(path)
    login.session_env["PATH"] = str(programs)
    login.restart()
    assert "has no Slurm" in refused().stderr


@pytest.mark.skipif(os.getuid() != 0, reason="a small file system can be mounted by root only")
def test_a_full_disk_there(
    refused: Callable[..., Done], project: Seatrial, login: Sshd, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=66m", "tmpfs", str(small)], check=False
    ).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        remote(project.cwd, directory=str(small))
        (project.cwd / "large.bin").write_bytes(bytes(5 << 20))
        said = refused().stderr
        assert "could not keep what was sent" in said and "MiB are free" in said
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_list_of_runs_does_not_need_the_login_node(project: Seatrial, login: Sshd) -> None:
    (project.cwd / "hello.py").write_text("import time; time.sleep(600)")
    started = project("run", "--detach", "--on", "ssh://login", "--gpus", "0", "--", "hello.py")
    assert started.code == 0, started.stderr
    login.stop()
    listed = project("runs", "list")
    assert listed.code == 0 and started.stdout.strip() in listed.stdout
    assert "can't be reached" in listed.stderr
    shown = project("runs", "show", "last")
    assert shown.code == 0 and "attempt 0  script: going on" in shown.stdout
    assert "can't be reached" in shown.stderr, "and it says that this is what was last seen"
