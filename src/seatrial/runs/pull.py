"""A run back from its mirror, every file verified; what is sealed appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from seatrial.errors import PlatformError, SpecError
from seatrial.runs import commit
from seatrial.runs.files import sha256_file, write_json
from seatrial.runs.manifest import touch_runs
from seatrial.runs.mirror import SEALED, STATE, state
from seatrial.runs.paths import RunPaths
from seatrial.runs.stores import Store, StoreError

_ASIDE = ".pulling"
_AT_ONCE = 4


@dataclass(slots=True)
class Pulled:
    """What came."""

    files: int = 0
    bytes: int = 0
    kept: list[str] = field(default_factory=list)
    """Files that are others here than what was pulled before: they stay as they are."""


def pull(
    store: Store, run_id: str, runs_dir: Path, *, models: bool, say: Callable[[str], None] = lambda text: None
) -> Pulled:
    """Brings a run into a runs directory.

    Args:
        store: the mirror.
        run_id: the run's.
        runs_dir: where to.
        models: weights and checkpoints, too.
        say: told of each directory that came.

    Raises:
        SpecError: the mirror has no such run, or names that lead out of it.
        StoreError: a file did not come as it was sent; what came before stays, and the next pull goes on from there.
    """
    files = _listed(store, run_id)
    paths = RunPaths(runs_dir / run_id)
    home = paths.root.resolve()
    before, result = state(paths), Pulled()
    sealed: dict[str, dict[str, dict[str, Any]]] = {}
    loose: list[tuple[str, dict[str, Any]]] = []
    for name, entry in files.items():
        if home not in (home / name).resolve().parents:
            raise SpecError(f"{name!r} would lead out of the run", evidence=f"{store.url}/{run_id}")
        if name.partition("/")[0] in SEALED:
            seal = _seal_of(name, files)
            if seal is not None:
                sealed.setdefault(seal, {})[name] = entry
            continue
        loose.append((name, entry))

    def bring(one: tuple[str, dict[str, Any]]) -> None:
        name, entry = one
        path = paths.root / name
        if path.is_file():
            here = sha256_file(path)
            if here == entry["sha256"]:
                return
            if here != before.get(name, {}).get("sha256"):
                result.kept.append(name)
                return
        store.get(f"{run_id}/{name}", path, entry["sha256"])
        result.files, result.bytes = result.files + 1, result.bytes + entry["bytes"]

    paths.root.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # The manifest last: a run is there once it has one.
        loose.sort(key=lambda one: one[0] == paths.manifest.name)
        list(pool.map(bring, loose[:-1]))
        for one in loose[-1:]:
            bring(one)
        for seal, entries in sorted(sealed.items()) if models else ():
            if not commit.is_committed(paths.root / seal):
                _bring_sealed(store, run_id, paths.root / seal, seal, entries, pool, result)
                say(f"{seal} came")
    touch_runs(paths)
    known = {name: files[name] for name in files if (paths.root / name).is_file() and name not in result.kept}
    write_json(
        paths.root / STATE,
        {"schema": 1, "url": store.url, "files": {n: _as_here(paths.root / n, e) for n, e in known.items()}},
    )
    return result


def _listed(store: Store, run_id: str) -> dict[str, dict[str, Any]]:
    if PurePosixPath(run_id).name != run_id:
        raise SpecError(f"{run_id!r} is no run's id")
    answer = store.read(f"{run_id}/{STATE}")
    if answer is None:
        raise SpecError(
            f"{store.url} has no run {run_id}",
            evidence=f"no {run_id}/{STATE}",
            remedy="is it the right --from?",
        )
    try:
        files = json.loads(answer[0])["files"]
        names = {
            str(name): {"sha256": str(e["sha256"]), "bytes": int(e["bytes"])} for name, e in files.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{run_id}/{STATE} can't be read", evidence=f"{store.url}: {error}") from error
    for name in names:
        if not name or name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name:
            raise SpecError(f"{name!r} would lead out of the run", evidence=f"{store.url}/{run_id}/{STATE}")
    return names


def _seal_of(name: str, files: dict[str, dict[str, Any]]) -> str | None:
    """The committed directory that a file is of; None where its marker never arrived."""
    for parent in PurePosixPath(name).parents:
        if f"{parent}/{commit.MARKER}" in files:
            return str(parent)
    return None


def _bring_sealed(
    store: Store,
    run_id: str,
    final: Path,
    seal: str,
    entries: dict[str, dict[str, Any]],
    pool: ThreadPoolExecutor,
    result: Pulled,
) -> None:
    aside = final.with_name(final.name + _ASIDE)

    def bring(one: tuple[str, dict[str, Any]]) -> None:
        name, entry = one
        path = aside / PurePosixPath(name).relative_to(seal)
        if not (
            path.is_file() and path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]
        ):
            store.get(f"{run_id}/{name}", path, entry["sha256"])
            result.files, result.bytes = result.files + 1, result.bytes + entry["bytes"]

    list(pool.map(bring, entries.items()))
    if wrong := commit.problems(aside):
        raise PlatformError(f"{seal} did not come as it was committed", evidence="\n".join(wrong[:5]))
    aside.rename(final)


def _as_here(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"mtime_ns": path.stat().st_mtime_ns}
