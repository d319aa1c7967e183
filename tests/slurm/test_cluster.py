"""The test cluster itself: it is a real Slurm, it breaks as asked, and nothing stays of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm import daemons, processes
from tests.slurm.cluster import REPOSITORY, SlurmCluster
from tests.slurm.plan import Plan
from tests.slurm.teardown import interfaces


def left_of(plan: Plan) -> list[str]:
    """What still names a cluster that should be gone."""
    found = [str(plan.directory)] if plan.directory.exists() else []
    found += interfaces(plan)
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/seatrial-{plan.bridge}") if plan.bridge]
    for process in processes.living():
        with contextlib.suppress(psutil.Error):
            if str(plan.directory) in " ".join(process.cmdline()) + str(process.environ()):
                found.append(f"{process.pid} {process.name()}")
    return found


def batch(slurm: SlurmCluster, tmp_path: Path, body: str, *options: str) -> str:
    """Submits a script; its job id."""
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{body}\n")
    return slurm.run(
        "sbatch", "--parsable", f"--output={tmp_path}/%j.out", *options, str(script)
    ).stdout.strip()


@pytest.fixture(params=["slurm", "slurm_plain"])
def any_slurm(request: pytest.FixtureRequest) -> SlurmCluster:
    cluster: SlurmCluster = request.getfixturevalue(request.param)
    return cluster


class TestItIsARealSlurm:
    def test_two_nodes_answer_under_their_names(self, any_slurm: SlurmCluster) -> None:
        shown = any_slurm.run("srun", "-N2", "sh", "-c", "echo $SLURMD_NODENAME $(hostname)").stdout
        host = any_slurm.plan.host
        names = {"ns": [("node0", "node0"), ("node1", "node1")], "plain": [("node0", host), ("node1", host)]}
        assert sorted(tuple(line.split()) for line in shown.splitlines()) == names[any_slurm.mode]

    def test_gpus_are_dealt_out(self, any_slurm: SlurmCluster, tmp_path: Path) -> None:
        job = batch(any_slurm, tmp_path, "srun printenv CUDA_VISIBLE_DEVICES SLURM_GPUS_ON_NODE", "--gpus=3")
        any_slurm.wait_job(job, "COMPLETED")
        assert (tmp_path / f"{job}.out").read_text().split() == ["0,1,2", "3"]

    def test_too_many_gpus_are_refused(self, any_slurm: SlurmCluster) -> None:
        done = any_slurm.run("srun", "-N1", "--gpus-per-node=9", "true", check=False)
        assert done.returncode == 1
        assert "Requested node configuration is not available" in done.stderr

    def test_accounting_has_the_job_with_its_gpus(self, slurm: SlurmCluster) -> None:
        slurm.run("srun", "-N2", "--gpus-per-node=4", "--job-name=counted", "--comment=run-7", "true")
        row = ""

        def counted() -> bool:
            nonlocal row
            row = slurm.run(
                "sacct", "-n", "-P", "-X", "--name=counted", "-o", "State,AllocTRES,Comment"
            ).stdout
            return "COMPLETED" in row

        assert processes.until(10, counted, 0.2), row
        assert "gres/gpu=8" in row
        assert "run-7" in row

    def test_sacct_and_squeue_work_on_a_node(self, slurm_ns: SlurmCluster) -> None:
        assert slurm_ns.run(
            "srun", "-N1", "sh", "-c", "squeue -h -o %N && sacct -n -X -o jobid"
        ).stdout.split()

    def test_without_accounting_there_is_no_sacct(self, slurm_plain: SlurmCluster) -> None:
        assert slurm_plain.run("sacct", check=False).returncode == 1

    def test_its_users_environment_ends_with_the_test(self, slurm: SlurmCluster) -> None:
        assert os.environ["SLURM_CONF"] == str(slurm.plan.conf)
        assert "SLURM_JOB_ID" not in os.environ

    def test_questions_to_the_controller_are_counted(self, slurm: SlurmCluster) -> None:
        before = slurm.rpc_counts().get("REQUEST_JOB_INFO_SINGLE", 0)
        for _ in range(3):
            slurm.run("squeue", "-j", "1", check=False)
        assert slurm.rpc_counts()["REQUEST_JOB_INFO_SINGLE"] == before + 3


class TestItBreaksAsAsked:
    def test_a_crashed_node_fails_its_job_and_comes_back(
        self, any_slurm: SlurmCluster, tmp_path: Path
    ) -> None:
        job = batch(any_slurm, tmp_path, "srun sleep 300", "-N2", "--no-requeue")
        any_slurm.wait_job(job, "RUNNING")
        assert processes.until(10, lambda: len(any_slurm.node_pids("node1")) >= 3)  # slurmd, step, task
        any_slurm.crash("node1")
        assert any_slurm.node_pids("node1") == []
        assert any_slurm.node_pids("node0")
        any_slurm.wait_job(job, "NODE_FAIL", timeout_s=60)
        assert any_slurm.states()["node1"].startswith("down")
        any_slurm.boot("node1")
        any_slurm.wait_idle()

    def test_a_job_outlives_its_slurmd(self, any_slurm: SlurmCluster, tmp_path: Path) -> None:
        job = batch(any_slurm, tmp_path, "sleep 4", "-w", "node0")
        any_slurm.wait_job(job, "RUNNING")
        time.sleep(1)
        any_slurm.kill_slurmd("node0")
        assert any_slurm.node_pids("node0"), "the job's processes are there"
        any_slurm.boot("node0")
        any_slurm.wait_job(job, "COMPLETED")

    def test_a_cut_cable_is_noticed_only_when_it_stays_cut(self, slurm_ns: SlurmCluster) -> None:
        ping = ["srun", "-N1", "-w", "node1", "--immediate=3", "true"]
        slurm_ns.cut("node1")
        assert slurm_ns.run(*ping, check=False, timeout_s=20).returncode != 0
        slurm_ns.heal("node1")
        slurm_ns.wait_idle()
        assert slurm_ns.run(*ping).returncode == 0

    def test_the_controller_forgets_nothing_over_a_restart(
        self, any_slurm: SlurmCluster, tmp_path: Path
    ) -> None:
        job = batch(any_slurm, tmp_path, "true", "--hold")
        any_slurm.stop_controller()
        assert any_slurm.run("scontrol", "ping", check=False, timeout_s=30).returncode != 0
        any_slurm.start_controller()
        assert any_slurm.job(job)["JobState"] == "PENDING"

    def test_records_wait_for_slurmdbd(self, slurm: SlurmCluster) -> None:
        slurm.stop_dbd()
        slurm.run("srun", "--job-name=late", "true")
        assert slurm.run("sacct", check=False, timeout_s=60).returncode == 1
        slurm.start_dbd()
        assert processes.until(
            30,
            lambda: "COMPLETED" in slurm.run("sacct", "-n", "-X", "--name=late", "-o", "state").stdout,
            0.3,
        )

    def test_too_much_memory_ends_the_job(self, slurm_ns: SlurmCluster, tmp_path: Path) -> None:
        if not slurm_ns.plan.memory_limits:
            pytest.skip("no memory cgroups of version 1 here")
        hog = f"exec {sys.executable} -c 'b = bytearray(300 << 20); print(len(b))'"
        assert (
            slurm_ns.wait_job(batch(slurm_ns, tmp_path, hog, "--mem=800"), "COMPLETED", "FAILED")["ExitCode"]
            == "0:0"
        )
        slurm_ns.wait_job(batch(slurm_ns, tmp_path, hog, "--mem=100"), "OUT_OF_MEMORY")

    def test_a_higher_qos_takes_the_gpus_of_a_lower_one(self, slurm: SlurmCluster, tmp_path: Path) -> None:
        whole = ["-N2", "--gpus-per-node=8"]
        low = batch(slurm, tmp_path, "sleep 300", *whole, "--qos=low")
        slurm.wait_job(low, "RUNNING")
        high = batch(slurm, tmp_path, "true", *whole, "--qos=high")
        slurm.wait_job(high, "COMPLETED")
        known = slurm.wait_job(low, "PENDING", "RUNNING")
        assert known["Restarts"] == "1"

    @pytest.mark.parametrize(("partition", "ends"), [("low", "PENDING"), ("spot", "PREEMPTED")])
    def test_a_higher_partition_takes_them_without_accounting(
        self, slurm_plain: SlurmCluster, tmp_path: Path, partition: str, ends: str
    ) -> None:
        whole = ["-N2", "--gpus-per-node=8"]
        low = batch(slurm_plain, tmp_path, "sleep 300", *whole, f"--partition={partition}")
        slurm_plain.wait_job(low, "RUNNING")
        slurm_plain.wait_job(batch(slurm_plain, tmp_path, "true", *whole, "--partition=high"), "COMPLETED")
        slurm_plain.wait_job(low, ends)

    def test_clean_mends_everything_at_once(self, any_slurm: SlurmCluster, tmp_path: Path) -> None:
        stubborn = "trap '' TERM; sleep 300 & while :; do wait; done"
        for options in (["-w", "node0"], ["-w", "node1"], ["--hold"]):
            batch(any_slurm, tmp_path, stubborn, *options)
        any_slurm.run("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=tested")
        any_slurm.crash("node0")
        any_slurm.stop_controller(kill=True)
        any_slurm.clean()
        assert any_slurm.states() == {"node0": "idle", "node1": "idle"}
        assert any_slurm.run("squeue", "-h").stdout == ""


STAYS = """
import sys, time
from tests.slurm.cluster import SlurmCluster
with SlurmCluster(mode=sys.argv[1], accounting=False) as slurm:
    script = "env -i setsid sleep 600 & sleep 600"
    slurm.run("sbatch", "-N2", "--output=/dev/null", f"--wrap={script}")
    while len(slurm.node_pids("node0")) < 4:
        time.sleep(0.05)
    print(slurm.plan.to_json().replace(chr(10), ""), flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["ns", "plain"])
