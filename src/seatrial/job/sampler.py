"""The sampler of a node: ``python -m seatrial.job.sampler RUN_DIR --attempt K --node-rank N``, from the agent's first moment on.

A process of its own: a driver that has lost a GPU may never answer, and then neither the agent nor the ranks must wait.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from seatrial.job import processes
from seatrial.job.beside import Beside
from seatrial.job.devices.base import DeviceReader, NoDevicesError
from seatrial.job.devices.choose import reader
from seatrial.runs.clock import now
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan
from seatrial.runs.telemetry import Header, Writer

_AGAIN_S = 10.0


def start_if_wanted(plan: LaunchPlan, node_rank: int) -> Beside | None:
    """The sampler's process, unless the plan wants none."""
    if plan.sample_every_s <= 0:
        return None
    words = ("--attempt", str(plan.attempt), "--node-rank", str(node_rank))
    return Beside(plan, "sampler", *words, node_rank=node_rank)


def main() -> int:
    """Samples until it is asked to end. Always 0: what can't be sampled fails no run, and is unmeasured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--node-rank", type=int, required=True)
    args = parser.parse_args()
    agent = os.getppid()
    processes.die_with_parent()
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: done.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan = read_plan(args.run_dir, args.attempt)
    path = RunPaths(plan.run_dir).attempt(plan.attempt).telemetry(args.node_rank)
    try:
        asked = reader(plan.device, plan.gpus_per_node, agent)
    except NoDevicesError as refusal:
        _say(f"nothing to sample: {refusal}")
        return 0
    every_s = max(plan.sample_every_s, asked.at_least_s)
    header = Header(
        args.node_rank, socket.gethostname(), asked.source, asked.metric, every_s, time.time(), asked.devices,
        missing=asked.missing, rdma_ports=active_ports(),
    )  # fmt: skip
    _say(f"{len(asked.devices)} devices by {asked.source}, every {every_s:g} s")
    writer = Writer(path, header)
    try:
        sample(asked, writer, every_s, done.wait)
    finally:
        writer.close()
    return 0


def sample(
    asked: DeviceReader, writer: Writer, every_s: float, wait: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Rows at a steady pace, until `wait(seconds)` says that it is over; a reading that takes longer leaves rows out.

    Args:
        asked: what is read.
        writer: where it goes.
        every_s: seconds from row to row.
        wait: waits, and tells whether it is over.
        clock: seconds that never jump.
    """
    begun, number = clock(), 0
    while True:
        number = max(number + 1, int((clock() - begun) // every_s) + 1)
        if wait(max(0.0, begun + number * every_s - clock())):
            return
        try:
            devices = asked.read()
        except Exception as error:
            # Of a library or a driver in trouble. What is not seen is missing from the coverage, never made up.
            _say(f"error: {type(error).__name__}: {error}")
            if wait(_AGAIN_S):
                return
            continue
        writer.add({"t": round(time.time(), 3), "d": devices})


def active_ports(root: Path = Path("/sys/class/infiniband")) -> int:
    """InfiniBand and RoCE ports of this node that are active. (`checks.fabric` tells all of them, and takes long to import.)"""
    states = []
    for path in root.glob("*/ports/*/state"):
        with contextlib.suppress(OSError):
            states.append(path.read_text())
    return sum("ACTIVE" in state for state in states)


def _say(text: str) -> None:
    print(f"{now()} {text}", flush=True)  # noqa: T201 - the sampler's log


if __name__ == "__main__":
    sys.exit(main())
