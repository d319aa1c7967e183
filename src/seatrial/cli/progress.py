"""What a person sees while a run goes on: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from seatrial.errors import InterruptedRunError, PlatformError
from seatrial.launch import launcher
from seatrial.launch.follow import Follower, Progress
from seatrial.runs.files import read_json
from seatrial.runs.plan import plan_path
from seatrial.runs.state import RunState

if TYPE_CHECKING:
    from seatrial.launch.launcher import Submitted

_POLL_S = 0.2
_AWAY_S = 1.0
"""Between attempts to reach a platform; it holds them back itself, where that costs others something."""
_LINE_EVERY_S = 10.0
"""Plain lines are for logs: one a phase, and one every so often."""


@dataclass(frozen=True)
class _Display:
    """Where progress goes."""

    show: Callable[[Progress], None]
    say: Callable[[str], None]
    """Prints a line, above the bar where there is one: whoever writes to the terminal beside it breaks it."""


class Patience:
    """Around each question to a platform that keeps the job: one that does not answer for a while ends nothing.

    Args:
        say: prints a line; None has no patience.
    """

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self._say = say
        self.is_needed = False
        """Whether the last question had no answer."""

    def __enter__(self) -> None:
        """Nothing is waited for here."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if self._say is None:
            return False
        if not isinstance(error, PlatformError):
            if error is None and self.is_needed:
                self.is_needed = False
                self._say("the platform answers again")
            return False
        if not self.is_needed:
            self.is_needed = True
            self._say(f"{error}\n  the run goes on; trying again")
        time.sleep(_AWAY_S)
        return True


def follow(submitted: Submitted, *, show_ranks: bool = False) -> None:
    """Shows an attempt, and those that a scheduler begins after it, until the run ends.

    Ctrl-C asks it to save and stop, and a second one kills it; where a scheduler keeps the job, it goes on unattended.

    Args:
        submitted: what runs, or waits to.
        show_ranks: print what the ranks print (a script of somebody's own) instead of a bar.

    Raises:
        InterruptedRunError: the user killed it before it had stopped by itself, or left it.
    """
    follower = Follower(submitted.plan)
    interrupts = 0
    with _display(show_ranks) as display:
        patience = Patience(display.say if submitted.backend.keeps_jobs else None)
        while True:
            try:
                with patience:
                    if _has_ended(submitted):
                        break
                    _show(display, follower, show_ranks, _waiting(submitted))
                    time.sleep(_POLL_S)
                    following = launcher.attempt_after(submitted) if _goes_on(submitted) else None
                    if following is not None:
                        _show(display, follower, show_ranks)
                        display.say(f"attempt {following.plan.attempt}: {following.handle}")
                        submitted, follower = following, Follower(following.plan)
                if patience.is_needed:
                    _show(display, follower, show_ranks)
            except KeyboardInterrupt:
                interrupts += 1
                if submitted.backend.keeps_jobs:
                    raise _left(submitted) from None
                submitted.backend.cancel(submitted.handle, force=interrupts > 1)
                if interrupts > 1:
                    raise InterruptedRunError(
                        "the run was killed",
                        evidence="Ctrl-C twice; its last checkpoint is kept",
                        remedy=f"seatrial runs resume {submitted.plan.run_id}",
                    ) from None
                display.say("\nstopping: saving a checkpoint first (Ctrl-C again kills at once)")
        _show(display, follower, show_ranks)


def _left(submitted: Submitted) -> InterruptedRunError:
    run_id = submitted.plan.run_id
    return InterruptedRunError(
        "you have left the run; it goes on",
        evidence=str(submitted.handle),
        remedy=f"seatrial runs logs -f {run_id}    (stop it: seatrial runs cancel {run_id})",
    )


def _has_ended(submitted: Submitted) -> bool:
    if not submitted.backend.keeps_jobs:
        attempt = submitted.paths.attempt(submitted.plan.attempt)
        return attempt.exit.exists() or submitted.backend.state(submitted.handle).state is RunState.LOST
    ended = read_json(submitted.paths.attempt(submitted.plan.attempt).exit)
    if launcher.is_last_word(str(submitted.handle), ended):
        return True
    return (
        submitted.backend.state(submitted.handle).state.is_terminal
        and launcher.settle(submitted.paths).state.is_terminal
    )


def _goes_on(submitted: Submitted) -> bool:
    """Whether a scheduler has begun the next attempt."""
    return (
        submitted.backend.keeps_jobs and plan_path(submitted.paths.root, submitted.plan.attempt + 1).exists()
    )


def _waiting(submitted: Submitted) -> str | None:
    """What a job that a scheduler keeps waits for; None while it runs."""
    if not submitted.backend.keeps_jobs:
        return None
    found = submitted.backend.state(submitted.handle)
    return f"waiting: {found.reason or found.state}" if found.state is RunState.PENDING else None


def _show(display: _Display, follower: Follower, show_ranks: bool, waiting: str | None = None) -> None:
    progress = follower.poll()
    if waiting is not None:
        progress = replace(progress, phase=waiting, notes=progress.notes)
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
        yield _Display(_Lines(only_waiting=True), _say)
    elif sys.stderr.isatty():
        with _bar() as display:
            yield display
    else:
        yield _Display(_Lines(), _say)


def _say(text: str) -> None:
    click.echo(text, err=True)


class _Lines:
    """One line a phase, and one now and then with the loss; or only what is waited for."""

    def __init__(self, *, only_waiting: bool = False) -> None:
        self._only_waiting = only_waiting
        self._phase = ""
        self._last = 0.0
        self._step = 0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._only_waiting and not progress.phase.startswith("waiting"):
            return
        still = progress.phase.startswith("waiting") and self._phase.startswith("waiting")
        if still and now - self._last < _LINE_EVERY_S:
            return  # its reason counts the seconds
        if progress.phase != self._phase:
            self._phase, self._last = progress.phase, now
            _say(progress.phase)
        elif progress.num_steps and progress.step != self._step and now - self._last >= _LINE_EVERY_S:
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
