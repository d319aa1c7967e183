"""Phase 0 as it runs: the programs as processes, with an `nvidia-smi` on PATH that is a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seatrial.job.checks.inject import KILLED
from seatrial.job.checks.task import VARIABLE, Task
from seatrial.runs.samples import Sample, read_all
from seatrial.spec.checks import CHECKS, SUITES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "check"
WORKS = f"""#!/bin/sh
case "$*" in
  *-x*) exec cat {FIXTURES}/log-570-h100x8.xml ;;
  *--query-gpu=index,pci.bus_id,*) exec cat {FIXTURES}/listing-570-h100x8.csv ;;
esac
echo "Invalid combination of input arguments" >&2; exit 2
"""
HANGS = "#!/bin/sh\nexec sleep 600\n"
FAILS = "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n"


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "run" / "attempt-1").mkdir(parents=True)
    suite = SUITES["quick"].model_dump(mode="json")
    checks = tuple(name for name, check in CHECKS.items() if check.phase == 0)
    return Task(
        node="node0", node_rank=0, nodes={0: "node0", 1: "node1"}, nproc=8, gpu=None, device="cuda", checks=checks,
        suite=suite, run_dir=tmp_path / "run", attempt=1, out=tmp_path / "samples" / "host-0.jsonl",
        options={"disk_mib": 4},
    )  # fmt: skip


def environment(task: Task, smi: str | None = None) -> dict[str, str]:
    tools = task.run_dir.parent / "bin"
    tools.mkdir(exist_ok=True)
    if smi is not None:
        (tools / "nvidia-smi").write_text(smi)
        (tools / "nvidia-smi").chmod(0o755)
    given = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    return given | {
        "PATH": f"{tools}:/usr/bin:/bin",
        VARIABLE: task.to_text(),
        "TMPDIR": str(task.run_dir.parent),
    }


def run(
    program: str, task: Task, smi: str | None = None
) -> tuple[int, float, dict[tuple[str, int | None], Sample]]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"seatrial.job.checks.{program}"], env=environment(task, smi), timeout=240, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, time.monotonic() - start, found(task)


def found(task: Task) -> dict[tuple[str, int | None], Sample]:
    return {(sample.metric, sample.gpu): sample for sample in read_all(task.out.parent)}


def test_a_node_is_looked_at(task: Task) -> None:
    code, _, samples = run("host", task, WORKS)
    assert code == 0
    assert {s.check for s in samples.values()} == set(task.checks) - {"report", "clock"}
    assert samples["gpu_count", None].value == 8
    assert samples["gpu_model", 7].value == "NVIDIA H100 80GB HBM3"
    assert samples["ecc_uncorrected", 1].value == 3 and samples["row_remap_pending", 1].value is True
    assert samples["driver", None].value == "570.124.06" and samples["pcie_gen", 3].value == 4
    assert samples["shared_write_gb_s", None].value > 0 and samples["local_read_gb_s", None].value > 0
    assert all(s.reason for s in samples.values() if s.value is None)


@pytest.mark.parametrize(
    ("smi", "why"),
    [(None, "can't be started"), (FAILS, "version mismatch"), (HANGS, "did not end within 4 s")],
)
def test_a_tool_that_is_missing_fails_or_hangs_costs_only_what_it_would_say(
    task: Task, smi: str | None, why: str
) -> None:
    suite = task.suite | {"probe_timeout_s": 10.0}
    code, took_s, samples = run("host", replace(task, suite=suite), smi)
    assert code == 0 and took_s < 100
    for metric in (
        "gpu_count",
        "gpu_memory_used",
        "driver",
        "ecc_uncorrected",
        "row_remap_failed",
        "pcie_width",
    ):
        assert samples[metric, None].value is None and why in samples[metric, None].reason
    assert samples["open_files", None].value and samples["local_write_gb_s", None].value > 0


def test_two_nodes_read_each_others_files(task: Task, tmp_path: Path) -> None:
    only = replace(task, checks=("shared_disk",))
    other = replace(only, node="node1", node_rank=1, out=tmp_path / "other" / "host-1.jsonl")
    assert run("host", only)[0] == run("host", other)[0] == 0
    code, _, samples = run("shared", only)
    assert code == 0
    assert samples["shared_visible", None].value == ["node1"] and samples["shared_read_gb_s", None].value > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_opens_its_device(task: Task, rank: int) -> None:
    rank_task = replace(task, device="cpu", gpu=rank)
    code, _, samples = run("gpu", rank_task)
    assert code == 0 and samples["gpu_opens", rank].value is True
    assert (("cuda", None) in samples) is (rank == 0)


@pytest.mark.parametrize(
    ("program", "word", "changes"),
    [
        ("gpu", "hung-probe:node=0,gpu=1", {"gpu": 1, "device": "cpu"}),
        ("gpu", "dead-node:node=0", {"gpu": 0, "device": "cpu"}),
        ("host", "dead-node:node=0", {}),
        ("shared", "dead-node:node=0", {}),
    ],
)
def test_what_is_to_hang_hangs_until_it_is_killed(
    task: Task, program: str, word: str, changes: dict[str, Any]
) -> None:
    hung = replace(task, inject=(word,), **changes)
    process = subprocess.Popen(
        [sys.executable, "-m", f"seatrial.job.checks.{program}"], env=environment(hung, WORKS)
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not found(hung)


def test_a_rank_that_is_to_die_dies_as_if_killed(task: Task) -> None:
    code = "from seatrial.job.checks import inject, task; inject.die_if(task.Task.from_env(), 1)"
    dying = replace(task, inject=("dead-rank:node=0,gpu=1",))
    done = subprocess.run([sys.executable, "-c", code], env=environment(dying), check=False)
    assert done.returncode == KILLED
