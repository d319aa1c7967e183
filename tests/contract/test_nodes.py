"""Several agents make one attempt: the same on one machine as on many, since they share nothing but files and a port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from seatrial.launch import launcher
from seatrial.runs.files import read_json
from seatrial.runs.paths import AttemptPaths, RunPaths
from seatrial.runs.plan import LaunchPlan, Stage, write_plan
from seatrial.spec.run import ScriptSpec

pytestmark = pytest.mark.integration
pytest.importorskip("torch", reason="real ranks need the extra 'train'")

SUM = """
import os, torch, torch.distributed as dist
if __name__ == "__main__":
    dist.init_process_group("gloo")
    total = torch.tensor([float(os.environ["RANK"])]); dist.all_reduce(total)
    print(os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["GROUP_RANK"], os.environ["WORLD_SIZE"], int(total), flush=True)
    dist.destroy_process_group()
"""
WAIT = """
import os, pathlib, signal, sys, time
def on_term(*_):
    raise SystemExit(75)
signal.signal(signal.SIGTERM, on_term)
here = pathlib.Path(os.environ["SEATRIAL_RUN_DIR"], f"here_{os.environ['RANK']}")
here.write_text(str(os.getpid()))
"""
FOREVER = WAIT + "time.sleep(600)\n"
FAILS_ONCE = WAIT + (
    "if os.environ['SEATRIAL_RESTART'] == '0': \n"
    "    if os.environ['RANK'] == '3': sys.exit(9)\n"
    "    time.sleep(600)\n"
    "print('restarted', flush=True)\n"
)


class Team:
    """The agents of one attempt, each as a scheduler would start it on a node of its own."""

    def __init__(self, tmp_path: Path, body: str, nodes: int, **more: Any) -> None:
        (tmp_path / "ranks.py").write_text(body)
        paths = RunPaths(tmp_path / "run")
        launcher.create(paths, ScriptSpec(name="s", command=("ranks.py",), cwd=str(tmp_path)), ["seatrial"])
        self.plan = LaunchPlan(
            run_id="run", run_dir=paths.root, attempt=0, nodes=nodes, nproc=2, device="cpu", threads=1,
            stages=(Stage(name="script", argv=("ranks.py",), reports=False),), python=sys.executable, cwd=tmp_path,
            grace_s=5, **more,
        )  # fmt: skip
        self.attempt: AttemptPaths = paths.attempt(0)
        self.attempt.root.mkdir()
        write_plan(self.plan)
        self.port = meeting_port()
        self.agents: dict[int, subprocess.Popen[str]] = {}

    def start(self, *node_ranks: int, token: str = "secret", patience_s: int = 60) -> None:
        for node_rank in node_ranks:
            env = {
                **os.environ, "NODE": str(node_rank), "SEATRIAL_LEAD": f"127.0.0.1:{self.port}",
                "SEATRIAL_LINK_TOKEN": token, "SEATRIAL_HOSTS": "gpu-a,gpu-b,gpu-c", "SEATRIAL_CHECK_IN_S": str(patience_s),
            }  # fmt: skip
            self.agents[node_rank] = subprocess.Popen(
                [sys.executable, "-m", "seatrial.job.agent", str(self.plan.run_dir), "--attempt", "0",
                 "--node-rank-from", "NODE"],
                env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self, timeout_s: float = 90) -> dict[str, Any]:
        """The exit record, once every agent has ended."""
        until = time.monotonic() + timeout_s
        for agent in self.agents.values():
            agent.wait(max(1, until - time.monotonic()))
        return dict(read_json(self.attempt.exit))

    def ranks(self, world_size: int) -> list[int]:
        """The pids of all ranks, once they are there."""
        until = time.monotonic() + 60
        files = [self.plan.run_dir / f"here_{rank}" for rank in range(world_size)]
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < until, "the ranks never came"
            time.sleep(0.05)
        return [int(file.read_text()) for file in files]


def meeting_port() -> int:
    """A port with free ones above it, below the range that the kernel hands out."""
    for port in range(12000 + os.getpid() % 10000, 32000, 50):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Callable[..., Team]]:
    made: list[Team] = []

    def make(body: str, nodes: int = 2, **more: Any) -> Team:
        made.append(Team(tmp_path, body, nodes, **more))
        return made[-1]

    yield make
    for one in made:
        for agent in one.agents.values():
            if agent.poll() is None:
                agent.kill()
                agent.wait()


def assert_gone(pids: list[int], within_s: float = 15) -> None:
    until = time.monotonic() + within_s
    while left := [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != "zombie"]:
        assert time.monotonic() < until, f"{left} live on"
        time.sleep(0.1)


@pytest.mark.parametrize(("nodes", "launcher_name"), [(2, "warm"), (3, "warm"), (2, "torchrun")])
def test_ranks_of_all_nodes_make_one_world(team: Callable[..., Team], nodes: int, launcher_name: str) -> None:
    attempt = team(SUM, nodes, launcher=launcher_name)
    attempt.start(*reversed(range(nodes)))  # whoever comes first waits
    assert attempt.wait()["outcome"] == "completed"
    world = 2 * nodes
    for rank in range(world):
        expected = f"{rank} {rank % 2} {rank // 2} {world} {sum(range(world))}\n"
        assert attempt.attempt.rank_log(rank).read_text() == expected
    rows = read_json(attempt.attempt.nodes)["nodes"]
    assert [row["node_rank"] for row in rows] == list(range(nodes))
    assert all(row["facts"]["cpus_usable"] for row in rows)
    assert [agent.returncode for agent in attempt.agents.values()] == [0] * nodes


def test_a_rank_that_dies_ends_all_nodes_and_is_named(team: Callable[..., Team]) -> None:
    attempt = team(FOREVER)
    attempt.start(0, 1)
    pids = attempt.ranks(4)
    os.kill(pids[3], signal.SIGKILL)
    failure = attempt.wait(30)["failure"]
    assert (failure["rank"], failure["what"]) == (3, "rank 3 was killed by SIGKILL")
    assert_gone(pids)


def test_all_nodes_start_again_together(team: Callable[..., Team]) -> None:
    attempt = team(FAILS_ONCE, max_restarts=2)
    attempt.start(0, 1)
    record = attempt.wait()
    assert record["outcome"] == "completed"
    assert [row["what"] for row in record["stages"][0]["restarts"]] == ["rank 3 ended with exit code 9"]
    assert all("restarted" in attempt.attempt.rank_log(rank).read_text() for rank in range(4))


@pytest.mark.parametrize("node_rank", [0, 1])
def test_a_signal_to_any_agent_stops_all_ranks_together(team: Callable[..., Team], node_rank: int) -> None:
    attempt = team(FOREVER)
    attempt.start(0, 1)
    attempt.ranks(4)
    attempt.agents[node_rank].send_signal(signal.SIGUSR2)
    record = attempt.wait(30)
    assert (record["outcome"], record["exit_code"]) == ("preempted", 75)
    assert record["failure"] is None


@pytest.mark.parametrize("node_rank", [0, 1])
def test_an_agent_that_dies_leaves_no_rank_anywhere(team: Callable[..., Team], node_rank: int) -> None:
    attempt = team(FOREVER)
    attempt.start(0, 1)
    pids = attempt.ranks(4)
    attempt.agents[node_rank].kill()
    attempt.agents[node_rank].wait()
    if node_rank == 1:
        assert attempt.wait(30)["failure"]["what"] == "the agent of node 1 (gpu-b) is gone"
    else:
        assert attempt.agents[1].wait(30) == 4
        assert not attempt.attempt.exit.exists()  # whoever started it says that it is lost
    assert_gone(pids)


def test_a_node_that_never_comes_is_named_in_time(team: Callable[..., Team]) -> None:
    attempt = team(SUM, nodes=3)
    attempt.start(0, 2, patience_s=5)
    failure = attempt.wait(30)["failure"]
    assert failure["what"] == "1 of 3 nodes did not check in: node 1 (gpu-b)"
    assert not attempt.attempt.rank_log(0).exists()


def test_a_node_that_runs_something_else_is_refused(team: Callable[..., Team], tmp_path: Path) -> None:
    attempt = team(SUM)
    attempt.start(1, token="another attempt's", patience_s=4)
    attempt.start(0, patience_s=4)
    assert "did not check in: node 1 (gpu-b)" in attempt.wait(30)["failure"]["what"]


def test_a_stop_before_all_nodes_are_there_is_heard(team: Callable[..., Team]) -> None:
    attempt = team(SUM)
    attempt.start(0)
    time.sleep(3)
    attempt.agents[0].send_signal(signal.SIGTERM)
    assert attempt.wait(20)["outcome"] == "preempted"
