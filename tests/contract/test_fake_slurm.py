"""What the pretend Slurm has beside the real one: things that happen to it on request; and it leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from seatrial.backends.slurm.client import Client
from seatrial.errors import PlatformError, SpecError
from seatrial.testing import FakeSlurm, Partition, Qos

pytestmark = pytest.mark.integration


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[FakeSlurm]:
    with FakeSlurm(tmp_path / "slurm") as fake:
        yield fake


def client_of(slurm: FakeSlurm) -> Client:
    """Asks by a runner that finds the pretend clients without PATH being changed."""

    def runner(argv: object, *, timeout_s: float = 60, env: object = None, cwd: object = None) -> object:
        return slurm.run(*argv, timeout_s=timeout_s, SLURM_TIME_FORMAT="%s")  # type: ignore[misc]

    return Client(runner)  # type: ignore[arg-type]


def batch(slurm: FakeSlurm, body: str, *options: str) -> str:
    done = slurm.run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={body}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(slurm: FakeSlurm, job: str) -> str:
    return slurm.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").stdout.strip()


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def of_jobs(directory: Path) -> list[str]:
    """Processes that belong to a pretend cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("SLURM_CONF", "")]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(directory) in word for word in words):
                found.append(f"{process.pid} {words}")
        except psutil.Error:
            continue
    return found


class TestWhatCanHappen:
    def test_preemption(self, slurm: FakeSlurm) -> None:
        low, spot = batch(slurm, "exec sleep 60", "--qos=low"), batch(slurm, "exec sleep 60", "--qos=spot")
        until(lambda: state(slurm, spot) == "RUNNING")
        slurm.preempt(low)
        slurm.preempt(spot)
        until(lambda: state(slurm, low) == "PENDING")
        assert state(slurm, spot) == "RUNNING"  # its QOS gives it 5 s
        until(lambda: state(slurm, spot) == "PREEMPTED")
        with pytest.raises(SpecError, match="can't be preempted"):
            slurm.preempt(spot)

    def test_nodes_come_and_go(self, slurm: FakeSlurm) -> None:
        job = batch(slurm, "exec sleep 60", "-w", "node1")
        until(lambda: state(slurm, job) == "RUNNING")
        slurm.fail_node("node1")
        slurm.drain("node0", "xid 79")
        until(lambda: state(slurm, job) == "PENDING")
        first, second = client_of(slurm).nodes()
        assert (first.states, second.states) == (("IDLE", "DRAIN"), ("DOWN", "NOT_RESPONDING"))
        slurm.resume("node1")
        until(lambda: state(slurm, job) == "RUNNING")
        with pytest.raises(SpecError, match="no node node9"):
            slurm.drain("node9", "nothing")

    def test_jobs_that_are_only_there_to_be_looked_at(self, slurm: FakeSlurm) -> None:
        waits = slurm.add_job(reason="QOSMaxGRESPerUser", user="ada", name="big", nodes=2, age_s=3600)
        ended = slurm.add_job("FAILED", exit_code=3)
        runs = slurm.add_job("RUNNING", nodes=2, gpus_per_node=8)
        jobs = {job.job_id: job for job in client_of(slurm).queue()}
        assert set(jobs) == {waits, runs}
        assert (jobs[waits].reason, jobs[waits].user, jobs[runs].nodelist) == (
            "QOSMaxGRESPerUser",
            "ada",
            "node[0-1]",
        )
        assert abs(time.time() - 3600 - (jobs[waits].submit or 0)) < 60
        found = client_of(slurm).job(ended)
        assert found is not None
        assert (found.state, found.exit_code) == ("FAILED", 3)
        mine = batch(slurm, "true", "--gpus-per-node=1")
        until(lambda: slurm.run("squeue", "-h", "-j", mine, "-o", "%r").stdout.strip() == "Resources")
        slurm.run("scancel", runs)
        until(lambda: state(slurm, mine) == "COMPLETED")
        with pytest.raises(SpecError, match="does not fit"):
            slurm.add_job("RUNNING", nodes=2, gpus_per_node=9)

    def test_clients_hang_while_the_controller_is_away(self, slurm: FakeSlurm) -> None:
        job = batch(slurm, "sleep 1; exit 3")
        slurm.controller_away(after_s=30)
        with pytest.raises(PlatformError, match="did not end within 1 s"):
            slurm.run("squeue", timeout_s=1)
        slurm.controller_away(False)
        until(lambda: state(slurm, job) == "FAILED")

    def test_partitions_and_qos_of_ones_own(self, tmp_path: Path) -> None:
        partitions = [Partition(name="gpu", is_default=True, max_time_min=60), Partition(name="debug")]
        with FakeSlurm(
            tmp_path / "own", nodes=3, gpus=2, cpus=16, partitions=partitions, qos=[Qos(name="only")]
        ) as slurm:
            client = client_of(slurm)
            assert [partition.name for partition in client.partitions()] == ["gpu", "debug"]
            assert [qos.name for qos in client.qos()] == ["only"]
            assert [(node.cpus, node.gpus) for node in client.nodes()] == [(16, 2)] * 3
            assert "time limit" in slurm.run("sbatch", "-t", "90", "--wrap=true").stderr

    def test_where_nothing_may_be_queued_again_unasked(self, tmp_path: Path) -> None:
        with FakeSlurm(tmp_path / "fixed", job_requeue=False) as slurm:
            fixed, asked = batch(slurm, "exec sleep 60"), batch(slurm, "exec sleep 60", "--requeue")
            until(lambda: state(slurm, asked) == "RUNNING")
            slurm.fail_node("node0")
            until(lambda: (state(slurm, fixed), state(slurm, asked)) != ("RUNNING", "RUNNING"))
            until(lambda: state(slurm, fixed) == "NODE_FAIL")
            until(lambda: state(slurm, asked) in {"PENDING", "RUNNING"})

    def test_many_jobs_at_once(self, slurm: FakeSlurm) -> None:
        jobs = {batch(slurm, "true", "--gpus-per-node=2") for _ in range(30)}
        until(lambda: slurm.run("squeue", "-h").stdout == "")
        done = slurm.run("squeue", "-h", "-t", "COMPLETED", "-o", "%i").stdout.split()
        assert set(done) == jobs


