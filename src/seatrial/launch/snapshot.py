"""What is sent to a cluster: the code as it lies here, and the data and models that are only here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from seatrial import command
from seatrial.backends.ssh import tree
from seatrial.backends.ssh.tree import Item, Tree
from seatrial.errors import PlatformError, SpecError
from seatrial.launch.ignore import FILE, Ignore

_GIT_S = 60
_SKIPPED = frozenset(
    {".git", "__pycache__", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules"}
)
"""Outside of git, directories that are never code."""


@dataclass(frozen=True, slots=True)
class Code:
    """The work tree that a run is started from."""

    root: Path
    tree: Tree

    def inside(self, path: Path) -> str:
        """Where `path` is in the tree, with slashes; "." for its root."""
        return path.relative_to(self.root).as_posix()


def of_code(
    cwd: Path,
    *,
    limit_bytes: int,
    leave_out: Iterable[Path] = (),
    runner: command.CommandRunner = command.run,
    larger: str = "slurm.remote.max_code_mib",
) -> Code:
    """The git work tree that `cwd` is in: tracked files as they are now, changes included, and untracked ones that git
    does not ignore. Outside of git, the directory `cwd` itself.

    Args:
        cwd: where the run is started.
        limit_bytes: the largest size.
        leave_out: directories that are not code, such as the one of the runs.
        runner: runs git.
        larger: the recipe's key for the limit.

    Raises:
        SpecError: it is larger, or a file can't be read.
    """
    cwd = cwd.resolve()
    root = _git(cwd, runner, "rev-parse", "--show-toplevel")
    if root is None:
        top, names = cwd, _walk(cwd, Ignore.read(cwd))
    else:
        top = Path(root.rstrip("\n")).resolve()
        ignore = Ignore.read(top)
        names = (name for name in _listed(top, runner) if not ignore.file(name))
    skipped = [path.resolve() for path in leave_out]
    paths = ((name, top / name) for name in names)
    items = (
        tree.look(name, path)
        for name, path in paths
        if not any(path.is_relative_to(skip) for skip in skipped)
    )
    return Code(top, _within(items, limit_bytes, f"the code in {top}", f"{_TOO_MUCH_CODE} {larger}"))


def of_path(path: Path, *, limit_bytes: int, key: str, larger: str = "slurm.remote.max_data_gib") -> Tree:
    """A file or a directory of data or a model, under its own name.

    Args:
        path: it.
        limit_bytes: the largest size.
        key: the recipe's, for messages.
        larger: the recipe's key for the limit.

    Raises:
        SpecError: it is larger, or can't be read.
    """
    path = path.resolve()
    if path.is_file():
        items: Iterator[Item | None] = iter([tree.look(path.name, path)])
    else:
        files = (
            Path(at) / name for at, _, names in os.walk(path, followlinks=True) for name in sorted(names)
        )
        items = (
            tree.look(f"{path.name}/{file.relative_to(path).as_posix()}", file.resolve()) for file in files
        )
    remedy = f"copy it to the cluster, and name it there: {key}=cluster:/PATH    (or a larger {larger})"
    return _within(items, limit_bytes, f"{key} {path}", remedy)


_TOO_MUCH_CODE = f"start it in the directory of the code, list what is not code in {FILE}, or give a larger"


def _within(items: Iterable[Item | None], limit_bytes: int, what: str, remedy: str) -> Tree:
    """The tree of items that are no more than the limit together; nothing is hashed before that is known."""
    kept: list[Item] = []
    total = 0
    for item in items:
        if item is None:
            continue
        kept.append(item)
        total += item.size
        if total > limit_bytes and len(kept) > 100_000:
            break  # somebody's whole home: what is known is enough
    if total > limit_bytes:
        largest = sorted(kept, key=lambda item: -item.size)[:3]
        raise SpecError(
            f"{what} is too large to be sent",
            evidence=f"{size_text(total)}, {size_text(limit_bytes)} at most; the largest: "
            + ", ".join(f"{item.name} ({size_text(item.size)})" for item in largest),
            remedy=remedy,
        )
    return tree.make(kept)


def _listed(root: Path, runner: command.CommandRunner) -> list[str]:
    """Names of the files of a work tree that exist: a deleted one is no part of it, nor a directory that is a submodule."""
    tracked = _git(root, runner, "ls-files", "-z", "--cached", "--recurse-submodules")
    others = _git(root, runner, "ls-files", "-z", "--others", "--exclude-standard")
    if tracked is None or others is None:
        raise PlatformError(
            "git can't list the files of the work tree", evidence=str(root), remedy="git status"
        )
    names = sorted({name for name in (tracked + others).split("\0") if name and not name.endswith("/")})
    odd = [name for name in names if "\ufffd" in name]
    if odd:
        raise SpecError(
            "a file's name is not UTF-8", evidence=odd[0], remedy=f"rename it, or list it in {FILE}"
        )
    return names


def _git(cwd: Path, runner: command.CommandRunner, *arguments: str) -> str | None:
    try:
        done = runner(["git", "-C", str(cwd), *arguments], timeout_s=_GIT_S)
    except PlatformError:
        return None
    return done.stdout if done.returncode == 0 else None


def _walk(root: Path, ignore: Ignore) -> Iterator[str]:
    for directory, below, files in os.walk(root):
        at = Path(directory)
        prefix = "" if at == root else f"{at.relative_to(root).as_posix()}/"
        below[:] = sorted(
            name
            for name in below
            if name not in _SKIPPED
            and not ignore.directory(prefix + name)
            and not (at / name / "pyvenv.cfg").exists()
        )
        links = [name for name in below if (at / name).is_symlink()]
        for name in sorted([*files, *links]):
            if not ignore.file(prefix + name):
                yield prefix + name


def size_text(size_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"
