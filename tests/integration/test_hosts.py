"""Runs on several machines over plain ssh: real sshd, real agents, real ranks; what happens when a connection or a process goes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from seatrial.runs.manifest import find_run
from tests.ssh.fleet import PretendFleet, pretend_fleet
from tests.ssh.sshd import Sshd

from .conftest import Done, Seatrial

pytest.importorskip("torch", reason="real ranks need the extra 'train'")
pytestmark = pytest.mark.skipif(bool(Sshd.unavailable()), reason=Sshd.unavailable() or "-")
TWO = ("--on", "hosts", "--nodes", "2", "--nproc", "2")


def until(condition: Callable[[], Any], timeout_s: float = 180) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


class OnHosts:
    def __init__(self, fleet: PretendFleet, seatrial: Seatrial) -> None:
        self.fleet, self.seatrial = fleet, seatrial
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str) -> Done:
        return self.seatrial(*words, **self.fleet.env)

    def start(self, *words: str) -> subprocess.Popen[str]:
        env = self.seatrial.environment(**self.fleet.env)
        self.started.append(
            subprocess.Popen(
                self.seatrial.argv(*words), cwd=self.seatrial.cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            )
        )  # fmt: skip
        return self.started[-1]

    def script(self, body: str) -> str:
        path = self.seatrial.cwd / "script.py"
        path.write_text("import os, sys, time\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], flush=True)\n" + body)  # fmt: skip
        return path.name

    def processes(self, *words: str) -> list[psutil.Process]:
        """What runs on this fleet's machines, or for runs of this directory; with words, what has one of them in its argv."""
        locks = {str(self.fleet.lock(i)) for i in range(len(self.fleet.machines))}
        found = []
        for process in psutil.process_iter():
            try:
                argv = " ".join(process.cmdline())
                ours = (
                    process.environ().get("SEATRIAL_NODE_LOCK") in locks
                    or str(self.seatrial.runs_dir) in argv
                )
                if (
                    ours
                    and process.status() != psutil.STATUS_ZOMBIE
                    and (not words or any(w in argv for w in words))
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def running(self) -> bool:
        """All four ranks have said something."""
        runs = list(self.seatrial.runs_dir.glob("*/attempt-*/logs/rank_00003.log"))
        return bool(runs) and all(path.read_text().startswith("rank 3") for path in runs)

    def supervisor(self) -> psutil.Process:
        [found] = self.processes("seatrial.backends.hosts.supervise")
        return found


@pytest.fixture
def hosts(seatrial: Seatrial, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnHosts]:
    with pretend_fleet(tmp_path_factory.mktemp("fleet") / "f", 2) as fleet:
        found = OnHosts(fleet, seatrial)
        yield found
        for process in found.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def test_from_start_to_end(hosts: OnHosts) -> None:
    done = hosts("run", *TWO, "--", hosts.script("print('node', os.environ.get('SEATRIAL_NODE_RANK'))"))
    assert done.code == 0, done.stderr
    for rank in range(4):
        assert f"[rank {rank}] rank {rank} of 4" in done.stderr
    assert hosts.processes() == []
    assert done.manifest.attempt.handle is not None and done.manifest.attempt.handle.startswith("hosts://")
    log = (done.run.attempt(0).logs / "agent.log").read_text()
    assert "holding node-0" in log and "holding node-1" in log


def test_training_with_a_kill_and_a_resume(hosts: OnHosts, encoder: Path, reviews: Path) -> None:
    steps = (
        "train.epochs=40",
        "train.max_steps=160",
        "train.checkpoint_every=20",
        "train.learning_rate=1e-3",
    )
    process = hosts.start("train", *TWO, "--model", str(encoder), "--data", str(reviews), *steps)
    until(lambda: list(hosts.seatrial.runs_dir.glob("*/checkpoints/step_*/COMMITTED.json")))
    hosts.supervisor().kill()
    process.communicate(timeout=240)
    assert process.returncode in {4, 75}
    # The anchors notice that their connection is gone; what they started saves, and ends.
    until(lambda: not hosts.processes("seatrial.job.agent", "seatrial.backends.hosts.anchor"))
    done = hosts("runs", "resume", "last")
    assert done.code == 0, done.stderr
    rows = [json.loads(line) for line in done.run.metrics.read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"][-1] == 160
    assert "verdict  better" in done.stdout


def test_a_machine_has_one_run_at_a_time(hosts: OnHosts) -> None:
    process = hosts.start("run", *TWO, "--", hosts.script("time.sleep(600)"))
    until(hosts.running)
    run_id = find_run("last", hosts.seatrial.runs_dir).run_id
    second = hosts("run", "--on", "hosts", "--nproc", "1", "--", "script.py")
    assert second.code == 4
    assert "0 of 1 machines can be had" in second.stderr
    assert f"node-0: in use by {run_id}" in second.stderr
    cancelled = hosts("runs", "cancel", run_id)
    assert cancelled.code == 0
    process.communicate(timeout=120)
    until(lambda: not hosts.processes("seatrial.backends.hosts.anchor"))
    free = hosts("run", "--on", "hosts", "--nproc", "1", "--", hosts.script(""))
    assert free.code == 0, free.stderr


def test_the_next_machine_is_taken_for_one_that_is_away(hosts: OnHosts) -> None:
    hosts.fleet.machines[0].stop()
    done = hosts("run", "--on", "hosts", "--nproc", "1", "--", hosts.script(""))
    assert done.code == 0, done.stderr
    log = (done.run.attempt(0).logs / "agent.log").read_text()
    assert "node-0: " in log and "refused" in log and "holding node-1" in log


def test_a_connection_that_is_cut_leaves_nothing(hosts: OnHosts) -> None:
    process = hosts.start("run", *TWO, "--", hosts.script("time.sleep(600)"))
    until(hosts.running)
    hosts.fleet.machines[1].cut()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 75, stderr
    assert "seatrial runs resume" in stderr
    [log] = hosts.seatrial.runs_dir.glob("*/attempt-0/logs/agent.log")
    assert "the connection to node-1 is gone" in log.read_text()
    until(lambda: not hosts.processes("script.py", "seatrial.job.agent", "seatrial.backends.hosts.anchor"))


def test_a_directory_that_is_not_shared(hosts: OnHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet's machines see another file system: said by the first that looks, and nothing hangs."""
    fleet = json.loads(hosts.fleet.file.read_text())
    program = hosts.fleet.directory / "python"
    real = fleet["nodes"][0]["python"]
    # A python that has the run's directory hidden from it.
    program.write_text(
        f'#!/bin/sh\nexec unshare -m sh -c \'mount -t tmpfs tmpfs "{hosts.seatrial.runs_dir}" 2>/dev/null; exec {real} "$@"\' sh "$@"\n'
    )
    program.chmod(0o755)
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces of mounts need root")
    for node in fleet["nodes"]:
        node["python"] = str(program)
    hosts.fleet.file.write_text(json.dumps(fleet))
    done = hosts("run", *TWO, "--", hosts.script(""))
    assert done.code == 4
    assert "must be on a file system that this machine and all others see" in done.stderr


def test_an_acceptance_test(hosts: OnHosts) -> None:
    done = hosts("check", "quick", "--only", "report,cpu,clock", "--on", "hosts", "--nodes", "2", "--nproc", "1", "--gpus", "0")  # fmt: skip
    assert done.code == 0, done.stderr
    assert "2 of 2 nodes pass" in done.stdout
    assert hosts.processes() == []


def test_bad_input(hosts: OnHosts) -> None:
    many = hosts("run", "--on", "hosts", "--nodes", "3", "--nproc", "1", "--", hosts.script(""))
    assert many.code == 2 and "has 2 nodes" in many.stderr
    gpus = hosts("run", "--on", "hosts", "--gpus", "8", "--", "script.py")
    assert gpus.code == 2 and "8 GPUs were asked for" in gpus.stderr
    hosts.fleet.file.write_text("nodes: [{host: a, gpu_count: 8}]")
    wrong = hosts("run", "--on", "hosts", "--", "script.py")
    assert wrong.code == 2 and "unknown key 'nodes.0.gpu_count'" in wrong.stderr
    hosts.fleet.file.unlink()
    none = hosts("run", "--on", "hosts", "--", "script.py")
    assert none.code == 2 and "there is no" in none.stderr and "seatrial node bootstrap" in none.stderr
