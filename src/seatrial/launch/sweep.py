"""Several runs of one recipe: how often data and model are looked at, and one request for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seatrial.backends.base import Backend, ManyRequest, SubmitsMany
from seatrial.errors import SeatrialError, SpecError
from seatrial.launch import launcher
from seatrial.launch.launcher import Submitted
from seatrial.runs.files import write_json, write_text
from seatrial.spec.run import RunSpec

UNSEEN = ("learning_rate", "weight_decay", "warmup", "schedule", "epochs", "max_steps", "clip_norm")
"""Keys of ``train`` that change nothing about what data and model are, or have to be."""
RECORD = "sweep.json"


def look_once(specs: Sequence[RunSpec], look: Callable[[RunSpec], dict[str, Any]]) -> list[dict[str, Any]]:
    """What `look` finds for each spec, called once for those that differ in nothing that it would see."""
    found: dict[str, dict[str, Any]] = {}
    keys = [_seen(spec) for spec in specs]
    for key, spec in zip(keys, specs, strict=True):
        if key not in found:
            found[key] = look(spec)
    return [found[key] for key in keys]


def _seen(spec: RunSpec) -> str:
    data = spec.model_dump(mode="json", by_alias=True)
    data["train"] = {key: value for key, value in data["train"].items() if key not in UNSEEN}
    return json.dumps(data, sort_keys=True)


def make_directory(directory: Path, sweep: dict[str, Any]) -> None:
    """The directory of a sweep, with the record of what it is.

    Raises:
        SpecError: it can't be made.
    """
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise SpecError(
            "the directory of the sweep can't be made", evidence=str(error), remedy="--runs-dir DIRECTORY"
        ) from error
    write_json(directory / RECORD, {"schema": 1, **sweep})


def submit_all(request: ManyRequest, backend: Backend, directory: Path) -> list[Submitted]:
    """Writes what will be done into each run and the sweep's directory, then submits all at once.

    Raises:
        SpecError, PlatformError: the platform's words; every run then says that it was not taken.
    """
    assert isinstance(backend, SubmitsMany)
    write_text(directory / f"request.{request.kind}", request.text)
    for plan in request.plans:
        launcher.announce(plan, request.kind, request.text)
    try:
        handles = backend.submit_all(request)
    except SeatrialError as error:
        for plan in request.plans:
            launcher.refused(plan, error)
        raise
    return [
        launcher.accepted(plan, backend, handle) for plan, handle in zip(request.plans, handles, strict=True)
    ]
