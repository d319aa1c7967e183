"""What a resumed run may change of its recipe, and what of that has to be meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from seatrial.errors import SpecError
from seatrial.spec.load import load_values
from seatrial.spec.run import RunSpec

Changes = dict[str, tuple[Any, Any]]
"""By dotted key: the value that is recorded, and the one to go on with."""

HARMLESS = frozenset(
    {"train.log_every", "train.eval_every", "train.checkpoint_every", "train.checkpoint_minutes",
     "train.keep_checkpoints", "train.keep_best", "train.keep_every", "resources.nproc", "resources.nodes",
     "resources.on", "resources.time", "artifacts", "track", "tags"}
)  # fmt: skip
"""They say how the training is watched and kept, or where it runs, not what comes out."""
GROWING = frozenset({"train.epochs", "train.max_steps"})
"""Harmless where they make the run longer; what was trained stays trained, the schedule stretches."""
FIXED = frozenset({"schema", "name", "task", "model"})
"""A run with another of these is another run."""
OF_THE_ATTEMPT = ("resources.", "slurm.", "kubernetes.")
"""Keys that start so hold for one attempt; the recorded recipe keeps its own."""


def changed(spec: RunSpec, overrides: Iterable[str]) -> tuple[RunSpec, Changes]:
    """The recipe with ``key=value`` words laid over it, and how it differs.

    Raises:
        SpecError: a word or a value is not valid.
    """
    words = list(overrides)
    if not words:
        return spec, {}
    before = spec.model_dump(mode="json", by_alias=True)
    new = load_values(before, words)
    old_leaves, new_leaves = leaves(before), leaves(new.model_dump(mode="json", by_alias=True))
    return new, {
        key: (old_leaves.get(key), value) for key, value in new_leaves.items() if old_leaves.get(key) != value
    }


def check(changes: Changes, *, allowed: bool, run_id: str) -> None:
    """Refuses what would quietly make another run of it.

    Raises:
        SpecError: a key that never changes, or one that has to be allowed and is not; the evidence is the difference.
    """
    fixed = sorted(changes.keys() & FIXED)
    if fixed:
        raise SpecError(
            f"{', '.join(fixed)} can't change in a run",
            evidence=render(changes),
            remedy="start a new run: seatrial train …",
        )
    harmful = [key for key, (old, new) in changes.items() if not is_harmless(key, old, new)]
    if harmful and not allowed:
        raise SpecError(
            f"the recipe of the run would change: {', '.join(harmful)}",
            evidence=render(changes),
            remedy=f"seatrial runs resume {run_id} … --allow-change    (or start a new run)",
        )


def is_harmless(key: str, old: Any, new: Any) -> bool:
    """Whether a change needs no leave."""
    if key in GROWING:
        return new is None or (old is not None and new >= old)
    return key in HARMLESS or key.startswith(("slurm.", "kubernetes."))


def render(changes: Changes) -> str:
    """A difference as people read it: two lines a key."""
    return "\n".join(f"- {key}: {old}\n+ {key}: {new}" for key, (old, new) in sorted(changes.items()))


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
