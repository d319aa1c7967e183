"""Backends by name. A name is a string until it is used, so an unused platform costs no import."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import cast

from seatrial.backends.base import Backend
from seatrial.errors import SpecError

ENTRY_POINTS = "seatrial.backends"
_BUILT_IN = {
    "hosts": "seatrial.backends.hosts.backend:HostsBackend",
    "k8s": "seatrial.backends.kubernetes.backend:KubernetesBackend",
    "local": "seatrial.backends.local:LocalBackend",
    "slurm": "seatrial.backends.slurm.backend:SlurmBackend",
    "ssh": "seatrial.backends.ssh.backend:SshBackend",
}


def names() -> list[str]:
    """Every backend that can be named, built-in ones first."""
    return [*_BUILT_IN, *sorted(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))]


@functools.cache
def get(name: str) -> Backend:
    """The backend called `name`, one for the whole process: what it learnt with one query serves all. Entry points add backends, and never replace a built-in one.

    Raises:
        SpecError: no such backend.
    """
    if name.startswith("ssh://"):
        return get("ssh")  # which host, its specs and handles say
    target = _BUILT_IN.get(name)
    if target is None:
        points = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            raise SpecError(f"there is no platform {name!r}", evidence=f"known: {', '.join(names())}")
        return cast(Backend, next(iter(points)).load()())
    module, _, attribute = target.partition(":")
    return cast(Backend, getattr(importlib.import_module(module), attribute)())
