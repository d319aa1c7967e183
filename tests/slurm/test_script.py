"""Slurm reads the rendered batch script as it is meant: odd directories, every directive, signals, the environment."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from seatrial.backends.slurm.script import render
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.slurm import SlurmSpec
from tests.slurm.cluster import SlurmCluster

# In the supervisor's place: says what it was given, what its parent is, and what srun makes of the environment.
INTERPRETER = """#!/bin/bash
echo "argv: $*"
echo "parent: $(cat /proc/$PPID/comm)"
srun sh -c 'echo "task: $SLURM_PROCID $SLURM_CPUS_PER_TASK $CUDA_VISIBLE_DEVICES $KEPT $RANK"'
[ ! -e "$3/wait" ] || { trap 'echo got TERM; exit 75' TERM; echo waiting; sleep 30 & wait; }
"""
ODD = ["it's two words", '50% "off"', "%j", "日本 ä#$HOME`id`", "b[1-2]{x}", "tail "]


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    python = tmp_path / "python"
    python.write_text(INTERPRETER)
    python.chmod(0o755)
    return LaunchPlan(
        run_id="démo-0101-ab12", run_dir=tmp_path / "run", attempt=2, nodes=2, nproc=2, device="cpu", threads=1, stages=(),
        python=str(python), cwd=tmp_path,
    )  # fmt: skip


def submit(
    slurm: SlurmCluster, plan: LaunchPlan, spec: SlurmSpec, *, gres: bool = False, **env: str
) -> tuple[str, Path]:
    """The job and the file that it writes to."""
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    script = plan.run_dir / "request.sh"
    script.write_text(render(plan, spec, gres=gres))
    job = slurm.run("sbatch", "--parsable", str(script), **env).stdout.strip()
    return job, plan.run_dir / f"slurm-{job}.out"


@pytest.mark.parametrize("name", ODD)
def test_a_run_directory_may_have_any_name(slurm_plain: SlurmCluster, plan: LaunchPlan, name: str) -> None:
    plan = replace(plan, run_dir=plan.run_dir / name)
    job, output = submit(slurm_plain, plan, SlurmSpec())
    shown = slurm_plain.wait_job(job, "COMPLETED")
    assert shown["JobName"] == plan.run_id
    lines = output.read_text().splitlines()
    assert lines[0] == f"argv: -m seatrial.backends.slurm.batch {plan.run_dir} --first-attempt 2"
    assert lines[1] == "parent: slurmstepd"  # no shell is left between Slurm and the supervisor
    assert sorted(lines[2:]) == ["task: 0 2   ", "task: 1 2   "]


@pytest.mark.parametrize(("gres", "export"), [(False, "ALL"), (True, "NONE")])
def test_gpus_cpus_and_limits_are_what_was_asked_for(
    slurm_plain: SlurmCluster, plan: LaunchPlan, gres: bool, export: str
) -> None:
    """Also on a site that submits without the environment, and from within a job of another launcher."""
    plan = replace(plan, device="cuda", nproc=4, time_limit_s=5400)
    spec = SlurmSpec(
        partition="main", gpu_type="h100", cpus_per_task=6, mem="2G", requeue=False, nodelist=("node[0-1]",),
        options={"nice": 3, "contiguous": True, "overcommit": False, "mail-user": 'a "b" \\ c#d'},
    )  # fmt: skip
    job, output = submit(slurm_plain, plan, spec, gres=gres, SBATCH_EXPORT=export, KEPT="kept", RANK="7")
    shown = slurm_plain.wait_job(job, "COMPLETED")
    kept = "kept" if export == "ALL" else ""
    assert sorted(output.read_text().splitlines()[2:]) == [f"task: {n} 6 0,1,2,3 {kept} " for n in (0, 1)]
    asked = (
        "TimeLimit",
        "Requeue",
        "CPUs/Task",
        "Nice",
        "Comment",
        "ReqNodeList",
        "MinMemoryNode",
        "Partition",
        "Contiguous",
    )
    assert {key: shown[key] for key in asked} == {
        "TimeLimit": "01:30:00", "Requeue": "0", "CPUs/Task": "6", "Nice": "3", "Comment": "seatrial",
        "ReqNodeList": "node[0-1]", "MinMemoryNode": "2G", "Partition": "main", "Contiguous": "1",
    }  # fmt: skip


def test_a_cancelled_job_reaches_the_supervisor(slurm_plain: SlurmCluster, plan: LaunchPlan) -> None:
    plan.run_dir.mkdir()
    (plan.run_dir / "wait").touch()
    job, output = submit(slurm_plain, plan, SlurmSpec())
    slurm_plain.wait_job(job, "RUNNING")
    until = time.monotonic() + 20
    while (not output.exists() or "waiting" not in output.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    slurm_plain.run("scancel", "--batch", "--signal=TERM", job)
    shown = slurm_plain.wait_job(job, "FAILED")
    assert "got TERM" in output.read_text()
    assert shown["ExitCode"] == "75:0"


def test_a_node_without_the_interpreter_says_so(slurm_plain: SlurmCluster, plan: LaunchPlan) -> None:
    job, output = submit(slurm_plain, replace(plan, python="/nowhere/python"), SlurmSpec())
    assert slurm_plain.wait_job(job, "FAILED")["ExitCode"] == "4:0"
    assert output.read_text() == (
        "seatrial: node node0 can't run /nowhere/python: it has to be there on every node\n"
    )
