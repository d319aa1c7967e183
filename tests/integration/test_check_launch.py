"""`seatrial run` goes by the verdict of an acceptance test: on this machine, and on a pretend Slurm."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from seatrial import command
from seatrial.runs import hardware
from seatrial.runs.acceptance import Acceptance
from seatrial.runs.evidence import read_evidence
from seatrial.runs.files import write_json
from seatrial.runs.signature import sign
from seatrial.testing import FakeSlurm

from ..unit.acceptance_samples import FAIL, conclude, finding, healthy

pytestmark = pytest.mark.integration
pytest.importorskip("cryptography")


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("SEATRIAL_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("print('ran')\n")
    return tmp_path


@pytest.fixture
def slurm(at: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    with FakeSlurm(at / "slurm", nodes=3) as pretend:
        for name, value in pretend.env.items():
            monkeypatch.setenv(name, value)
        yield pretend


def put(at: Path, acceptance: Acceptance) -> None:
    path = at / "runs" / acceptance.run_id / "verdict.json"
    path.parent.mkdir(parents=True)
    write_json(path, sign(acceptance).model_dump(mode="json", by_alias=True))


def run(*flags: str) -> command.Completed:
    argv = [sys.executable, "-m", "seatrial", "run", *flags, "--nproc", "1", "--gpus", "0", "--", "job.py"]
    return command.run(argv, timeout_s=120)


def of_this_machine(**more: Any) -> Acceptance:
    host = socket.gethostname()
    told = [finding("ecc", FAIL, host, blame="node", message="3 errors of memory")]
    return conclude(
        told, platform="local", cluster=host, profile="cpu", tested=datetime.now(UTC), hardware={host: hardware.read()}, **more
    )  # fmt: skip


def test_a_machine_that_failed_starts_nothing_unless_told_so(at: Path) -> None:
    put(at, of_this_machine())
    refused = run("--on", "local")
    assert refused.returncode == 1
    assert "3 errors of memory" in refused.stderr and "--verdict none" in refused.stderr
    assert [p.name for p in (at / "runs").iterdir()] == ["check-20260301-120000-abcd"]
    done = run("--on", "local", "--verdict", "none", "--name", "anyway")
    assert done.returncode == 0, done.stderr
    (directory,) = (at / "runs").glob("anyway-*")
    row = next(e for e in read_evidence(directory / "evidence.jsonl") if e.check == "acceptance")
    assert row.verdict == "UNMEASURED" and "--verdict none" in row.message


def test_without_a_verdict_nothing_is_said(at: Path) -> None:
    done = run("--on", "local", "--name", "plain")
    assert done.returncode == 0 and "verdict" not in done.stderr and "acceptance" not in done.stderr
    (directory,) = (at / "runs").glob("plain-*")
    row = next(e for e in read_evidence(directory / "evidence.jsonl") if e.check == "acceptance")
    assert row.verdict == "UNMEASURED"


def test_an_expired_one_is_said_and_not_used(at: Path) -> None:
    put(at, of_this_machine(valid_days=-1))
    done = run("--on", "local")
    assert done.returncode == 0 and "it expired 1 day ago" in done.stderr


class TestSlurm:
    def tell(self, at: Path) -> None:
        told = [
            *healthy(3),
            finding("gemm", FAIL, "node1", gpu=0, metric="m", blame="node", message="GPU 0 is slow"),
        ]
        name = command.run(["scontrol", "show", "config"]).stdout.partition("ClusterName")[2].split()[1]
        put(at, conclude(told, cluster=name, tested=datetime.now(UTC)))

    def test_who_failed_is_excluded(self, at: Path, slurm: FakeSlurm) -> None:
        self.tell(at)
        done = run("--on", "slurm", "--nodes", "2", "--name", "two")
        assert done.returncode == 0, done.stderr
        assert "left out: node1: GPU 0 is slow" in done.stderr
        (directory,) = (at / "runs").glob("two-*")
        assert "#SBATCH --exclude=node1" in (directory / "request.sh").read_text()
        manifest = json.loads((directory / "manifest.json").read_text())
        assert list(manifest["acceptance"]["exclude"]) == ["node1"]
        # The recipe stays as it was asked for: a later attempt goes by what is known then.
        assert json.loads((directory / "spec.json").read_text())["slurm"]["exclude"] == []

    def test_too_few_nodes_are_left(self, at: Path, slurm: FakeSlurm) -> None:
        self.tell(at)
        done = run("--on", "slurm", "--nodes", "3", "--dry-run")
        assert done.returncode == 2, done.stderr + done.stdout
        assert "can never start here" in done.stderr
        assert run("--on", "slurm", "--nodes", "3", "--dry-run", "--verdict", "none").returncode == 0