OWNER = """
import sys, time
from pathlib import Path
from seatrial.testing import FakeSlurm
with FakeSlurm(Path(sys.argv[1])) as slurm:
    hides = "env -i setsid sleep 600 & setsid sleep 600 & srun sleep 600"
    slurm.run("sbatch", "-N2", "--output=/dev/null", f"--wrap={hides}")
    while slurm.run("squeue", "-h", "-s", "-o", "%i").stdout.count(".") < 2:
        time.sleep(0.05)
    print("up", flush=True)
    time.sleep(600)
"""


class TestNothingStays:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
    def test_when_its_owner_is_stopped(self, tmp_path: Path, number: signal.Signals) -> None:
        directory = tmp_path / "slurm"
        with subprocess.Popen(
            [sys.executable, "-c", OWNER, str(directory)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as owner:  # fmt: skip
            assert owner.stdout is not None
            assert owner.stdout.readline() == "up\n"
            below = psutil.Process(owner.pid).children(recursive=True)
            assert len([process for process in below if _words(process) == ["sleep", "600"]]) == 4
            assert of_jobs(directory)
            owner.send_signal(number)
            owner.wait(30)
        until(lambda: not of_jobs(directory), 20)
        until(lambda: not any(_is_alive(process) for process in below), 20)

    def test_when_its_own_process_is_killed(self, tmp_path: Path) -> None:
        directory = tmp_path / "slurm"
        slurm = FakeSlurm(directory)
        with slurm:
            job = batch(slurm, "setsid sleep 600 & exec sleep 600")
            until(lambda: state(slurm, job) == "RUNNING")
            [server] = [
                p for p in psutil.Process().children() if "seatrial.testing.slurm.server" in _words(p)
            ]
            server.kill()
            server.wait(10)
            with pytest.raises(PlatformError, match="isn't running"):
                slurm.drain("node0", "x")
            assert slurm.run("squeue").returncode == 1
        until(lambda: not of_jobs(directory), 20)

    def test_of_its_directory(self, tmp_path: Path) -> None:
        with FakeSlurm(tmp_path / "slurm") as slurm:
            batch(slurm, "true")
            assert slurm.directory.exists()
        assert not slurm.directory.exists()
        slurm.down()
        (tmp_path / "thesis.tex").touch()
        other = FakeSlurm(tmp_path)
        with pytest.raises(SpecError, match="directory of its own"):
            other.up()
        other.down()
        assert (tmp_path / "thesis.tex").exists()


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    directory = tmp_path / ("it's 'two' words $HOME " + "x" * 150)
    with FakeSlurm(directory) as slurm:
        job = batch(slurm, "srun true")
        until(lambda: state(slurm, job) == "COMPLETED")


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
