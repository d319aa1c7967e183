"""Paths of a recipe that are a cluster's: ``cluster:/data/reviews.csv``."""

from __future__ import annotations

from seatrial.errors import SpecError
from seatrial.spec.run import RunSpec

PREFIX = "cluster:"
"""Begins a path that is meant as it is on the cluster, whatever lies under that name elsewhere."""


def named(spec: RunSpec) -> dict[str, str]:
    """What of a recipe may be a path, by its key."""
    return {"model": spec.model, "data.path": spec.data.path}


def put(spec: RunSpec, places: dict[str, str]) -> RunSpec:
    """The recipe with other paths."""
    data = spec.data.model_copy(update={"path": places.get("data.path", spec.data.path)})
    return spec.model_copy(update={"model": places.get("model", spec.model), "data": data})


def at_home(spec: RunSpec, platform: str, *, keeps_jobs: bool) -> RunSpec:
    """The recipe as it is meant where the run is: on the cluster itself, its paths are plain ones.

    Raises:
        SpecError: it names a path of a cluster, and the run is on none.
    """
    theirs = {key: value for key, value in named(spec).items() if value.startswith(PREFIX)}
    if theirs and not keeps_jobs:
        key, value = next(iter(theirs.items()))
        raise SpecError(
            f"{key} is on a cluster, and the run is not",
            evidence=f"{key} = {value}; the platform is {platform!r}",
            remedy=f"--on slurm there, --on ssh://HOST from outside, or {key}={value.removeprefix(PREFIX)}",
        )
    return put(spec, {key: value.removeprefix(PREFIX) for key, value in theirs.items()}) if theirs else spec
