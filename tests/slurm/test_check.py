"""`seatrial check --on slurm` on real nodes: the verdict, a node that is not there, and who is left out afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Done, Seatrial
from tests.slurm.cluster import SlurmCluster
from tests.slurm.processes import until

ON = ["--on", "slurm", "--gpus", "0", "--nproc", "1"]
BRIEF = ["--only", "report,versions,open_files,shared_disk,cluster_collectives,cluster_data"]


@pytest.fixture(autouse=True)
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def verdict(done: Done) -> dict[str, Any]:
    return dict(json.loads(done.run.verdict.read_text()))


def test_two_nodes_pass(slurm: SlurmCluster, seatrial: Seatrial) -> None:
    done = seatrial("check", "quick", *ON, "--nodes", "all", *BRIEF)
    assert done.code == 0, done.stdout + done.stderr
    found = verdict(done)
    assert [node["name"] for node in found["nodes"]] == list(slurm.nodes)
    assert (found["platform"], found["profile"]) == ("slurm", "cpu")
    ran = {f["check"] for f in found["findings"] if f["verdict"] == "PASS"}
    assert {"shared_disk", "cluster_data"} <= ran


def test_a_node_without_the_interpreter_fails_and_the_other_is_tested(
    slurm_ns: SlurmCluster, seatrial: Seatrial
) -> None:
    """The agent of the second never says a word: srun's own line is the evidence."""
    done = seatrial(
        "check", "quick", *ON, "--nodes", "2", "--only", "report,open_files", "--inject", "dead-node:node=1"
    )
    assert done.code == 1, done.stdout + done.stderr
    failing = {node["name"]: node["reason"] for node in verdict(done)["nodes"] if node["verdict"] == "FAIL"}
    bad = slurm_ns.nodes[1]
    assert list(failing) == [bad]

    # A launch in the same runs directory leaves it out, and one that needs it is told so before anything is submitted.
    script = seatrial.cwd / "hello.py"
    script.write_text("import socket; print('rank on', socket.gethostname())")
    words = ["run", "--on", "slurm", "--gpus", "0", "--nproc", "1"]
    left_out = seatrial(*words, "--nodes", "1", "--", "hello.py")
    assert left_out.code == 0, left_out.stdout + left_out.stderr
    assert f"--exclude={bad}" in (left_out.run.root / "request.sh").read_text()
    assert bad in left_out.manifest.acceptance["exclude"]
    both = seatrial(*words, "--nodes", "2", "--", "hello.py")
    assert both.code != 0 and bad in both.stderr, both.stdout + both.stderr
    anyway = seatrial(*words, "--nodes", "2", "--verdict", "none", "--", "hello.py")
    assert anyway.code == 0, anyway.stdout + anyway.stderr


def test_a_job_left_behind_judges_itself(slurm: SlurmCluster, seatrial: Seatrial) -> None:
    done = seatrial("check", "quick", *ON, "--nodes", "2", *BRIEF, "-d")
    assert done.code == 0, done.stderr
    run = seatrial.runs_dir / done.stdout.strip()
    assert until(120, (run / "verdict.json").exists)
    assert json.loads((run / "verdict.json").read_text())["verdict"] in {"PASS", "WARN"}
