"""A cluster of the size that users have: a thousand real slurmd on this machine (some 5 GB of memory, a minute or two)."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.slurm import processes
from tests.slurm.cluster import SlurmCluster

SETTINGS = {
    "SlurmdTimeout": "300",
    "MaxArraySize": "20001",
    "MaxJobCount": "200000",
    "JobAcctGatherType": "jobacct_gather/none",
    "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0,defer,bf_interval=5,default_queue_depth=10000",
}


@pytest.mark.slow
def test_a_thousand_nodes(tmp_path: Path) -> None:
    if reason := SlurmCluster.unavailable(mode="plain", accounting=False):
        pytest.skip(reason)
    if (free := psutil.virtual_memory().available / 2**30) < 8:
        pytest.skip(f"a thousand slurmd need 8 GiB of memory; {free:.1f} are free")
    began = time.monotonic()
    with SlurmCluster(1000, 8, mode="plain", accounting=False, settings=SETTINGS) as slurm:
        up = time.monotonic()
        script = tmp_path / "touch.sh"
        script.write_text(f"#!/bin/sh\ntouch {tmp_path}/$SLURM_ARRAY_TASK_ID.$SLURMD_NODENAME\n")
        slurm.run("sbatch", "--array=0-299", "--exclusive", "--output=/dev/null", str(script))
        assert processes.until(120, lambda: not slurm.run("squeue", "-h").stdout, 1)
        ran = [path.suffix for path in tmp_path.glob("*.node*")]
        done = time.monotonic()
    print(f"up {up - began:.1f} s, 300 jobs {done - up:.1f} s, down {time.monotonic() - done:.1f} s")
    assert len(ran) == 300
    assert len(set(ran)) > 100, "the jobs ran on many nodes"
    assert not slurm.directory.exists()
