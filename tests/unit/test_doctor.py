"""The doctor's judgement over samples of other machines, and over this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from seatrial.backends.machine import Machine
from seatrial.check.machine import Sample, collect, judge
from seatrial.cli.doctor import doctor
from seatrial.runs.evidence import Verdict
from seatrial.testing import FakeRunner

LAPTOP = Sample(
    machine=Machine("laptop", 8, (), "no nvidia-smi on PATH"),
    fingerprint={
        "host": {"shm_gib": 8.0, "memory_gib": 16.0, "nvidia_driver": None},
        "limits": {"open_files": 65536, "locked_memory_bytes": None},
        "torch": {"version": "2.11.0", "cuda": None, "nccl": None, "gpus": []},
    },
    tools={"git": "git version 2.39.5"},
    hub="https://hub",
    hub_error=None,
    disk_free_gib=100.0,
    runs_dir="/runs",
    python=(3, 12),
)
NODE = replace(
    LAPTOP,
    machine=Machine("node", 128, ("NVIDIA H100 80GB HBM3",) * 8, "nvidia-smi"),
    fingerprint=LAPTOP.fingerprint
    | {
        "torch": {
            "version": "2.11.0+cu130",
            "cuda": "13.0",
            "nccl": "2.28.9",
            "gpus": ["NVIDIA H100, 79.2 GiB"] * 8,
        }
    },
)


def verdicts(sample: Sample) -> dict[str, str]:
    return {e.check: e.verdict for e in judge(sample)}


def said(sample: Sample, check: str) -> str:
    return next(e.message for e in judge(sample) if e.check == check)


def test_good_machines_pass() -> None:
    assert not {Verdict.FAIL, Verdict.WARN} & set(verdicts(LAPTOP).values())
    assert verdicts(LAPTOP)["gpus"] == "SKIP"
    assert verdicts(NODE)["gpus"] == "PASS"


@pytest.mark.parametrize(
    ("sample", "check", "verdict", "remedy"),
    [
        (replace(LAPTOP, fingerprint={"error": "No module named 'psutil'"}), "torch", "FAIL", "pip install 'seatrial[train]'"),
        (replace(LAPTOP, fingerprint={"error": "boom"}), "shared_memory", "UNMEASURED", "could not be read"),
        (replace(LAPTOP, fingerprint=LAPTOP.fingerprint | {"torch": {"error": "ImportError"}}), "torch", "FAIL", "pip install"),
        (
            replace(LAPTOP, fingerprint=LAPTOP.fingerprint | {"torch": {"version": "2.8.1", "cuda": None, "nccl": None}}),
            "torch", "FAIL", "torch>=2.9",
        ),
        (replace(NODE, fingerprint=LAPTOP.fingerprint), "gpus", "FAIL", "CPU build"),
        (replace(LAPTOP, python=(3, 10)), "python", "FAIL", "3.11"),
        (replace(LAPTOP, disk_free_gib=0.5), "disk", "WARN", "--runs-dir"),
        (replace(LAPTOP, hub_error="timed out"), "hub", "WARN", "--model DIRECTORY"),
        (replace(LAPTOP, fingerprint=LAPTOP.fingerprint | {"host": {"shm_gib": 0.0625}}), "shared_memory", "WARN", "--shm-size"),
        (
            replace(LAPTOP, fingerprint=LAPTOP.fingerprint | {"limits": {"open_files": 1024, "locked_memory_bytes": 1}}),
            "open_files", "WARN", "ulimit -n",
        ),
        (replace(LAPTOP, tools={}), "git", "SKIP", "not installed"),
    ],
)  # fmt: skip
def test_every_lack_has_a_verdict_and_a_remedy(sample: Sample, check: str, verdict: str, remedy: str) -> None:
    assert verdicts(sample)[check] == verdict
    assert remedy in said(sample, check)


def test_a_hub_behind_a_closed_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeRunner({f"{sys.executable} -m seatrial.job.fingerprint": json.dumps(LAPTOP.fingerprint)})
    sample = collect(tmp_path / "not" / "there", fake)
    assert "127.0.0.1:9" in (sample.hub_error or "")
    assert sample.fingerprint == LAPTOP.fingerprint


def test_a_broken_fingerprint_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    crash = FakeRunner(
        {sys.executable: (1, "", "Traceback …\nModuleNotFoundError: No module named 'psutil'\n")}
    )
    assert "psutil" in collect(tmp_path, crash).fingerprint["error"]
    assert "can't be started" in collect(tmp_path, FakeRunner()).fingerprint["error"]


def test_the_command_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NCCL_API_TOKEN", "very-secret")
    plain = CliRunner().invoke(doctor, ["--runs-dir", str(tmp_path)])
    assert max(map(len, plain.stdout.splitlines())) <= 80
    assert "\x1b" not in plain.stdout
    machine = CliRunner().invoke(doctor, ["--json"])
    document = json.loads(machine.stdout)
    assert {"python", "torch", "gpus", "hub"} <= {row["check"] for row in document["checks"]}
    assert "very-secret" not in machine.stdout


def test_the_fingerprint_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from seatrial.job.fingerprint import *; print(torch_facts())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "error" in out
