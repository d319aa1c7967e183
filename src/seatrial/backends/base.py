"""The contract of a platform: five methods, and nothing that a platform would have to fake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from seatrial.command import CommandRunner
from seatrial.errors import SpecError
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.state import RunState
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
                evidence="a handle looks like local://123:456 or slurm://1234",
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


@runtime_checkable
class StartsAhead(Protocol):
    """A platform that can begin to import before there is a run."""

    def prepare(self, plan: LaunchPlan, spec: RunSpec) -> CommandRunner:
        """Starts what the next `submit` will use; leaves nothing if that never comes.

        Returns:
            What runs Seatrial's own programs on this machine meanwhile.
        """
