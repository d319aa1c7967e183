"""A command runner that starts nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seatrial.command import Completed
from seatrial.errors import PlatformError


@dataclass
class FakeRunner:
    """A `command.CommandRunner` that answers from a table and remembers what it was asked.

    Args:
        answers: what a command prints, or ``(exit code, stdout, stderr)``, by the beginning of its argv as one text;
            the longest that fits is taken. A command without an answer is one that isn't installed.
    """

    answers: Mapping[str, str | tuple[int, str, str]] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Completed:
        """The answer; `PlatformError` when there is none."""
        self.calls.append(tuple(argv))
        text = " ".join(argv)
        fitting = [key for key in self.answers if text.startswith(key)]
        if not fitting:
            raise PlatformError(f"{argv[0]} can't be started", evidence="No such file or directory")
        answer = self.answers[max(fitting, key=len)]
        code, stdout, stderr = (0, answer, "") if isinstance(answer, str) else answer
        return Completed(tuple(argv), code, stdout, stderr)
