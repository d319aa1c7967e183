"""What Slurm does, as far as Seatrial relies on it: the pretend one is held to it by the same tests as a real one."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from seatrial import command
from seatrial.backends.slurm.client import Client
from seatrial.backends.slurm.jobs import Job
from seatrial.errors import PlatformError, SpecError
from seatrial.testing import FakeSlurm
from tests.slurm.cluster import FOREIGN, SlurmCluster

pytestmark = pytest.mark.integration
# The real one takes five minutes, and its daemons lose patience on a machine that is busy with other tests: --slow.
BOTH = ["fake", pytest.param("real", marks=[pytest.mark.slurm, pytest.mark.slow])]
WHOLE = ["-N2", "--ntasks-per-node=1", "--gpus-per-node=8"]
# Tasks and script say what they are sent; the tasks end by themselves after ten minutes or more: later than any test.
LISTENS = """
trap 'echo script TERM' TERM; trap 'echo script USR2' USR2
echo restart=${SLURM_RESTART_COUNT-none}
srun --label bash -c 'for s in TERM USR2; do trap "echo task $s" $s; done; echo up; for i in {1..6000}; do sleep 0.1; done' &
until wait $!; kill -0 $! 2>/dev/null; [ $? != 0 ]; do :; done
"""


ENDS = {
    "exit 0": ("COMPLETED", 0, 0, ""),
    "exit 3": ("FAILED", 3, 0, "NonZeroExitCode"),
    "exit 143": ("FAILED", 143, 0, "NonZeroExitCode"),
    "kill -9 $$": ("FAILED", 0, 9, "JobLaunchFailure"),
    "kill -SEGV $$": ("FAILED", 0, 11, "JobLaunchFailure"),
    "nosuchcommand": ("FAILED", 127, 0, "NonZeroExitCode"),
    "srun bash -c 'kill -9 $$'": ("FAILED", 137, 0, "NonZeroExitCode"),
    "srun bash -c 'exit 9'; exit 0": ("COMPLETED", 0, 0, ""),
}  # fmt: skip


class Cluster:
    """One Slurm or the other, and a user of it."""

    def __init__(self, slurm: FakeSlurm | SlurmCluster, directory: Path) -> None:
        self.slurm = slurm
        self.directory = directory
        self.client = Client()

    @property
    def is_real(self) -> bool:
        return isinstance(self.slurm, SlurmCluster)

    def run(self, *argv: str, timeout_s: float = 30, **env: str) -> command.Completed:
        return command.run(argv, timeout_s=timeout_s, env=dict(os.environ) | env, cwd=self.directory)

    def sbatch(self, body: str, *options: str, shebang: str = "#!/bin/bash", **env: str) -> str:
        script = self.directory / "job.sh"
        script.write_text(f"{shebang}\n#SBATCH --output={self.directory}/%j.out\n{body}\n")
        done = self.run("sbatch", "--parsable", *options, str(script), **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def output(self, job: str) -> str:
        path = self.directory / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def job(self, job: str) -> Job:
        found = self.client.job(job)
        assert found is not None, f"{job} is not known"
        return found

    def wait(self, job: str, *states: str, timeout_s: float = 90) -> Job:
        seen: list[Job] = []

        def there() -> bool:
            with contextlib.suppress(PlatformError):  # a controller under load drops a question now and then
                seen.append(self.job(job))
            return bool(seen) and seen[-1].state in states

        until(there, timeout_s, lambda: seen[-1:])
        return seen[-1]

    def says(self, job: str, *words: str, timeout_s: float = 90) -> str:
        until(lambda: all(word in self.output(job) for word in words), timeout_s, lambda: self.output(job))
        return self.output(job)

    def start_now(self, job: str) -> None:
        """A job that was queued again waits for some time; not on the fake.

        The real one waits for a reason: what it started before may still be ending on the node, and fails the next start.
        When it waits no longer is its own affair, and may be over before anybody looks.
        """
        if self.is_real:
            until(lambda: self.job(job).restarts > 0, 90, lambda: self.job(job))
        else:
            self.wait(job, "PENDING")
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def accounted(self, job: str, *states: str) -> list[Job]:
        """Its starts, once the last one is accounted as it ended; a real accounting trails behind."""
        seen: list[Job] = []

        def there() -> bool:
            seen[:] = self.client.accounted(job).jobs
            # A job that ends at once is accounted under this name for a moment.
            named = all(start.name != "allocation" for start in seen)
            return bool(seen) and named and seen[-1].state in states

        until(there, 60, lambda: seen)
        return seen

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        if isinstance(self.slurm, SlurmCluster):
            self.slurm.stop_controller()
            yield
            self.slurm.start_controller()
        else:
            self.slurm.controller_away(after_s=0.1)
            yield
            self.slurm.controller_away(False)

    def fail_node(self, node: str) -> None:
        self.slurm.crash(node) if isinstance(self.slurm, SlurmCluster) else self.slurm.fail_node(node)

    def mend_node(self, node: str) -> None:
        self.slurm.boot(node) if isinstance(self.slurm, SlurmCluster) else self.slurm.resume(node)


def until(condition: Callable[[], object], timeout_s: float, seen: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {seen()}"
        time.sleep(0.1)


@contextmanager
def pretend(patch: pytest.MonkeyPatch, directory: Path, **arguments: Any) -> Iterator[FakeSlurm]:
    with FakeSlurm(directory / "slurm", **arguments) as slurm:
        for name in [name for name in os.environ if FOREIGN.fullmatch(name)]:
            patch.delenv(name)
        for name, value in slurm.env.items():
            patch.setenv(name, value)
        yield slurm


def either(request: pytest.FixtureRequest, real: str, **arguments: Any) -> Iterator[Cluster]:
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    directory: Path = request.getfixturevalue("tmp_path")
    patch.chdir(directory)  # where a job without --output writes
    if request.param == "real":
        yield Cluster(request.getfixturevalue(real), directory)
    else:
        # Nothing starts again before `start_now` says so.
        with pretend(patch, directory, requeue_wait_s=600, **arguments) as slurm:
            yield Cluster(slurm, directory)


@pytest.fixture(params=BOTH)
def slurm_of_both(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes of eight GPUs, with accounting."""
    yield from either(request, "slurm")


