"""YAML whose entries know their line, for tables that people review."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from seatrial.errors import SpecError


class Table:
    """A mapping read from YAML; what is wrong in it is refused with the line."""

    def __init__(self, text: str, source: str) -> None:
        """Reads `text`; `source` names it in errors.

        Raises:
            SpecError: it is not YAML, not a mapping, or of another schema.
        """
        self.source = source
        try:
            data = YAML(typ="rt", pure=True).load(StringIO(text))
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = " ".join(str(getattr(error, "problem", None) or error).split())
            raise self.refusal(problem, mark.line if mark else None) from None
        if not isinstance(data, CommentedMap):
            raise self.refusal("it is not a mapping of 'key: value' lines", None)
        if data.get("schema") != 1:
            raise self.refusal(f"schema {data.get('schema')!r}, not 1", _line(data))
        self.data = data

    def section(self, name: str, kind: type) -> Any:
        """One section: a mapping or a list."""
        section = self.data.get(name)
        if not isinstance(section, kind):
            raise self.refusal(f"{name} is missing, or of the wrong form", _line(self.data))
        return section

    def entries(self, name: str) -> list[CommentedMap]:
        """The mappings in a list."""
        section = self.section(name, CommentedSeq)
        for index, entry in enumerate(section):
            if not isinstance(entry, CommentedMap):
                raise self.refusal(f"{name}[{index}] is not a mapping", section.lc.item(index)[0])
        return list(section)

    def number(self, entry: CommentedMap, key: str, *, at_least: float | None = None) -> float:
        """A finite number of an entry."""
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refusal(f"{key} is {value!r}, not a finite number", _line(entry))
        if at_least is not None and value < at_least:
            raise self.refusal(f"{key} is {value}, less than {at_least:g}", _line(entry))
        return float(value)

    def keys(self, entry: CommentedMap, needed: set[str], allowed: set[str]) -> None:
        """Refuses an entry that lacks a key, or has one that nobody reads."""
        if missing := sorted(needed - set(entry)):
            raise self.refusal(f"{', '.join(missing)} missing", _line(entry))
        if unknown := sorted(set(entry) - needed - allowed):
            raise self.refusal(f"unknown key {', '.join(unknown)}", _line(entry))

    def at(self, entry: CommentedMap) -> int:
        """Line of an entry, from 1."""
        return (_line(entry) or 0) + 1

    def wrong(self, entry: CommentedMap, why: str) -> SpecError:
        """The refusal of an entry."""
        return self.refusal(why, _line(entry))

    def refusal(self, why: str, line: int | None) -> SpecError:
        """The refusal of the table."""
        where = self.source if line is None else f"{self.source}:{line + 1}"
        return SpecError(
            f"{self.source} can't be used",
            evidence=f"{where}: {why}",
            remedy="correct that line, and run it again",
        )


def _line(entry: Any) -> int | None:
    line = getattr(getattr(entry, "lc", None), "line", None)
    return line if isinstance(line, int) else None
