"""What is wrong with values, in the words of the recipe."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from seatrial.errors import SpecError

_Spec = TypeVar("_Spec", bound=BaseModel)
# Pydantic puts the branch of a union that it tried into the location of an error.
_UNION_BRANCHES = {"int", "float", "constrained-int", "literal['auto']"}


def validate(
    kind: type[_Spec], values: dict[str, Any], source: str, *, remark: str = "", noun: str = "recipe"
) -> _Spec:
    """The values as a spec.

    Args:
        kind: of spec.
        values: by key.
        source: where they come from, as it stands in front of "is not a valid recipe".
        remark: one more line of evidence.
        noun: what it would be were it valid.

    Raises:
        SpecError: unknown keys (with the nearest valid one), wrong types, values out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = problems(kind, error)
        assert found is not None
        evidence, remedy = found
        evidence = "\n".join([evidence, remark]) if remark else evidence
        raise SpecError(f"{source} is not a valid {noun}", evidence=evidence, remedy=remedy) from None


def problems(
    kind: type[BaseModel], error: ValidationError, *, parts_only: bool = False
) -> tuple[str, str] | None:
    """What a validation found wrong, one line each, and what to do about it; None where there is nothing.

    Args:
        kind: what was validated.
        error: what came of it.
        parts_only: leave out what is wrong of a section as a whole, because the values are only a part of it.
    """
    lines: list[str] = []
    remedy = ""
    for problem in error.errors(include_url=False):
        place = [str(part) for part in problem["loc"] if str(part) not in _UNION_BRANCHES]
        key = ".".join(place)
        given = problem["input"]
        match problem["type"]:
            case "extra_forbidden":
                parent, valid = ".".join(place[:-1]), valid_keys(kind, place[:-1])
                line = f"unknown key {key!r}; {parent or 'the top level'} has: {', '.join(valid)}"
                nearest = _nearest(kind, place, valid)
                if nearest and not remedy:
                    remedy = f"did you mean {nearest!r}?"
            case "missing":
                line = f"{key} is missing"
                remedy = remedy or f"add it: {key}=…"
            case "value_error":
                if parts_only and (not place or valid_keys(kind, place)):
                    continue
                line = f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}"
            case _:
                line = f"{key} = {given!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
        if line not in lines:
            lines.append(line)
    return ("\n".join(lines), remedy) if lines else None


def valid_keys(kind: type[BaseModel], place: list[str]) -> list[str]:
    """The keys of a section; none where the place is not one."""
    for part in place:
        if part.isdigit():
            continue  # a list of sections: all are of one kind
        nested = _section(kind.model_fields[part].annotation) if part in kind.model_fields else None
        if nested is None:
            return []
        kind = nested
    return [name for name in kind.model_fields if name != "schema_"]


def _section(annotation: Any) -> type[BaseModel] | None:
    if typing.get_origin(annotation) is tuple:
        annotation = typing.get_args(annotation)[0]
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _nearest(kind: type[BaseModel], place: list[str], valid: list[str]) -> str | None:
    close = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.6)
    if close:
        return ".".join([*place[:-1], close[0]])
    # The right name in the wrong section: `epochs` at the top level.
    for section in (
        "data",
        "train",
        "resources",
        "slurm",
        "kubernetes",
        "gates.compare",
        "adapter",
        "model_options",
    ):
        close = difflib.get_close_matches(place[-1], valid_keys(kind, section.split(".")), n=1, cutoff=0.75)
        if close:
            return f"{section}.{close[0]}"
    return None