@pytest.fixture(params=BOTH)
def plain_of_both(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The same without accounting."""
    yield from either(request, "slurm_plain", accounting=False)


class TestSubmitting:
    def test_a_job_runs_and_is_told_of(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        job = slurm.sbatch("sleep 2; echo done", *WHOLE, "-J", "näme of it", "--comment=a b", "--time=90")
        running = slurm.wait(job, "RUNNING")
        assert (running.name, running.comment, running.nodelist) == ("näme of it", "a b", "node[0-1]")
        assert (running.num_nodes, running.gpus, running.num_cpus, running.qos) == (2, 16, 2, "normal")
        assert running.start is not None
        assert running.end == running.start + 5400
        assert running in slurm.client.my_jobs() or slurm.wait(job, "COMPLETED")
        listed = next(found for found in slurm.client.my_jobs() if found.job_id == job)
        assert (listed.name, listed.comment, listed.gpus) == ("näme of it", "a b", 16)
        ended = slurm.wait(job, "COMPLETED")
        assert (ended.exit_code, ended.signal, ended.restarts, ended.reason) == (0, 0, 0, "")
        assert slurm.output(job) == "done\n"
        [counted] = slurm.accounted(job, "COMPLETED")
        assert (counted.name, counted.gpus, counted.nodelist) == ("näme of it", 16, "node[0-1]")
        assert [step.step_id for step in counted.steps] == ["batch"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("-p nope", "Invalid partition name specified"),
            ("--qos=nope", "Invalid qos specification"),
            ("-A nope", "Invalid account or account/partition combination specified"),
            ("-N9", "Node count specification invalid"),
            ("-p short -N2", "Node count specification invalid"),
            ("-p short -t 10", "Requested time limit is invalid (missing or exceeds some limit)"),
            ("--gpus-per-node=9", "Requested node configuration is not available"),
            ("--gpus-per-node=a100:1", "Requested node configuration is not available"),
            ("--gres=gpu:9", "Requested node configuration is not available"),
            ("--gres=tpu:1", "Invalid generic resource (gres) specification"),
            ("-c 65", "Requested node configuration is not available"),
            ("-n 200", "More processors requested than permitted"),
            ("-w node7", "Invalid node name specified"),
            ("-C fast", "Invalid feature specification"),
            ("-d foo:1", "Job dependency problem"),
            ("--time=foo", "Invalid --time specification"),
            ("--signal=FOO@3", "Invalid --signal specification"),
            ("--nodes=some", '"some" is not a valid node count'),
            ("--nosuch=3", "unrecognized option '--nosuch=3'"),
        ],
    )
    def test_what_it_refuses(self, slurm_of_both: Cluster, options: str, words: str) -> None:
        script = "#!/bin/bash\ntrue\n"
        with pytest.raises(SpecError) as refused:
            slurm_of_both.client.submit(script, options.split())
        assert words in refused.value.evidence
        trial = slurm_of_both.client.test_only(script, options.split())
        assert not trial.accepted
        assert words in trial.text

    def test_a_directive_is_refused_like_an_option(self, slurm_of_both: Cluster) -> None:
        with pytest.raises(SpecError, match="Invalid partition name specified"):
            slurm_of_both.client.submit("#!/bin/bash\n# why not\n#SBATCH -p nope\ntrue\n")
        slurm_of_both.client.submit(
            "#!/bin/bash\ntrue\n#SBATCH -p nope\n"
        )  # below the first command: no directive

    @pytest.mark.parametrize(
        ("script", "words"),
        [("echo x\n", "does not look like a batch script"), ("", "Batch script is empty!")],
    )
    def test_what_is_no_script(self, slurm_of_both: Cluster, script: str, words: str) -> None:
        with pytest.raises(SpecError) as refused:
            slurm_of_both.client.submit(script)
        assert words in refused.value.evidence

    def test_when_it_would_start(self, slurm_of_both: Cluster) -> None:
        trial = slurm_of_both.client.test_only("#!/bin/bash\ntrue\n", ["-N2"])
        assert trial.accepted
        assert abs((trial.start or 0) - time.time()) < 60
        assert re.search(r"using 2 processors on nodes node\[0-1\] in partition main", trial.text)

    def test_how_a_cluster_is_described(self, slurm_of_both: Cluster) -> None:
        client = slurm_of_both.client
        first, _ = client.nodes()
        assert (first.name, first.states, first.cpus, first.gpus, first.gpu_types) == (
            "node0",
            ("IDLE",),
            64,
            8,
            ("h100",),
        )
        partitions = {partition.name: partition for partition in client.partitions()}
        assert set(partitions) == {"main", "low", "spot", "high", "short"}
        assert partitions["main"].is_default
        assert (partitions["short"].max_time_s, partitions["short"].max_nodes) == (120, 1)
        assert {qos.name: qos.priority for qos in client.qos()} == {
            "normal": 10,
            "low": 1,
            "spot": 1,
            "high": 100,
        }
        assert {name for found in client.associations() for name in found.qos} == {
            "normal",
            "low",
            "spot",
            "high",
        }
        assert client.reservations() == []
        assert client.config()["ClusterName"] == "seatrial"
        assert client.hostnames("node[0-1,7]") == ["node0", "node1", "node7"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", client.version())


class TestRunning:
    def test_the_environment_of_tasks(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        names = "PROCID NODEID LOCALID NTASKS NNODES JOB_NUM_NODES JOB_NODELIST STEP_NODELIST STEP_ID JOB_ID RESTART_COUNT GPUS_ON_NODE"
        body = " ".join(f"${{SLURM_{name}-none}}" for name in names.split())
        job = slurm.sbatch(
            f'srun bash -c \'echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $KEPT {body}"\' | sort',
            "-N2", "--ntasks-per-node=1", "--gpus-per-node=h100:4", "--cpus-per-task=2", KEPT="kept", SLURM_PROCID="7",
        )  # fmt: skip
        slurm.wait(job, "COMPLETED")
        assert slurm.output(job).splitlines() == [
            f"node{n} 0,1,2,3 kept {n} {n} 0 2 2 2 node[0-1] node[0-1] 0 {job} none 4" for n in (0, 1)
        ]

    def test_jobs_share_a_node_and_no_gpu(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        asked = ["-w", "node0", "--gpus-per-node=4"]
        jobs = [slurm.sbatch("srun printenv CUDA_VISIBLE_DEVICES; sleep 30", *asked) for _ in range(3)]
        assert [slurm.says(job, "\n") for job in jobs[:2]] == ["0,1,2,3\n", "4,5,6,7\n"]
        until(lambda: slurm.job(jobs[2]).reason == "Resources", 30)
        node = slurm.client.nodes()[0]
        assert (node.states, node.gpus_used, node.gpus_free) == (("MIXED",), 8, 0)
        slurm.run("scancel", jobs[0])
        assert slurm.says(jobs[2], "\n") == "0,1,2,3\n"

    def test_what_comes_first(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        running = slurm.sbatch("sleep 60", *WHOLE, "--qos=high")
        slurm.wait(running, "RUNNING")
        second, first = slurm.sbatch("sleep 60", *WHOLE), slurm.sbatch("sleep 60", *WHOLE, "--qos=high")
        until(lambda: (slurm.job(first).reason, slurm.job(second).reason) == ("Resources", "Priority"), 30)
        queue = {job.job_id: job.priority or 0 for job in slurm.client.queue()}
        assert queue[first] > queue[second]
        slurm.run("scancel", running)
        slurm.wait(first, "RUNNING")
        assert slurm.job(second).state == "PENDING"

    def test_srun_tells_how_its_tasks_ended(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        task = "srun --label {} bash -c '[ $SLURM_PROCID = 0 ] && {}; sleep 2; echo done'; echo rc=$?"
        jobs = [
            slurm.sbatch(task.format(options, end), "-N2", "--ntasks-per-node=1")
            for options, end in [("", "exit 7"), ("-K1", "exit 7"), ("-K0 -W0", "kill -9 $$")]
        ]
        jobs.append(
            slurm.sbatch(
                "srun -N3 -n3 true; echo rc=$?; srun nosuchcommand; echo rc=$?", "-N2", "--ntasks-per-node=1"
            )
        )
        outputs = []
        for job in jobs:
            slurm.wait(job, "COMPLETED")
            outputs.append(slurm.output(job))
        assert all("srun: error: node0: task 0: Exited with exit code 7" in outputs[n] for n in (0, 1))
        assert [("1: done" in text, re.findall(r"^rc=(\d+)$", text, re.M)) for text in outputs[:3]] == [
            (True, ["7"]), (False, ["143"]), (True, ["137"]),
        ]  # fmt: skip
        assert "node0: task 0: Killed" in outputs[2]
        assert "Only allocated 2 nodes asked for 3" in outputs[3]
        assert "execve(): nosuchcommand: No such file or directory" in outputs[3]
        assert re.findall(r"^rc=(\d+)$", outputs[3], re.M) == ["1", "2"]

    def test_where_its_output_goes(self, slurm_of_both: Cluster) -> None:
        """A job that is queued again writes over what it wrote before, unless told to append."""
        slurm = slurm_of_both
        body = "echo restart=${SLURM_RESTART_COUNT-none}; sleep 600"
        jobs = [slurm.sbatch(body, f"--open-mode={mode}") for mode in ("truncate", "append")]
        for job in jobs:
            slurm.says(job, "restart=none")
            slurm.run("scontrol", "requeue", job)
        for job in jobs:
            slurm.start_now(job)
            slurm.says(job, "restart=1")
        assert ["restart=none" in slurm.output(job) for job in jobs] == [False, True]
        assert re.search(
            rf"\*\*\* JOB {jobs[1]} ON \S+ CANCELLED AT \S+ DUE TO JOB REQUEUE \*\*\*", slurm.output(jobs[1])
        )


class TestEnding:
    def test_states_and_exit_codes(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        jobs = {body: slurm.sbatch(body) for body in ENDS}
        elsewhere = slurm.sbatch("pwd", "-D", "/nonexistent")
        nowhere = slurm.sbatch("true", "--output=/nonexistent/%j.out")
        interpreter = slurm.sbatch("true", shebang="#!/nonexistent/sh")
        found = {}
        for body, job in jobs.items():
            ended = slurm.wait(job, "COMPLETED", "FAILED")
            found[body] = (ended.state, ended.exit_code, ended.signal, ended.reason)
        assert found == ENDS
        slurm.wait(elsewhere, "COMPLETED")
        said = slurm.output(elsewhere)
        assert (
            "couldn't chdir to `/nonexistent': No such file or directory: going to /tmp instead\n/tmp\n"
            in said
        )
        ended = slurm.wait(nowhere, "FAILED")
        assert (ended.exit_code, ended.signal) == (0, 53)
        ended = slurm.wait(interpreter, "FAILED")
        assert (ended.exit_code, ended.signal) == (2, 0)
        assert "bad interpreter" in slurm.output(interpreter)

    def test_how_the_accounting_tells_of_it(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        bodies = ["exit 143", "kill -9 $$", "srun bash -c 'exit 9'; exit 0", "srun bash -c 'kill -9 $$'"]
        jobs = [slurm.sbatch(body, "-N2", "--ntasks-per-node=1") for body in bodies]
        found = []
        for job in jobs:
            [start] = slurm.accounted(job, "COMPLETED", "FAILED")
            steps = [
                (step.step_id, step.state, step.exit_code, step.signal, step.nodelist) for step in start.steps
            ]
            found.append((start.state, start.exit_code, start.signal, steps))
        assert found == [
            ("FAILED", 15, 0, [("batch", "FAILED", 15, 0, "node0")]),
            ("FAILED", 0, 9, [("batch", "CANCELLED", 0, 9, "node0")]),
            ("COMPLETED", 0, 0, [("batch", "COMPLETED", 0, 0, "node0"), ("0", "FAILED", 9, 0, "node[0-1]")]),
            ("FAILED", 9, 0, [("batch", "FAILED", 9, 0, "node0"), ("0", "CANCELLED", 0, 9, "node[0-1]")]),
        ]

    def test_nothing_of_a_job_outlives_it(self, plain_of_both: Cluster) -> None:
        slurm = plain_of_both
        job = slurm.sbatch("setsid sleep 300 & srun bash -c 'setsid sleep 300 & echo $!; sleep 300' & wait")
        pid = int(slurm.says(job, "\n"))
        slurm.run("scancel", job)
        slurm.wait(job, "CANCELLED")
        until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), 10)

    def test_cancelling(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        waits, runs = slurm.sbatch("true", "--hold"), slurm.sbatch("exec sleep 100")
        stubborn = slurm.sbatch("trap '' TERM; echo up; while :; do sleep 0.2; done")
        polite = slurm.sbatch("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.2; done")
        assert slurm.job(waits).reason == "JobHeldUser"
        slurm.says(stubborn, "up")
        slurm.says(polite, "up")
        slurm.wait(runs, "RUNNING")
        for job in (waits, runs, stubborn, polite):
            slurm.client.cancel(job)
        found = [
            (slurm.wait(job, "CANCELLED").exit_code, slurm.job(job).signal)
            for job in (waits, runs, stubborn, polite)
        ]
        assert found == [(0, 0), (0, 15), (0, 9), (0, 0)]
        assert "bye" in slurm.output(polite)
        assert re.search(rf"\*\*\* JOB {runs} ON \S+ CANCELLED AT [-\dT:]+ \*\*\*", slurm.output(runs))
        [counted] = slurm.accounted(stubborn, "CANCELLED")
        assert (counted.exit_code, counted.signal, counted.steps[0].state, counted.steps[0].signal) == (
            0,
            0,
            "CANCELLED",
            9,
        )
        slurm.client.cancel(runs)  # has ended: nothing happens
        assert slurm.run("scancel", "999999").returncode == 0
        done = slurm.run("scancel", "abc")
        assert (done.returncode, done.stderr) == (1, "scancel: error: Invalid job id abc\n")

    def test_signals_reach_steps_or_the_script(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        job = slurm.sbatch(LISTENS, "-N2", "--ntasks-per-node=1")
        slurm.says(job, "0: up", "1: up")
        slurm.client.cancel(job, "USR2")
        said = slurm.says(job, "0: task USR2", "1: task USR2")
        assert "script" not in said
        slurm.client.cancel(job, "USR2", batch=True)
        said = slurm.says(job, "script USR2")
        assert said.count("task USR2") == 2
        slurm.client.cancel(job, "USR2", full=True)
        until(
            lambda: (text := slurm.output(job)).count("task USR2") >= 4 and text.count("script USR2") == 2, 30
        )
        assert slurm.job(job).state == "RUNNING"
        slurm.client.cancel(job, "KILL", batch=True)
        ended = slurm.wait(job, "FAILED")
        assert (ended.exit_code, ended.signal) == (0, 9)
        assert re.search(rf"\*\*\* JOB {job} ON \S+ CANCELLED AT [-\dT:]+ \*\*\*", slurm.output(job))

    @pytest.mark.parametrize("kind", BOTH)
    def test_a_time_limit(self, request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
        if kind == "real":
            if not request.config.getoption("--slow"):
                pytest.skip("Slurm's shortest time limit takes it 60 to 90 s: --slow")
            slurm = Cluster(request.getfixturevalue("slurm"), tmp_path)
            self._reach_the_limit(slurm)
            return
        with pretend(request.getfixturevalue("monkeypatch"), tmp_path, minute_s=3) as fake:
            self._reach_the_limit(Cluster(fake, tmp_path))

    @staticmethod
    def _reach_the_limit(slurm: Cluster) -> None:
        # Slurm looks every 30 s, and warns of what comes before it looks again: ten seconds after the start, or later.
        job = slurm.sbatch(LISTENS, *WHOLE, "--time=1", "--signal=USR2@20")
        ended = slurm.wait(job, "TIMEOUT", timeout_s=180)
        said = slurm.says(job, "DUE TO TIME LIMIT ***", timeout_s=30)
        assert ended.reason == "TimeLimit"
        assert said.index("task USR2") < said.index("DUE TO TIME LIMIT ***")
        assert said.count("task USR2") == 2
        assert "script USR2" not in said
        [counted] = slurm.accounted(job, "TIMEOUT")
        assert (counted.exit_code, counted.signal, counted.time_limit_s) == (0, 0, 60)


class TestQueueingAgain:
    def test_by_hand(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        job = slurm.sbatch(LISTENS, "--open-mode=append")
        slurm.says(job, "up")
        slurm.client.requeue(job)
        waits = slurm.wait(job, "PENDING")
        assert (waits.restarts, waits.reason, waits.nodelist) == (1, "BeginTime", "")
        again = slurm.run("scontrol", "requeue", job)
        assert again.returncode == 1
        assert f"Job is pending execution for job {job}" in again.stdout + again.stderr
        slurm.start_now(job)
        slurm.says(job, "restart=1")
        slurm.run("scancel", job)
        slurm.wait(job, "CANCELLED")
        first, last = slurm.accounted(job, "CANCELLED")
        assert (first.state, last.state) == ("REQUEUED", "CANCELLED")
        assert first.nodelist == "node0"
        assert [step.step_id for step in first.steps] == ["batch", "0"]

    def test_after_it_has_ended(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        job = slurm.sbatch("exit ${SLURM_RESTART_COUNT-3}")
        slurm.wait(job, "FAILED")
        slurm.client.requeue(job)
        slurm.start_now(job)
        ended = slurm.wait(job, "FAILED")
        assert (ended.exit_code, ended.restarts) == (1, 1)

    def test_where_it_is_forbidden_or_held(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        fixed, held = slurm.sbatch("sleep 60", "--no-requeue"), slurm.sbatch("sleep 60")
        slurm.wait(fixed, "RUNNING")
        slurm.wait(held, "RUNNING")
        with pytest.raises(PlatformError, match="Requested operation is presently disabled"):
            slurm.client.requeue(fixed)
        with pytest.raises(PlatformError, match="Invalid job id specified"):
            slurm.client.requeue("999999")
        slurm.run("scontrol", "requeuehold", held)
        until(lambda: slurm.job(held).reason.replace("_", " ") == "job requeued in held state", 30)
        slurm.run("scontrol", "release", held)
        slurm.start_now(held)
        slurm.wait(held, "RUNNING")


class TestMakingRoom:
    def test_at_once_and_again(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        low = slurm.sbatch(LISTENS, *WHOLE, "--qos=low", "--open-mode=append")
        slurm.says(low, "0: up", "1: up")
        high = slurm.sbatch("sleep 1", *WHOLE, "--qos=high")
        slurm.wait(high, "COMPLETED")
        said = slurm.says(low, f"*** JOB {low} ON", "DUE TO PREEMPTION ***")
        assert {"0: task TERM", "1: task TERM", "script TERM"} <= set(said.splitlines())
        assert re.search(rf"\*\*\* JOB {low} ON \S+ CANCELLED AT \S+ DUE TO PREEMPTION \*\*\*", said)
        slurm.start_now(low)
        slurm.says(low, "restart=1")
        slurm.run("scancel", low)
        slurm.wait(low, "CANCELLED")
        states = [start.state for start in slurm.accounted(low, "CANCELLED")]
        assert states == ["PREEMPTED", "CANCELLED"]

    def test_with_time_to_go(self, slurm_of_both: Cluster) -> None:
        """Of a QOS that cancels, with a grace time: the tasks are told at once, the script only when time is up."""
        slurm = slurm_of_both
        spot = slurm.sbatch(LISTENS, *WHOLE, "--qos=spot", "--signal=USR2@30")
        slurm.says(spot, "0: up", "1: up")
        high = slurm.sbatch("true", *WHOLE, "--qos=high")
        said = slurm.says(spot, "0: task TERM", "1: task TERM")
        assert "script TERM" not in said
        assert slurm.job(spot).state == "RUNNING"
        slurm.wait(spot, "PREEMPTED")
        said = slurm.output(spot)
        assert "script TERM" in said
        assert "USR2" not in said
        assert "DUE TO PREEMPTION" in said
        slurm.wait(high, "COMPLETED")
        [start] = slurm.accounted(spot, "PREEMPTED")
        assert (start.exit_code, start.signal) == (0, 0)

    def test_one_that_goes_by_itself_in_time(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        saves = (
            "srun bash -c 'trap \"echo saved; exit 75\" TERM; echo up; while :; do sleep 0.1; done'; exit $?"
        )
        spot = slurm.sbatch(saves, *WHOLE, "--qos=spot")
        until(lambda: slurm.output(spot).count("up") == 2, 30)
        high = slurm.sbatch("true", *WHOLE, "--qos=high")
        slurm.wait(high, "COMPLETED")
        ended = slurm.wait(spot, "FAILED")
        assert (ended.exit_code, slurm.output(spot).count("saved")) == (75, 2)

    def test_one_that_may_not_be_queued_again(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        low = slurm.sbatch("sleep 100", *WHOLE, "--qos=low", "--no-requeue")
        slurm.wait(low, "RUNNING")
        slurm.sbatch("true", *WHOLE, "--qos=high")
        assert slurm.wait(low, "PREEMPTED").restarts == 0

    @pytest.mark.parametrize(("partition", "ends"), [("low", "PENDING"), ("spot", "PREEMPTED")])
    def test_partitions_decide_without_accounting(
        self, plain_of_both: Cluster, partition: str, ends: str
    ) -> None:
        slurm = plain_of_both
        low = slurm.sbatch("exec sleep 100", *WHOLE, "-p", partition)
        slurm.wait(low, "RUNNING")
        slurm.wait(slurm.sbatch("sleep 3", *WHOLE, "-p", "high"), "COMPLETED")
        assert slurm.wait(low, ends).restarts == int(ends == "PENDING")


class TestDependencies:
    def test_on_one_that_fails(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        parent = slurm.sbatch("exit 3", "--hold")
        after = {
            kind: slurm.sbatch("true", f"--dependency={kind}:{parent}")
            for kind in ("afterok", "afternotok", "afterany")
        }
        dropped = slurm.sbatch("true", f"--dependency=afterok:{parent}", "--kill-on-invalid-dep=yes")
        waits = slurm.job(after["afterok"])
        assert (waits.state, waits.reason, waits.dependency) == (
            "PENDING",
            "Dependency",
            f"afterok:{parent}(unfulfilled)",
        )
        slurm.run("scontrol", "release", parent)
        slurm.wait(after["afternotok"], "COMPLETED")
        slurm.wait(after["afterany"], "COMPLETED")
        slurm.wait(dropped, "CANCELLED")
        never = slurm.job(after["afterok"])
        assert (never.reason, never.dependency) == ("DependencyNeverSatisfied", f"afterok:{parent}(failed)")

    def test_on_several(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        one, two = slurm.sbatch("true", "--hold"), slurm.sbatch("true", "--hold")
        both = slurm.sbatch("true", f"--dependency=afterok:{one}:{two}")
        any_ = slurm.sbatch("true", f"--dependency=afterok:{one}?afterany:{two}")
        slurm.run("scontrol", "release", one)
        slurm.wait(any_, "COMPLETED")
        assert slurm.job(both).state == "PENDING"
        slurm.run("scontrol", "release", two)
        slurm.wait(both, "COMPLETED")

    def test_on_one_that_nobody_knows(self, slurm_of_both: Cluster) -> None:
        slurm_of_both.wait(slurm_of_both.sbatch("true", "--dependency=afterok:999999"), "COMPLETED")


class TestArrays:
    def test_elements_are_jobs(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        names = "ARRAY_JOB_ID ARRAY_TASK_ID ARRAY_TASK_COUNT ARRAY_TASK_MIN ARRAY_TASK_MAX JOB_ID"
        body = f"echo {' '.join(f'$SLURM_{name}' for name in names.split())}; srun -J task sleep 100"
        array = slurm.sbatch(body, "--array=0-4%2", f"--output={slurm.directory}/%A_%a.out")
        slurm.wait(f"{array}_0", "RUNNING")
        running = slurm.wait(f"{array}_1", "RUNNING")
        assert (running.job_id, running.raw_id == array) == (f"{array}_1", False)
        assert slurm.says(f"{array}_1", "\n") == f"{array} 1 5 0 4 {running.raw_id}\n"
        waits = {
            job.job_id: job.reason
            for job in slurm.client.my_jobs()
            if job.state == "PENDING" and job.job_id.startswith(array)
        }
        assert waits == {f"{array}_{n}": "JobArrayTaskLimit" for n in (2, 3, 4)}
        until(lambda: (f"{array}_0.0", "task") in slurm.client.steps(array), 30)
        slurm.client.split_off(f"{array}_2")
        slurm.client.cancel(f"{array}_2")
        slurm.client.cancel(f"{array}_3")
        slurm.client.cancel(f"{array}_0")
        assert slurm.wait(f"{array}_2", "CANCELLED").comment == "seatrial"
        last = slurm.wait(f"{array}_4", "RUNNING")
        assert last.raw_id == array
        until(lambda: f"{array}_3" not in {job.job_id for job in slurm.client.my_jobs()}, 30)
        [first] = slurm.accounted(f"{array}_0", "CANCELLED")
        assert (first.job_id, [step.step_id for step in first.steps]) == (f"{array}_0", ["batch", "0"])
        slurm.client.cancel(array)
        for n in (1, 4):
            slurm.wait(f"{array}_{n}", "CANCELLED")

    def test_one_element_is_queued_again(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        array = slurm.sbatch(
            "echo restart=${SLURM_RESTART_COUNT-none}; sleep 100",
            "--array=1,3",
            f"--output={slurm.directory}/%A_%a.out",
        )
        for n in (1, 3):
            slurm.says(f"{array}_{n}", "restart=none")
        slurm.client.requeue(f"{array}_1")
        slurm.start_now(f"{array}_1")
        slurm.says(f"{array}_1", "restart=1")
        assert slurm.job(f"{array}_3").restarts == 0


class TestNodes:
    def test_a_drained_node_finishes_its_jobs(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        runs = slurm.sbatch("exec sleep 3", "-w", "node0")
        slurm.wait(runs, "RUNNING")
        refused = slurm.run("scontrol", "update", "NodeName=node0", "State=DRAIN")
        assert refused.returncode == 1
        assert "You must specify a reason" in refused.stdout + refused.stderr
        slurm.run("scontrol", "update", "NodeName=node0", "State=DRAIN", "Reason=xid 79, twice")
        assert [line.rpartition(" [")[0] or line for line in slurm.client.drained(["node0", "node1"])] == [
            "node0: xid 79, twice"
        ]
        assert words(slurm)["node0"] == "draining"
        there, anywhere = slurm.sbatch("true", "-w", "node0"), slurm.sbatch("true", "-N2")
        until(lambda: slurm.job(there).reason.startswith("ReqNodeNotAvail"), 30)
        until(
            lambda: (
                slurm.job(anywhere).reason.replace("_", " ").startswith("Nodes required for job are DOWN")
            ),
            30,
        )
        slurm.wait(runs, "COMPLETED")
        until(lambda: words(slurm)["node0"] == "drained", 30)
        assert "xid 79" in slurm.run("sinfo", "-R").stdout
        slurm.run("scontrol", "update", "NodeName=node0", "State=RESUME")
        slurm.wait(there, "COMPLETED")
        slurm.wait(anywhere, "COMPLETED")
        again = slurm.run("scontrol", "update", "NodeName=node0", "State=RESUME")
        assert again.returncode == 1

    def test_a_node_that_is_taken_down_loses_its_jobs(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        job = slurm.sbatch("exec sleep 100", "-w", "node0")
        slurm.wait(job, "RUNNING")
        slurm.run("scontrol", "update", "NodeName=node0", "State=DOWN", "Reason=smoke")
        assert slurm.wait(job, "PENDING").restarts == 1
        node = slurm.client.nodes()[0]
        assert (node.states, node.reason.partition(" [")[0]) == (("DOWN",), "smoke")
        slurm.run("scontrol", "update", "NodeName=node0", "State=RESUME")
        slurm.start_now(job)
        slurm.wait(job, "RUNNING")

    def test_a_node_that_fails(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        body = "srun bash -c 'echo up; exec sleep 100'"
        half = ["-N2", "--ntasks-per-node=1", "--gpus-per-node=4", "--open-mode=append"]
        again, once = slurm.sbatch(body, *half), slurm.sbatch(body, *half, "--no-requeue")
        for job in (again, once):
            until(lambda job=job: slurm.output(job).count("up") == 2, 30)
        slurm.fail_node("node1")
        ended = slurm.wait(once, "NODE_FAIL")
        assert (ended.restarts, ended.reason) == (0, "NodeDown")
        waits = slurm.wait(again, "PENDING")
        assert waits.restarts == 1
        for job in (again, once):
            slurm.says(
                job,
                "srun: error: Node failure on node1",
                "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
            )
        node = slurm.client.nodes()[1]
        assert set(node.states) >= {"DOWN", "NOT_RESPONDING"}
        assert node.reason.startswith("Not responding")
        assert words(slurm)["node1"] == "down*"
        slurm.mend_node("node1")
        until(lambda: words(slurm)["node1"] == "idle", 60)
        slurm.start_now(again)
        slurm.wait(again, "RUNNING")
        states = [start.state for start in slurm.accounted(again, "RUNNING")]
        assert states == ["NODE_FAIL", "RUNNING"]


def words(slurm: Cluster) -> dict[str, str]:
    """Each node's state, as sinfo calls it."""
    lines = slurm.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.splitlines()
    return dict(line.split() for line in lines)  # type: ignore[misc]


class TestAnswers:
    def test_without_a_controller(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        job = slurm.sbatch("exec sleep 100")
        slurm.wait(job, "RUNNING")
        client = slurm.client
        with slurm.without_controller():
            asks: list[Callable[[], object]] = [
                client.my_jobs, client.nodes, lambda: client.job(job), lambda: client.submit("#!/bin/bash\ntrue\n"),
                lambda: client.cancel(job), lambda: client.requeue(job),
            ]  # fmt: skip
            with ThreadPoolExecutor(len(asks)) as threads:
                for answer in [threads.submit(ask) for ask in asks]:
                    with pytest.raises(PlatformError, match="controller does not answer"):
                        answer.result()
            assert "is DOWN" in slurm.run("scontrol", "ping").stdout
            assert client.hostnames("node[0-1]") == ["node0", "node1"]
            assert client.accounted(job).status == "found"
        assert client.job(job) is not None
        assert "is UP" in slurm.run("scontrol", "ping").stdout

    def test_what_nobody_knows(self, slurm_of_both: Cluster) -> None:
        slurm = slurm_of_both
        assert slurm.client.job("999999") is None
        assert slurm.client.accounted("999999").status == "unknown"
        done = slurm.run("squeue", "-j", "999999")
        assert (done.returncode, done.stderr) == (1, "slurm_load_jobs error: Invalid job id specified\n")
        assert slurm.run("squeue", "--nosuch").returncode == 1
        job = slurm.sbatch("true")
        slurm.wait(job, "COMPLETED")
        done = slurm.run("squeue", "-h", "-j", job)
        assert (done.returncode, done.stdout) == (0, "")
        assert slurm.run(
            "squeue", "-h", "-t", "all", "-j", job, "-o", "%i|%T|%D|%.6q|%-2j"
        ).stdout.startswith(f"{job}|COMPLETED|1|normal|")

    def test_without_accounting(self, plain_of_both: Cluster) -> None:
        slurm = plain_of_both
        job = slurm.sbatch("true", "--qos=nope")
        ended = slurm.wait(job, "COMPLETED")
        assert (ended.qos, ended.account, ended.gpus) == ("", "", 0)
        answer = slurm.client.accounted(job)
        assert (answer.status, answer.words) == ("off", "sacct: Slurm accounting storage is disabled")
        assert slurm.client.qos() == []
        assert slurm.client.associations() == []

    @pytest.mark.parametrize("kind", BOTH)
    def test_jobs_are_forgotten(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if kind == "fake":
            with pretend(monkeypatch, tmp_path, min_job_age_s=1) as fake:
                self._forget(Cluster(fake, tmp_path))
            return
        if reason := SlurmCluster.unavailable(mode="plain", accounting=False):
            pytest.skip(reason)
        with SlurmCluster(mode="plain", accounting=False, settings={"MinJobAge": "3"}) as real:
            for name, value in real.env.items():
                monkeypatch.setenv(name, value)
            self._forget(Cluster(real, tmp_path))

    @staticmethod
    def _forget(slurm: Cluster) -> None:
        job = slurm.sbatch("true")
        until(lambda: (known := slurm.client.job(job)) is None or known.state == "COMPLETED", 30)
        until(lambda: slurm.client.job(job) is None, 60)
        assert [found for found in slurm.client.my_jobs() if found.job_id == job] == []
        with pytest.raises(PlatformError, match=f"Invalid job id specified for job {job}"):
            slurm.client.requeue(job)
