"""What a runs directory can do without, and its removal: shown first, checked again at the moment, moved aside, then deleted.

Never goes: the newest and the best committed checkpoint of a run, a run that is active or that anything was packaged or promoted
of, what a configured mirror does not have yet, what Seatrial did not write, what lies behind a symbolic link, a verdict that
launches still go by.
"""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from seatrial.errors import PlatformError, SeatrialError, SpecError
from seatrial.launch import launcher
from seatrial.runs import commit, lock, mirror, released
from seatrial.runs.files import read_json
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.retention import Kept, Retention
from seatrial.runs.stores import Store
from seatrial.ship.archive import archive

TRASH = ".trash"
_LOCK = ".prune.lock"
_STEP = re.compile(r"step_(\d{6,})")
_LEFTOVER = re.compile(r"(step_\d{6,}|original|trained|release)\.(writing|damaged|pulling)(-\d+)?")
_DAY_S = 86_400.0
What = Literal["checkpoints", "runs"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a person wants to be without."""

    what: What = "checkpoints"
    """Checkpoints and leftovers of those, or whole runs."""
    older_than_s: float = 0.0
    larger_than: int = 0
    """Bytes."""
    keep_last: int = 1
    keep_best: int = 1
    runs: str = "*"
    """Pattern of their ids."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A directory that can go."""

    run_id: str
    name: str
    """Within the run; empty is the run."""
    bytes: int
    why: str

    def path(self, root: Path) -> Path:
        """Where it is."""
        return root / self.run_id / self.name if self.name else root / self.run_id


@dataclass(frozen=True, slots=True)
class Plan:
    """What would go, and which runs are kept whole and why."""

    candidates: tuple[Candidate, ...]
    kept: dict[str, str]

    @property
    def bytes(self) -> int:
        """What it frees."""
        return sum(candidate.bytes for candidate in self.candidates)


def plan(
    root: Path,
    rules: Rules,
    now: float,
    *,
    settle: Callable[[RunPaths], Manifest] = launcher.settle,
    archived: bool = False,
) -> Plan:
    """Looks; touches nothing.

    Args:
        root: the runs directory.
        rules: what is wanted.
        now: seconds since the epoch.
        settle: how a run stands, by its platform.
        archived: whether all is copied away first, so that whole runs with checkpoints may go.
    """
    found: list[Candidate] = []
    kept: dict[str, str] = {}
    for directory in sorted(root.iterdir()) if root.is_dir() else ():
        if directory.name.startswith(".") or not fnmatch.fnmatchcase(directory.name, rules.runs):
            continue
        reason = keeps_whole(RunPaths(directory), settle)
        if reason is None:
            found += _of_run(RunPaths(directory), rules, now, archived=archived)
        elif reason:
            kept[directory.name] = reason
    return Plan(tuple(found), kept)


def keeps_whole(paths: RunPaths, settle: Callable[[RunPaths], Manifest] = launcher.settle) -> str | None:
    """Why nothing of a run may go; None where something may; empty where it is no run at all."""
    if paths.root.is_symlink():
        return "it is a symbolic link"
    if not paths.manifest.is_file():
        return ""
    try:
        read_manifest(paths)
        if paths.remote.exists():
            return "it is a copy of a run elsewhere"
        manifest = settle(paths)
        if not manifest.state.is_terminal:
            return f"it is {manifest.state}"
        if (
            (read_json(paths.attempt(manifest.attempt.index).exit) or {}).get("continues")
            if manifest.attempts
            else None
        ):
            return "its job goes on by itself"
        lock.check_free(paths.lock)
        if released.read(paths.root):
            return "its model was packaged or promoted"
        if _verdict_holds(paths):
            return "launches still go by its verdict"
    except SeatrialError as error:
        return error.what
    except (OSError, ValueError) as error:
        return f"it can't be read: {error}"
    return None


def _verdict_holds(paths: RunPaths) -> bool:
    verdict = read_json(paths.verdict)
    if verdict is None:
        return False
    return bool(datetime.fromisoformat(str(verdict["expires"])) > datetime.now(UTC))


def _of_run(paths: RunPaths, rules: Rules, now: float, *, archived: bool) -> Iterator[Candidate]:
    away = {pending.name for pending in mirror.missing(paths)}
    has_mirror = mirror.url_of(paths) is not None
    if rules.what == "runs":
        yield from _whole(paths, rules, now, unmirrored=has_mirror and bool(away), archived=archived)
        return
    for path in _own_directories(paths):
        leftover = _LEFTOVER.fullmatch(path.name) is not None
        if leftover:
            why = "left behind, never whole" if not path.name.endswith(".damaged") else "damaged"
            yield from _if_wanted(paths, path, rules, now, why)
    checkpoints = _committed(paths)
    steps = {kept.step for kept in checkpoints}
    retention = Retention(max(1, rules.keep_last), max(1, rules.keep_best))
    # The best by held-out loss; where no checkpoint has one, the newest is what there is.
    for step in retention.superfluous(checkpoints):
        path = paths.checkpoints / _name_of(paths, step)
        prefix = f"checkpoints/{path.name}/"
        if any(name.startswith(prefix) for name in away):
            continue
        yield from _if_wanted(paths, path, rules, now, f"checkpoint {step} of {max(steps)}")


def _whole(
    paths: RunPaths, rules: Rules, now: float, *, unmirrored: bool, archived: bool
) -> Iterator[Candidate]:
    if unmirrored:
        return
    holds = bool(_committed(paths)) or any(
        commit.is_committed(paths.model(name)) for name in ("original", "trained")
    )
    if holds and not archived:
        return
    if _foreign(paths):
        return
    yield from _if_wanted(
        paths,
        paths.root,
        rules,
        now,
        "the whole run" + (", with its model" if holds else ", without a model"),
    )


def _if_wanted(paths: RunPaths, path: Path, rules: Rules, now: float, why: str) -> Iterator[Candidate]:
    age_s = now - newest(path)
    size = size_of(path)
    if age_s < rules.older_than_s or size < rules.larger_than:
        return
    days = f", {age_s / _DAY_S:.0f} days old" if age_s >= _DAY_S else ""
    name = "" if path == paths.root else path.relative_to(paths.root).as_posix()
    yield Candidate(paths.run_id, name, size, why + days)


def _own_directories(paths: RunPaths) -> Iterator[Path]:
    for home in (paths.root / "checkpoints", paths.root / "models", paths.root):
        if home.is_symlink() or not home.is_dir():
            continue
        for path in sorted(home.iterdir()):
            if path.is_dir() and not path.is_symlink() and not _has_links(path):
                yield path


def _committed(paths: RunPaths) -> list[Kept]:
    found = []
    for path in _own_directories(paths):
        step = _STEP.fullmatch(path.name)
        if step is None or path.parent != paths.checkpoints:
            continue
        # A directory of that name with other files in it has something that is not ours.
        marker = _marker(path)
        if marker is not None and _listed(marker) == _names(path):
            loss = marker.get("held_out_loss")
            found.append(Kept(int(step[1]), float(loss) if loss is not None else None))
    return found


def _name_of(paths: RunPaths, step: int) -> str:
    return next(
        p.name for p in _own_directories(paths) if (m := _STEP.fullmatch(p.name)) and int(m[1]) == step
    )


def _names(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()}


def _has_links(path: Path) -> bool:
    return any(p.is_symlink() for p in path.rglob("*"))


_OURS = re.compile(
    r"(manifest|spec|inputs|request|guard|comparison|verdict|mirror|sweep)\.json|request\.(sh|yaml)|"
    r"(evidence|metrics|releases)\.jsonl|report\.html|junit\.xml|slurm-.*\.out|\.lock|\.mirror\.lock|"
    r"checkpoints|models|(predictions|attempt-\d+|release)(/.*)?"
)
_COMMITTED = re.compile(r"checkpoints/step_\d{6,}|models/(original|trained)")


def _foreign(paths: RunPaths) -> bool:
    """Whether something lies in a run that Seatrial would not have put there, or a link."""
    ours: set[str] = set()
    for home in (paths.checkpoints, paths.root / "models"):
        for path in home.glob("*/") if home.is_dir() else ():
            name = path.relative_to(paths.root).as_posix()
            if _LEFTOVER.fullmatch(path.name):
                ours |= {name} | {f"{name}/{found.relative_to(path).as_posix()}" for found in path.rglob("*")}
            elif _COMMITTED.fullmatch(name) and (marker := _marker(path)) is not None:
                files = {f"{name}/{file}" for file in _listed(marker)}
                ours |= files | {str(parent) for file in files for parent in PurePosixPath(file).parents}
    return any(
        path.is_symlink() or not (name in ours or _OURS.fullmatch(name))
        for path in paths.root.rglob("*")
        for name in [path.relative_to(paths.root).as_posix()]
    )


def _marker(path: Path) -> dict[str, Any] | None:
    """The marker of a committed directory; None where there is none that lists files."""
    try:
        marker = commit.read_marker(path)
    except ValueError:
        return None
    return marker if marker is not None and isinstance(marker.get("files"), dict) else None


def _listed(marker: dict[str, Any]) -> set[str]:
    return set(marker["files"]) | {commit.MARKER}


def newest(path: Path) -> float:
    """When anything below was last changed, in seconds since the epoch."""
    times = [path.lstat().st_mtime]
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            times.append(Path(directory, name).lstat().st_mtime)
    return max(times)


def size_of(path: Path) -> int:
    """Bytes of all files below."""
    return sum(
        Path(directory, name).lstat().st_size for directory, _, names in os.walk(path) for name in names
    )


def prune(
    root: Path,
    candidates: Sequence[Candidate],
    rules: Rules,
    now: float,
    *,
    store: Store | None = None,
    say: Callable[[str], None] = lambda text: None,
    settle: Callable[[RunPaths], Manifest] = launcher.settle,
) -> tuple[int, list[str]]:
    """Removes what a plan names and what may still go: each is looked at again just before.

    Args:
        root: the runs directory.
        candidates: of the plan.
        rules: the plan's.
        now: seconds since the epoch.
        store: an archive, where all is copied to and verified first.
        say: told of each.
        settle: how a run stands.

    Returns:
        How many bytes were freed, and what stayed all the same, each with the reason.

    Raises:
        SpecError: another prune is at work there.
        PlatformError: something can't be removed.
    """
    freed, stayed = 0, []
    damaged: dict[str, str] = {}
    with lock.hold(root / _LOCK, "prune", 0.0):
        empty_trash(root)
        for candidate in candidates:
            paths = RunPaths(root / candidate.run_id)
            reason = keeps_whole(paths, settle)
            still = () if reason is not None else _of_run(paths, rules, now, archived=store is not None)
            if not any(other.name == candidate.name for other in still):
                stayed.append(
                    f"{candidate.run_id}/{candidate.name}: {reason or 'it changed meanwhile'}".replace(
                        "/:", ":"
                    )
                )
                continue
            if candidate.run_id not in damaged:
                damaged[candidate.run_id] = _damage_of_newest(paths)
            if damaged[candidate.run_id] and _STEP.fullmatch(Path(candidate.name).name):
                stayed.append(f"{candidate.run_id}/{candidate.name}: {damaged[candidate.run_id]}")
                continue
            try:
                if store is not None:
                    archive(paths, candidate.name, store)
                _remove(root, candidate.path(root))
            except PlatformError as error:
                stayed.append(f"{candidate.run_id}/{candidate.name}: {error.what} ({error.evidence})")
                continue
            except OSError as error:
                stayed.append(f"{candidate.run_id}/{candidate.name}: {error}")
                continue
            freed += candidate.bytes
            say(f"{candidate.run_id}/{candidate.name}".rstrip("/"))
    return freed, stayed


def _damage_of_newest(paths: RunPaths) -> str:
    """What is wrong with the checkpoint that the others would go for; empty where it is sound."""
    steps = [kept.step for kept in _committed(paths)]
    wrong = commit.problems(paths.checkpoints / _name_of(paths, max(steps))) if steps else []
    return f"the newest checkpoint is damaged: {wrong[0]}" if wrong else ""


def empty_trash(root: Path) -> None:
    """Finishes what a prune that was killed had begun."""
    trash = root / TRASH
    if trash.is_dir() and not trash.is_symlink():
        shutil.rmtree(trash)


def _remove(root: Path, path: Path) -> None:
    """Out of sight in one step, then gone: of what is being deleted, nobody sees half."""
    if root.resolve() not in path.resolve().parents or path.is_symlink():
        raise SpecError(f"{path} leads out of {root}")
    trash = root / TRASH
    trash.mkdir(exist_ok=True)
    aside = trash / f"{path.name}-{secrets.token_hex(4)}"
    path.rename(aside)
    shutil.rmtree(aside)
    if not any(trash.iterdir()):
        trash.rmdir()
