"""Programs of the acceptance test as real processes on this machine: CPU ranks of pretend nodes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seatrial.job.checks.task import VARIABLE, Task
from seatrial.runs.plan import Device
from seatrial.runs.samples import Sample, read_all
from seatrial.spec.checks import SuiteSpec


def run_program(
    program: str,
    where: Path,
    *checks: str,
    nodes: int = 1,
    nproc: int = 2,
    inject: Sequence[str] = (),
    device: Device = "cpu",
    absent: int | None = None,
    options: dict[str, Any] | None = None,
    timeout_s: float = 60,
    **suite: Any,
) -> tuple[list[Sample], list[int], str]:
    """Runs a program on every rank but one that is to be absent; samples, exit codes by rank, and what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    spec = SuiteSpec(name="test", checks=checks, **suite)
    for rank in range(nodes * nproc):
        if rank == absent:
            continue
        node, gpu = divmod(rank, nproc)
        task = Task(
            node=f"node{node}", node_rank=node, nodes={n: f"node{n}" for n in range(nodes)}, nproc=nproc, gpu=gpu,
            device=device, checks=spec.checks, suite=spec.model_dump(mode="json"), inject=tuple(inject), rehearse=True,
            run_dir=where, attempt=1, out=where / "samples" / f"{program}-{rank}.jsonl", options=options or {},
        )  # fmt: skip
        env = os.environ | {
            VARIABLE: task.to_text(), "RANK": str(rank), "LOCAL_RANK": str(gpu), "WORLD_SIZE": str(nodes * nproc),
            "LOCAL_WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        argv = [sys.executable, "-m", f"seatrial.job.checks.{program}"]
        started.append(
            subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        printed = [process.communicate(timeout=timeout_s)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return list(read_all(where / "samples")), [process.returncode for process in started], "\n".join(printed)
