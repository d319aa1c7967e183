"""What the pretend Slurm keeps in mind: its configuration, nodes, jobs and steps."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from seatrial.command import Process

VERSION = "22.05.8"
"""The release whose behaviour and output forms are imitated."""
ENDED = {
    "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY",
}  # fmt: skip
NOT_STARTED = 53
"""The wait status that Slurm invents for a job whose output file or directory can't be opened."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition; all nodes are in all of them.

    Without accounting a job preempts those of partitions with a lower tier, in the way that their partition says.
    """

    name: str
    tier: int = 10
    is_default: bool = False
    preempt_mode: str = "REQUEUE"
    """``REQUEUE``, ``CANCEL`` or ``OFF``."""
    grace_s: float = 0
    max_time_min: int | None = None
    default_time_min: int = 60
    max_nodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Qos:
    """A QOS. With accounting, QOS decide who preempts whom."""

    name: str
    priority: int = 0
    preempts: tuple[str, ...] = ()
    preempt_mode: str = "REQUEUE"
    """``REQUEUE`` or ``CANCEL``: what happens to its jobs."""
    grace_s: float = 0


PARTITIONS = (
    Partition(name="main", is_default=True),
    Partition(name="low", tier=1),
    Partition(name="spot", tier=1, preempt_mode="CANCEL", grace_s=5),
    Partition(name="high", tier=100, preempt_mode="OFF"),
    Partition(name="short", max_time_min=2, default_time_min=1, max_nodes=1),
)
QOS = (
    Qos(name="normal", priority=10, preempts=("low", "spot")),
    Qos(name="low", priority=1),
    Qos(name="spot", priority=1, preempt_mode="CANCEL", grace_s=5),
    Qos(name="high", priority=100, preempts=("low", "normal", "spot")),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `FakeSlurm` was told, and whose it is; its arguments say what each means."""

    directory: str
    nodes: int
    gpus: int
    gpu_type: str
    cpus: int
    memory_per_cpu_mib: int
    accounting: bool
    partitions: tuple[Partition, ...]
    qos: tuple[Qos, ...]
    account: str
    kill_wait_s: float
    min_job_age_s: float
    requeue_wait_s: float
    minute_s: float
    job_requeue: bool
    user: str
    uid: int
    group: str
    gid: int
    host: str

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The configuration that `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        data["partitions"] = tuple(Partition(**row) for row in data["partitions"])
        data["qos"] = tuple(Qos(**{**row, "preempts": tuple(row["preempts"])}) for row in data["qos"])
        return cls(**data)

    def partition(self, name: str) -> Partition | None:
        """By its name."""
        return next((partition for partition in self.partitions if partition.name == name), None)

    def qos_named(self, name: str) -> Qos | None:
        """By its name."""
        return next((qos for qos in self.qos if qos.name == name), None)

    @property
    def memory_mib(self) -> int:
        """Of a node."""
        return self.cpus * self.memory_per_cpu_mib


@dataclass
class Node:
    """A node: only a name that processes are told, and what jobs may take of it."""

    name: str
    is_down: bool = False
    is_drained: bool = False
    responds: bool = True
    reason: str = ""
    reason_user: str = ""
    reason_at: float = 0

    @property
    def is_away(self) -> bool:
        """Whether no job can start on it."""
        return self.is_down or self.is_drained


@dataclass(frozen=True)
class Share:
    """What a job has of one node."""

    cpus: int = 0
    memory_mib: int = 0
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Warning_:
    """``--signal``."""

    number: int
    before_s: float = 60
    to_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a job asked for, once, for all its starts."""

    name: str
    user: str
    script: str = ""
    arguments: tuple[str, ...] = ()
    command: str = "(null)"
    work_dir: str = "/"
    submit_dir: str = "/"
    output: str = "slurm-%j.out"
    append: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    partitions: tuple[str, ...] = ()
    account: str = ""
    qos: str = ""
    nodes: int = 1
    tasks: int = 1
    tasks_per_node: int | None = None
    told_tasks: bool = False
    """Whether the number of tasks was given, which decides about SLURM_NTASKS."""
    cpus_per_task: int | None = None
    gpus: int = 0
    """On all nodes together; 0 where they are counted by the node."""
    gpus_per_node: int = 0
    gpu_type: str = ""
    gres_words: str = ""
    """``h100:2`` as it was given."""
    memory_per_node_mib: int | None = None
    memory_per_cpu_mib: int | None = None
    exclusive: bool = False
    limit_min: int | None = None
    warning: Warning_ | None = None
    requeue: bool = True
    dependency: tuple[tuple[str, int], ...] = ()
    """Kinds with job numbers: ``(("afterok", 12), …)``."""
    any_dependency: bool = False
    kill_on_invalid_dependency: bool = False
    required_nodes: tuple[str, ...] = ()
    excluded_nodes: tuple[str, ...] = ()
    comment: str = ""
    array: tuple[int, ...] = ()
    """The numbers of its elements, of an array."""
    throttle: int = 0
    """So many elements may run at once; 0 is any number."""
    nice: int = 0
    contiguous: bool = False

    @property
    def cpus_a_task(self) -> int:
        """At least one."""
        return self.cpus_per_task or 1

    def tasks_of(self, index: int) -> int:
        """Tasks of the job's node number `index`: as many on each, the first ones one more where it doesn't come out."""
        if self.tasks_per_node and not self.told_tasks:
            return self.tasks_per_node
        each, more = divmod(self.tasks, self.nodes)
        return each + (index < more)


@dataclass
class Task:
    """A process of a step, with all that descends from it."""

    rank: int
    node: str
    process: Process | None
    log: str
    status: int | None = None
    """As wait(2) tells it, once it has ended."""


@dataclass
class Step:
    """A step: ``batch``, or a number for each srun."""

    step_id: str
    name: str
    nodes: list[str]
    start: float
    tasks: list[Task] = field(default_factory=list)
    end: float | None = None
    first_end: float | None = None
    """When its first task ended."""
    kill_bad_exit: bool = False
    wait_s: float = 0
    label: bool = False
    is_cancelled: bool = False

    @property
    def is_running(self) -> bool:
        """Whether one of its tasks runs."""
        return any(task.status is None for task in self.tasks)

    @property
    def status(self) -> int:
        """The worst of its tasks' as wait(2) tells it: a signal before the highest exit code."""
        ended = [task.status or 0 for task in self.tasks]
        return max(ended, key=lambda status: (status & 0x7F, status), default=0)

    @property
    def state(self) -> str:
        """As the accounting calls it."""
        if self.is_running:
            return "RUNNING"
        if self.status & 0x7F or self.is_cancelled:
            return "CANCELLED"
        return "FAILED" if self.status else "COMPLETED"


@dataclass(frozen=True)
class Ending:
    """How a job that ends will be called when nothing of it runs any more."""

    state: str
    why: str | None = None
    """What slurmstepd writes after DUE TO; "" for scancel; None for a job that ends by itself."""
    requeue: bool = False
    hold: bool = False


@dataclass
class Job:
    """A job, or an earlier start of one."""

    job_id: int
    request: Request
    submit: float
    eligible: float
    state: str = "PENDING"
    reason: str = "None"
    is_held: bool = False
    held_by_admin: bool = False
    is_pretended: bool = False
    """No process: it is there to be looked at."""
    limit_min: int | None = None
    limit_at: float | None = None
    """When its time is up, while it runs."""
    warned: bool = False
    partition: str = ""
    priority: int = 0
    shares: dict[str, Share] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    start: float | None = None
    end: float | None = None
    status: int = 0
    restarts: int = 0
    preempted_at: float | None = None
    grace_until: float | None = None
    ending: Ending | None = None
    kill_at: float | None = None
    quiet_at: float | None = None
    """When the last of its tasks ended."""
    cancelled_by: int | None = None
    earlier: list[Job] = field(default_factory=list)
    next_step: int = 0
    output: str = ""
    array_id: int | None = None
    """The array's number, of an element of one."""
    array_index: int | None = None
    is_apart: bool = False
    """An element that has started once, or was changed, has a record of its own."""
    comment: str = ""

    @property
    def shown_id(self) -> str:
        """As the clients print it: ``12``, or ``8_3`` for an element of an array."""
        return str(self.job_id) if self.array_id is None else f"{self.array_id}_{self.array_index}"

    @property
    def nodes(self) -> list[str]:
        """Those that it has or had."""
        return list(self.shares)

    @property
    def batch(self) -> Step | None:
        """Its script, once it has started."""
        return next((step for step in self.steps if step.step_id == "batch"), None)

    @property
    def shown_state(self) -> str:
        """The state that the clients print."""
        return "COMPLETING" if self.ending else self.state

    @property
    def holds_nodes(self) -> bool:
        """Whether nobody else can have its share."""
        return self.state == "RUNNING"

    def running_tasks(self) -> list[Task]:
        """All that have not ended, the script as well."""
        return [task for step in self.steps for task in step.tasks if task.status is None]


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
