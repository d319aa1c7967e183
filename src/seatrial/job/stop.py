"""Stopping together: a rank that leaves alone deadlocks its peers."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist

from seatrial.job.world import World
from seatrial.runs.paths import AttemptPaths

_WORD_S = 5.0
"""How long a rank that was signalled goes on without the agents' word on it.

Where Slurm tracks processes by their parents (proctrack/linuxproc), it signals agents and ranks at the same moment.
"""
_LOOK_EVERY_S = 0.05


class Wishes(NamedTuple):
    """What all ranks do after this step, because one of them asked for it."""

    stop: bool
    save: bool


class StopAgreement:
    """Lets all ranks stop, or save, after the same step, without waiting for the device.

    Each step, every rank reduces its flags (asked to stop, due to save) over a gloo group of its own, in the background,
    and reads the result of the step before. So all see the same answer at the same step, one step late.
    """

    def __init__(self, world: World, attempt: AttemptPaths) -> None:
        self._attempt = attempt
        self._signalled: tuple[int, float] | None = None
        self._pending: tuple[dist.Work | None, torch.Tensor] | None = None
        self._group = dist.new_group(backend="gloo") if world.world_size > 1 else None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)

    def agreed(self, *, save: bool = False) -> Wishes:
        """Call once a step on every rank, with this rank's wish to save; all get the same answer at the same step."""
        previous = self._read()
        flag = torch.tensor([self._is_asked(), save], dtype=torch.int32)
        work = None
        if self._group is not None:
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, flag)
        return previous

    def close(self) -> None:
        """Waits for the last reduction, which no step will read, and for the word on a signal of the last steps."""
        self._read()
        self._pending = None
        while self._signalled is not None and not self._is_asked():
            time.sleep(_LOOK_EVERY_S)

    def _read(self) -> Wishes:
        if self._pending is None:
            return Wishes(stop=False, save=False)
        work, flag = self._pending
        if work is not None:
            work.wait()
        return Wishes(*(bool(wish) for wish in flag.tolist()))

    def _is_asked(self) -> bool:
        if self._signalled is None:
            return False
        if self._attempt.stop_request.exists():
            return True
        number, since = self._signalled
        if time.monotonic() - since > _WORD_S:
            # Nobody asked: torchrun ends the survivors of a rank that died. There is nothing left to agree with.
            os._exit(128 + number)
        return False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # No waiting here: a rank whose peer has died is signalled while it says so, and should leave at once.
        self._signalled = self._signalled or (number, time.monotonic())
