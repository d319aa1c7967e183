"""Faults on purpose: ``SEATRIAL_FAULT=kill:rank=1,step=40``; several are joined by ``;``.

Kinds: ``kill`` (SIGKILL to itself), ``raise`` (an exception), ``nan`` (the loss), ``oom`` (out of memory),
``disk_full`` (while a checkpoint is being written), ``freeze`` (stops answering). Without ``rank`` every rank
has it, without ``attempt`` only the first attempt, without ``restart`` only the first start of its ranks.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

import torch

from seatrial.errors import SpecError

VARIABLE = "SEATRIAL_FAULT"
KINDS = ("kill", "raise", "nan", "oom", "disk_full", "freeze")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that waits for its moment."""

    kind: str
    step: int
    rank: int | None = None
    attempt: int = 0
    restart: int = 0


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
            faults.append(Fault(kind, **numbers))
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"{VARIABLE}={text!r} can't be read",
                evidence=f"{part!r}: {error}",
                remedy=f"{VARIABLE}=kill:rank=1,step=40    (kinds: {', '.join(KINDS)})",
            ) from None
    return faults


class Faults:
    """The faults of this rank in this attempt; empty unless `VARIABLE` is set."""

    def __init__(self, rank: int, attempt: int) -> None:
        self._due = [
            fault
            for fault in parse(os.environ.get(VARIABLE, ""))
            if fault.rank in (None, rank)
            and (fault.attempt, fault.restart) == (attempt, int(os.environ.get("SEATRIAL_RESTART", "0")))
        ]

    def is_due(self, kind: str, step: int) -> bool:
        """Whether such a fault is wanted at this step."""
        return any(fault.kind == kind and fault.step == step for fault in self._due)

    def before_step(self, step: int) -> None:
        """Kills, raises, freezes or runs out of memory when that is due."""
        if self.is_due("kill", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.is_due("raise", step):
            raise RuntimeError(f"injected fault at step {step}")
        if self.is_due("oom", step):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB (injected)")
        if self.is_due("freeze", step):
            time.sleep(3600)

    def while_saving(self, step: int) -> None:
        """Reports a full disk when that is due."""
        if self.is_due("disk_full", step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
