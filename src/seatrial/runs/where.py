"""The filter of ``runs list --where``, as SQL over the index. Pure.

    state = completed and (tags contains infra or eval.accuracy > 0.9) and not failure is null

    filter     = and-term { "or" and-term }
    and-term   = factor { "and" factor }
    factor     = "not" factor | "(" filter ")" | field test
    test       = ("=" | "!=" | "<" | "<=" | ">" | ">=") value | "contains" value
               | "in" "(" value { "," value } ")" | "is" ["not"] "null"

A value is a number, a word, or a text in quotes. What was not measured is null, and fits no comparison, denied or not.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from seatrial.errors import SpecError

COLUMNS = (
    "run_id", "name", "task", "state", "created", "ended", "model", "platform", "nodes", "ranks", "device", "gpu", "run_time_s",
    "gpu_hours", "steps", "loss", "eval_loss", "verdict", "gate", "utilisation", "failure", "version",
)  # fmt: skip
_MEASURED = {"eval": "trained", "original": "original", "difference": "difference"}
"""What ``eval.accuracy`` and its kin ask for."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^']*'|"[^"]*")|(?P<sign><=|>=|!=|[=<>(),])|(?P<word>[^\s=<>!(),'"]+))"""
)
_MOST_TESTS, _MOST_VALUES, _DEEPEST = 200, 900, 50
"""SQLite takes expressions of a depth of 1,000, and 999 values where it is old (sqlite.org/limits.html)."""
_SHOWN = 120
"""Characters of a filter that a message shows, around the place."""
_KEYWORDS = {"and", "or", "not", "contains", "in", "is", "null"}


@dataclass(frozen=True, slots=True)
class Query:
    """A condition and its values."""

    sql: str
    values: tuple[str | float, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str) -> Query:
    """The condition of a filter.

    Raises:
        SpecError: it can't be read; the evidence points at the place.
    """
    return _Parser(text).whole()


def order(text: str) -> str:
    """``ORDER BY`` of ``--sort``: a field, with a ``-`` before it for the largest first.

    Raises:
        SpecError: there is no such field.
    """
    name = text.removeprefix("-")
    expression, _ = _field(name, text, 0)
    # NULL last, whichever way.
    return f"{expression} IS NULL, {expression} {'DESC' if text.startswith('-') else 'ASC'}, run_id"


def field(name: str) -> str:
    """The SQL of a field.

    Raises:
        SpecError: there is none of that name.
    """
    return _field(name, name, 0)[0]


class _Parser:
    def __init__(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            _fail("it is not UTF-8", text, error.start)
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._values: list[str | float] = []
        self._tests = self._depth = 0

    def whole(self) -> Query:
        sql = self._or()
        if self._peek() is not None:
            self._fail("'and', 'or' or the end was expected")
        return Query(sql, tuple(self._values))

    def _or(self) -> str:
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"

    def _and(self) -> str:
        parts = [self._factor()]
        while self._take("and"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"

    def _factor(self) -> str:
        self._depth += 1
        if self._depth > _DEEPEST:
            self._fail(f"it is nested more than {_DEEPEST} deep")
        try:
            return self._inner()
        finally:
            self._depth -= 1

    def _inner(self) -> str:
        if self._take("not"):
            return f"(NOT {self._factor()})"
        if self._take("("):
            inner = self._or()
            self._want(")")
            return inner
        return self._test()

    def _test(self) -> str:
        self._tests += 1
        if self._tests > _MOST_TESTS:
            self._fail(f"it has more than {_MOST_TESTS} conditions")
        token = self._peek()
        if token is None or token.kind != "word" or token.text.lower() in _KEYWORDS:
            self._fail("a field was expected")
        assert token is not None
        self._next += 1
        tags = token.text == "tags"
        field, numeric = ("", False) if tags else _field(token.text, self._text, token.at)
        if self._take("is"):
            negated = self._take("not")
            self._want("null")
            if tags:
                return f"({'NOT ' if not negated else ''}EXISTS (SELECT 1 FROM tags t WHERE t.run_id = runs.run_id))"
            return f"({field} IS {'NOT ' if negated else ''}NULL)"
        if self._take("contains"):
            value = str(self._value(numeric=False))
            if tags:
                self._values.append(value)
                return "(EXISTS (SELECT 1 FROM tags t WHERE t.run_id = runs.run_id AND t.tag = ?))"
            self._values.append(value)
            return f"(instr({field}, ?) > 0)"
        if tags:
            self._fail("tags are asked for by: tags contains WORD, tags is null")
        if self._take("in"):
            self._want("(")
            marks: list[str] = []
            while not marks or self._take(","):
                self._values.append(self._value(numeric=numeric))
                marks.append("?")
            self._want(")")
            return f"({field} IN ({', '.join(marks)}))"
        sign = self._peek()
        if sign is None or sign.kind != "sign" or sign.text in "(),":
            self._fail("a comparison was expected: = != < <= > >= contains in is")
        assert sign is not None
        self._next += 1
        self._values.append(self._value(numeric=numeric))
        return f"({field} {sign.text} ?)"

    def _value(self, *, numeric: bool) -> str | float:
        token = self._peek()
        if token is None or token.kind == "sign":
            self._fail("a value was expected")
        assert token is not None
        if len(self._values) >= _MOST_VALUES:
            self._fail(f"it has more than {_MOST_VALUES} values")
        self._next += 1
        text = token.text[1:-1] if token.kind == "text" else token.text
        if not numeric:
            return text
        try:
            return float(text)
        except ValueError:
            self._next -= 1
            self._fail("a number was expected")
            raise

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, text: str) -> bool:
        token = self._peek()
        if token is None or token.kind == "text" or token.text.lower() != text:
            return False
        self._next += 1
        return True

    def _want(self, text: str) -> None:
        if not self._take(text):
            self._fail(f"{text!r} was expected")

    def _fail(self, what: str) -> None:
        token = self._peek()
        _fail(what, self._text, token.at if token is not None else len(self._text))


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            _fail("this can't be read", text, at + len(text[at:]) - len(text[at:].lstrip()))
        assert match is not None and match.lastgroup is not None
        found.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        at = match.end()
    return found


def _field(name: str, text: str, at: int) -> tuple[str, bool]:
    """The SQL of a field, and whether it is a number."""
    part, dot, metric = name.partition(".")
    if dot and part in _MEASURED and re.fullmatch(r"\w+", metric):
        return (
            f"(SELECT e.{_MEASURED[part]} FROM evals e WHERE e.run_id = runs.run_id AND e.metric = '{metric}')", True,
        )  # fmt: skip
    if name in COLUMNS:
        return f"runs.{name}", name in NUMBERS
    known = [*COLUMNS, "tags", "eval.METRIC", "original.METRIC", "difference.METRIC"]
    near = difflib.get_close_matches(name, known, n=1)
    _fail(
        f"there is no field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        text,
        at,
        f"fields: {', '.join(known)}",
    )
    raise AssertionError


NUMBERS = frozenset(
    {"nodes", "ranks", "run_time_s", "gpu_hours", "steps", "loss", "eval_loss", "gate", "utilisation"}
)


def _fail(what: str, text: str, at: int, remedy: str = "") -> None:
    first = max(0, at - _SHOWN // 2) if len(text) > _SHOWN else 0
    raise SpecError(
        f"the filter can't be read: {what}", evidence=f"{text[first : first + _SHOWN]}\n{' ' * (at - first)}^",
        remedy=remedy or "--where \"state = completed and tags contains infra and eval.accuracy > 0.9\"",
    )  # fmt: skip
