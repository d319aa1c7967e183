"""What a person sees while a run goes on: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from seatrial.errors import InterruptedRunError
from seatrial.launch.follow import Follower, Progress
from seatrial.runs.state import RunState

if TYPE_CHECKING:
    from seatrial.launch.launcher import Submitted

_POLL_S = 0.2
_LINE_EVERY_S = 10.0
"""Plain lines are for logs: one a phase, and one every so often."""


@dataclass(frozen=True)
class _Display:
    """Where progress goes."""

    show: Callable[[Progress], None]
    say: Callable[[str], None]
    """Prints a line, above the bar where there is one: whoever writes to the terminal beside it breaks it."""


def follow(submitted: Submitted, *, show_ranks: bool = False) -> None:
    """Shows an attempt until it ends. Ctrl-C asks it to save and stop; a second one kills it.

    Args:
        submitted: what runs.
        show_ranks: print what the ranks print (a script of somebody's own) instead of a bar.

    Raises:
        InterruptedRunError: the user killed it before it had stopped by itself.
    """
    follower = Follower(submitted.plan)
    interrupts = 0
    with _display(show_ranks) as display:
        while True:
            try:
                if _has_ended(submitted):
                    break
                _show(display, follower, show_ranks)
                time.sleep(_POLL_S)
            except KeyboardInterrupt:
                interrupts += 1
                submitted.backend.cancel(submitted.handle, force=interrupts > 1)
                if interrupts > 1:
                    raise InterruptedRunError(
                        "the run was killed",
                        evidence="Ctrl-C twice; its last checkpoint is kept",
                        remedy=f"seatrial runs resume {submitted.plan.run_id}",
                    ) from None
                display.say("\nstopping: saving a checkpoint first (Ctrl-C again kills at once)")
        _show(display, follower, show_ranks)


def _has_ended(submitted: Submitted) -> bool:
    attempt = submitted.paths.attempt(submitted.plan.attempt)
    return attempt.exit.exists() or submitted.backend.state(submitted.handle).state is RunState.LOST


def _show(display: _Display, follower: Follower, show_ranks: bool) -> None:
    progress = follower.poll()
    for note in progress.notes:
        display.say(f"note: {note}")
    progress.notes.clear()
    if show_ranks:
        several = len(follower.rank_logs) > 1
        for rank, tail in follower.rank_logs.items():
            for line in tail.lines():
                display.say(f"[rank {rank}] {line}" if several else line)
    display.show(progress)


@contextmanager
def _display(quiet: bool) -> Iterator[_Display]:
    if quiet:
        yield _Display(lambda progress: None, _say)
    elif sys.stderr.isatty():
        with _bar() as display:
            yield display
    else:
        yield _Display(_Lines(), _say)


def _say(text: str) -> None:
    click.echo(text, err=True)


class _Lines:
    """One line a phase, and one now and then with the loss."""

    def __init__(self) -> None:
        self._phase = ""
        self._last = 0.0
        self._step = 0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._last = progress.phase, now
            _say(progress.phase)
        elif progress.step != self._step and now - self._last >= _LINE_EVERY_S:
            self._last, self._step = now, progress.step
            _say(f"  step {progress.step}/{progress.num_steps}  {_numbers(progress)}")


@contextmanager
def _bar() -> Iterator[_Display]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=None)]
    if console.width >= 70:
        columns += [
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
        ]
    else:
        columns += [TextColumn("{task.fields[numbers]}")]
    with Bar(*columns, console=console, transient=True) as bar:
        phase = ""
        task: Any = None

        def show(progress: Progress) -> None:
            nonlocal phase, task
            training = progress.phase == "training"
            if progress.phase != phase or task is None:
                # A new task: rich never takes the total away from one that has had one.
                if task is not None:
                    bar.remove_task(task)
                phase = progress.phase
                total = progress.num_steps if training else None
                task = bar.add_task(phase[: console.width // 2], total=total, numbers="", count="")
            if training:
                count = f"{progress.step}/{progress.num_steps}"
                bar.update(task, completed=progress.step, numbers=_numbers(progress), count=count)

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield _Display(show, say)


def _numbers(progress: Progress) -> str:
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.samples_per_s is not None:
        parts.append(f"{progress.samples_per_s:.0f} samples/s")
    return "  ".join(parts)
