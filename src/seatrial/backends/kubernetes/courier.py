"""Prints a run's small files into the pod's log as they grow; see `records`."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from seatrial.backends.kubernetes import records
from seatrial.backends.kubernetes.records import GROWING, End
from seatrial.runs.files import sha256_file

_LOOK_EVERY_S = 0.25
_LIST_EVERY_S = 1.0
_LARGEST = 4 << 20
"""Bytes of a file that comes whole; what is larger stays on the volume, and is named at the end."""
_BLOCK = 1 << 20
_LEFT_OUT = frozenset({"heartbeats", "models", "checkpoints", "flight", "predictions", "artifacts"})
"""Directories that are large, or of use where the run is only."""
_OF_A_NODE = re.compile(r"attempt-(\d+)/(logs|events|telemetry|phases)/([a-z]+)_(\d+)\.(?:log|jsonl)")
"""Files that a rank or a node writes for itself."""


class Courier:
    """One pod's part of it.

    Args:
        run_dir: the run.
        attempt: whose last word (``exit.json``) comes at the very end, when all else has been told.
        mine: whether a file is this pod's to tell; by its name in the run's directory.
        write: takes a line.
    """

    def __init__(
        self, run_dir: Path, attempt: int, mine: Callable[[str], bool], write: Callable[[bytes], None]
    ) -> None:
        self._root, self._attempt, self._mine, self._write = run_dir, attempt, mine, write
        self._last = f"attempt-{attempt}/exit.json"
        self._told: dict[str, int] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._left: dict[str, int] = {}
        self._files: list[str] = []
        self._listed_at = float("-inf")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def start(self) -> None:
        """Begins to print, beside whatever else goes on."""
        self._thread.start()

    def finish(self, *, last: bool) -> None:
        """Prints what is left; with `last` also the attempt's last word, and what all pods have to tell."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._listed_at = float("-inf")
        self._look(final=True)
        if last:
            if (self._root / self._last).exists():
                self._whole(self._last)
            self._write(records.end_line(End(self._attempt, self._inventory(), self._left)))

    def tell(self, known: dict[str, int]) -> None:
        """Prints everything once: what grows, from the offsets that are `known`."""
        self._told |= known
        self.finish(last=True)

    def _go_on(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self, *, final: bool = False) -> None:
        if time.monotonic() - self._listed_at > _LIST_EVERY_S:
            self._files = sorted(self._listing(self._mine))
            self._listed_at = time.monotonic()
        for name in self._files:
            try:
                if name.endswith(GROWING):
                    self._grow(name, final=final)
                elif name != self._last:
                    self._whole(name)
            except OSError:
                continue  # it was replaced, or taken away, while we looked

    def _listing(self, wanted: Callable[[str], bool]) -> Iterator[str]:
        for directory, below, files in os.walk(self._root):
            below[:] = [name for name in below if not _is_left_out(name)]
            prefix = Path(directory).relative_to(self._root)
            for file in files:
                name = (prefix / file).as_posix()
                if not file.startswith(".") and not re.search(r"\s", name) and wanted(name):
                    yield name

    def _grow(self, name: str, *, final: bool) -> None:
        at = self._told.get(name, 0)
        with (self._root / name).open("rb") as file:
            file.seek(at)
            while data := file.read(_BLOCK):
                more = len(data) == _BLOCK
                used = self._print(name, at, data, final=final and not more)
                if not used:
                    break
                at += used
                file.seek(at)
        self._told[name] = at

    def _print(self, name: str, at: int, data: bytes, *, final: bool) -> int:
        used = 0
        for line in records.grown_lines(name, at, data, final=final):
            self._write(line)
            record = records.parse(line)
            assert isinstance(record, records.Grown)
            used = record.offset + len(record.data) - at
        return used

    def _whole(self, name: str) -> None:
        path = self._root / name
        found = path.stat()
        version = (found.st_size, found.st_mtime_ns)
        if self._seen.get(name) == version:
            return
        self._seen[name] = version
        if found.st_size > _LARGEST:
            self._left[name] = found.st_size
            return
        for line in records.whole_lines(name, found.st_mtime_ns, path.read_bytes()):
            self._write(line)

    def _inventory(self) -> dict[str, list[object]]:
        files: dict[str, list[object]] = {}
        everything = [name for name in self._listing(lambda name: True) if _is_told(name)]
        for name in sorted(everything):
            path = self._root / name
            if path.exists() and name not in self._left:
                size = path.stat().st_size
                files[name] = [size] if name.endswith(GROWING) else [size, sha256_file(path)]
        return files


def _is_told(name: str) -> bool:
    """Whether some pod tells a file.

    Whoever has submitted the run keeps its manifest; of the ranks' events, the first rank's say where the run is.
    """
    return name != "manifest.json" and ("/events/" not in name or name.endswith("/rank_00000.jsonl"))


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_OUT or name.endswith((".writing", ".damaged"))


def of_first(nproc: int) -> Callable[[str], bool]:
    """What the first pod tells: of the run all that is no other pod's, and what its own ranks write.

    Args:
        nproc: ranks of a pod.
    """

    def mine(name: str) -> bool:
        return _is_told(name) and _node(name, nproc) in {None, 0}

    return mine


def of_other(attempt: int, node_rank: int, nproc: int) -> Callable[[str], bool]:
    """What another pod tells: what its own ranks and its agent write in this attempt."""

    def mine(name: str) -> bool:
        its = name.startswith(f"attempt-{attempt}/") and "/events/" not in name
        return its and _node(name, nproc) == node_rank

    return mine


def _node(name: str, nproc: int) -> int | None:
    """The node rank of whoever writes a file; None for a file of the run."""
    found = _OF_A_NODE.fullmatch(name)
    if found is None:
        return None
    number = int(found[4])
    return number // nproc if found[3] == "rank" else number
