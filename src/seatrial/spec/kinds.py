"""Everything that can be launched."""

from __future__ import annotations

from seatrial.spec.checks import CheckSpec
from seatrial.spec.run import RunSpec, ScriptSpec

AnySpec = RunSpec | ScriptSpec | CheckSpec
"""A training run, somebody's own script, or an acceptance test: each has a name, resources, and a section for Slurm."""
BY_TASK: dict[str, type[RunSpec] | type[ScriptSpec] | type[CheckSpec]] = {
    "script": ScriptSpec,
    "check": CheckSpec,
}
"""What a ``spec.json`` is, by its task; any other task is a training run's."""
