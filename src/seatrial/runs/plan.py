"""What one attempt will do, as data: written by the launcher, read by the agent on each node."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
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
    gpus_per_node: int = 0
    """GPUs of each node to ask a scheduler for; 0 on cuda is one a rank."""
    cpus_per_node: int = 0
    """CPUs of each node to ask a scheduler for; 0 leaves it to the scheduler."""
    time_limit_s: int | None = None
    """How long a scheduler may let the attempt run; None leaves it to the scheduler."""
    grace_s: int = 120
    """From the request to stop to the kill."""
    conducts: Literal["ranks", "checks"] = "ranks"
    """What the agents do: run stages, or an acceptance test."""
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
    sample_every_s: float = 1.0
    """Seconds between samples of the devices; 0 takes none."""
    stop_idle_s: float | None = None
    """Stop the ranks once no device has done anything for so long; None never does."""
    stop_below: dict[str, Any] | None = None
    """The utilisation gate, where failing it stops the ranks: ``{min_pct, patience_s}``."""
    platform: dict[str, Any] = field(default_factory=dict)
    """The recipe's section for the platform that it is submitted to, as plain data."""
    after: str = ""
    """Handle of a job that must have ended well before this one starts."""
    afterwards: tuple[tuple[str, ...], ...] = ()
    """Arguments of the interpreter for what follows an attempt that ended well, where nobody waits for it."""

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.nproc

    def for_attempt(self, attempt: int) -> LaunchPlan:
        """The same work as another attempt of the run: what a scheduler starts again is not planned anew."""
        return replace(self, attempt=attempt, deadline=None, after="")

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
    return plan_of(data)


def plan_of(data: dict[str, Any]) -> LaunchPlan:
    """What `LaunchPlan.to_dict` gave, also by way of JSON."""
    known = {key: value for key, value in data.items() if key != "schema"}
    known["afterwards"] = tuple(tuple(argv) for argv in known.get("afterwards", ()))
    stages = tuple(Stage(**{**stage, "argv": tuple(stage["argv"])}) for stage in known.pop("stages"))
    return LaunchPlan(stages=stages, run_dir=Path(known.pop("run_dir")), cwd=Path(known.pop("cwd")), **known)
