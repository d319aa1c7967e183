"""Where each rank is, and which one holds up the others.

A rank overwrites one short line of a file of its own, some microseconds a beat and never synced; the agent reads
the lines, and decides by its own monotonic clock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seatrial.job.processes import is_halted

STACK_SIGNAL = signal.SIGUSR1
"""Makes a rank print the stacks of its threads into its log."""
_LINE = b"%d %d %d %d %d %d %-40.40b\n"
"""pid, step, part, begun, monotonic and wall time in ns, phase; what a longer line leaves behind it is blank."""
_GONE = ("finished", "failed")
_STARTING_S = 1800.0


class Heart:
    """One rank's heartbeat. Every beat is written, since the last one before a freeze tells who is behind."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._pid = os.getpid()
        self._step = 0
        self._part = 0
        self._begun = 0
        if threading.current_thread() is threading.main_thread():
            # Chained, the interpreter's own handler tells whoever waits at its wake-up pipe (`recorder`).
            signal.signal(STACK_SIGNAL, lambda number, frame: None)
        faulthandler.register(STACK_SIGNAL, all_threads=True, chain=True)
        self.enter("starting")

    def beat(self, step: int | None = None, phase: str = "training") -> None:
        """A step (from 1) begins; without a number, the next one."""
        self._step = self._step + 1 if step is None else step
        self._part = 0
        self._begun += 1
        self._write(phase)

    def enter(self, phase: str) -> None:
        """The next part of the same step begins."""
        self._part += 1
        self._write(phase)

    def _write(self, phase: str) -> None:
        os.pwrite(
            self._file,
            _LINE
            % (
                self._pid,
                self._step,
                self._part,
                self._begun,
                time.monotonic_ns(),
                time.time_ns(),
                phase.encode(),
            ),
            0,
        )


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank's line said last. Of two ranks, the one with the lower `place` is behind."""

    pid: int
    step: int
    part: int
    begun: int
    """Steps that this process has begun."""
    phase: str
    line: str

    @property
    def place(self) -> tuple[int, int]:
        """Step, and part within the step."""
        return self.step, self.part

    @classmethod
    def read(cls, path: Path) -> Beat | None:
        """The beat in `path`; None where there is none yet."""
        with contextlib.suppress(FileNotFoundError):
            return cls.parse(path.read_text())
        return None

    @classmethod
    def parse(cls, line: str) -> Beat | None:
        """The beat that a line tells; None for half a line."""
        with contextlib.suppress(ValueError):
            pid, step, part, begun, _, _, phase = line.split(maxsplit=6)
            return cls(int(pid), int(step), int(part), int(begun), phase.strip(), line)
        return None


@dataclass(frozen=True, slots=True)
class Frozen:
    """The rank that holds up the others."""

    rank: int
    beat: Beat | None
    """None when it never said anything."""
    silent_s: float
    others: str
    """Where the other ranks are, in words."""


class Beats(Protocol):
    """Where beats come from."""

    def beat(self, rank: int) -> Beat | None:
        """What a rank said last; None when it has said nothing yet."""

    def halted(self, rank: int) -> bool:
        """Whether the kernel holds the rank, as after SIGSTOP."""


class FileBeats:
    """The beats of the ranks of this node.

    Args:
        paths: heartbeat files by rank; removed, since they are of earlier ranks.
        is_halted: whether the kernel holds a process (by pid).
    """

    def __init__(self, paths: Mapping[int, Path], is_halted: Callable[[int], bool] = is_halted) -> None:
        self._paths = paths
        self._is_halted = is_halted
        for path in paths.values():
            path.unlink(missing_ok=True)

    def beat(self, rank: int) -> Beat | None:  # noqa: D102
        return Beat.read(self._paths[rank])

    def halted(self, rank: int) -> bool:  # noqa: D102
        beat = self.beat(rank)
        return beat is not None and self._is_halted(beat.pid)


class Watch:
    """Looks for a rank that makes no progress.

    Args:
        beats: where the ranks are.
        num_ranks: how many there are.
        timeout_s: longest silence of a rank that is well.
        clock: seconds that never jump.
    """

    def __init__(
        self, beats: Beats, num_ranks: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = beats
        self._timeout_s = timeout_s
        self._clock = clock
        self._beats: list[Beat | None] = [None] * num_ranks
        self._changed = [clock()] * num_ranks

    def look(self) -> Frozen | None:
        """The rank that is furthest behind, once some rank has been silent for too long."""
        now = self._clock()
        for rank in range(len(self._beats)):
            beat = self._source.beat(rank)
            if beat is not None and (self._beats[rank] is None or beat.line != self._beats[rank].line):  # type: ignore[union-attr]
                self._beats[rank], self._changed[rank] = beat, now
        silent = [rank for rank in range(len(self._beats)) if self._is_silent(rank, now)]
        if not silent:
            return None
        # Ranks wait for each other: of those that are silent, a halted one or else the last one is the cause.
        rank = min(silent, key=lambda r: (not self._source.halted(r), self._place(r), self._changed[r]))
        return Frozen(rank, self._beats[rank], now - self._changed[rank], self._others(rank))

    @property
    def beats(self) -> list[Beat | None]:
        """What each rank said last."""
        return list(self._beats)

    @property
    def step(self) -> int:
        """The highest step that any rank has begun."""
        return max((beat.step for beat in self._beats if beat is not None), default=0)

    def _is_silent(self, rank: int, now: float) -> bool:
        beat = self._beats[rank]
        silent_s = now - self._changed[rank]
        if silent_s <= self._timeout_s:
            return False
        if beat is not None and beat.phase in _GONE:
            # It has nothing more to do but to end, which only a halted one does not.
            return self._source.halted(rank)
        # Imports, data, the model and compilation happen before the second step. A halted rank does none of it.
        running = beat is not None and beat.begun > 1
        return running or silent_s > max(3 * self._timeout_s, _STARTING_S) or self._source.halted(rank)

    def _place(self, rank: int) -> tuple[int, int]:
        beat = self._beats[rank]
        return (-1, 0) if beat is None else beat.place

    def _others(self, rank: int) -> str:
        found = [(r, b) for r, b in enumerate(self._beats) if r != rank]
        words = [f"rank {r}: step {b.step}, {b.phase}" if b else f"rank {r}: no sign" for r, b in found[:8]]
        return "; ".join(words) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
