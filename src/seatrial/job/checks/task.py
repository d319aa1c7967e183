"""What one process of an acceptance test is to do, handed over in one variable of its environment.

The conductor (`job.checks.conductor`) starts a program on each node; each process reads its task, measures, and appends
samples to a file of its own. A process that ends with another code than 0, or is ended for want of time, is for the
conductor to write down.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seatrial.runs import samples
from seatrial.runs.plan import Device
from seatrial.runs.samples import Sample
from seatrial.spec import injections
from seatrial.spec.checks import SuiteSpec
from seatrial.spec.injections import Injection

VARIABLE = "SEATRIAL_CHECK_TASK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One process's part."""

    node: str
    """Name of this node."""
    node_rank: int
    """Of this node among all nodes of the test, whoever takes part now: what injections mean by ``node``."""
    nodes: dict[int, str]
    """Names of the nodes that take part now, by that number, in the order of their ranks in the process group."""
    nproc: int
    """Ranks (GPUs) on each node."""
    gpu: int | None
    """Index of this process's GPU, or CPU rank, on its node; None for a process that serves the node as a whole."""
    device: Device
    checks: tuple[str, ...]
    """What to measure; a program does those that it knows."""
    suite: dict[str, Any]
    """A `SuiteSpec`, as data."""
    repeat: int = 0
    inject: tuple[str, ...] = ()
    rehearse: bool = False
    run_dir: Path
    attempt: int
    out: Path
    """Where this process's samples go."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else the program is told by the conductor."""

    @classmethod
    def from_env(cls) -> Task:
        """This process's task."""
        data = json.loads(os.environ[VARIABLE])
        data["nodes"] = {int(number): name for number, name in data["nodes"].items()}
        for key in ("checks", "inject"):
            data[key] = tuple(data[key])
        for key in ("run_dir", "out"):
            data[key] = Path(data[key])
        return cls(**data)

    def to_text(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self) | {"run_dir": str(self.run_dir), "out": str(self.out)})

    @property
    def spec(self) -> SuiteSpec:
        """The suite."""
        return SuiteSpec.model_validate(self.suite)

    def wants(self, check: str) -> bool:
        """Whether a check is to be measured."""
        return check in self.checks

    def injected(self, kind: str, gpu: int | None = None) -> Injection | None:
        """The fault of a kind that this node has (and its GPU `gpu`, where a fault names one); None where it has none."""
        for word in self.inject:
            fault = injections.parse(word)
            mine = fault.node == self.node_rank or (fault.peer is not None and fault.peer == self.node_rank)
            if fault.kind == kind and mine and (fault.gpu is None or gpu is None or fault.gpu == gpu):
                return fault
        return None

    def sample(self, check: str, metric: str, value: Any = None, **more: Any) -> Sample:
        """A sample of this node (and, unless `gpu` is given, of this process's GPU)."""
        return Sample(
            check=check,
            metric=metric,
            value=value,
            node=self.node,
            repeat=self.repeat,
            **{"gpu": self.gpu, **more},
        )

    def write(self, *found: Sample) -> None:
        """Keeps samples."""
        self.write_all(found)

    def write_all(self, found: Iterable[Sample]) -> None:
        """Keeps samples, at once: what was measured before a process dies stays."""
        samples.append(self.out, found)
