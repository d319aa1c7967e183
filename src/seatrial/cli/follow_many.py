"""Following many runs that a platform keeps: a table on a terminal, a line for each change anywhere else."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click

from seatrial.cli.outcome import conclude
from seatrial.errors import ExitCode, InterruptedRunError, PlatformError, SeatrialError
from seatrial.launch import launcher
from seatrial.launch.follow import Follower, Progress
from seatrial.launch.launcher import Submitted
from seatrial.runs.manifest import read_manifest
from seatrial.runs.plan import plan_path
from seatrial.runs.state import RunState
from seatrial.spec.run import RunSpec

_POLL_S = 0.5
_POLL_EACH_S = 0.02
"""Files of a run cost so long on a shared file system that many of them are looked at less often."""


@dataclass
class Following:
    """One of the runs."""

    label: str
    spec: RunSpec
    submitted: Submitted
    state: str = RunState.PENDING
    phase: str = ""
    progress: Progress = field(default_factory=Progress)
    code: ExitCode | None = None
    """Once it has ended."""
    follower: Follower | None = None


def follow_all(sweep_id: str, runs: Sequence[Following]) -> list[ExitCode]:
    """Shows the runs until all have ended, and concludes each when it has; their exit codes.

    Raises:
        InterruptedRunError: Ctrl-C; they go on.
    """
    away = ""
    with _display(runs) as display:
        try:
            while left := [run for run in runs if run.code is None]:
                try:
                    for run in left:
                        _look(run, display)
                    away = ""
                except PlatformError as error:
                    if not away:
                        display.tell(f"{error.what}: asking again")
                    away = error.what
                display.show()
                if any(run.code is None for run in runs):
                    time.sleep(max(_POLL_S, _POLL_EACH_S * len(left)))
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "you have left the sweep; it goes on",
                evidence=_counts(runs),
                remedy=f"seatrial runs compare --tag {sweep_id}    (stop one: seatrial runs cancel RUN)",
            ) from None
    return [run.code for run in runs if run.code is not None]


def _look(run: Following, display: _Display) -> None:
    """Brings one run up to date, and tells what has changed."""
    submitted = run.submitted
    found = submitted.backend.state(submitted.handle)
    if found.state.is_terminal:
        manifest = launcher.settle(submitted.paths)
        if manifest.state.is_terminal:
            _end(run, display.tell)
            return
    if plan_path(submitted.paths.root, submitted.plan.attempt + 1).exists():
        following = launcher.attempt_after(submitted)
        if following is not None:
            run.submitted, run.follower = following, None
            display.tell(f"{run.label}: attempt {following.plan.attempt}")
    before = (run.state, run.phase)
    run.state = RunState.PENDING if found.state.is_terminal else found.state
    if found.state is RunState.RUNNING:
        run.follower = run.follower or Follower(run.submitted.plan)
        run.progress = run.follower.poll()
        run.phase = run.progress.phase
        for note in run.progress.notes:
            display.tell(f"{run.label}: note: {note}")
        run.progress.notes.clear()
    else:
        run.phase = ""
    if (run.state, run.phase) != before:
        display.change(f"{run.label}: {run.phase or found.reason or run.state}")


def _end(run: Following, tell: Callable[[str], None]) -> None:
    paths = run.submitted.paths
    try:
        run.code = conclude(paths, run.spec, quiet=True)
        said = ""
    except SeatrialError as error:
        run.code, said = error.exit_code, f": {error.what}"
    manifest = read_manifest(paths)
    sentence = manifest.results.get("comparison", {}).get("sentence")
    run.state, run.phase = manifest.state, ""
    tell(f"{run.label}: {run.state}{said or (f': {sentence}' if sentence else '')}")


def _counts(runs: Sequence[Following]) -> str:
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))


@dataclass(frozen=True)
class _Display:
    """Where it is shown."""

    show: Callable[[], None]
    """Brings the table up to date, where there is one."""
    change: Callable[[str], None]
    """Prints a line that the table makes needless."""
    tell: Callable[[str], None]
    """Prints a line."""


@contextmanager
def _display(runs: Sequence[Following]) -> Iterator[_Display]:
    if not sys.stderr.isatty():
        yield _Display(lambda: None, _say, _say)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console(stderr=True)

    def table() -> Table:
        shown = Table("run", "state", "step", "loss", caption=_counts(runs), box=None, pad_edge=False)
        going = [run for run in runs if run.code is None]
        going.sort(key=lambda run: run.state != RunState.RUNNING)
        for run in going[: max(1, console.height - 4)]:
            step = f"{run.progress.step}/{run.progress.num_steps}" if run.progress.num_steps else ""
            loss = "" if run.progress.loss is None else f"{run.progress.loss:.3f}"
            shown.add_row(run.label, run.phase or run.state, step, loss)
        return shown

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with Live(table(), console=console, transient=True, auto_refresh=False) as live:
        yield _Display(lambda: live.update(table(), refresh=True), lambda text: None, tell)


def _say(text: str) -> None:
    click.echo(text, err=True)
