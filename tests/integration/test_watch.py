"""`seatrial watch` on real runs: causes that were injected are named, gates end with their exit codes, hangs are reported."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seatrial.cli.outcome import use_code
from seatrial.runs.evidence import read_evidence
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.telemetry import read_attempt
from seatrial.testing.gpus import FakeGpus, Gpu

from .conftest import Seatrial
from .test_main_job import losses, wait_for

Make = Callable[..., str]


@pytest.mark.parametrize(
    ("fault", "cause", "evidence"),
    [
        ("slow_data:step=1,ms=80", r"data-bound: \d+ of \d+ ms in the loader", "waits for its batch"),
        ("slow_comm:step=1,ms=80", r"communication-bound: \d+ of \d+ ms in reducing gradients", "waits least"),
        ("slow_rank:rank=1,step=1,ms=80", r"one straggler: rank 1 on ", "most of it more in forward"),
    ],
    ids=["loader", "network", "straggler"],
)  # fmt: skip
def test_the_cause_of_a_slow_run_is_named(
    seatrial: Seatrial, recipe: Make, fault: str, cause: str, evidence: str
) -> None:
    done = seatrial(
        "train",
        recipe(max_steps=80, checkpoint_every=40),
        "--train-only",
        "--min-utilisation",
        "101",
        fault=fault,
    )
    assert done.code == 2 and "gates.utilisation.min" in done.stderr, "not a percentage"
    done = seatrial(
        "train",
        recipe(max_steps=80, checkpoint_every=40),
        "--train-only",
        "--min-utilisation",
        "90",
        fault=fault,
    )
    assert done.code == 1, done.stderr
    found = read_json(done.run.utilisation)
    assert re.match(cause, found["causes"][0]["sentence"]) and evidence in " ".join(
        found["causes"][0]["evidence"]
    )
    assert found["metric"] == "cpu_busy" and found["verdict"] == "FAIL"
    assert re.search(r"^use +FAIL: processor time of the job \(no GPU: a stand-in\) \d", done.stdout, re.M)
    judged = next(e for e in read_evidence(done.run.evidence) if e.check == "utilisation")
    assert (judged.verdict, judged.expected, judged.unit) == (
        "FAIL",
        90,
        "percent",
    ) and "cpu_busy by psutil" in judged.source
    again = seatrial("watch", "last", "--require", "1")
    assert (
        again.code == 0
        and again.stdout.startswith("PASS: ")
        and "MFU unmeasured (no peak is known for processors" in again.stdout
    )


def test_what_is_measured_of_a_run(seatrial: Seatrial, recipe: Make) -> None:
    """Samples of the whole attempt, phases of each rank that add up to the time, and figures in every form."""
    done = seatrial("train", recipe(epochs=6, eval_every=40), fault="slow_data:step=1,ms=20")
    assert done.code == 0, done.stderr
    attempt = done.run.attempt(0)
    (node,) = read_attempt(attempt.root)
    ended = read_json(attempt.exit)
    assert node.header.source == "psutil" and len(node.times) >= 4
    for rank in (0, 1):
        rows = list(read_json_lines(attempt.phases(rank)))
        assert sum(row["steps"] for row in rows) == 204
        for row in rows:
            assert sum(row["s"].values()) == pytest.approx(row["wall_s"], rel=0.4), (
                "most of the time has a name"
            )
            assert row["s"]["communication"] > 0 and row["s"]["data"] >= 0.02 * row["steps"]
    found = read_json(done.run.utilisation)
    assert [s["name"] for s in found["spans"]][:2] == ["start-up", "training"]
    assert {"evaluation", "predicting"} <= {s["name"] for s in found["spans"]}
    assert 0.02 < found["goodput"] <= 1 and found["device_hours"] > 0
    assert found["tflops_per_rank"] > 0 and found["mfu"] is None and "processors" in found["mfu_reason"]
    assert "Use of the processors" in done.run.report.read_text()
    picture = json.loads(seatrial("watch", "--json").stdout)
    assert (picture["state"], picture["step"], picture["num_steps"]) == ("completed", 204, 204)
    assert (
        picture["phases"]["data"] > 0.02
        and len(picture["ranks"]) == 2
        and picture["devices"][0]["kind"] == "cpu"
    )
    assert "step 204/204" in seatrial("watch", "last", "--once").stdout
    assert ended["outcome"] == "completed"


def test_a_frozen_rank_is_reported_with_the_collective_that_the_others_wait_in(
    seatrial: Seatrial, recipe: Make
) -> None:
    done = seatrial(
        "train", recipe(max_steps=60, hang_timeout_s=4), "--train-only", fault="freeze:rank=1,step=25"
    )
    assert done.code == 4
    report = read_json(done.run.attempt(0).hang)
    assert (report["rank"], report["step"]) == (1, 24)
    assert report["waiting"]["name"] == "gloo:all_reduce" and report["waiting"]["ranks"] == [0]
    assert report["waiting"]["laggard_number"] == report["waiting"]["number"] - 1
    assert "before_step (faults.py:" in report["in"] and any(
        "before_step" in line for line in report["stack"]
    )
    assert report["devices"] and report["decision"] == "stop"
    assert "which it has not joined" in done.stderr
    assert "hang: rank 1 on" in seatrial("watch", "last", "--once").stdout


SCRIPT = """
import os, time
end = time.monotonic() + float(os.environ["FOR_S"])
while time.monotonic() < end:
    sum(range(10000))
