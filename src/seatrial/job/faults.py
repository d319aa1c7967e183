"""Does to a rank what ``SEATRIAL_FAULT`` asks for; the kinds and their syntax are in `spec.faults`."""

from __future__ import annotations

import errno
import math
import os
import signal
import time

import torch

from seatrial.spec.faults import Fault, from_environment

_SPIKE = 100.0


class Faults:
    """The faults of this rank in this attempt; empty unless the variable is set."""

    def __init__(self, rank: int, attempt: int) -> None:
        here = (attempt, int(os.environ.get("SEATRIAL_RESTART", "0")))
        self._due = [
            f for f in from_environment() if f.rank in (None, rank) and (f.attempt, f.restart) == here
        ]

    def is_due(self, kind: str, step: int) -> bool:
        """Whether such a fault is wanted at this step."""
        return self._find(kind, step) is not None

    def before_step(self, step: int, net: torch.nn.Module) -> None:
        """Ends, freezes, fails or drifts when that is due."""
        if not self._due:
            return
        for kind, number in (("kill", signal.SIGKILL), ("term", signal.SIGTERM), ("stop", signal.SIGSTOP)):
            if self.is_due(kind, step):
                os.kill(os.getpid(), number)
        if fault := self._find("exit", step):
            os._exit(fault.code)
        if self.is_due("raise", step):
            raise RuntimeError(f"injected fault at step {step}")
        if self.is_due("oom", step):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB (injected)")
        if self.is_due("freeze", step):
            time.sleep(3600)
        if self.is_due("drift", step):
            with torch.no_grad():
                next(p for p in net.parameters() if p.requires_grad).view(-1)[0] += 1e-3

    def on_loss(self, loss: torch.Tensor, step: int) -> torch.Tensor:
        """The loss of a forward pass, or what a fault makes of it."""
        if self.is_due("nan", step):
            return loss * math.nan
        return loss * _SPIKE if self.is_due("spike", step) else loss

    def gradient_factor(self, step: int) -> float:
        """What the gradient of this rank is multiplied with before it is reduced."""
        return math.inf if self.is_due("inf_grad", step) else 1.0

    def dawdle(self, kind: str, step: int) -> None:
        """Sleeps when that is due: at its step and at each one after it."""
        for fault in self._due:
            if fault.kind == kind and step >= fault.step:
                time.sleep(fault.ms / 1e3)

    def while_saving(self, step: int) -> None:
        """Reports a full disk, or dawdles, when that is due."""
        if self.is_due("disk_full", step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for fault in self._due:
            if fault.kind == "slow_disk" and step >= fault.step:
                time.sleep(fault.seconds)

    def _find(self, kind: str, step: int) -> Fault | None:
        return next((f for f in self._due if f.kind == kind and f.step == step), None)
