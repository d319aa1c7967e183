"""What the probes of a node look at: its files, its commands, and their part of the test. Tests bring their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial import command
from seatrial.command import CommandRunner
from seatrial.job.checks.smi import NvidiaSmi
from seatrial.job.checks.task import Task
from seatrial.runs.samples import Sample

LIMIT_SHARE = 0.8
"""Part of a probe's time that is used: the rest is for starting, and for writing down who was late."""
_COMMAND_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """One node."""

    task: Task
    root: Path = Path("/")
    """Where ``sys``, ``proc`` and ``dev`` are looked for."""
    runner: CommandRunner = command.run
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    smi: NvidiaSmi = field(init=False)

    def __post_init__(self) -> None:
        smi = NvidiaSmi(
            self.runner,
            limit_s=self.command_s,
            visible=self.environment.get("CUDA_VISIBLE_DEVICES"),
            sysfs=self.sysfs,
        )
        object.__setattr__(self, "smi", smi)

    @property
    def sysfs(self) -> Path:
        """``/sys``."""
        return self.root / "sys"

    @property
    def limit_s(self) -> float:
        """What a probe may take."""
        return LIMIT_SHARE * self.task.spec.probe_timeout_s

    @property
    def command_s(self) -> float:
        """What a command may take, so that a probe can still say that it was late."""
        return _COMMAND_SHARE * self.limit_s

    def sees_host_pids(self) -> bool:
        """Whether processes have the pids that the kernel knows: there, pid 2 is the kernel's."""
        return read(self.root / "proc/2/comm") == "kthreadd"

    def has_whole_machine(self) -> bool:
        """Whether all GPUs of the machine are this job's, as far as can be told from inside."""
        return self.sees_host_pids() and "CUDA_VISIBLE_DEVICES" not in self.environment

    def sample(self, check: str, metric: str, value: Any = None, **more: Any) -> Sample:
        """A sample of this node."""
        return self.task.sample(check, metric, value, **more)


def read(path: Path) -> str | None:
    """A small file's text without blanks at its ends; None where it can't be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
