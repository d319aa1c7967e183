"""Ranks on one, two and four nodes find each other, whoever wrote their script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Seatrial
from tests.slurm.attached import Attached
from tests.slurm.cluster import SlurmCluster

SUM = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print(os.environ["SLURMD_NODENAME"], dist.get_rank(), os.environ["LOCAL_RANK"], int(total.item()), flush=True)
dist.destroy_process_group()
"""

# What scripts made for torchrun read; the second start has a checkpoint of its own, as such scripts do.
FOREIGN = """
import json, os, pathlib, signal, sys, time

rank = os.environ["RANK"]
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"]
print(json.dumps({name: os.environ.get(name) for name in names} | {"argv": sys.argv[1:]}), flush=True)

def save(number, frame):
    pathlib.Path(f"saved_{rank}").write_text(signal.Signals(number).name)
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR2, save)
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    pathlib.Path(f"waits_{rank}").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_ranks_add_up(slurm_four: SlurmCluster, seatrial: Seatrial, nodes: int) -> None:
    (seatrial.cwd / "sum.py").write_text(SUM)
    words = ["run", "--on", "slurm", "--nodes", str(nodes), "--gpus", "0", "--nproc", "2", "--", "sum.py"]
    done = seatrial(*words)
    assert done.code == 0, done.stderr
    rows = [
        done.run.attempt(0).rank_log(rank).read_text().splitlines()[-1].split() for rank in range(2 * nodes)
    ]
    total = nodes * (2 * nodes + 1)
    assert [row[1:] for row in rows] == [[str(r), str(r % 2), str(total)] for r in range(2 * nodes)]
    assert [row[0] for row in rows] == [node for node in slurm_four.nodes[:nodes] for _ in range(2)]
    assert f"{2 * nodes} ranks on CPU" in done.stdout


@pytest.mark.parametrize("number", ["TERM", "USR2"])
def test_a_script_of_somebody_else_is_warned_and_started_again(
    slurm: SlurmCluster, attach: Callable[..., Attached], tmp_path: Path, number: str
) -> None:
    """TERM is what an administrator's requeue sends, USR2 what the end of the job's time does."""
    (tmp_path / "theirs.py").write_text(FOREIGN)
    words = [
        "run",
        "--on",
        "slurm",
        "--nodes",
        "2",
        "--gpus",
        "0",
        "--nproc",
        "2",
        "--",
        "theirs.py",
        "--lr",
        "1e-3",
    ]
    run = attach(slurm, *words)
    run.until(lambda: len(list(tmp_path.glob("waits_*"))) == 4, "the ranks wait")
    if number == "TERM":
        slurm.run("scontrol", "requeue", run.job)
    else:
        slurm.run("scancel", "--signal=USR2", run.job)
    run.queued_again(1)
    assert run.wait() == 0, run.said
    assert sorted(path.name for path in tmp_path.glob("saved_*")) == [f"saved_{rank}" for rank in range(4)]
    assert run.outcomes() == ["preempted", "completed"]
    for attempt in (0, 1):
        seen = [
            json.loads(run.run.attempt(attempt).rank_log(r).read_text().splitlines()[0]) for r in range(4)
        ]
        assert [row["RANK"] for row in seen] == ["0", "1", "2", "3"]
        assert [row["LOCAL_RANK"] for row in seen] == ["0", "1", "0", "1"]
        assert [row["GROUP_RANK"] for row in seen] == ["0", "0", "1", "1"]
        assert {(row["WORLD_SIZE"], row["LOCAL_WORLD_SIZE"]) for row in seen} == {("4", "2")}
        assert len({(row["MASTER_ADDR"], row["MASTER_PORT"]) for row in seen}) == 1
        assert seen[0]["argv"] == ["--lr", "1e-3"]
