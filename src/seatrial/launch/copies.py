"""Run directories that are copies: who keeps the manifest of one, and what its nodes have written."""

from __future__ import annotations

import contextlib

from seatrial.backends import registry
from seatrial.backends.base import Delivers, JobHandle
from seatrial.errors import PlatformError
from seatrial.runs.files import read_json
from seatrial.runs.paths import RunPaths


def is_elsewhere(paths: RunPaths) -> bool:
    """Of a copy: whether Seatrial where the run is keeps its manifest, and not this one here."""
    return bool((read_json(paths.remote) or {}).get("platform", "ssh") == "ssh")


def deliver(paths: RunPaths, handle: str) -> None:
    """Brings what the nodes have written, where they write elsewhere; a platform that is away changes nothing."""
    if not paths.remote.exists():
        return
    job = JobHandle.parse(handle)
    backend = registry.get(job.backend)
    if isinstance(backend, Delivers):
        with contextlib.suppress(PlatformError):  # it is asked for the state next, and told of then
            backend.deliver(paths, job)
