"""``.seatrialignore``: what is not sent to a cluster, in the patterns of .gitignore (gitignore(5))."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

FILE = ".seatrialignore"


class Ignore:
    """Patterns, one a line: ``*.ckpt``, ``/data/``, ``**/cache``, ``!keep.ckpt``; the last that fits decides.

    Args:
        lines: of the file.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._rules = [rule for line in lines if (rule := _rule(line)) is not None]

    @classmethod
    def read(cls, root: Path) -> Ignore:
        """The patterns of a directory; none where it has no such file."""
        try:
            return cls((root / FILE).read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return cls()

    def file(self, name: str) -> bool:
        """Whether a file is left out, by itself or with a directory that it is in."""
        parents = [str(parent) for parent in reversed(PurePosixPath(name).parents)][1:]
        return any(self._fits(parent, True) for parent in parents) or self._fits(name, False)

    def directory(self, name: str) -> bool:
        """Whether a directory is left out with all that is in it; one inside such a one is not asked about."""
        return self._fits(name, True)

    def _fits(self, name: str, is_directory: bool) -> bool:
        ignored = False
        for pattern, directories_only, negated in self._rules:
            if (is_directory or not directories_only) and pattern.fullmatch(name):
                ignored = not negated
        return ignored


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    text = text.removeprefix("!")
    directories_only = text.endswith("/")
    text = text.rstrip("/")
    anchored = "/" in text
    text = text.removeprefix("/")
    body = "".join(_parts(text))
    return re.compile(body if anchored else f"(?:.*/)?{body}"), directories_only, negated


def _parts(text: str) -> Iterable[str]:
    """The regular expression of a pattern, a sign at a time."""
    for sign in re.findall(r"\*\*/|/\*\*$|\*\*|\*|\?|\[!?[^\]]+\]|\\.|.", text):
        if sign == "**/":
            yield "(?:.*/)?"
        elif sign == "/**":
            yield "/.*"
        elif sign in ("**", "*"):
            yield "[^/]*"
        elif sign == "?":
            yield "[^/]"
        elif len(sign) > 2 and sign[0] == "[":
            yield "[^" + sign[2:] if sign[1] == "!" else sign
        else:
            yield re.escape(sign[-1])
