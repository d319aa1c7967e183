"""Looks at data and model before a run is written, by asking the job side in a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from seatrial import command
from seatrial.errors import PlatformError, from_dict
from seatrial.runs.files import write_json
from seatrial.runs.plan import Device
from seatrial.spec.run import RunSpec

_TIMEOUT_S = 6 * 3600
"""A large data set is read, checked and tokenised here; the ranks map what comes of it."""


def inspect(spec: RunSpec, *, prepare: bool, runner: command.CommandRunner = command.run) -> dict[str, Any]:
    """Facts of the data and the model that the spec names.

    Args:
        spec: names them.
        prepare: also tokenise the data into the cache, for the ranks; the record of it is under ``inputs``.
        runner: starts the process.

    Raises:
        SpecError: whatever is wrong with them.
        PlatformError: this Python can't look, for want of the packages that training needs.
    """
    return ask("inspect", spec, *(["--prepare"] if prepare else []), runner=runner)


def estimate(
    spec: RunSpec, device: Device, nproc: int, runner: command.CommandRunner = command.run
) -> dict[str, Any]:
    """The memory that the spec needs on `nproc` ranks of each node; see `job/memory.py`.

    Raises:
        SpecError, PlatformError: as `inspect`.
    """
    world_size = spec.resources.nodes * nproc
    arguments = ("--world-size", str(world_size), "--local-world-size", str(nproc), "--device", device)
    return ask("memory", spec, *arguments, runner=runner)


def ask(module: str, spec: RunSpec, *arguments: str, runner: command.CommandRunner) -> dict[str, Any]:
    """What one of the job side's programs prints about a spec: its facts, or the error that it reports."""
    with tempfile.TemporaryDirectory(prefix="seatrial-") as directory:
        path = Path(directory) / "spec.json"
        write_json(path, spec.model_dump(mode="json", by_alias=True))
        done = runner(
            [sys.executable, "-m", f"seatrial.job.{module}", str(path), *arguments], timeout_s=_TIMEOUT_S
        )
    for line in reversed(done.stdout.splitlines()):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and "error" in answer:
            raise from_dict(answer["error"])
        if isinstance(answer, dict) and "facts" in answer:
            return dict(answer["facts"])
    last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
    missing = "ModuleNotFoundError" in last[0]
    raise PlatformError(
        "the data and the model could not be looked at",
        evidence=last[0][:400],
        remedy="pip install 'seatrial[train]'" if missing else "seatrial doctor",
    )
