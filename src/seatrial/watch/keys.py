"""Single keys from a terminal, whose mode is given back on every way out."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType

_NAMES = {
    "\x1b[A": "k", "\x1b[B": "j", "\x1bOA": "k", "\x1bOB": "j", "\r": "enter", "\n": "enter", "\x1b": "escape", "\x7f": "escape",
    "\x08": "escape",
}  # fmt: skip


class Keys:
    """Keys as they are pressed; none where there is no terminal to read from.

    Use as a context. Ctrl-C stays what it is, and so does Ctrl-Z: the mode is given back while the program is suspended.
    """

    def __init__(self) -> None:
        self._file = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._before: list[object] | None = None

    def __enter__(self) -> Keys:
        if self._file is not None:
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
            signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._before is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def within(self, seconds: float) -> str | None:
        """The name of the next key: a character, ``enter`` or ``escape``; None when there is none in time."""
        if self._file is None:
            select.select([], [], [], seconds)
            return None
        if not select.select([self._file], [], [], seconds)[0]:
            return None
        text = os.read(self._file, 16).decode(errors="ignore")
        return _NAMES.get(text, text[:1] or None)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        with self._given_back():
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            # Here it is stopped, and goes on after `fg`.
            signal.signal(signal.SIGTSTP, self._suspend)

    @contextlib.contextmanager
    def _given_back(self) -> Iterator[None]:
        assert self._file is not None and self._before is not None
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]
        try:
            yield
        finally:
            tty.setcbreak(self._file)
