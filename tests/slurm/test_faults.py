"""What breaks under a run: processes, nodes, Slurm's own daemons. The run says what it was, and goes on where it can."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from seatrial.runs.files import read_json_lines
from tests.integration.conftest import Seatrial
from tests.slurm import processes
from tests.slurm.attached import Attached, no_orphans, on_nodes, orphans
from tests.slurm.cluster import SlurmCluster

Attach = Callable[..., Attached]
SCRIPT = "run", "--on", "slurm", "--gpus", "0", "--nproc", "2", "--launcher", "warm"
AGENT, SUPERVISOR = "seatrial.job.agent", "seatrial.backends.slurm.batch"

# Waits in its first start, unless it is told to go on, and is done at once in a later one.
WAITS = """
import os, pathlib, time
print("rank", os.environ["RANK"], "on", os.environ["SLURMD_NODENAME"], flush=True)
while os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and not pathlib.Path("go_on").exists():
    time.sleep(0.1)
"""


@pytest.fixture
def waiting(slurm: SlurmCluster, attach: Attach, tmp_path: Path) -> Callable[[int], Attached]:
    """A run on so many nodes whose ranks wait for ``go_on``."""

    def start(nodes: int) -> Attached:
        (tmp_path / "waits.py").write_text(WAITS)
        run = attach(slurm, *SCRIPT, "--nodes", str(nodes), "--", "waits.py")
        run.ranks_run(world_size=2 * nodes)
        return run

    return start


def agents(slurm: SlurmCluster, node: str) -> list[int]:
    """The agent of a node, and what it was started by on other nodes is not among them."""
    found = [p for p in on_nodes(slurm, AGENT) if p.name().startswith("python")]
    return [p.pid for p in found if p.pid in slurm.node_pids(node)]


class TestProcessesDie:
    def test_a_crash_is_told_and_not_repeated(
        self, slurm: SlurmCluster, seatrial: Seatrial, tmp_path: Path
    ) -> None:
        (tmp_path / "crash.py").write_text(
            "import os\nraise SystemExit(7 if os.environ['RANK'] == '3' else 0)\n"
        )
        done = seatrial(*SCRIPT, "--nodes", "2", "--", "crash.py")
        assert done.code == 4
        assert "rank 3 ended with exit code 7" in done.stderr
        assert "first failing rank: 3" in done.stderr
        assert [record.outcome for record in done.manifest.attempts] == ["failed"]
        job = slurm.wait_job(done.manifest.attempts[0].handle.split("/")[2], "FAILED")  # type: ignore[union-attr]
        assert (job["Restarts"], job["ExitCode"]) == ("0", "4:0")

    def test_a_killed_rank(self, slurm: SlurmCluster, waiting: Callable[[int], Attached]) -> None:
        run = waiting(2)
        ranks_of(slurm, "node1")[0].kill()
        assert run.wait() == 4
        assert "was killed by SIGKILL" in run.said
        assert run.outcomes() == ["failed"]
        assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)

    @pytest.mark.parametrize("node", [0, 1])
    def test_a_killed_agent(self, slurm: SlurmCluster, waiting: Callable[[int], Attached], node: int) -> None:
        run = waiting(2)
        for pid in agents(slurm, f"node{node}"):
            processes.kill([p for p in on_nodes(slurm, AGENT) if p.pid == pid])
        assert run.wait() == 4
        said = "the agent of node 1 (node1) is gone" if node else "the agents left no record"
        assert said in run.said
        assert run.outcomes() == ["failed"]
        assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)

    @pytest.mark.parametrize("program", ["supervisor", "srun"])
    def test_a_killed_supervisor_or_srun(
        self, slurm: SlurmCluster, waiting: Callable[[int], Attached], program: str
    ) -> None:
        run = waiting(2)
        if program == "supervisor":
            found = on_nodes(slurm, SUPERVISOR)
        else:
            found = [p for p in on_nodes(slurm, AGENT) if processes.words(p)[0] == "srun"]
        assert found
        processes.kill(found)
        # Slurm asks the agents to leave a job whose script is gone: what they saved is there, and why is Slurm's to say.
        assert run.wait() == (4 if program == "srun" else 75), run.said
        assert ("srun ended with" if program == "srun" else "it was killed (SIGKILL)") in run.said
        assert run.outcomes() == ["failed" if program == "srun" else "preempted"]
        assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)


def ranks_of(slurm: SlurmCluster, node: str) -> list[psutil.Process]:
    """The ranks on a node: what the warm process has become there."""
    pids = set(slurm.node_pids(node))
    warm = [p for p in on_nodes(slurm, "seatrial.job.warm") if p.pid in pids]
    return [rank for process in warm for rank in process.children()]


class TestDaemonsDie:
    def test_slurmd_is_killed_and_started_again(
        self, slurm: SlurmCluster, waiting: Callable[[int], Attached], tmp_path: Path
    ) -> None:
        run = waiting(2)
        slurm.kill_slurmd("node1")
        slurm.boot("node1")
        (tmp_path / "go_on").touch()
        assert run.wait() == 0, run.said
        assert run.outcomes() == ["completed"]

    def test_the_controller_is_away_for_a_while(
        self, slurm: SlurmCluster, waiting: Callable[[int], Attached], tmp_path: Path
    ) -> None:
        """The command says so, waits, and sees the run through; so does the job."""
        run = waiting(1)
        slurm.run("scontrol", "show", "job", run.job)
        slurm.stop_controller()
        run.until(lambda: "controller does not answer" in run.said, "the command says so")
        show = run.seatrial("runs", "show", "last", timeout=120)
        assert "controller does not answer; it was" in show.stdout
        slurm.start_controller()
        (tmp_path / "go_on").touch()
        assert run.wait() == 0, run.said
        assert run.outcomes() == ["completed"]

    def test_the_controller_is_away_when_the_run_ends(
        self, slurm: SlurmCluster, waiting: Callable[[int], Attached], tmp_path: Path
    ) -> None:
        run = waiting(1)
        slurm.stop_controller()
        (tmp_path / "go_on").touch()
        run.until(run.run.attempt(0).exit.exists, "the attempt ends")
        slurm.start_controller()
        assert run.wait() == 0, run.said

    def test_the_accounting_is_away(
        self, slurm: SlurmCluster, waiting: Callable[[int], Attached], tmp_path: Path
    ) -> None:
        run = waiting(1)
        slurm.stop_dbd()
        (tmp_path / "go_on").touch()
        assert run.wait() == 0, run.said
        slurm.start_dbd()


class TestNodesDie:
    @pytest.mark.parametrize("node", ["node0", "node1"])
    def test_a_node_crashes(self, slurm: SlurmCluster, waiting: Callable[[int], Attached], node: str) -> None:
        """Slurm notices, queues the job again, and the run goes on when the node is back."""
        run = waiting(2)
        slurm.crash(node)
        run.until(lambda: slurm.states()[node].startswith("down"), f"Slurm notices that {node} is down")
        slurm.boot(node)
        if (
            slurm.mode == "ns"
        ):  # its network card is another one now, and the others remember the old one for a while
            for other in slurm.nodes:
                slurm.on(other, "ip", "neigh", "flush", "all")
        run.queued_again(1)
        assert run.wait() == 0, run.said
        assert len(run.outcomes()) == 2
        assert run.outcomes()[1] == "completed"
        assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)

    @pytest.mark.slow
    def test_a_frozen_agent_is_noticed_by_its_silence(
        self, slurm: SlurmCluster, waiting: Callable[[int], Attached]
    ) -> None:
        run = waiting(2)
        began = time.monotonic()
        frozen = [p for p in on_nodes(slurm, AGENT) if p.pid in agents(slurm, "node1")]
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        code = run.wait(200)
        assert (code, run.outcomes()) == (4, ["failed"]), run.said
        assert "the agent of node 1 (node1) is gone" in run.said and "nothing heard for 60 s" in run.said
        assert time.monotonic() - began < 150
        assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)

    def test_too_little_memory(self, slurm_ns: SlurmCluster, seatrial: Seatrial, tmp_path: Path) -> None:
        if not slurm_ns.plan.memory_limits:
            pytest.skip("no memory cgroups of version 1 here")
        (tmp_path / "hog.py").write_text("b = bytearray(3 << 30)\nprint(len(b))\n")
        (tmp_path / "site.yaml").write_text("defaults: {slurm: {mem: 1200M}}\n")
        done = seatrial(*SCRIPT, "--", "hog.py", SEATRIAL_CONFIG=str(tmp_path / "site.yaml"))
        assert done.code == 4
        assert "memory" in done.stderr
        assert [record.outcome for record in done.manifest.attempts] == ["failed"]


def test_requeued_while_a_checkpoint_is_written(
    slurm: SlurmCluster, attach: Attach, training: list[str], undisturbed: Callable[[int], str | None]
) -> None:
    """A part of a checkpoint is never gone on from."""
    run = attach(slurm, *training, "--on", "slurm", "--nproc", "2", fault="slow_disk:step=20,seconds=30")
    writing = run.run.checkpoints
    run.until(lambda: list(writing.glob("step_000020.writing")), "the checkpoint of step 20 is being written")
    slurm.run("scontrol", "requeue", run.job)
    run.queued_again(1)
    assert run.wait() == 0, run.said
    rows = list(read_json_lines(run.run.attempt(1).rank_events(0)))
    assert next(row["from_step"] for row in rows if row["event"] == "training") == 10
    assert run.weights() == undisturbed(2)
    assert no_orphans(slurm, run.run.root), orphans(slurm, run.run.root)
