"""A machine made ready twice, verified, and put back: over a real sshd, with a real apt, in a throw-away root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.nodes.machine import Machine

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(Machine.unavailable()), reason=Machine.unavailable() or "-"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This very version."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(directory), str(ROOT)], check=True)  # fmt: skip
    return next(directory.glob("*.whl"))


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as found:
        yield found


@dataclass(frozen=True)
class Nodes:
    cwd: Path
    env: dict[str, str]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "seatrial", "node", *words], cwd=self.cwd, env={**os.environ, **self.env, "COLUMNS": "160"},
            capture_output=True, text=True, timeout=500, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Traceback (most recent call last)" not in done.stdout + done.stderr, done.stderr
        return done


@pytest.fixture
def nodes(machine: Machine, tmp_path: Path) -> Nodes:
    machine.client("Host nowhere\n  HostName 127.0.0.1\n  Port 1\n  ConnectTimeout 2")
    return Nodes(tmp_path, machine.env)


def test_ready_twice_verified_and_put_back(machine: Machine, nodes: Nodes, wheel: Path) -> None:
    before = machine.tree()
    words = ["bootstrap", "login", "--package", str(wheel), "--pip=--no-deps", "--pip=--no-index", "--s3", "s3://bucket/runs", "--exporter", "-y"]  # fmt: skip
    shown = nodes(*words, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert machine.tree() == before
    assert not nodes.cwd.joinpath("nodes.yaml").exists()
    first = nodes(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "login  changed  packages: installed:" in first.stdout
    for path in ("/etc/security/limits.d/90-seatrial.conf", "/etc/sysctl.d/90-seatrial.conf", "/etc/profile.d/seatrial.sh", "/etc/seatrial/config.yaml", "/opt/seatrial/venv/bin/python", "/scratch/seatrial", "/srv/seatrial/runs", "/etc/systemd/system/seatrial-exporter.service"):  # fmt: skip
        assert machine.there(path), path
    assert not machine.there("/opt/seatrial/staged")
    assert "NCCL_IB_DISABLE" not in machine.inside("/etc/profile.d/seatrial.sh").read_text()
    after = machine.tree()
    again = nodes(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert machine.tree() == after, "the second time changes nothing"
    assert "changed" not in again.stdout
    fleet = YAML(typ="safe").load(nodes.cwd / "nodes.yaml")
    [row] = fleet["nodes"]
    assert row["host"] == "login" and row["python"] == "/opt/seatrial/venv/bin/python" and row["cpus"] == os.cpu_count()  # fmt: skip
    verified = nodes("verify", "--json")
    checks = {e["check"]: e["verdict"] for e in json.loads(verified.stdout)["nodes"]["login"]}
    assert checks["seatrial"] == "PASS" and checks["files"] == "PASS"
    machine.inside("/etc/sysctl.d/90-seatrial.conf").write_text("# mine now\n")
    assert nodes("verify").returncode == 1
    kept = nodes(*words)
    assert "was changed by somebody; it stays so" in kept.stdout
    (machine.inside("/srv/seatrial/runs") / "weights").write_text("a week of training")
    listed = nodes("undo", "login", "--dry-run")
    assert "tree /opt/seatrial/venv" in listed.stderr
    undone = nodes("undo", "login", "-y")
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert "stays    /etc/sysctl.d/90-seatrial.conf: somebody changed it" in undone.stdout
    assert "stays    /srv/seatrial/runs: it is not empty" in undone.stdout
    left = {name for name, what in machine.tree().items() if before.get(name) != what and what != "removed"}
    assert left == {"/etc/sysctl.d/90-seatrial.conf", "/srv/seatrial/runs/weights", "/var/lib/seatrial/added"}, left  # fmt: skip
    assert YAML(typ="safe").load(nodes.cwd / "nodes.yaml")["nodes"] == []
    machine.inside("/etc/sysctl.d/90-seatrial.conf").unlink()
    (machine.inside("/srv/seatrial/runs") / "weights").unlink()
    assert nodes("undo", "login", "-y").returncode == 0
    assert {name for name, what in machine.tree().items() if before.get(name) != what and what != "removed"} == set()  # fmt: skip


def test_one_bad_host_does_not_stop_the_others(machine: Machine, nodes: Nodes, wheel: Path) -> None:
    done = nodes("bootstrap", "nowhere", "login", "--package", str(wheel), "--pip=--no-deps", "-y")
    assert done.returncode == 4
    assert "nowhere: nowhere can't be reached by ssh" in done.stderr
    assert "1 of 2 machines are ready" in done.stderr
    assert [row["host"] for row in YAML(typ="safe").load(nodes.cwd / "nodes.yaml")["nodes"]] == ["login"]


def test_what_is_there_is_not_written_over(machine: Machine, nodes: Nodes, wheel: Path) -> None:
    machine.inside("/etc/profile.d/seatrial.sh").write_text("# somebody else's\n")
    done = nodes("bootstrap", "login", "--package", str(wheel), "--pip=--no-deps", "-y")
    assert done.returncode == 4
    assert "failed   environment: /etc/profile.d/seatrial.sh is there and not Seatrial's" in done.stdout
    assert machine.inside("/etc/profile.d/seatrial.sh").read_text() == "# somebody else's\n"
    nodes("undo", "login", "-y")
    assert machine.there("/etc/profile.d/seatrial.sh")


def test_bad_input(machine: Machine, nodes: Nodes) -> None:
    for words, what in (
        (["bootstrap"], "there is no nodes.yaml"), (["bootstrap", "-oProxyCommand=x"], "No such option"), (["bootstrap", "--", "-oProxyCommand=x"], "is no host"),
        (["bootstrap", "a;b"], "is no host"), (["bootstrap", "login", "--package", "none.whl"], "there is no wheel"), (["undo"], "no host is named"),
        (["bootstrap", "login"], "nobody is here to be asked"), (["bootstrap", "login", "--scratch", "$HOME/x", "-y"], "is no directory for nodes"),
    ):  # fmt: skip
        done = nodes(*words)
        assert done.returncode in {2, 4} and what in done.stderr, (words, done.stderr)
    assert not machine.there("/opt/seatrial")
