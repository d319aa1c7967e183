"""``manifest.json``: what was asked, on what, and what came of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seatrial.errors import SpecError
from seatrial.runs.clock import now
from seatrial.runs.files import read_json, write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState

_NAMED = 20
"""Newest runs among which a message about an unknown one looks for names to show."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GitState(_Record):
    """The code that the run was started from."""

    commit: str
    branch: str | None = None
    dirty: bool = False
    diff_sha256: str | None = None
    """Of ``git diff HEAD`` with the names of untracked files; None when clean."""


class CodeState(_Record):
    """The code as it was sent to a cluster."""

    sha256: str
    """Of all its files; the name of its directory there."""
    files: int
    bytes: int
    sent: dict[str, str] = Field(default_factory=dict)
    """What else was sent: by its path here, the path there."""


class AttemptRecord(_Record):
    """One submission or resumption."""

    index: int
    handle: str | None = None
    stages: list[str] = Field(default_factory=list)
    nproc: int = 1
    nodes: int = 1
    device: str = "cpu"
    started: str = Field(default_factory=now)
    ended: str | None = None
    exit_code: int | None = None
    outcome: str | None = None
    changes: dict[str, list[Any]] = Field(default_factory=dict)
    """What this attempt changed of the recipe: by key, the value before and the value after."""
    failure: dict[str, Any] | None = None
    """The first failure: ``{exit_code, what, evidence, remedy, rank?}``."""


class Manifest(_Record):
    """The record of a run; written at submission, after every change of state, and at the end."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    run_id: str
    name: str
    task: str
    state: RunState = RunState.SUBMITTING
    reason: str = ""
    created: str = Field(default_factory=now)
    updated: str = Field(default_factory=now)
    command: list[str]
    """The argv that started the run."""
    cwd: str
    tags: list[str] = Field(default_factory=list)
    spec_sha256: str
    git: GitState | None = None
    code: CodeState | None = None
    """Only where the run was started from outside the cluster."""
    seatrial_version: str
    python: str
    environment: dict[str, Any] = Field(default_factory=dict)
    """Rank 0's fingerprint: packages, torch, CUDA, host, CPUs, memory, GPUs."""
    data: dict[str, Any] = Field(default_factory=dict)
    """``{"train": {"sha256", "num_samples", …}, "test": {…}, "labels": […]}``."""
    models: dict[str, Any] = Field(default_factory=dict)
    """``{"original": {"sha256", "weights_sha256", …}, "trained": {…}}``."""
    acceptance: dict[str, Any] = Field(default_factory=dict)
    """Verdicts that the latest launch went by: ``{"used": [{path, sha256, run_id}], "exclude": {node: reason}}``."""
    trackers: dict[str, Any] = Field(default_factory=dict)
    """By tracker, the run's id and address there."""
    results: dict[str, Any] = Field(default_factory=dict)
    """What the run came to: steps, last loss, the verdict."""
    attempts: list[AttemptRecord] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @property
    def attempt(self) -> AttemptRecord:
        """The latest attempt."""
        return self.attempts[-1]


def write_manifest(paths: RunPaths, manifest: Manifest) -> None:
    """Replaces the run's manifest in one step, and tells the runs directory."""
    manifest.updated = now()
    write_json(paths.manifest, manifest.model_dump(mode="json", by_alias=True))
    touch_runs(paths)


def touch_runs(paths: RunPaths) -> None:
    """Sets the runs directory's time: some run's manifest is another one (`runs.index`)."""
    with contextlib.suppress(OSError):
        os.utime(paths.root.parent)


def read_manifest(paths: RunPaths) -> Manifest:
    """The run's manifest.

    Raises:
        SpecError: there is none, or it is not one that this version reads.
    """
    try:
        data = read_json(paths.manifest)
    except ValueError as error:
        raise SpecError("the run's manifest is not JSON", evidence=f"{paths.manifest}: {error}") from error
    if data is None:
        raise SpecError(
            "not a run directory",
            evidence=f"{paths.manifest} does not exist",
            remedy="seatrial runs list",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise SpecError(
            "the run's manifest can't be read by this version",
            evidence=f"{paths.manifest}: {error.errors()[0]['loc']} {error.errors()[0]['msg']}",
            remedy="use the Seatrial version that wrote it: see seatrial_version in the file",
        ) from error


def iter_manifests(root: Path) -> Iterator[tuple[RunPaths, Manifest | SpecError]]:
    """The runs under `root`, oldest first by name of directory; an unreadable one comes as its error."""
    if not root.is_dir():
        return
    for directory in sorted(root.iterdir()):
        paths = RunPaths(directory)
        if paths.manifest.is_file():
            try:
                yield paths, read_manifest(paths)
            except SpecError as error:
                yield paths, error


def find_run(name: str, root: Path) -> RunPaths:
    """The run that a person means by `name`: a directory, a run id, a unique beginning of one, or ``last``.

    Raises:
        SpecError: none or several match; the message lists what is there.
    """
    as_path = Path(name)
    if (as_path / "manifest.json").is_file():
        return RunPaths(as_path.absolute())
    # Names alone: of a hundred thousand runs, reading the manifests takes a minute.
    names = sorted(os.listdir(root)) if root.is_dir() else []  # noqa: PTH208
    runs = [RunPaths(root / each) for each in names if each.startswith("" if name == "last" else name)]
    runs = [paths for paths in runs if paths.manifest.is_file()]
    if name == "last" and runs:
        return max(runs, key=lambda paths: paths.manifest.stat().st_mtime)
    exact = [paths for paths in runs if paths.run_id == name]
    matching = exact or runs
    if len(matching) == 1:
        return matching[0]
    if not matching:
        runs = [
            paths for paths in (RunPaths(root / each) for each in names[-_NAMED:]) if paths.manifest.is_file()
        ]
    listed = ", ".join(paths.run_id for paths in (matching or runs)[-5:]) or "no runs"
    raise SpecError(
        f"{len(matching)} runs are called {name!r}" if matching else f"no run is called {name!r}",
        evidence=f"in {root}: {listed}",
        remedy="seatrial runs list",
    )
