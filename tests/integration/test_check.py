"""`seatrial check` as a user types it: rehearsals on pretend nodes, with and without faults on purpose."""

from __future__ import annotations

import json
import os
import signal
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import Done, Seatrial

QUICK = ["check", "quick", "--rehearse"]
# What takes long here and is measured by tests of its own.
SHORT = ["--skip", "local_disk,memory,cluster_transport,transport"]


@pytest.fixture
def verdict_home(tmp_path: Path) -> dict[str, str]:
    return {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def verdict(done: Done) -> dict[str, Any]:
    return dict(json.loads(done.run.verdict.read_text()))


def failures(done: Done) -> set[tuple[str, str | None, int | None]]:
    return {(f["check"], f["node"], f["gpu"]) for f in verdict(done)["findings"] if f["verdict"] == "FAIL"}


def test_a_healthy_machine_passes_and_says_what_it_is_worth(
    seatrial: Seatrial, verdict_home: dict[str, str]
) -> None:
    done = seatrial(*QUICK, "--junit", "junit.xml", **verdict_home)
    assert done.code == 0, done.stdout + done.stderr
    found = verdict(done)
    assert found["profile"] == "rehearsal"
    assert [node["name"] for node in found["nodes"]] == [f"pretend-{n}" for n in range(4)]
    assert not failures(done)
    assert found["signature"] and found["coverage"]["missing"] == {}
    assert "phase 1 of 4" in done.stderr
    assert ET.parse(seatrial.cwd / "junit.xml").getroot().tag in {"testsuites", "testsuite"}
    assert "<html" in done.run.report.read_text()
    listed = seatrial("runs", "list", **verdict_home)
    assert found["verdict"] in listed.stdout


def test_each_fault_is_found_where_it_is(seatrial: Seatrial, verdict_home: dict[str, str]) -> None:
    """Several at once, each on another node: the others still take part, and nobody else is accused."""
    faults = ["dead-node:node=3", "slow-gpu:node=1,gpu=0,factor=0.4", "wrong-result:node=0,gpu=1"]
    words = [word for fault in faults for word in ("--inject", fault)]
    suite = seatrial.cwd / "brief.yaml"
    suite.write_text("base: quick\nprobe_timeout_s: 15.0\n")
    done = seatrial("check", "brief.yaml", "--rehearse", *SHORT, *words, **verdict_home)
    assert done.code == 1, done.stdout + done.stderr
    assert failures(done) == {
        ("report", "pretend-3", None), ("gemm", "pretend-1", 0), ("gemm_result", "pretend-0", 1),
    }  # fmt: skip
    assert "did not check in" in done.stdout
    assert "pretend-2" not in done.stdout


def test_a_probe_that_hangs_is_ended_and_a_clock_that_is_off_keeps_its_node_out(
    seatrial: Seatrial, verdict_home: dict[str, str]
) -> None:
    suite = seatrial.cwd / "brief.yaml"
    suite.write_text("base: quick\nprobe_timeout_s: 8.0\nchecks: [report, clock, open_files, cluster_data]\n")
    words = ["--inject", "hung-probe:node=2,gpu=1", "--inject", "slow-clock:node=0"]
    done = seatrial("check", "brief.yaml", "--rehearse", *words, **verdict_home)
    assert done.code == 1, done.stdout + done.stderr
    assert failures(done) == {("report", "pretend-2", 1), ("clock", "pretend-0", None)}
    assert "did not end within" in done.stdout
    assert {f["verdict"] for f in verdict(done)["findings"] if f["check"] == "cluster_data"} == {"PASS"}


def test_a_rank_that_dies_frees_the_others_and_is_named(
    seatrial: Seatrial, verdict_home: dict[str, str]
) -> None:
    began = time.monotonic()
    done = seatrial(
        *QUICK, "--nodes", "3", "--only", "report,cluster_collectives", "--inject", "dead-rank:node=1,gpu=1",
        **verdict_home,
    )  # fmt: skip
    assert done.code == 1, done.stdout + done.stderr
    assert failures(done) == {("report", "pretend-1", 1)}
    assert time.monotonic() - began < 120
    assert "pretend-1 takes no further part" in done.stderr
    # The other two went on without it.
    measured = {f["verdict"] for f in verdict(done)["findings"] if f["check"] == "cluster_collectives"}
    assert measured <= {"PASS", "UNMEASURED", "SKIP"} and measured


def test_what_was_measured_can_be_judged_again(seatrial: Seatrial, verdict_home: dict[str, str]) -> None:
    first = seatrial(*QUICK, "--nodes", "2", "--only", "open_files,shared_memory", **verdict_home)
    assert first.code == 0, first.stdout + first.stderr
    again = seatrial("check", "--judge", first.run.run_id, "--json", **verdict_home)
    assert again.code == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["sentence"] == verdict(first)["sentence"]


def test_ctrl_c_leaves_a_partial_report_and_no_process(
    seatrial: Seatrial, verdict_home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in verdict_home.items():
        monkeypatch.setenv(name, value)
    process = seatrial.start(*QUICK)
    until = time.monotonic() + 120
    log = None
    while log is None or "phase 1" not in log.read_text():
        assert time.monotonic() < until and process.poll() is None
        log = next(iter(seatrial.runs_dir.glob("*/attempt-0/logs/agent.log")), None)
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stdout + stderr
    run = next(seatrial.runs_dir.iterdir())
    assert json.loads((run / "verdict.json").read_text())["exit_code"] in {1, 3}
    assert json.loads((run / "attempt-0" / "exit.json").read_text())["outcome"] == "interrupted"
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(run) in " ".join(p.info["cmdline"] or [])]
    assert left == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["quik"], "did you mean 'quick'"),
        (["quick", "--only", "gem"], "did you mean 'gemm'"),
        (["quick", "--rehearse", "--inject", "slow"], "is not a fault"),
        (["quick", "--rehearse", "--on", "slurm"], "a rehearsal is on this machine"),
        (["quick", "--on", "ssh://login"], "seatrial check quick --on slurm"),
        (["quick", "--nodes", "2", "--on", "local"], "has 1 node"),
        (["--judge", "nothing"], "no run"),
        (["quick", "--detach", "--json"], "--judge RUN"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(
    seatrial: Seatrial, verdict_home: dict[str, str], words: list[str], says: str
) -> None:
    done = seatrial("check", *words, **verdict_home)
    assert done.code == 2, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert not seatrial.runs_dir.exists() or not list(seatrial.runs_dir.iterdir())


def test_what_will_be_done_is_shown_and_nothing_touched(
    seatrial: Seatrial, verdict_home: dict[str, str]
) -> None:
    done = seatrial(*QUICK, "--dry-run", **verdict_home)
    assert done.code == 0, done.stderr
    assert '"conducts": "checks"' in done.stdout
    assert not seatrial.runs_dir.exists()


def test_a_test_is_not_resumed(seatrial: Seatrial, verdict_home: dict[str, str]) -> None:
    first = seatrial(
        *QUICK, "--nodes", "2", "--only", "open_files", "--inject", "dead-node:node=1", **verdict_home
    )
    assert first.code != 0
    done = seatrial("runs", "resume", "last", **verdict_home)
    assert done.code == 2
