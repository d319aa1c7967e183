"""Where the time of training goes: data, forward, backward, communication, optimizer, checkpoint, evaluation, the rest.

On a GPU each boundary is an event in its stream, read much later: nothing waits for it. Then a phase is the time that the GPU
spent in it, or waited in it. On a CPU it is the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from seatrial.job.reporter import Reporter
from seatrial.job.world import World
from seatrial.runs.files import append_json_line

PHASES = ("data", "forward", "backward", "communication", "optimizer", "checkpoint", "evaluate")
"""What a row tells; the rest of the time is ``other``."""
_FIRST_S, _EVERY_S = 1.0, 10.0
_DOUBLE_AFTER = 2000
"""Rows of a rank, after which they come half as often, and so on: a file for weeks stays small."""
_MANY = 4096
"""Boundaries that are kept before they are read, where a recipe hardly ever logs."""


class Phases:
    """One rank's clock of phases. `enter` ends one and begins the next.

    Args:
        reporter: writes for this rank.
        world: its device.
    """

    def __init__(self, reporter: Reporter, world: World) -> None:
        self._path = reporter.attempt.phases(reporter.rank)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._cuda = world.device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._free: list[Any] = []
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._steps = self._starved = self._rows = 0
        self._began = self._written = time.perf_counter()
        self._syncing = False
        self._settle: Callable[[], None] | None = None
        self.in_communication: Callable[[], None] = lambda: None
        """Called where the communication of a step begins to be waited for; a fault may dawdle there."""

    def watch_gradients(self, net: torch.nn.Module) -> None:
        """Finds which gradient comes last: from there to the end of the backward pass, this rank waits for the others.

        Only DDP tells it: what it reduces while gradients are still computed costs nothing, and is not counted.
        """
        if not isinstance(net, DistributedDataParallel):
            return
        order: list[torch.Tensor] = []
        handles = {
            id(p): p.register_post_accumulate_grad_hook(order.append)
            for p in net.parameters()
            if p.requires_grad
        }

        def settle() -> None:
            for key, handle in handles.items():
                if not order or key != id(order[-1]):
                    handle.remove()
            if order:
                order[-1].register_post_accumulate_grad_hook(lambda _: self._last_gradient())
                handles.pop(id(order[-1])).remove()
            order.clear()

        self._settle = settle

    def enter(self, phase: str, *, syncs: bool = False) -> None:
        """The next phase begins; `syncs` when the ranks reduce their gradients in it."""
        self._syncing = syncs
        if not self._marks:
            self._began = self._written = time.perf_counter()
        self._marks.append((phase, self._now()))
        if len(self._marks) > _MANY:
            self._read()

    def end_step(self) -> None:
        """An optimizer step is done; what follows until the next `enter` is the rest."""
        if self._cuda and self._marks[-1][1].query():
            self._starved += 1  # it is at the optimizer already, when the host has just said so
        self.enter("other")
        self._steps += 1
        if self._settle is not None:
            self._settle()
            self._settle = None

    def write(self, step: int, *, last: bool = False) -> None:
        """A row of what was spent since the last one, when it is time for one; call it where the device was waited for.

        Args:
            step: the last step that counts.
            last: whether there will be no other.
        """
        now = time.perf_counter()
        wait_s = min(_FIRST_S * 2**self._rows, _EVERY_S) * 2 ** (self._rows // _DOUBLE_AFTER)
        if not self._steps or (now - self._written < wait_s and not last):
            return
        self._read()
        wall_s = now - self._began
        row = {name: round(spent, 6) for name, spent in self._spent.items()}
        append_json_line(
            self._path,
            {"step": step, "steps": self._steps, "wall_s": round(wall_s, 6), "time": round(time.time(), 3), "s": row}
            | ({"starved": self._starved} if self._cuda else {}),
        )  # fmt: skip
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._steps = self._starved = 0
        self._rows += 1
        self._began = self._written = now

    def _last_gradient(self) -> None:
        if self._syncing:
            self.enter("communication")
            self.in_communication()

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read(self) -> None:
        """Adds up what lies between the boundaries; the last one stays, as the beginning of what follows."""
        for (name, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if name in self._spent:
                self._spent[name] += self._between(begin, end)
        if self._cuda:
            self._free += [event for _, event in self._marks[:-1]]
        del self._marks[:-1]

    def _between(self, begin: Any, end: Any) -> float:
        if not self._cuda:
            return float(end - begin)
        if not end.query():
            end.synchronize()  # only with thousands of boundaries that nobody has read yet
        return float(begin.elapsed_time(end)) / 1e3