def mode(request: pytest.FixtureRequest) -> str:
    reason = SlurmCluster.unavailable(mode=request.param, accounting=False)
    if reason:
        pytest.skip(reason)
    return str(request.param)


class TestNothingStays:
    @pytest.fixture
    def owner(self, mode: str) -> Iterator[subprocess.Popen[str]]:
        """A process with a cluster of its own, on which a job runs that hides from its step."""
        process = subprocess.Popen(
            [sys.executable, "-c", STAYS, mode], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        )  # fmt: skip
        yield process
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
    def test_when_its_owner_is_stopped(self, owner: subprocess.Popen[str], number: signal.Signals) -> None:
        assert owner.stdout is not None
        plan = Plan.from_json(owner.stdout.readline())
        sleepers = [p for p in processes.living() if processes.words(p) == ["sleep", "600"]]
        owner.send_signal(number)
        owner.wait(30)
        assert processes.until(15, lambda: not left_of(plan), 0.2), left_of(plan)
        assert processes.until(5, lambda: not any(processes.alive(p) for p in sleepers), 0.2)

    def test_when_a_daemon_does_not_start(self, mode: str) -> None:
        cluster = SlurmCluster(mode=mode, accounting=False, settings={"SelectType": "select/none_such"})
        with pytest.raises(daemons.ClusterError, match="none_such"):
            cluster.up()
        assert left_of(cluster.plan) == []

    def test_when_it_is_interrupted_half_way(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(daemons.Daemons, "start_slurmds", interrupted)
        cluster = SlurmCluster(mode=mode, accounting=False)
        with pytest.raises(KeyboardInterrupt):
            cluster.up()
        assert left_of(cluster.plan) == []

    def test_of_one_with_accounting(self) -> None:
        if reason := SlurmCluster.unavailable():
            pytest.skip(reason)
        with SlurmCluster() as slurm:
            slurm.run("srun", "-N2", "true")
        assert left_of(slurm.plan) == []

    def test_a_directory_of_somebody_else_is_refused(self, tmp_path: Path) -> None:
        directory = Path(os.path.relpath(tmp_path))
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(daemons.ClusterError):
            SlurmCluster(mode="plain", accounting=False, directory=directory).up()
        assert (tmp_path / "thesis.tex").exists()
