"""A site's own defaults: values that lie under every recipe, and profiles to choose from.

``~/.config/seatrial/config.yaml`` (under ``$XDG_CONFIG_HOME`` where that is set; ``$SEATRIAL_CONFIG`` names another file)::

    profile: small                    # the one that is taken unless --profile says otherwise; may be left out
    defaults:
      slurm: {account: nlp}
    profiles:
      small: {resources: {nodes: 1}}
      big: {resources: {nodes: 8}, slurm: {partition: large}}
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from seatrial.errors import SpecError
from seatrial.spec.document import parse_yaml, read_text
from seatrial.spec.explain import problems
from seatrial.spec.run import PLATFORMS, RunSpec

VARIABLE = "SEATRIAL_CONFIG"
OF_A_RECIPE = frozenset({"schema", "name", "model", "data", "task"})
"""Keys that say what a run is: they have no defaults."""
_SECTIONS = ("defaults", "profile", "profiles")

_REST = {"name": "x", "model": "x", "data": {"path": "x"}}
"""Makes a recipe of a part of one, so that a default is as strictly checked."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Values that lie under a recipe."""

    origin: str
    """Where they come from, in words."""
    values: Mapping[str, Any]
    """A part of a recipe."""


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    """Where the site's file is, or would be (XDG Base Directory Specification)."""
    named = env.get(VARIABLE)
    home = env.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(named) if named else Path(home) / "seatrial" / "config.yaml"
    # A user without a home has no file there.
    with contextlib.suppress(RuntimeError):
        return path.expanduser()
    return path


def site_layers(profile: str | None = None, env: Mapping[str, str] = os.environ) -> list[Layer]:
    """What the site's file lays under a recipe, lowest first: its defaults, then one profile.

    Args:
        profile: which; None takes the one that the file names, if it names one.
        env: the environment.

    Raises:
        SpecError: the file is not valid, there is no such profile, or `VARIABLE` names no file.
    """
    path = config_path(env)
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        if env.get(VARIABLE):
            raise SpecError(f"there is no file {path}", evidence=f"{VARIABLE} names it") from None
        text = ""
    data = {} if (parsed := parse_yaml(text, str(path))) is None else parsed
    _check_form(data, path)
    profiles = data.get("profiles") or {}
    for origin, values in {f"{path}: defaults": data.get("defaults"), **_named(profiles, path)}.items():
        _check_part(values, origin)
    chosen = profile if profile is not None else data.get("profile")
    layers = [Layer(f"{path} defaults", data.get("defaults") or {})]
    if chosen is not None:
        if chosen not in profiles:
            raise _no_profile(chosen, profiles, path, asked=profile is not None)
        layers.append(Layer(f"profile {chosen} of {path}", profiles[chosen] or {}))
    return [layer for layer in layers if layer.values]


def named(
    platform: str | None, profile: str | None, env: Mapping[str, str] = os.environ
) -> tuple[str | None, str | None]:
    """``--on`` and ``--profile``, where ``--on`` may name a profile that says what to run on: a cluster's own name.

    Raises:
        SpecError: both name one.
    """
    if platform is None or platform in PLATFORMS or platform.startswith("ssh://"):
        return platform, profile
    path = config_path(env)
    try:
        data = parse_yaml(read_text(path), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return platform, profile
    profiles = data.get("profiles") if isinstance(data, dict) else None
    its = profiles.get(platform) if isinstance(profiles, dict) else None
    resources = its.get("resources") if isinstance(its, dict) else None
    if not isinstance(resources, dict) or "on" not in resources:
        return platform, profile
    if profile is not None and profile != platform:
        raise SpecError(
            "two profiles at once", evidence=f"--on {platform} is one, --profile {profile} another", remedy=f"--on {resources['on']} --profile {profile}"
        )  # fmt: skip
    return None, platform


def _named(profiles: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {f"{path}: profiles.{name}": values for name, values in profiles.items()}


def _check_form(data: Any, path: Path) -> None:
    if not isinstance(data, dict):
        raise SpecError(
            f"{path} is not a mapping",
            evidence=f"its top level is {type(data).__name__}, not 'key: value' lines",
            remedy=f"it may have: {', '.join(_SECTIONS)}",
        )
    for key in data:
        if key not in _SECTIONS:
            near = difflib.get_close_matches(str(key), _SECTIONS, n=1)
            inside = key in RunSpec.model_fields
            raise SpecError(
                f"{path} is not valid",
                evidence=f"unknown key {key!r}; the top level has: {', '.join(_SECTIONS)}",
                remedy=f"write it as defaults: {{{key}: …}}" if inside else f"did you mean {near[0]!r}?" if near else "",
            )  # fmt: skip
    profiles = data.get("profiles") or {}
    if not isinstance(profiles, dict) or not all(isinstance(name, str) for name in profiles):
        raise SpecError(
            f"{path} is not valid", evidence=f"profiles = {profiles!r}: not a mapping of names to values"
        )
    if not isinstance(data.get("profile"), str | None):
        raise SpecError(
            f"{path} is not valid", evidence=f"profile = {data['profile']!r}: not a profile's name"
        )


def _check_part(values: Any, origin: str) -> None:
    if values is None:
        return
    if not isinstance(values, dict):
        raise SpecError(
            f"{origin} is not valid", evidence=f"{values!r} is not a mapping of sections to values"
        )
    mine = sorted(OF_A_RECIPE & values.keys())
    if mine:
        raise SpecError(
            f"{origin} is not valid",
            evidence=f"{', '.join(mine)} can't have a default: they say what a run is",
            remedy="write them into the recipe",
        )
    try:
        RunSpec.model_validate(values | _REST)
    except ValidationError as error:
        # Whether the values go together is seen when the recipe lies over them.
        found = problems(RunSpec, error, parts_only=True)
        if found is not None:
            raise SpecError(f"{origin} is not valid", evidence=found[0], remedy=found[1]) from None


def _no_profile(name: str, profiles: Mapping[str, Any], path: Path, *, asked: bool) -> SpecError:
    near = difflib.get_close_matches(name, list(profiles), n=1)
    there = f"it has: {', '.join(profiles)}" if profiles else "it has none"
    return SpecError(
        f"there is no profile {name!r}",
        evidence=f"{path}: {there if path.exists() else 'no such file'}{'' if asked else '; its own key profile names it'}",
        remedy=f"did you mean {near[0]!r}?" if near else "",
    )
