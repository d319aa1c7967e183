"""What one attempt will do, as data: written by the launcher, read by the agent on each node."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from seatrial.errors import SpecError
from seatrial.runs.files import read_json, write_json

Device = Literal["cuda", "cpu"]
Launcher = Literal["warm", "torchrun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One program that all ranks run together."""

    name: str
    argv: tuple[str, ...]
    """Arguments of the Python interpreter: ``-m module …`` or ``script.py …``."""
    reports: bool = True
    """Whether its ranks write events; somebody's own script does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """Spec, paths and platform, resolved: no decision is left to the node."""

    run_id: str
    run_dir: Path
    attempt: int
    nodes: int
    nproc: int
    device: Device
    threads: int
    """CPU threads of each rank (OMP_NUM_THREADS)."""
    stages: tuple[Stage, ...]
    python: str
    cwd: Path
    grace_s: int = 120
    """From the request to stop to the kill."""
    launcher: Launcher = "warm"
    """What starts the ranks: forks of one warm process a node, or torchrun."""
    max_restarts: int = 0
    """How often the ranks are started again, from the newest checkpoint, after a failure of the platform."""
    hang_timeout_s: float | None = 600
    """A rank without progress for so long is frozen; None never thinks so."""
    deadline: float | None = None
    """When the platform will end the attempt (seconds since the epoch); None is never, or not known."""
    stop_before_s: float = 120
    """How long before the deadline the ranks save and stop."""

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.nproc

    def to_dict(self) -> dict[str, Any]:
        """Plain data, read back by `read_plan`."""
        return {"schema": 1, **asdict(self), "run_dir": str(self.run_dir), "cwd": str(self.cwd)}


def plan_path(run_dir: Path, attempt: int) -> Path:
    """Where the plan of an attempt lies."""
    return run_dir / f"attempt-{attempt}" / "plan.json"


def write_plan(plan: LaunchPlan) -> None:
    """Writes the plan into its attempt's directory."""
    write_json(plan_path(plan.run_dir, plan.attempt), plan.to_dict())


def read_plan(run_dir: Path, attempt: int) -> LaunchPlan:
    """The plan of an attempt.

    Raises:
        SpecError: there is none.
    """
    path = plan_path(run_dir, attempt)
    data = read_json(path)
    if data is None:
        raise SpecError("the attempt has no plan", evidence=f"{path} does not exist")
    data.pop("schema")
    stages = tuple(Stage(**{**stage, "argv": tuple(stage["argv"])}) for stage in data.pop("stages"))
    return LaunchPlan(stages=stages, run_dir=Path(data.pop("run_dir")), cwd=Path(data.pop("cwd")), **data)