"""


class TestGpus:
    """A script of one rank on a machine with eight pretend GPUs."""

    BUSY = Gpu(busy=100, sm=92.0, tensor=55, used_mib=60000, power_w=650, processes=1)

    def run(
        self, seatrial: Seatrial, tmp_path: Path, gpus: list[Gpu], *words: str, seconds: float = 9
    ) -> Any:
        fake = FakeGpus(tmp_path / "gpus", gpus)
        (tmp_path / "busy.py").write_text(SCRIPT)
        env = fake.environment() | {"FOR_S": str(seconds)}
        changed = {key: env[key] for key in ("SEATRIAL_FAKE_GPUS", "PATH", "PYTHONPATH", "FOR_S")}
        return seatrial("run", "--nproc", "1", *words, "--", str(tmp_path / "busy.py"), **changed)

    def test_seven_of_eight_without_a_process(self, seatrial: Seatrial, tmp_path: Path) -> None:
        done = self.run(seatrial, tmp_path, [self.BUSY] + [Gpu()] * 7, "--min-utilisation", "80")
        assert done.code == 1, done.stdout + done.stderr
        found = read_json(done.run.utilisation)
        assert found["metric"] == "sm_active" and found["source"] == "nvml+gpm"
        assert found["mean_pct"] == pytest.approx(92 / 8, abs=0.1)
        assert found["causes"][0]["sentence"] == "7 of 8 GPUs have no process"
        assert found["idle"][0].endswith("gpu 1: 0 %, no process")
        assert "7 of 8 GPUs have no process" in done.stdout

    def test_all_of_them_used(self, seatrial: Seatrial, tmp_path: Path) -> None:
        done = self.run(seatrial, tmp_path, [self.BUSY] * 2, "--min-utilisation", "80")
        assert done.code == 0, done.stdout + done.stderr
        assert "use      PASS: SM activity 92.0 % (mean of 2 devices" in done.stdout

    def test_too_short_to_tell_is_incomplete(
        self, seatrial: Seatrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tmp_path / "config.yaml"
        config.write_text("defaults: {resources: {sample_every_s: 20}}\n")
        monkeypatch.setenv("SEATRIAL_CONFIG", str(config))
        done = self.run(seatrial, tmp_path, [self.BUSY] * 2, "--min-utilisation", "80", seconds=0.5)
        assert done.code == 3 and "UNMEASURED" in done.stdout, done.stdout

    def test_an_idle_job_is_stopped(self, seatrial: Seatrial, tmp_path: Path) -> None:
        config = tmp_path / "config.yaml"
        config.write_text("defaults: {gates: {utilisation: {stop_idle_minutes: 0.1}}}\n")
        fake = FakeGpus(tmp_path / "gpus", [Gpu()] * 2)
        (tmp_path / "busy.py").write_text(SCRIPT)
        env = fake.environment() | {"FOR_S": "300", "SEATRIAL_CONFIG": str(config)}
        changed = {
            key: env[key] for key in ("SEATRIAL_FAKE_GPUS", "PATH", "PYTHONPATH", "FOR_S", "SEATRIAL_CONFIG")
        }
        began = time.monotonic()
        done = seatrial("run", "--nproc", "1", "--", str(tmp_path / "busy.py"), **changed)
        assert done.code == 1 and re.search(r"no device has done anything for 0.\d minutes", done.stderr), (
            done.stderr
        )
        assert time.monotonic() - began < 120


def test_a_required_gate_that_could_not_be_kept_is_incomplete() -> None:
    """A full disk takes the file, not the requirement."""
    assert use_code(None, required=True) == 3 and use_code(None, required=False) == 0
    assert [use_code({"verdict": v}, required=True) for v in ("PASS", "FAIL", "UNMEASURED")] == [0, 1, 3]


class Screen:
    """A child on a pseudo-terminal, and what it shows."""

    def __init__(self, seatrial: Seatrial, *words: str, size: tuple[int, int] = (24, 80)) -> None:
        self.pyte = pytest.importorskip("pyte", reason="needs pyte")
        self.screen = self.pyte.Screen(size[1], size[0])
        self.stream = self.pyte.ByteStream(self.screen)
        self.main, child = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(child)
        self.child = child
        self.process = subprocess.Popen(
            seatrial.argv(*words), stdin=child, stdout=child, stderr=child, cwd=seatrial.cwd, start_new_session=True,
            env=seatrial.environment(TERM="xterm-256color", COLUMNS="", LINES=""),
        )  # fmt: skip

    def resize(self, rows: int, columns: int) -> None:
        import fcntl

        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def until(self, text: str, seconds: float = 30) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.main], [], [], 0.2)[0]:
                try:
                    self.stream.feed(os.read(self.main, 65536))
                except OSError:
                    break
            if text in "\n".join(self.screen.display):
                return "\n".join(self.screen.display)
        raise AssertionError(f"{text!r} is not on the screen:\n" + "\n".join(self.screen.display))

    def press(self, key: str) -> None:
        os.write(self.main, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)
        os.close(self.child)


@pytest.mark.parametrize("leave", ["q", "ctrl-c"])
def test_the_live_view_follows_a_run_and_leaves_it_alone(
    seatrial: Seatrial, recipe: Make, leave: str
) -> None:
    started = seatrial(
        "train", recipe(epochs=4000, log_every=1), "--detach", "--train-only", fault="slow_data:step=1,ms=50"
    )
    wait_for(lambda: len(losses(started.run)) > 5)
    screen = Screen(seatrial, "watch", "last", "--every", "0.5")
    try:
        shown = screen.until("processor time of the job")
        assert "running" in shown and "step " in shown and "loss" in shown
        screen.until("data-bound")
        screen.press("p")
        screen.until("ranks, the furthest behind first")
        screen.press("?")
        screen.until("q quit   s sort")
        screen.press("\x1b")
        screen.until("sorted by node")
        screen.press("s")
        screen.until("sorted by use")
        screen.resize(40, 140)
        screen.process.send_signal(signal.SIGWINCH)
        screen.until("memory GiB")
        screen.press("q") if leave == "q" else screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(20) == 0
        assert termios.tcgetattr(screen.child)[3] == screen.before[3], "the terminal is as it was"
        screen.until("it goes on")
    finally:
        screen.close()
        seatrial("runs", "cancel", "last")
    wait_for(started.run.attempt(0).exit.exists)


def test_plain_lines_where_there_is_no_terminal(seatrial: Seatrial, recipe: Make) -> None:
    started = seatrial(
        "train",
        recipe(epochs=4, max_steps=120, log_every=1),
        "--detach",
        "--train-only",
        fault="slow_data:step=1,ms=30",
    )
    done = seatrial("watch", started.run.run_id)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("completed") or "cause" in lines[-1]
    assert any(line.startswith("completed  step 120/120") for line in lines) and any(
        "data-bound" in line for line in lines
    )
    assert "\x1b" not in done.stdout


def test_wrong_requests(seatrial: Seatrial, recipe: Make) -> None:
    assert seatrial("watch", "nothing-like-it").code == 2
    assert seatrial("watch", "last", "--require", "0").code == 2
    seatrial("train", recipe(max_steps=3), "--train-only", "resources.sample_every_s=0")
    done = seatrial("watch", "last", "--require", "50")
    assert done.code == 3 and "nothing was sampled" in done.stdout
    done = seatrial("watch", "last", "--floor", "50")
    assert done.code == 2 and "--require 80 --floor 50" in done.stderr
