"""Faults on purpose: ``SEATRIAL_FAULT=kill:rank=1,step=40``; several are joined by ``;``. Data and validation only.

Without ``rank`` every rank has it, without ``attempt`` only the first attempt (0), without
``restart`` only the first start of its ranks (0). ``docs/faults.md`` says what
Seatrial does about each; `job.faults` does them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from seatrial.errors import SpecError

VARIABLE = "SEATRIAL_FAULT"
KINDS = {
    "kill": "SIGKILL to itself before the step",
    "term": "SIGTERM to itself before the step",
    "stop": "SIGSTOP to itself before the step: frozen with all its threads",
    "freeze": "stops answering before the step: sleeps for an hour, its threads live",
    "exit": "leaves without a word before the step; code=3 chooses the exit code",
    "raise": "an exception before the step",
    "oom": "out of memory before the step",
    "nan": "the loss of the step is NaN",
    "inf_grad": "the gradient of the step is infinite, its loss is not",
    "spike": "the loss of the step is a hundred times what it was",
    "drift": "1e-3 is added to a weight before the step, on this rank only when rank is given",
    "disk_full": "the disk is full while the checkpoint of the step is written",
    "slow_disk": "every checkpoint from the step on takes longer by seconds=2",
    "slow_data": "from the step on, each batch comes later by ms=200",
    "slow_rank": "from the step on, each forward pass takes longer by ms=200",
    "slow_comm": "from the step on, each reduction of the gradients takes longer by ms=200 (two ranks or more)",
}
"""What each kind does to a rank."""
_ONLY_FOR = {
    "code": ("exit",),
    "seconds": ("slow_disk",),
    "ms": ("slow_data", "slow_rank", "slow_comm"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that waits for its moment."""

    kind: str
    step: int
    """Optimizer step, counted from 1."""
    rank: int | None = None
    attempt: int = 0
    restart: int = 0
    code: int = 3
    """Exit code of ``exit``."""
    seconds: int = 2
    """What ``slow_disk`` adds."""
    ms: int = 200
    """What ``slow_data``, ``slow_rank`` and ``slow_comm`` add."""


def parse(text: str) -> list[Fault]:
    """The faults that `text` names; `SpecError` when it can't be read."""
    faults = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        kind, _, rest = part.partition(":")
        try:
            numbers = {
                key.strip(): int(value) for key, value in (pair.split("=") for pair in rest.split(","))
            }
            if kind not in KINDS:
                raise ValueError(f"unknown kind {kind!r}")
            for key, owners in _ONLY_FOR.items():
                if key in numbers and kind not in owners:
                    raise ValueError(f"{key} belongs to {' and '.join(owners)}")
            faults.append(Fault(kind, **numbers))
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"{VARIABLE}={text!r} can't be read",
                evidence=f"{part!r}: {error}",
                remedy=f"{VARIABLE}=kill:rank=1,step=40    (kinds: {', '.join(KINDS)})",
            ) from None
    return faults


def from_environment() -> list[Fault]:
    """The faults of `VARIABLE`; none where it is not set. `SpecError` when it can't be read."""
    return parse(os.environ.get(VARIABLE, ""))
