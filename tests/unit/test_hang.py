"""The report of a hang, and ranks that are stopped because nothing uses their devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from seatrial.job import hang
from seatrial.job.heartbeat import Beat, Frozen
from seatrial.job.sampler import active_ports
from seatrial.job.stack import Stack
from seatrial.job.unused import UseWatch
from seatrial.runs.files import read_json, write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.telemetry import Device, Header, Writer
from seatrial.watch.transport import has_fallen_back

FAULTHANDLER = """Thread 0x00007f (most recent call first):
  File "/lib/python3.11/threading.py", line 1045 in _bootstrap_inner
Current thread 0x00007f3a447cab80 (most recent call first):
  File "/site-packages/torch/distributed/distributed_c10d.py", line 2811 in all_reduce
  File "/home/ann/train.py", line 91 in train""".splitlines()
PY_SPY = """Process 6101: python -m train
Thread 6101 (idle): "MainThread"
    read (ann/loader.py:45)
    main (ann/train.py:91)""".splitlines()


def entry(
    number: int, *, name: str = "nccl:all_reduce", group: str = "default_pg", retired: bool = False
) -> dict[str, Any]:
    return {
        "profiling_name": name, "process_group": ["0", group], "collective_seq_id": number, "retired": retired,
        "state": "scheduled", "time_created_ns": number,
    }  # fmt: skip


def plan(tmp_path: Path, **more: Any) -> LaunchPlan:
    values: dict[str, Any] = {
        "run_id": "r", "run_dir": tmp_path, "attempt": 0, "nodes": 2, "nproc": 2, "device": "cuda", "threads": 1, "stages": (),
        "python": "python", "cwd": tmp_path,
    }  # fmt: skip
    return LaunchPlan(**values | more)


class TestReport:
    def test_the_collective_that_most_wait_in_is_named_and_how_far_the_laggard_is(self) -> None:
        dumps = {
            0: {"entries": [entry(46, retired=True), entry(47)]},
            1: {"entries": [entry(45, retired=True), entry(46, retired=True)]},
            2: {"entries": [entry(46, retired=True), entry(47)]},
            3: {"entries": [entry(9, name="gloo:barrier", group="other")]},
        }
        assert hang.waited_for(dumps, 1) == {
            "name": "nccl:all_reduce", "group": "0 default_pg", "number": 47, "ranks": [0, 2], "laggard_number": 46,
        }  # fmt: skip
        assert hang.waited_for({}, 1) is None
        assert hang.waited_for({0: {"entries": [entry(1, retired=True)]}}, 1) is None, "nobody waits"

    @pytest.mark.parametrize(
        ("frames", "expected"),
        [(FAULTHANDLER, "train (train.py:91)"), (PY_SPY, "read (loader.py:45)"), ([], ""), (FAULTHANDLER[:2], "_bootstrap_inner (threading.py:1045)")],
    )  # fmt: skip
    def test_the_innermost_frame_of_the_program_itself(self, frames: list[str], expected: str) -> None:
        assert hang.where(frames) == expected

    def test_one_report_has_all_of_it(self, tmp_path: Path) -> None:
        attempt = RunPaths(tmp_path).attempt(0)
        for rank in (0, 1, 2):
            attempt.flight(rank).parent.mkdir(parents=True, exist_ok=True)
            write_json(attempt.flight(rank), {"schema": 1, "entries": [entry(47)]})
        gpus = tuple(Device(i, f"GPU-{i}", "NVIDIA H100") for i in range(2))
        writer = Writer(attempt.telemetry(1), Header(1, "node-1", "nvml+gpm", "sm_active", 1.0, 0.0, gpus))
        writer.add({"t": 5, "d": [{"busy_pct": 100, "sm_pct": 99}, {"busy_pct": 0, "sm_pct": 0, "xid": 79}]})
        writer.close()
        beats = [Beat(1, 25, 3, 9, "reducing", "")] * 3 + [Beat(7, 24, 3, 9, "reducing", "")]
        frozen = Frozen(3, beats[3], 600.0, "")
        links = [{"port": "mlx5_0:1", "state": "4: ACTIVE", "rate": "400 Gb/sec"}]
        said = hang.write_report(
            attempt, plan(tmp_path), frozen, beats, Stack("process 7 is sleeping", PY_SPY, "py-spy"),
            {"host": "node-1", "links": links}, restarts=True,
        )  # fmt: skip
        assert said == (
            "rank 3 on node-1 holds up the others: step 24, reducing, silent for 600 s, in read (loader.py:45); "
            "3 ranks wait in nccl:all_reduce number 47"
        )
        report = read_json(attempt.hang)
        assert report["devices"][1] == {**dataclasses.asdict(gpus[1]), "busy_pct": 0, "sm_pct": 0, "xid": 79}
        assert (report["decision"], report["links"], report["stack_by"]) == ("restart", links, "py-spy")
        assert report["ranks"][3] == {"rank": 3, "step": 24, "phase": "reducing"}

    def test_a_rank_that_never_spoke(self) -> None:
        assert hang.sentence(Frozen(2, None, 1800.0, ""), "", "", None).startswith(
            "rank 2 holds up the others: it never reported a phase, silent for 1800 s"
        )

    def test_active_ports_are_counted(self, tmp_path: Path) -> None:
        for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
            port = tmp_path / name / "ports/1"
            port.mkdir(parents=True)
            (port / "state").write_text(state + "\n")
        assert active_ports(tmp_path) == 1 and active_ports(tmp_path / "none") == 0


class TestUnused:
    """Two nodes with two GPUs each, sampled every 10 s; the clock is the samples'."""

    def watch(
        self, tmp_path: Path, uses: list[tuple[float, float]], *, steps: int = 50, **more: Any
    ) -> tuple[int | None, Any]:
        """Index of the sample after which the ranks are stopped, and the failure; `uses` are the two nodes' means."""
        planned = plan(tmp_path, **more)
        attempt = RunPaths(tmp_path).attempt(0)
        gpus = tuple(Device(i, f"GPU-{i}", "NVIDIA H100") for i in range(2))
        writers = [
            Writer(attempt.telemetry(i), Header(i, f"node-{i}", "nvml+gpm", "sm_active", 10.0, 0.0, gpus))
            for i in range(2)
        ]
        now = [1000.0]
        use = UseWatch(planned, lambda: now[0])
        assert use.look(0) is None, "nothing is known yet"
        for i, pair in enumerate(uses):
            now[0] += 10
            for writer, percent in zip(writers, pair, strict=True):
                writer.add({"t": now[0], "d": [{"sm_pct": percent}] * 2})
            if (failure := use.look(steps)) is not None:
                return i, failure
        return None, None

    def test_an_idle_job_is_stopped_after_its_minutes(self, tmp_path: Path) -> None:
        at, failure = self.watch(tmp_path, [(90, 90)] * 3 + [(0, 1)] * 30, stop_idle_s=60.0)
        assert at == 8 and failure["exit_code"] == 1
        assert failure["what"] == "no device has done anything for 1.0 minutes"

    def test_one_device_at_work_is_enough(self, tmp_path: Path) -> None:
        assert self.watch(tmp_path, [(0, 40)] * 60, stop_idle_s=60.0) == (None, None)

    def test_use_under_the_gate_stops_training_after_some_patience(self, tmp_path: Path) -> None:
        below = {"min_pct": 80.0, "patience_s": 100.0}
        at, failure = self.watch(tmp_path, [(90, 90)] * 10 + [(40, 40)] * 30, stop_below=below)
        assert at is not None and 10 < at < 20, "the mean of the last minutes, not a moment"
        assert "and 80 % is required" in failure["what"]

    def test_start_up_has_all_the_time_it_needs(self, tmp_path: Path) -> None:
        below = {"min_pct": 80.0, "patience_s": 50.0}
        assert self.watch(tmp_path, [(0, 0)] * 60, steps=1, stop_below=below) == (None, None)

    def test_without_a_wish_nothing_is_read(self, tmp_path: Path) -> None:
        assert not UseWatch(plan(tmp_path)).is_needed
        assert self.watch(tmp_path, [(0, 0)] * 60) == (None, None)


class TestTransport:
    INFO = "node-0:12:34 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>\nnode-0:12:34 [0] NCCL INFO Using network %s\n"

    @pytest.mark.parametrize(
        ("said", "ports", "nodes", "expected"),
        [("Socket", 8, 2, True), ("Socket", 0, 2, False), ("IB", 8, 2, False), (None, 8, 2, None), ("Socket", 8, 1, None)],
    )  # fmt: skip
    def test_sockets_where_there_is_rdma(
        self, tmp_path: Path, said: str | None, ports: int, nodes: int, expected: bool | None
    ) -> None:
        if said is not None:
            (tmp_path / "nccl.node-0.12.log").write_text(self.INFO % said)
        assert has_fallen_back(tmp_path, ports, nodes) is expected
