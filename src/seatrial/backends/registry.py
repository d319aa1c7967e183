"""Backends by name. A name is a string until it is used, so an unused platform costs no import."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import cast

from seatrial.backends.base import Backend
from seatrial.errors import SpecError

ENTRY_POINTS = "seatrial.backends"
_BUILT_IN = {"local": "seatrial.backends.local:LocalBackend"}


def names() -> list[str]:
    """Every backend that can be named, built-in ones first."""
    return [*_BUILT_IN, *sorted(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))]


def get(name: str) -> Backend:
    """The backend called `name`. Entry points add backends, and never replace a built-in one.

    Raises:
        SpecError: no such backend.
    """
    target = _BUILT_IN.get(name)
    if target is None:
        points = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            raise SpecError(f"there is no platform {name!r}", evidence=f"known: {', '.join(names())}")
        return cast(Backend, next(iter(points)).load()())
    module, _, attribute = target.partition(":")
    return cast(Backend, getattr(importlib.import_module(module), attribute)())
