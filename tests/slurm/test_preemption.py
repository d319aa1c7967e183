"""A run loses its nodes in every way that Slurm knows, and ends as if nothing had happened."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from seatrial.runs.files import read_json_lines
from tests.slurm import processes
from tests.slurm.attached import Attached, at_once, job_of, no_orphans, orphans
from tests.slurm.cluster import SlurmCluster

Attach = Callable[..., Attached]
Weights = Callable[[int], str | None]


def halts(*steps: int) -> str:
    """Rank 1 halts before a step of each attempt: what happens then happens in the midst of a step."""
    return ";".join(f"stop:rank=1,step={step},attempt={attempt}" for attempt, step in enumerate(steps))


def began_at(run: Attached, attempt: int) -> int:
    """The step after which an attempt took over."""
    rows = read_json_lines(run.run.attempt(attempt).rank_events(0))
    return next(int(row["from_step"]) for row in rows if row["event"] == "training")


def preempt(slurm: SlurmCluster, tmp_path: Path, *options: str) -> str:
    """A job that comes first wants all nodes for a moment; its id."""
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/sh\ntrue\n")
    return slurm.run(
        "sbatch", "--parsable", "--output=/dev/null", f"--nodes={len(slurm.nodes)}", "--exclusive", *options,
        str(script),
    ).stdout.strip()  # fmt: skip


def test_preempted_by_qos_and_requeued_by_an_admin(
    slurm: SlurmCluster, attach: Attach, training: list[str], undisturbed: Weights, tmp_path: Path
) -> None:
    """Three times in one run: without a grace time, with one, and by hand. The command that started it sees it through."""
    run = attach(
        slurm,
        *training,
        "--on",
        "slurm",
        "--nodes",
        "2",
        "--nproc",
        "2",
        "--qos",
        "low",
        fault=halts(5, 18, 32),
    )
    run.halted(0)
    preempt(slurm, tmp_path, "--qos=high")
    run.let_go(0)
    run.queued_again(1)

    slurm.run("sacctmgr", "-i", "modify", "qos", "low", "set", "GraceTime=60")
    try:
        run.halted(1)
        preempt(slurm, tmp_path, "--qos=high")
        run.let_go(1)
        run.queued_again(2)
    finally:
        slurm.run("sacctmgr", "-i", "modify", "qos", "low", "set", "GraceTime=0")

    run.halted(2)
    slurm.run("scontrol", "requeue", run.job)
    run.let_go(2)
    run.queued_again(3)

    assert run.wait() == 0, run.said
    assert run.weights() == undisturbed(4)
    assert began_at(run, 2) >= 18, "with a grace time, nothing is done twice"
    assert run.outcomes() == ["preempted", "preempted", "preempted", "completed"]
    assert {record.handle for record in run.manifest.attempts} == {run.manifest.attempts[0].handle}
    for attempt in range(3):
        assert run.record(attempt)["exit_code"] == 75
    assert [f"attempt {n}: slurm://{run.job}/" in run.said for n in (1, 2, 3)] == [True] * 3
    assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)


def test_preempted_by_partition_and_by_cancellation(
    slurm_four: SlurmCluster, attach: Attach, training: list[str], undisturbed: Weights, tmp_path: Path
) -> None:
    """A partition of a higher tier takes the nodes: once Slurm queues the job again, once it cancels it."""
    words = ["--on", "slurm", "--nproc", "2", "--partition", "low"]
    run = attach(slurm_four, *training, *words, fault=halts(5, 18))
    run.halted(0)
    preempt(slurm_four, tmp_path, "--partition=high")
    run.let_go(0)
    run.until(lambda: slurm_four.job(run.job).get("Restarts") == "1", "the job is queued again")
    slurm_four.run("scontrol", "update", f"JobId={run.job}", "Partition=spot")
    run.queued_again(1)

    run.halted(1)
    preempt(slurm_four, tmp_path, "--partition=high")
    run.let_go(1)
    run.until(lambda: len(run.manifest.attempts) == 3, "the run goes on")
    following = run.manifest.attempts[2].handle or ""
    run.until(
        lambda: (
            slurm_four.job(job_of(following)).get("JobState") == "RUNNING" or hurry(slurm_four, following)
        ),
        "its job starts",
    )
    assert run.wait() == 0, run.said
    assert run.weights() == undisturbed(2)
    assert run.outcomes() == ["preempted", "preempted", "completed"]
    assert no_orphans(slurm_four, run.run.root), orphans(slurm_four, run.run.root)


def hurry(slurm: SlurmCluster, handle: str) -> bool:
    at_once(slurm, job_of(handle))
    return False


SCRIPT = "run", "--on", "slurm", "--gpus", "0", "--nproc", "2", "--launcher", "warm"

# Saves and leaves when it is asked to, in as many starts as the file says, and is done in the next.
LEAVES = """
import os, pathlib, signal, sys, time
print("up", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
attempts = len(list(pathlib.Path("runs").glob("*/attempt-*")))
if attempts <= int(pathlib.Path("starts").read_text()):
    time.sleep(600)
"""


@pytest.fixture
def leaving(attach: Attach, tmp_path: Path) -> Callable[..., Attached]:
    def start(slurm: SlurmCluster, *words: str, starts: int = 1, section: str = "{}") -> Attached:
        (tmp_path / "leaves.py").write_text(LEAVES)
        (tmp_path / "starts").write_text(str(starts))
        (tmp_path / "site.yaml").write_text(f"defaults: {{slurm: {section}}}\n")
        words = (*SCRIPT, *words, "--", "leaves.py")
        return attach(slurm, *words, SEATRIAL_CONFIG=str(tmp_path / "site.yaml"))

    return start


class TestItsUserDecides:
    def test_one_that_may_not_be_queued_again_is_left(
        self, slurm: SlurmCluster, leaving: Callable[..., Attached]
    ) -> None:
        run = leaving(slurm, section="{requeue: false}")
        run.ranks_run()
        slurm.run("scancel", "--signal=USR2", run.job)
        assert run.wait() == 75, run.said
        assert run.outcomes() == ["preempted"]
        assert f"seatrial runs resume {run.run.run_id}" in run.said
        assert slurm.wait_job(run.job, "FAILED", "COMPLETED")["Restarts"] == "0"
        resumed = Attached(run.seatrial, slurm, "runs", "resume", "last")
        assert resumed.wait() == 0, resumed.said
        assert run.outcomes() == ["preempted", "completed"]

    def test_a_cluster_that_requeues_nothing_gets_a_job_after_it(
        self, slurm: SlurmCluster, leaving: Callable[..., Attached]
    ) -> None:
        run = leaving(slurm)
        run.ranks_run()
        slurm.run("scontrol", "update", f"JobId={run.job}", "Requeue=0")
        slurm.run("scancel", "--signal=USR2", run.job)
        assert run.wait() == 0, run.said
        assert run.outcomes() == ["preempted", "completed"]
        first, second = (job_of(record.handle or "") for record in run.manifest.attempts)
        assert first != second

    def test_a_cluster_that_takes_no_job_after_it_either(
        self, slurm: SlurmCluster, leaving: Callable[..., Attached]
    ) -> None:
        """It is said, and the run is there to be resumed."""
        run = leaving(slurm)
        run.ranks_run()
        slurm.run("scontrol", "update", f"JobId={run.job}", "Requeue=0")
        slurm.run("scontrol", "update", "PartitionName=main", "State=DRAIN")
        try:
            slurm.run("scancel", "--signal=USR2", run.job)
            assert run.wait() == 75, run.said
        finally:
            slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
        assert run.outcomes() == ["preempted"]
        assert "the run does not go on by itself" in run.log()
        assert "Required partition not available (inactive or drain)" in run.log()
        assert "continues" not in run.record(0)
        assert f"seatrial runs resume {run.run.run_id}" in run.said
        resumed = Attached(run.seatrial, slurm, "runs", "resume", "last")
        assert resumed.wait() == 0, resumed.said
        assert run.outcomes() == ["preempted", "completed"]

    def test_not_more_often_than_it_may(self, slurm: SlurmCluster, leaving: Callable[..., Attached]) -> None:
        run = leaving(slurm, starts=9, section="{max_requeues: 1}")
        for attempt in (0, 1):
            run.ranks_run(attempt)
            slurm.run("scancel", "--signal=USR2", run.job)
            if attempt == 0:
                run.queued_again(1)
        assert run.wait() == 75, run.said
        assert run.outcomes() == ["preempted", "preempted"]

    def test_scancel_by_hand_is_the_end(self, slurm: SlurmCluster, leaving: Callable[..., Attached]) -> None:
        run = leaving(slurm, "--nodes", "2")
        run.ranks_run(world_size=4)
        slurm.run("scancel", run.job)
        assert run.wait() == 130, run.said
        assert run.outcomes() == ["interrupted"]
        assert slurm.wait_job(run.job, "CANCELLED")["Restarts"] == "0"
        assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)

    def test_a_run_is_left_found_again_and_cancelled(
        self, slurm: SlurmCluster, leaving: Callable[..., Attached]
    ) -> None:
        run = leaving(slurm)
        run.ranks_run()
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
        assert "you have left the run; it goes on" in run.said
        assert slurm.job(run.job)["JobState"] == "RUNNING"
        assert "running" in run.seatrial("runs", "list").stdout
        cancelled = run.seatrial("runs", "cancel", "last")
        assert cancelled.code == 0
        assert "is interrupted" in cancelled.stderr
        assert run.outcomes() == ["interrupted"]
        assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)
        resumed = Attached(run.seatrial, slurm, "runs", "resume", "last")
        assert resumed.wait() == 0, resumed.said
        assert run.outcomes() == ["interrupted", "completed"]

    def test_a_run_that_waits_is_cancelled(
        self, slurm: SlurmCluster, leaving: Callable[..., Attached]
    ) -> None:
        run = leaving(slurm, section="{options: {hold: true}}")
        run.until(lambda: "holds it" in run.said, "the command says why it waits")
        cancelled = run.seatrial("runs", "cancel", "last")
        assert "is interrupted" in cancelled.stderr
        assert run.wait() == 130, run.said


@pytest.mark.slow
def test_a_start_that_never_came_to_be_is_counted(
    slurm_ns: SlurmCluster, leaving: Callable[..., Attached]
) -> None:
    """Slurm queues a job again before its script has begun: the numbers of attempts have a gap, the run has none."""
    run = leaving(slurm_ns)
    run.ranks_run()
    slurmds = [found for node in slurm_ns.nodes if (found := processes.slurmd(slurm_ns.plan, node))]
    slurm_ns.run("scontrol", "requeue", run.job)
    run.until(lambda: slurm_ns.job(run.job).get("Restarts") == "1", "the job is queued again")
    run.until(lambda: not orphans(slurm_ns, run.run.root), "its first start is over")
    for process in slurmds:
        process.suspend()
    try:
        run.queued_again(1)
        slurm_ns.run("scontrol", "requeue", run.job)
    finally:
        for process in slurmds:
            process.resume()
    # Not hurried: what the node has missed it makes up for now, and a start in the midst of that fails.
    run.until(lambda: slurm_ns.job(run.job).get("Restarts") == "2", "the job is queued again")
    assert run.wait() == 0, run.said
    first, gap, last = run.outcomes()
    assert (first, last) == ("preempted", "completed")
    assert gap in {"lost", "preempted"}


@pytest.mark.slow
def test_the_end_of_its_time(
    slurm: SlurmCluster, attach: Attach, training: list[str], undisturbed: Weights
) -> None:
    """Slurm's warning comes some time before the end; the run is saved, queued again, and goes on.

    Its next start has as much time as the limit says: without the longer one, that would be none.
    """
    run = attach(slurm, *training, "--on", "slurm", "--nproc", "2", "--time", "4m", fault=halts(15))
    run.halted(0)
    slurm.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=2")
    run.let_go(0)
    run.until(lambda: slurm.job(run.job).get("Restarts") == "1", "the job is queued again")
    slurm.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=60")
    run.queued_again(1)
    assert run.wait() == 0, run.said
    assert run.weights() == undisturbed(2)
    assert run.outcomes() == ["preempted", "completed"]
    assert began_at(run, 1) >= 15


@pytest.mark.slow
def test_a_time_limit_that_leaves_no_time(slurm: SlurmCluster, leaving: Callable[..., Attached]) -> None:
    """Somebody has lowered it below what saving takes: no start would get anywhere, and none is asked for."""
    run = leaving(slurm, "--time", "4m", starts=9)
    run.ranks_run()
    slurm.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=2")
    run.queued_again(1)
    assert run.wait() == 4, run.said
    assert run.outcomes() == ["preempted", "failed"]
    assert "the job's time limit leaves no time to run" in run.said
    assert slurm.job(run.job)["Restarts"] == "1"


@pytest.mark.slow
def test_a_drained_node_is_left(slurm: SlurmCluster, leaving: Callable[..., Attached]) -> None:
    run = leaving(slurm, section="{on_drain: requeue}")
    run.ranks_run()
    node = slurm.job(run.job)["NodeList"]
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=xid 79")
    run.queued_again(1)
    assert run.wait() == 0, run.said
    assert run.outcomes() == ["preempted", "completed"]
    assert slurm.job(run.job)["NodeList"] != node
    assert "leaving, since nodes are drained" in run.log()
