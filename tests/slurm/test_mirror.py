"""A job and its mirror: sent by the first node while it runs, and by the job itself where nobody waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.runs.mirror import missing
from seatrial.runs.paths import RunPaths
from tests.integration.conftest import Seatrial
from tests.slurm.cluster import SlurmCluster
from tests.slurm.processes import until


@pytest.mark.parametrize("detached", [False, True])
def test_a_job_is_mirrored(slurm: SlurmCluster, seatrial: Seatrial, tmp_path: Path, detached: bool) -> None:
    (seatrial.cwd / "hello.py").write_text("print('hello')")
    far = tmp_path / "far"
    words = ["run", "--on", "slurm", "--nodes", "2", "--gpus", "0", "--nproc", "1", "--artifacts", str(far)]
    done = seatrial(*words, *(["-d"] if detached else []), "--", "hello.py")
    assert done.code == 0, done.stdout + done.stderr
    run = RunPaths(seatrial.runs_dir / done.stdout.strip()) if detached else done.run
    there = far / run.run_id
    assert until(120, (there / "attempt-0" / "exit.json").exists)
    told = there / "evidence.jsonl"
    assert until(60, lambda: told.exists() and '"check": "mirror"' in told.read_text())
    assert (there / "attempt-0" / "logs" / "rank_00001.log").read_text().strip().endswith("hello")
    assert (there / "request.sh").exists()
    if not detached:
        assert missing(run) == []
