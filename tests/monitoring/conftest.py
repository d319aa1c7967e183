"""Runs with 16 pretend GPUs as the exporter sees them, and a real Prometheus that scrapes it."""

from __future__ import annotations

import json
import shutil
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seatrial.runs.files import append_json_line, write_json
from seatrial.runs.manifest import now
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage, write_plan
from seatrial.runs.state import RunState
from seatrial.runs.telemetry import Device, Header, Writer
from seatrial.watch.stack import Stack
from tests.trees import make_run

PATH = "/usr/bin:/usr/sbin:/usr/local/bin"


def missing() -> str:
    """Why there is no real Prometheus here; empty where there is one."""
    names = ("prometheus", "promtool", "prometheus-alertmanager")
    lacks = [name for name in names if not shutil.which(name, path=PATH)]
    return (
        f"{', '.join(lacks)} not installed: apt install prometheus prometheus-alertmanager" if lacks else ""
    )


def running(
    root: Path, run_id: str, *, nodes: int = 2, gpus: int = 8, use: float = 60.0, seconds: int = 20
) -> RunPaths:
    """A run that goes on, with samples of the last seconds."""
    paths = make_run(root, run_id, state=RunState.RUNNING, verdict=None, spec={"name": run_id})
    manifest = json.loads(paths.manifest.read_text())
    manifest["attempts"][0] |= {
        "handle": "slurm://77/x",
        "ended": None,
        "exit_code": None,
        "outcome": None,
        "nodes": nodes,
        "nproc": gpus,
    }
    write_json(paths.manifest, manifest)
    attempt = paths.attempt(0)
    write_plan(
        LaunchPlan(run_id=run_id, run_dir=paths.root, attempt=0, nodes=nodes, nproc=gpus, device="cuda", threads=1, python="python",
                   stages=(Stage(name="train", argv=()),), cwd=paths.root, gpus_per_node=gpus) if attempt.root.mkdir() is None else None  # type: ignore[arg-type]
    )  # fmt: skip
    begin = time.time() - seconds - 5
    for rank in range(nodes):
        devices = tuple(
            Device(
                i,
                f"GPU-{run_id}-{rank}-{i}",
                "NVIDIA H100 80GB HBM3",
                memory_bytes=8e10,
                pci=f"00000000:{i:02x}:00.0",
            )
            for i in range(gpus)
        )
        writer = Writer(
            attempt.telemetry(rank),
            Header(rank, f"{run_id}-n{rank}", "nvml+gpm", "sm_active", 1.0, begin, devices),
        )
        for s in range(seconds):
            writer.add({"t": begin + 5 + s, "d": [
                {"busy_pct": 99, "sm_pct": use, "tensor_pct": use / 2, "dram_pct": 40, "memory_bytes": 6e10, "power_w": 600, "power_limit_w": 700,
                 "clock_mhz": 1700, "temperature_c": 60, "reasons": 4, "processes": 1, "xid": 0, "ecc_uncorrectable": 0, "pcie_tx_bytes_s": 1e8,
                 "pcie_rx_bytes_s": 1e8, "nvlink_tx_bytes_s": 1e9, "nvlink_rx_bytes_s": 1e9}] * gpus})  # fmt: skip
        writer.close()
    events = attempt.rank_events(0)
    events.parent.mkdir()
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(begin + 4, UTC).isoformat()
    append_json_line(events, {"event": "started", "stage": "train", "time": at})
    append_json_line(events, {"event": "training", "time": at, "num_steps": 100, "from_step": 0})
    for step in (1, 10, 20):
        append_json_line(paths.metrics, {"kind": "train", "step": step, "loss": 2.0, "window_s": 5.0, "tokens_per_s": 1e5, "samples_per_s": 100.0,
                                         "attempt": 0, "time": now()})  # fmt: skip
    attempt.phases(0).parent.mkdir()
    append_json_line(
        attempt.phases(0),
        {"step": 20, "steps": 20, "wall_s": 10.0, "s": {"data": 5.0, "forward": 2.0, "backward": 2.5}},
    )
    attempt.heartbeat(0).parent.mkdir()
    attempt.heartbeat(0).write_text(f"1 20 1 20 1 {time.time_ns()} training\n")
    write_json(attempt.facts, {"schema": 1, "flops_per_token": 6e9})
    return paths


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Prometheus:
    """A real one, with its Alertmanager."""

    def __init__(self, directory: Path, targets: list[str], dcgm: list[str] | None = None) -> None:
        self.stack = Stack(directory)
        self.urls = self.stack.up(targets, dcgm or [], free_port(), free_port())

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.urls['prometheus']}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


def until(seconds: float, what: Callable[[], Any]) -> Any:
    """What it returns, once that is something."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="session")
def real() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def stack(real: None, tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    started: list[Prometheus] = []

    def start(*targets: str, dcgm: list[str] | None = None) -> Prometheus:
        started.append(Prometheus(tmp_path / f"stack{len(started)}", list(targets), dcgm))
        return started[-1]

    yield start
    for each in started:
        each.stack.down()
