"""From a recipe, flags and ``key.path=value`` to a frozen spec that knows where each value came from."""

from __future__ import annotations

import copy
import difflib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from seatrial.errors import SpecError
from seatrial.spec.run import RunSpec, ScriptSpec


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A spec, and where each of its values came from (``{"train.seed": "flag --seed", …}``)."""

    spec: RunSpec
    origins: dict[str, str] = field(default_factory=dict)


def load(
    recipe: Path | None, *, flags: Mapping[str, tuple[str, Any]] | None = None, overrides: Iterable[str] = ()
) -> LoadedSpec:
    """Reads a recipe and lays flags, then ``key=value`` words, over it.

    Args:
        recipe: a YAML 1.2 file, or None to build the whole spec from flags.
        flags: by dotted key, the flag's name and its value.
        overrides: words such as ``train.seed=3``; the value is read as YAML.

    Raises:
        SpecError: a missing or broken file, an unknown key (with the nearest valid one), a wrong type, a
            value out of range.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if recipe is not None:
        values = read_yaml(recipe)
        origins.update((key, str(recipe)) for key in _leaves(values))
    for key, (flag, value) in (flags or {}).items():
        _put(values, key, value, flag)
        origins[key] = flag
    for word in overrides:
        key, value = _split_override(word)
        _put(values, key, value, word)
        origins[key] = word
    if "name" not in values and recipe is not None:
        values["name"] = recipe.stem
    _make_absolute(values)
    source = str(recipe) if recipe is not None else "the command line"
    return LoadedSpec(_validate(RunSpec, values, source), origins)


def load_values(values: Mapping[str, Any], overrides: Iterable[str]) -> RunSpec:
    """A recorded recipe with ``key=value`` words laid over it; `values` stays as it is.

    Raises:
        SpecError: as for `load`.
    """
    copied = copy.deepcopy(dict(values))
    for word in overrides:
        key, value = _split_override(word)
        _put(copied, key, _absolute(value) if key == "data.path" else value, word)
    return _validate(RunSpec, copied, "the command line")


def _make_absolute(values: dict[str, Any]) -> None:
    """Local paths, as seen from where the command was typed, hold wherever the run goes on."""
    data = values.get("data")
    for section, key in ((values, "model"), (data if isinstance(data, dict) else {}, "path")):
        if key in section:
            section[key] = _absolute(section[key])


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and Path(value).expanduser().exists():
        return str(Path(value).expanduser().absolute())
    return value


def read_spec(path: Path) -> RunSpec | ScriptSpec:
    """The ``spec.json`` of a run."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise SpecError("the run has no readable spec", evidence=f"{path}: {error}") from error
    kind: type[RunSpec] | type[ScriptSpec] = ScriptSpec if data.get("task") == "script" else RunSpec
    return _validate(kind, data, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping: ``on`` is a word, ``1e-5`` a number, and a key given twice is an error.

    Raises:
        SpecError: no such file, not YAML, empty, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        nearby = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise SpecError(
            f"there is no recipe {path}",
            evidence=f"{path.parent.absolute()} has {', '.join(nearby[:8]) or 'no .yaml files'}",
            remedy="seatrial train --model MODEL --data DATA    (runs without a recipe)",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the recipe {path} can't be read", evidence=str(error)) from error
    data = _parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise SpecError(
            f"the recipe {path} is empty" if data is None else f"the recipe {path} is not a mapping",
            evidence=f"its top level is {type(data).__name__}, not 'key: value' lines",
            remedy="see recipes/demo.yaml for the form",
        )
    return data


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise SpecError(f"{source} is not valid YAML", evidence=f"{where}: {problem}") from error


def _split_override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise SpecError(
            f"{word!r} is not key=value",
            evidence="words after the recipe set values of it",
            remedy="seatrial train RECIPE.yaml train.seed=3 data.max_length=64",
        )
    return key.strip(), _parse_yaml(text, word)


def _put(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = values.setdefault(parent, {})
        if not isinstance(below, dict):
            raise SpecError(f"{source}: {parent} is not a section", evidence=f"{parent} = {below!r}")
        values = below
    values[last] = value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


_Spec = TypeVar("_Spec", bound=BaseModel)


def _validate(kind: type[_Spec], values: dict[str, Any], source: str) -> _Spec:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(kind, error, source) from None


def _explain(kind: type[BaseModel], error: ValidationError, source: str) -> SpecError:
    """The first problems of a validation, in the words of the recipe."""
    lines: list[str] = []
    remedy = ""
    for problem in error.errors(include_url=False):
        place = [str(part) for part in problem["loc"] if str(part) not in _UNION_BRANCHES]
        key = ".".join(place)
        given = problem["input"]
        match problem["type"]:
            case "extra_forbidden":
                parent, valid = ".".join(place[:-1]), _valid_keys(kind, place[:-1])
                line = f"unknown key {key!r}; {parent or 'the top level'} has: {', '.join(valid)}"
                nearest = _nearest(kind, place, valid)
                if nearest and not remedy:
                    remedy = f"did you mean {nearest!r}?"
            case "missing":
                line = f"{key} is missing"
                remedy = remedy or f"add it: {key}=…"
            case "value_error":
                line = f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}"
            case _:
                line = f"{key} = {given!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
        if line not in lines:
            lines.append(line)
    return SpecError(f"{source} is not a valid recipe", evidence="\n".join(lines), remedy=remedy)


# Pydantic puts the branch of a union that it tried into the location of an error.
_UNION_BRANCHES = {"int", "float", "constrained-int", "literal['auto']"}


def _valid_keys(kind: type[BaseModel], place: list[str]) -> list[str]:
    for part in place:
        nested = _section(kind.model_fields[part].annotation) if part in kind.model_fields else None
        if nested is None:
            return []
        kind = nested
    return [name for name in kind.model_fields if name != "schema_"]


def _section(annotation: Any) -> type[BaseModel] | None:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _nearest(kind: type[BaseModel], place: list[str], valid: list[str]) -> str | None:
    close = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.6)
    if close:
        return ".".join([*place[:-1], close[0]])
    # The right name in the wrong section: `epochs` at the top level.
    for section in ("data", "train", "resources", "gates.compare", "adapter", "model_options"):
        names = _valid_keys(kind, section.split("."))
        close = difflib.get_close_matches(place[-1], names, n=1, cutoff=0.75)
        if close:
            return f"{section}.{close[0]}"
    return None
