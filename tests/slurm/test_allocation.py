"""Inside `salloc`, the nodes that a person holds are used, and the allocation stays theirs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from seatrial.runs.files import read_json
from tests.slurm.cluster import SlurmCluster

SEATRIAL = [sys.executable, "-m", "seatrial"]
SUM = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(os.environ["RANK"])]); dist.all_reduce(total)
print(os.uname().nodename, int(total), flush=True)
dist.destroy_process_group()
"""
STOPS = """
import os, signal, time
def stop(*_): raise SystemExit(75)
signal.signal(signal.SIGTERM, stop)
print("here", flush=True)
time.sleep(600)
"""


def inside(slurm: SlurmCluster, directory: Path, body: str, *words: str) -> subprocess.Popen[str]:
    (directory / "ranks.py").write_text(body)
    return subprocess.Popen(
        ["salloc", "--quiet", "--nodes=2", "--cpus-per-task=4", *SEATRIAL, "run", "--gpus", "0", *words, "--", "ranks.py"],
        cwd=directory, env=slurm.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def test_its_nodes_are_used(slurm: SlurmCluster, tmp_path: Path) -> None:
    process = inside(slurm, tmp_path, SUM, "--nodes", "2", "--nproc", "2")
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert "whose nodes are used" in stderr and "4 ranks on CPU, completed" in stdout
    run = next((tmp_path / "runs").iterdir())
    said = [(run / f"attempt-0/logs/rank_{rank:05d}.log").read_text().split() for rank in range(4)]
    assert [words[-1] for words in said] == ["6"] * 4
    record = read_json(run / "attempt-0/exit.json")
    assert "job" not in record and "continues" not in record


def test_ctrl_c_saves_and_stops_and_queues_nothing(slurm: SlurmCluster, tmp_path: Path) -> None:
    process = inside(slurm, tmp_path, STOPS, "--nproc", "1", "--launcher", "warm")
    until = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*/attempt-0/logs/rank_00000.log")):
        assert time.monotonic() < until and process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    time.sleep(2)
    below = psutil.Process(process.pid).children(recursive=True)
    command = next(p for p in below if p.cmdline()[1:4] == ["-m", "seatrial", "run"])
    command.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert "stopping: saving a checkpoint first" in stderr
    run = next((tmp_path / "runs").iterdir())
    assert read_json(run / "attempt-0/exit.json")["outcome"] == "interrupted"
    until = time.monotonic() + 60  # an allocation that has ended is "completing" for a moment
    while slurm.run("squeue", "-h", "--me").stdout.strip():
        assert time.monotonic() < until
        time.sleep(0.2)
