"""Two hundred runs, and how much the controller is asked on their behalf."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from seatrial.backends import registry
from seatrial.launch import launcher
from seatrial.runs.manifest import read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.spec.run import ScriptSpec
from tests.integration.conftest import Seatrial
from tests.slurm.attached import Attached
from tests.slurm.cluster import SlurmCluster


def submit_many(seatrial: Seatrial, count: int, platform: dict[str, object]) -> list[RunPaths]:
    """So many runs of one script, as `seatrial run --detach` submits them, by the library."""
    registry.get.cache_clear()  # the client keeps the environment that it was made in
    backend = registry.get("slurm")
    script = seatrial.cwd / "s.py"
    script.write_text("print('done', flush=True)\n")
    plan = LaunchPlan(
        run_id="", run_dir=seatrial.cwd, attempt=0, nproc=1, nodes=1, device="cpu", threads=1, cpus_per_node=1,
        stages=(Stage(name="script", argv=(str(script),), reports=False),), python=sys.executable, cwd=seatrial.cwd,
        platform=platform,
    )  # fmt: skip
    found = []
    for number in range(count):
        paths = RunPaths(seatrial.runs_dir / f"many-{number:03d}")
        spec = ScriptSpec(name="many", command=("s.py",), cwd=str(seatrial.cwd))
        launcher.create(paths, spec, ["seatrial", "run"])
        launcher.submit(replace(plan, run_id=paths.run_id, run_dir=paths.root), backend)
        found.append(paths)
    return found


def questions(slurm: SlurmCluster) -> int:
    """How often anybody has asked after jobs."""
    return sum(count for name, count in slurm.rpc_counts().items() if name.startswith("REQUEST_JOB_INFO"))


def test_one_run_is_followed_by_few_questions(
    slurm: SlurmCluster, attach: Callable[..., Attached], tmp_path: Path
) -> None:
    """At most one question in two seconds, however often the command looks."""
    (tmp_path / "site.yaml").write_text("defaults: {slurm: {options: {hold: true}}}\n")
    (tmp_path / "s.py").write_text("print('done', flush=True)\n")
    words = ["run", "--on", "slurm", "--gpus", "0", "--launcher", "warm", "--", "s.py"]
    run = attach(slurm, *words, SEATRIAL_CONFIG=str(tmp_path / "site.yaml"))
    run.until(lambda: "waiting" in run.said, "the command follows")
    before, began = questions(slurm), time.monotonic()
    time.sleep(20)
    asked, seconds = questions(slurm) - before, time.monotonic() - began
    assert 0 < asked <= seconds / 2 + 1, f"{asked} questions in {seconds:.0f} s: {slurm.rpc_counts()}"
    slurm.run("scontrol", "release", run.job)
    assert run.wait() == 0, run.said


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_many_runs_wait_and_are_listed(slurm: SlurmCluster, seatrial: Seatrial, count: int) -> None:
    """One question tells of all of them; a controller that is away is asked once, and the list comes all the same."""
    runs = submit_many(seatrial, count, {"options": {"hold": True}})
    before, began = questions(slurm), time.monotonic()
    done = seatrial("runs", "list")
    assert done.code == 0
    states = Counter(line.split()[1] for line in done.stdout.splitlines())
    assert states == {"pending": count}
    assert questions(slurm) - before <= 1 + (time.monotonic() - began) / 15, "one question serves all"
    slurm.stop_controller()
    listed = seatrial("runs", "list", timeout=120)
    assert listed.code == 0
    assert "controller does not answer" in listed.stderr
    assert len(listed.stdout.splitlines()) == count
    slurm.start_controller()
    assert time.monotonic() - began < 240
    slurm.run("scancel", "--state=PENDING", f"--user={slurm.plan.user}", timeout_s=60)
    done = seatrial("runs", "list", timeout=590)
    assert Counter(line.split()[1] for line in done.stdout.splitlines()) == {"interrupted": count}
    assert {read_manifest(paths).state for paths in runs} == {"interrupted"}


@pytest.mark.slow
def test_two_hundred_runs_run(slurm: SlurmCluster, seatrial: Seatrial) -> None:
    runs = submit_many(seatrial, 200, {})
    waiting = set(range(200))
    until = time.monotonic() + 2400
    before, began = questions(slurm), time.monotonic()
    while waiting:
        assert time.monotonic() < until, f"{len(waiting)} have not settled"
        waiting -= {number for number in waiting if launcher.settle(runs[number]).state.is_terminal}
        time.sleep(1)
    asked, seconds = questions(slurm) - before, time.monotonic() - began
    print(f"{asked} questions in {seconds:.0f} s")
    assert Counter(read_manifest(paths).state for paths in runs) == {"completed": 200}
