"""The variables that Terraform files declare: names, whether they have a default, and the keys of their types.

A full parser of HCL takes seconds over a recipe's variables.tf; a preflight has one. What is needed of a declaration is found by
its braces; a test holds it against python-hcl2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SKIP = re.compile(
    r'"(?:\\.|\$\{[^}]*\}|[^"\\])*"'  # a string
    r"|\#[^\n]*|//[^\n]*|/\*.*?\*/"  # a comment
    r"|<<-?\s*(?P<end>\w+)\n.*?^\s*(?P=end)\b",  # a heredoc
    re.DOTALL | re.MULTILINE,
)
_BLOCK = re.compile(r'^variable\s+"([^"]+)"\s*\{', re.MULTILINE)
_ATTRIBUTE = re.compile(r"^\s*(\w+)\s*=(?!=)", re.MULTILINE)
_WRAPPERS = frozenset({"", "list", "set", "optional"})


@dataclass(frozen=True, slots=True)
class Variable:
    """One of a recipe's."""

    name: str
    required: bool
    keys: dict[str, Any] | None
    """Keys of the object that it is, or of the objects that it lists, each with its own keys or None; None: no object."""


def variables(text: str) -> Iterator[Variable]:
    """The variables that a file declares."""
    bare = _SKIP.sub(lambda m: " " * len(m[0]) if m[0][0] != '"' else f'"{"." * (len(m[0]) - 2)}"', text)
    for match in _BLOCK.finditer(bare):
        name = text[match.start(1) : match.end(1)]
        start = match.end()
        end = _closing(bare, start)
        attributes = dict(_attributes(bare[start:end]))
        yield Variable(name, "default" not in attributes, object_keys(attributes.get("type", "")))


def _closing(text: str, start: int) -> int:
    """Where the bracket ends that opened just before `start`."""
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] in "({[") - (text[at] in ")}]")
        if depth == 0:
            return at
    return len(text)


def _attributes(body: str) -> Iterator[tuple[str, str]]:
    """Names and expressions of a block's own attributes, those of blocks inside it left out."""
    at = 0
    while match := _ATTRIBUTE.search(body, at):
        opened = body[: match.start()]
        inside = sum(opened.count(c) for c in "({[") > sum(opened.count(c) for c in ")}]")
        start = at = match.end()
        if inside:
            continue
        depth = 0
        while at < len(body) and (depth or body[at] != "\n"):
            depth += (body[at] in "({[") - (body[at] in ")}]")
            at += 1
        yield match[1], body[start:at].strip()


def object_keys(text: str) -> dict[str, Any] | None:
    """The keys of the object in a type such as ``list(object({size = number, …}))``; None where it is of another kind."""
    head, called, _ = text.partition("object(")
    if not called or not set(re.split(r"[\s(]+", head.strip())) <= _WRAPPERS:
        return None
    body = text[text.index("{", len(head)) + 1 :]
    body = body[: _closing(body, 0)]
    keys: dict[str, Any] = {}
    at = 0
    while match := re.compile(r'["]?(\w+)["]?\s*=').search(body, at):
        start = at = match.end()
        depth = 0
        while at < len(body) and (depth or body[at] not in ",\n"):
            depth += (body[at] in "({[") - (body[at] in ")}]")
            at += 1
        keys[match[1]] = object_keys(body[start:at].strip())
    return keys
