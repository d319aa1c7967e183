"""What is recorded of two runs, side by side, where it differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from seatrial.runs.files import read_json
from seatrial.runs.manifest import read_manifest
from seatrial.runs.paths import RunPaths

Differences = dict[str, dict[str, tuple[Any, Any]]]
_OF_ONE_RUN = frozenset({"name"})
"""Of the recipe, what tells nothing."""


def differences(first: RunPaths, second: RunPaths) -> Differences:
    """By section (``recipe``, ``data``, ``code``, ``environment``, ``packages``, ``attempts``, ``results``), each key's two values.

    Raises:
        SpecError: one of them has no manifest that can be read.
    """
    both = [_sections(paths) for paths in (first, second)]
    found: Differences = {}
    for section in both[0]:
        a, b = (dict(_leaves(side[section])) for side in both)
        rows = {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}
        if rows:
            found[section] = rows
    return found


def _sections(paths: RunPaths) -> dict[str, Any]:
    manifest = read_manifest(paths)
    environment = dict(manifest.environment)
    packages = environment.pop("packages", {})
    recipe = {key: value for key, value in (read_json(paths.spec) or {}).items() if key not in _OF_ONE_RUN}
    comparison = read_json(paths.comparison) or {}
    measured = {name: row.get("trained") for name, row in comparison.get("metrics", {}).items()}
    return {
        "recipe": recipe,
        "data": manifest.data,
        "code": {
            "git": manifest.git.model_dump() if manifest.git else None,
            "seatrial": manifest.seatrial_version,
        },
        "environment": environment,
        "packages": packages,
        "attempts": {
            "number": len(manifest.attempts),
            "last": manifest.attempts[-1].model_dump(include={"nodes", "nproc", "device", "outcome"})
            if manifest.attempts
            else None,
        },
        "results": {"state": str(manifest.state), "measured": measured, **manifest.results},
    }


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
