"""What a login node keeps for those outside: ``code/<sha256>``, ``data/<sha256>`` and ``runs/<run id>`` in one directory."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from seatrial.backends.ssh import tree
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.paths import RunPaths

_KINDS = ("code", "data")
_SPARE_BYTES = 64 << 20
GROWING = (".log", ".jsonl", ".out")
"""Endings of files that only ever get longer; all others are replaced as a whole."""
_NOT_COPIED = frozenset({"heartbeats", "models", "checkpoints"})
_MODELS = ("models", "checkpoints")


@dataclass(frozen=True, slots=True)
class Store:
    """That directory.

    Args:
        root: it.
    """

    root: Path

    @classmethod
    def at(cls, directory: str) -> Store:
        """The store in a directory, made where it is missing.

        Raises:
            PlatformError: it can't be made, or not written to.
        """
        root = Path(directory).expanduser()
        try:
            for name in (*_KINDS, "runs"):
                (root / name).mkdir(parents=True, exist_ok=True)
            probe = root / f".{secrets.token_hex(4)}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise PlatformError(
                f"{root} can't be written on the login node",
                evidence=str(error),
                remedy="slurm.remote.directory=DIRECTORY that is yours there, and that all nodes see",
            ) from error
        return cls(root.resolve())

    @property
    def runs(self) -> Path:
        """Where its runs are."""
        return self.root / "runs"

    def run(self, run_id: str) -> RunPaths:
        """The paths of a run; `SpecError` for what is no run's id."""
        if not run_id or "/" in run_id or run_id.startswith("."):
            raise SpecError(f"{run_id!r} is not a run's id")
        return RunPaths(self.runs / run_id)

    def path(self, kind: str, sha256: str) -> Path:
        """Where a tree is, or would be."""
        if kind not in _KINDS or len(sha256) != 64 or not sha256.isalnum():
            raise SpecError(f"{kind}/{sha256} is not a tree's name")
        return self.root / kind / sha256

    def check_room(self, size_bytes: int) -> None:
        """Raises `PlatformError` where the disk is too full for so much more."""
        free = shutil.disk_usage(self.root).free
        if free < size_bytes + _SPARE_BYTES:
            raise _full(
                self.root, f"{free >> 20} MiB are free, {(size_bytes + _SPARE_BYTES) >> 20} MiB are needed"
            )

    def receive(self, kind: str, sha256: str, stream: Iterable[bytes]) -> None:
        """Unpacks a tree aside, checks it, and gives it its name. The stream is read to its end, come what may.

        Raises:
            PlatformError: the disk is full, or something else came than was announced.
        """
        final = self.path(kind, sha256)
        aside = final.with_name(f".{sha256[:12]}.{secrets.token_hex(4)}")
        parts = iter(stream)
        try:
            aside.mkdir()
            found = tree.unpack(parts, aside)
            if found != sha256:
                raise PlatformError(
                    "what came is not what was announced",
                    evidence=f"SHA-256 {found}, {sha256} was expected: a file changed while it was sent",
                    remedy="try again",
                )
            try:
                aside.rename(final)
            except OSError:
                if not final.is_dir():  # else somebody has sent the same meanwhile
                    raise
        except (OSError, ValueError) as error:
            raise _full(self.root, str(error)) from error
        finally:
            for _ in parts:
                pass
            shutil.rmtree(aside, ignore_errors=True)


def _full(root: Path, evidence: str) -> PlatformError:
    return PlatformError(
        "the login node could not keep what was sent",
        evidence=f"{root}: {evidence}",
        remedy="make room there (old runs, code/ and data/ in that directory), or use another slurm.remote.directory",
    )


def listing(run_dir: Path, *, models: bool = False) -> dict[str, tuple[int, int]]:
    """The files of a run that its copy outside has: size and time of the last change in ns, by name.

    The manifest is not among them: it comes with the answer that a look gets.

    Args:
        run_dir: the run's.
        models: the models and checkpoints instead of all others.
    """
    found = {}
    tops = [run_dir / name for name in _MODELS] if models else [run_dir]
    for top in tops:
        for directory, below, files in os.walk(top):
            at = Path(directory)
            below[:] = [
                name
                for name in below
                if not name.startswith(".") and not name.endswith((".writing", ".damaged"))
                and (models or name not in _NOT_COPIED)
            ]  # fmt: skip
            for name in files:
                path = at / name
                if name.startswith(".") or path == run_dir / "manifest.json":
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # it was replaced while we looked
                found[path.relative_to(run_dir).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


def read(run_dir: Path, name: str, offset: int, size: int) -> bytes:
    """At most `size` bytes of a file of a run; `SpecError` when it is gone."""
    path = run_dir / name
    if not path.resolve().is_relative_to(run_dir.resolve()):
        raise SpecError(f"{name} is not in the run's directory")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError as error:
        raise SpecError(f"{name} is gone", evidence=str(error)) from error
