"""The contract of a platform: five methods, and nothing that a platform would have to fake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from seatrial.backends.machine import Machine
from seatrial.command import CommandRunner
from seatrial.errors import SpecError
from seatrial.runs.manifest import Manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.state import RunState
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Native text, exactly as it is submitted."""

    kind: str
    """Suffix of the request's file: ``sh``, ``yaml`` or ``json``."""
    text: str
    plan: LaunchPlan


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A submitted job: ``slurm://1234``, ``k8s://ns/name``, ``local://pid``."""

    backend: str
    native: str

    def __str__(self) -> str:
        return f"{self.backend}://{self.native}"

    @classmethod
    def parse(cls, text: str) -> JobHandle:
        """The handle that `str` printed; `SpecError` for anything else."""
        backend, separator, native = text.partition("://")
        if not separator or not backend or not native:
            raise SpecError(
                f"{text!r} is not a job's handle",
                evidence="a handle looks like local://123:456, slurm://1234 or k8s://ml/job/NAME/CONTEXT",
            )
        return cls(backend, native)


@dataclass(frozen=True, slots=True)
class JobState:
    """What the platform says of a job."""

    state: RunState
    reason: str = ""


class Backend(Protocol):
    """A platform. Extras (arrays, requeue, …) are protocols of their own, found by ``isinstance``."""

    name: str
    keeps_jobs: bool
    """Whether a job is in somebody else's hands once it is submitted: then Ctrl-C leaves it there."""

    def probe(self, spec: AnySpec) -> Machine:
        """What each node has that the spec may be run on.

        Raises:
            SpecError: what the spec asks for does not exist there, whatever is free.
            PlatformError: the platform does not answer.
        """

    def render(self, plan: LaunchPlan) -> JobRequest:
        """The request for a plan. Pure: touches nothing, and equal plans give equal text."""

    def submit(self, request: JobRequest) -> JobHandle:
        """Starts or enqueues it. Raises `PlatformError` with the platform's own words."""

    def state(self, handle: JobHandle) -> JobState:
        """What the platform knows now; never guesses: `RunState.LOST` when it knows nothing."""

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Asks the job to save and stop; `force` kills it. No error when it has ended."""

    def logs(self, handle: JobHandle, run_dir: Path) -> Iterator[Path]:
        """Files in which the platform itself (not a rank) wrote of the job."""


@dataclass(frozen=True, slots=True)
class ManyRequest:
    """Native text that asks for several jobs at once."""

    kind: str
    """As of a `JobRequest`."""
    text: str
    plans: tuple[LaunchPlan, ...]
    name: str
    """What the jobs are called together."""


@runtime_checkable
class SubmitsMany(Protocol):
    """A platform that takes many jobs in one request, and deals them out as there is room."""

    @property
    def takes_many(self) -> bool:
        """Whether it does so from here; else each is submitted when the one before it has ended."""

    def render_all(self, plans: Sequence[LaunchPlan], name: str, directory: Path) -> ManyRequest:
        """The request for some plans, which differ in nothing but run and stages. Pure.

        Args:
            plans: of first attempts.
            name: what the jobs are called together; `directory` is where the platform writes of them.

        Raises:
            SpecError: they can't be one request.
        """

    def submit_all(self, request: ManyRequest) -> list[JobHandle]:
        """Enqueues all of them or none; the handles are in the order of the plans. Raises as `submit`."""


@dataclass(frozen=True, slots=True)
class Why:
    """Why a job, or a run, is where it is: for people, and nothing in it is guessed."""

    state: str
    sentence: str
    evidence: list[str] = field(default_factory=list)
    helps: list[str] = field(default_factory=list)


@runtime_checkable
class Explains(Protocol):
    """A platform that knows why a job waits."""

    def why(self, handle: JobHandle) -> Why:
        """What it waits for, with the evidence, and what would help."""


@runtime_checkable
class NamesCluster(Protocol):
    """A platform that knows which one of its kind it is: what was tested on another says nothing of it."""

    def cluster(self) -> str:
        """The name of the cluster, or of this machine. Raises `PlatformError` when it does not answer."""


@runtime_checkable
class Mirrors(Protocol):
    """A platform whose runs live elsewhere: their directories here are copies."""

    def look(self, paths: RunPaths) -> Manifest:
        """Brings the copy of a run up to date, its manifest included.

        Raises:
            UnreachableError: the platform can't be reached now.
        """


@runtime_checkable
class Delivers(Protocol):
    """A platform whose nodes write where this machine can't look: it brings what they tell into the run's directory."""

    def deliver(self, paths: RunPaths, handle: JobHandle) -> None:
        """Brings what there is.

        Raises:
            PlatformError: the platform does not answer.
        """


@runtime_checkable
class StartsAhead(Protocol):
    """A platform that can begin to import before there is a run."""

    def prepare(self, plan: LaunchPlan, spec: RunSpec) -> CommandRunner:
        """Starts what the next `submit` will use; leaves nothing if that never comes.

        Returns:
            What runs Seatrial's own programs on this machine meanwhile.
        """
