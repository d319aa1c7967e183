"""This machine as a place to run on: cores and GPUs, without importing torch."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass, field
from typing import Any

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.runs.visible import visible


@dataclass(frozen=True, slots=True)
class Machine:
    """What a launch plan needs to know of a machine, or of each node of a platform."""

    hostname: str
    cpus: int
    """Cores that this process may use (its affinity, not the machine's total)."""
    gpus: tuple[str, ...]
    """Names of the GPUs that a job started here would see."""
    evidence: str
    """Where the GPU count comes from."""
    nodes: int = 1
    """How many there are."""
    platform: str = "local"
    native: dict[str, Any] = field(default_factory=dict)
    """What its platform has found out for rendering, as plain data."""


def probe(runner: command.CommandRunner = command.run) -> Machine:
    """Looks at this machine. A GPU tool that fails counts as no GPU, and `evidence` says so."""
    gpus, evidence = _visible_gpus(runner)
    return Machine(socket.gethostname(), len(os.sched_getaffinity(0)), gpus, evidence)


def _visible_gpus(runner: command.CommandRunner) -> tuple[tuple[str, ...], str]:
    if shutil.which("nvidia-smi") is None:
        return (), "no nvidia-smi on PATH"
    try:
        done = runner(["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"], timeout_s=30)
    except PlatformError as error:
        return (), str(error)
    if done.returncode != 0:
        return (), f"nvidia-smi exited {done.returncode}: {(done.stderr or done.stdout).strip()[:200]}"
    return parse_gpus(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(listing: str, variable: str | None) -> tuple[tuple[str, ...], str]:
    """GPU names from ``nvidia-smi --query-gpu=index,uuid,name``, cut to ``CUDA_VISIBLE_DEVICES``."""
    rows = [[part.strip() for part in line.split(",", 2)] for line in listing.splitlines() if line.strip()]
    chosen = [rows[place][2] for place in visible([(index, uuid) for index, uuid, _ in rows], variable)]
    if variable is None:
        return tuple(chosen), "nvidia-smi"
    return tuple(chosen), f"nvidia-smi and CUDA_VISIBLE_DEVICES={variable}"
