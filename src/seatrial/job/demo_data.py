"""Real text that is on every machine: the docstrings of Python's standard library, labelled by package.

Which package does a docstring come from? The sources are read with `ast`, never imported. Whole modules are held out,
so that a sentence repeated within a module can't be learnt on one side and asked for on the other.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from seatrial.errors import PlatformError

NUM_CLASSES = 10
MIN_MODULES = 3
"""Documented modules that a package needs: some to train on, some to hold out."""
MIN_WORDS = 4
"""Shorter docstrings ("Return it.") say nothing of their package."""
HELD_OUT = 0.25
"""About this part of each package's docstrings is held out."""
_SKIPPED = {
    "site-packages", "dist-packages", "lib-dynload", "__pycache__", "test", "tests", "idle_test", "idlelib", "lib2to3",
    "turtledemo", "pydoc_data", "ensurepip", "__phello__",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring and where it stands."""

    package: str
    module: str
    name: str
    text: str


def standard_library() -> Path:
    """Where this interpreter's own sources lie."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_docstrings(root: Path) -> tuple[list[Docstring], int]:
    """The docstrings of all packages (directories with modules) under `root`, and how many files could not be read.

    A text that stands in several places is taken once, at its first: it can't be on both sides of a split.

    Raises:
        PlatformError: there are no sources.
    """
    found: dict[str, Docstring] = {}
    unreadable = 0
    paths = [p for p in sorted(root.rglob("*.py")) if _is_wanted(p.relative_to(root))]
    for path in paths:
        relative = path.relative_to(root)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in somebody else's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            unreadable += 1
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        for name, text in _docstrings_of(tree):
            found.setdefault(text, Docstring(relative.parts[0], module, name, text))
    if not found:
        raise PlatformError(
            "the sources of Python's standard library are not here",
            evidence=f"no docstring in {len(paths)} files under {root}",
            remedy="use a Python with its .py files, or train on data of your own: seatrial train --data FILE.csv",
        )
    return list(found.values()), unreadable


def choose_classes(docstrings: Iterable[Docstring], num_classes: int = NUM_CLASSES) -> list[Docstring]:
    """Only the packages with the most docstrings, among those with enough modules.

    Raises:
        PlatformError: there are fewer than two such packages.
    """
    by_package: dict[str, list[Docstring]] = defaultdict(list)
    for docstring in docstrings:
        by_package[docstring.package].append(docstring)
    wide = [rows for rows in by_package.values() if len({row.module for row in rows}) >= MIN_MODULES]
    chosen = sorted(wide, key=lambda rows: (-len(rows), rows[0].package))[:num_classes]
    if len(chosen) < 2:
        raise PlatformError(
            "too few packages of the standard library have their sources here",
            evidence=f"{len(chosen)} packages with {MIN_MODULES} documented modules",
            remedy="use a Python with its whole standard library, or data of your own: seatrial train --data FILE.csv",
        )
    return [row for rows in chosen for row in rows]


def split_by_module(docstrings: Iterable[Docstring], seed: int) -> tuple[list[Docstring], list[Docstring]]:
    """Training and held-out docstrings: no module is on both sides, and every package is on both.

    In each package, modules drawn by `seed` are held out until they make up `HELD_OUT`, passing over those that would
    take much more; at least one is held out, and at least one is not.
    """
    by_package: dict[str, dict[str, list[Docstring]]] = defaultdict(lambda: defaultdict(list))
    for docstring in docstrings:
        by_package[docstring.package][docstring.module].append(docstring)
    train: list[Docstring] = []
    test: list[Docstring] = []
    for package, modules in sorted(by_package.items()):
        held_out = _drawn_modules(modules, random.Random(f"{seed} {package}"))
        for module, rows in sorted(modules.items()):
            (test if module in held_out else train).extend(rows)
    return train, test


def _drawn_modules(modules: dict[str, list[Docstring]], rng: random.Random) -> set[str]:
    total = sum(map(len, modules.values()))
    order = sorted(modules)
    rng.shuffle(order)
    held_out: set[str] = set()
    taken = 0
    for module in order:
        if taken < HELD_OUT * total and taken + len(modules[module]) <= 1.5 * HELD_OUT * total:
            held_out.add(module)
            taken += len(modules[module])
    return held_out or {min(order, key=lambda module: len(modules[module]))}


def _is_wanted(relative: Path) -> bool:
    return (
        len(relative.parts) > 1
        and not (_SKIPPED & set(relative.parts))
        and "config-" not in relative.parts[0]
    )


def _docstrings_of(tree: ast.Module) -> Iterable[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = (ast.get_docstring(node) or "").strip()
            if len(text.split()) >= MIN_WORDS:
                yield getattr(node, "name", ""), text
