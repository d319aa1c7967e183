"""From a recipe, flags and ``key.path=value`` to a frozen spec that knows where each value came from."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from seatrial.errors import SpecError
from seatrial.spec.document import parse_yaml, read_yaml
from seatrial.spec.explain import validate
from seatrial.spec.kinds import BY_TASK, AnySpec
from seatrial.spec.run import RunSpec, ScriptSpec
from seatrial.spec.site import Layer

_Spec = TypeVar("_Spec", bound=BaseModel)
Flags = Mapping[str, tuple[str, Any]]
"""By dotted key: the flag's name and its value."""


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A spec, and where each of its values came from (``{"train.seed": "flag --seed", …}``)."""

    spec: RunSpec
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadedScript:
    """The spec of somebody's own script, and where each of its values came from."""

    spec: ScriptSpec
    origins: dict[str, str] = field(default_factory=dict)


def load(
    recipe: Path | None,
    *,
    flags: Flags | None = None,
    overrides: Iterable[str] = (),
    under: Sequence[Layer] = (),
) -> LoadedSpec:
    """Reads a recipe and lays flags, then ``key=value`` words, over it.

    Args:
        recipe: a YAML 1.2 file, or None to build the whole spec from flags.
        flags: see `Flags`.
        overrides: words such as ``train.seed=3``; the value is read as YAML.
        under: what lies under the recipe, lowest first (`site.site_layers`).

    Raises:
        SpecError: a missing or broken file, an unknown key (with the nearest valid one), a wrong type, a
            value out of range.
    """
    layered = _Layered()
    for layer in under:
        layered.lay(layer.values, layer.origin)
    if recipe is not None:
        layered.lay(read_yaml(recipe), str(recipe))
    for key, (flag, value) in (flags or {}).items():
        layered.put(key, value, flag)
    for word in overrides:
        key, value = _split_override(word)
        layered.put(key, value, word)
    if "name" not in layered.values and recipe is not None:
        layered.values["name"] = recipe.stem
    _make_absolute(layered.values)
    source = str(recipe) if recipe is not None else "the command line"
    spec = validate(RunSpec, layered.values, source, remark=layered.remark(under))
    return LoadedSpec(spec, layered.origins)


def load_script(
    values: Mapping[str, Any], *, flags: Flags | None = None, under: Sequence[Layer] = ()
) -> LoadedScript:
    """The spec of a script, as `load_command` makes it."""
    return LoadedScript(*load_command(ScriptSpec, values, flags=flags, under=under))


def load_command(
    kind: type[_Spec], values: Mapping[str, Any], *, flags: Flags | None = None, under: Sequence[Layer] = ()
) -> tuple[_Spec, dict[str, str]]:
    """Lays what the site says over a command's own values, and flags over that.

    Args:
        kind: of spec.
        values: of such a spec; `values` stays as it is.
        flags: see `Flags`.
        under: what lies under the flags, lowest first; what other kinds of spec have is left out.

    Returns:
        The spec, and where each of its values came from.

    Raises:
        SpecError: a wrong type, a value out of range.
    """
    layered = _Layered(values)
    for layer in under:
        mine = {key: value for key, value in layer.values.items() if key in kind.model_fields}
        layered.lay(mine, layer.origin)
    for key, (flag, value) in (flags or {}).items():
        layered.put(key, value, flag)
    return validate(kind, layered.values, "the command line", remark=layered.remark(under)), layered.origins


def load_values(values: Mapping[str, Any], overrides: Iterable[str]) -> RunSpec:
    """A recorded recipe with ``key=value`` words laid over it; `values` stays as it is.

    Raises:
        SpecError: as for `load`.
    """
    layered = _Layered(values)
    for word in overrides:
        key, value = _split_override(word)
        layered.put(key, _absolute(value) if key in {"data.path", "model"} else value, word)
    return validate(RunSpec, layered.values, "the command line")


def read_spec(path: Path) -> AnySpec:
    """The ``spec.json`` of a run."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise SpecError("the run has no readable spec", evidence=f"{path}: {error}") from error
    return validate(BY_TASK.get(data.get("task"), RunSpec), data, str(path))


class _Layered:
    """Values that were laid over each other, each with the origin of what lies on top."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = copy.deepcopy(dict(values or {}))
        self.origins: dict[str, str] = {}

    def lay(self, values: Mapping[str, Any], origin: str) -> None:
        """Lays a nested mapping over all: sections are merged, everything else is replaced."""
        self._merge(self.values, values, "", origin)

    def put(self, key: str, value: Any, source: str) -> None:
        """Lays one value over all; `SpecError` when what should hold it is not a section."""
        *parents, last = key.split(".")
        section = self.values
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            below = section[parent]
            if not isinstance(below, dict):
                raise SpecError(f"{source}: {parent} is not a section", evidence=f"{parent} = {below!r}")
            section = below
        self._replace(section, last, value, key, source)

    def remark(self, layers: Iterable[Layer]) -> str:
        """Which values come from these layers: they may be what a recipe doesn't go with."""
        parts = []
        for layer in layers:
            keys = [key for key, origin in self.origins.items() if origin == layer.origin]
            parts += [f"{', '.join(keys)} from {layer.origin}"] if keys else []
        return f"with {'; '.join(parts)}" if parts else ""

    def _merge(self, section: dict[str, Any], values: Mapping[str, Any], prefix: str, origin: str) -> None:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping) and isinstance(section.get(name), dict):
                self._merge(section[name], value, f"{key}.", origin)
            else:
                self._replace(section, name, copy.deepcopy(value), key, origin)

    def _replace(self, section: dict[str, Any], name: str, value: Any, key: str, origin: str) -> None:
        section[name] = value
        for known in [k for k in self.origins if k == key or k.startswith(f"{key}.")]:
            del self.origins[known]
        leaves = list(_leaves(value, f"{key}.")) if isinstance(value, Mapping) else []
        self.origins.update(dict.fromkeys(leaves or [key], origin))


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


def _split_override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise SpecError(
            f"{word!r} is not key=value",
            evidence="words after the recipe set values of it",
            remedy="seatrial train RECIPE.yaml train.seed=3 data.max_length=64",
        )
    return key.strip(), parse_yaml(text, word)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
