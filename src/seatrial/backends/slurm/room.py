"""Where a job could go: nodes that it may use, what is free there, and who comes first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from seatrial.backends.slurm.cluster import Association, Node, Partition, Qos, Reservation
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.reasons import code_of
from seatrial.backends.slurm.text import hosts

# Jobs that wait for something else than room do not stand in anybody's way.
_NOT_IN_LINE = {
    "JobHeldUser", "JobHeldAdmin", "Dependency", "DependencyNeverSatisfied", "BeginTime", "JobArrayTaskLimit",
    "PartitionInactive", "PartitionDown", "BadConstraints", "Reservation", "JobHoldMaxRequeue",
    "job requeued in held state", "launch failed requeued held",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A cluster at one moment, as far as this user may see it."""

    now: float
    """Seconds since the epoch."""
    jobs: Sequence[Job] = ()
    """Everybody's jobs that wait or run, and this user's that ended a short time ago."""
    nodes: Sequence[Node] = ()
    partitions: Sequence[Partition] = ()
    reservations: Sequence[Reservation] = ()
    associations: Sequence[Association] = ()
    qos: Sequence[Qos] = ()
    config: dict[str, str] = field(default_factory=dict)

    def partition(self, name: str) -> Partition | None:
        """The partition of that name."""
        return next((partition for partition in self.partitions if partition.name == name), None)

    def job(self, job_id: str) -> Job | None:
        """The job of that id, or the first element of that array."""
        return next(
            (job for job in self.jobs if job_id in {job.job_id, job.raw_id, job.job_id.partition("_")[0]}),
            None,
        )

    @property
    def hides_jobs(self) -> bool:
        """Whether the site shows its users no jobs of others (PrivateData)."""
        return "jobs" in self.config.get("PrivateData", "").split(",")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a job needs of each of its nodes."""

    nodes: int
    gpus: int = 0
    cpus: int = 1
    memory_mib: int = 0
    gpu_type: str = ""
    features: str = ""

    def fits(self, node: Node) -> bool:
        """Whether a node could hold it when nothing else runs there."""
        typed = not self.gpu_type or self.gpu_type in node.gpu_types
        return (
            node.gpus >= self.gpus and node.cpus >= self.cpus and node.memory_mib >= self.memory_mib
            and typed and node.has(self.features)
        )  # fmt: skip

    def fits_now(self, node: Node) -> bool:
        """Whether it would fit beside what runs on a node now."""
        return (
            self.fits(node) and not node.is_away and node.gpus_free >= self.gpus
            and node.cpus_free >= self.cpus and node.memory_free_mib >= self.memory_mib
        )  # fmt: skip

    def __str__(self) -> str:
        plural = "s" if self.nodes != 1 else ""
        kind = f" {self.gpu_type}" if self.gpu_type else ""
        if self.gpus:
            return f"{self.nodes} node{plural} with {self.gpus}{kind} GPU{'s' if self.gpus != 1 else ''} each"
        return f"{self.nodes} node{plural} with {self.cpus} core{'s' if self.cpus != 1 else ''} each"


def ask_of(job: Job) -> Ask:
    """What a job needs of each node, on average rounded up: Slurm does not print the shares."""
    nodes = max(job.num_nodes, 1)
    return Ask(
        nodes=nodes,
        gpus=job.gpus_per_node,
        cpus=max(1, -(-job.num_cpus // nodes)),
        memory_mib=(job.memory_mib or 0) // nodes,
        gpu_type=job.gpu_type,
        features=job.features,
    )


def usable(job: Job, snapshot: Snapshot) -> list[Node]:
    """Nodes of the job's partitions that its request does not rule out; those that are away too."""
    partitions = set(job.partition.split(","))
    excluded, required = set(hosts(job.excluded_nodes)), set(hosts(job.required_nodes))
    return [
        node
        for node in snapshot.nodes
        if partitions.intersection(node.partitions)
        and node.name not in excluded
        and (not required or node.name in required or len(required) < job.num_nodes)
    ]


def ahead(job: Job, snapshot: Snapshot) -> list[Job]:
    """Jobs that wait for the same nodes and come first: of a higher priority, or of the same and an earlier id."""
    partitions = set(job.partition.split(","))

    def tier(other: Job) -> int:
        found = [p.tier for name in other.partition.split(",") if (p := snapshot.partition(name))]
        return max(found, default=0)

    def rank(other: Job) -> tuple[int, int, int]:
        number = int(other.raw_id) if other.raw_id.isdigit() else 0
        return (-tier(other), -(other.priority or 0), number)

    shared = {name for node in usable(job, snapshot) for name in node.partitions} | partitions
    waiting = [
        other
        for other in snapshot.jobs
        if other.state == "PENDING"
        and other.job_id != job.job_id
        and other.priority
        and code_of(other.reason) not in _NOT_IN_LINE
        and shared.intersection(other.partition.split(","))
    ]
    return sorted((other for other in waiting if rank(other) < rank(job)), key=rank)


def holders(nodes: Sequence[Node], snapshot: Snapshot) -> list[Job]:
    """Jobs that hold some of these nodes, the first to end first; those without an end last."""
    names = {node.name for node in nodes}
    found = [
        job
        for job in snapshot.jobs
        if job.nodelist and job.state != "PENDING" and names.intersection(hosts(job.nodelist)) and _holds(job)
    ]
    return sorted(found, key=lambda job: job.end or float("inf"))


def _holds(job: Job) -> bool:
    return job.state in {
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "STOPPED",
        "RESIZING",
        "SIGNALING",
    }
