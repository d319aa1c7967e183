"""YAML 1.2 as people write it: read strictly, refused with the place."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from seatrial.errors import SpecError


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping: ``on`` is a word, ``1e-5`` a number, and a key given twice is an error.

    Raises:
        SpecError: no such file, not YAML, empty, or not a mapping.
    """
    try:
        data = parse_yaml(read_text(path), str(path))
    except (FileNotFoundError, NotADirectoryError):
        nearby = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise SpecError(
            f"there is no recipe {path}",
            evidence=f"{path.parent.absolute()} has {', '.join(nearby[:8]) or 'no .yaml files'}",
            remedy="seatrial train --model MODEL --data DATA    (runs without a recipe)",
        ) from None
    if not isinstance(data, dict):
        raise SpecError(
            f"the recipe {path} is empty" if data is None else f"the recipe {path} is not a mapping",
            evidence=f"its top level is {type(data).__name__}, not 'key: value' lines",
            remedy="see recipes/demo.yaml for the form",
        )
    return data


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        SpecError: it can't be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} can't be read", evidence=str(error)) from error


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; `SpecError` with line and column of `source` when it has none."""
    try:
        return YAML(typ="safe", pure=True).load(StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise SpecError(f"{source} is not valid YAML", evidence=f"{where}: {problem}") from error
