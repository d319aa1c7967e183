"""What a run's pods tell in their logs, back into files: the copy of the run that commands here go by."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial.backends.kubernetes import records
from seatrial.backends.kubernetes.answers import NotFoundError
from seatrial.backends.kubernetes.api import Api
from seatrial.backends.kubernetes.records import End, Grown, Piece
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.files import read_json, sync_directory, write_json
from seatrial.runs.paths import MERGED, RunPaths

_STATE = ".delivery.json"
_PLAN = "plan.json"
_LAST_WORD = re.compile(r"attempt-\d+/exit\.json")
_AGAIN_S = 0.5
_MOST_WAITING = 50_000


@dataclass(slots=True)
class PodState:
    """How far a pod's log has been read."""

    time: str = ""
    """Of the last line."""
    lines: list[str] = field(default_factory=list)
    """Hashes of the lines of that time, so that none is taken twice."""


class PodLog:
    """Follows the log of one pod beside everything else; a stream that is cut goes on where it was.

    Args:
        api: the cluster.
        pod: its name.
        state: how far it was read.
        lines: takes ``(pod, time, line)``.
    """

    def __init__(
        self, api: Api, pod: str, state: PodState, lines: queue.Queue[tuple[str, str, bytes]]
    ) -> None:
        self._api, self._pod, self._lines = api, pod, lines
        self._time, self._at_time = state.time, list(state.lines)
        self.ended = False
        """Whether the pod's containers are known to have ended: what is left is read, and no more awaited."""
        self.started = self.over = False

    def read(self) -> None:
        """What there is now."""
        self._take(follow=False)

    def start(self) -> None:
        """Goes on until the pod has ended."""
        self.started = True
        threading.Thread(target=self._go_on, daemon=True).start()

    def _go_on(self) -> None:
        while True:
            ended = self.ended
            try:
                self._take(follow=not ended)
                if ended:
                    break
            except NotFoundError:
                break
            except SpecError:
                if ended:
                    break  # its container never began: there is no log
            except PlatformError:
                pass  # not begun yet, or cut: it is asked again
            time.sleep(_AGAIN_S)
        self.over = True

    def _take(self, *, follow: bool) -> None:
        # The server counts whole seconds: what was read already of the last one is left out here.
        since = f"{self._time[:19]}Z" if self._time else None
        for line in self._api.log(self._pod, follow=follow, since=since):
            when, _, text = line.partition(b" ")
            stamp = when.decode(errors="replace")
            if stamp < self._time:
                continue
            mark = hash_of(text)
            if stamp == self._time:
                if mark in self._at_time:
                    continue
                self._at_time.append(mark)
            else:
                self._time, self._at_time = stamp, [mark]
            self._lines.put((self._pod, stamp, text))


class Delivery:
    """The copy of one run.

    Args:
        paths: of the copy.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.pods: dict[str, PodState] = {}
        self.ended: dict[int, End] = {}
        """By attempt, what its end told that there is."""
        self._version = 0
        self._load()
        self.lines: queue.Queue[tuple[str, str, bytes]] = queue.Queue(_MOST_WAITING)
        self.logs: dict[str, PodLog] = {}
        self.gaps: dict[str, int] = {}
        """Files of which something in between did not come, with what is here of each."""
        self._pieces: dict[str, dict[int, Piece]] = {}
        self._held: dict[str, tuple[int, bytes]] = {}

    def log_of(self, api: Api, pod: str) -> PodLog:
        """The log of a pod, which goes on where the copy is."""
        if pod not in self.logs:
            self.logs[pod] = PodLog(api, pod, self.pods.setdefault(pod, PodState()), self.lines)
        return self.logs[pod]

    def write(self, nodes: dict[str, int]) -> int:
        """Writes what has come; how many lines it was.

        Args:
            nodes: by pod, its node rank.
        """
        taken: list[tuple[str, str, bytes]] = []
        while len(taken) < _MOST_WAITING:
            try:
                taken.append(self.lines.get_nowait())
            except queue.Empty:
                break
        merged: dict[int, list[tuple[str, bytes]]] = {}
        self._load()
        for pod, stamp, line in taken:
            shown = self._take(line, is_new=self._is_new(pod, stamp, line))
            if shown is not None:
                attempt, who, text = shown
                node = str(nodes.get(pod, "?"))  # of a pod that reads the volume for others: nobody's
                row = b"%b %b/%b %b" % (stamp.encode(), node.encode(), who, text)
                merged.setdefault(attempt, []).append((stamp, row))
            self._remember(pod, stamp, line)
        for attempt, rows in merged.items():
            self._merge(attempt, rows)
        if taken:
            self._save()
        return len(taken)

    def missing(self) -> list[str]:
        """Files that an ended attempt is known to have and that are not here as they are there."""
        found = set(self.gaps)
        for end in self.ended.values():
            for name, entry in end.files.items():
                if name not in self._held and not self._is_here(name, entry):
                    found.add(name)
        return sorted(found)

    def sizes(self) -> dict[str, int]:
        """How much is here of files that grow."""
        root = self.paths.root
        return {
            path.relative_to(root).as_posix(): path.stat().st_size
            for path in root.rglob("*") if path.name.endswith(records.GROWING) and path.name != MERGED
        }  # fmt: skip

    def _is_here(self, name: str, entry: list[Any]) -> bool:
        path = self.paths.root / name
        if not path.is_file() or path.name == _PLAN:
            return path.is_file() or entry == [0]  # of an empty file there is nothing to tell
        if len(entry) == 1:
            return path.stat().st_size >= int(entry[0])
        return bool(hashlib.sha256(path.read_bytes()).hexdigest() == entry[1])

    def _take(self, line: bytes, *, is_new: bool) -> tuple[int, bytes, bytes] | None:
        """One line, into its file; what of it is for the merged log, unless that has it: attempt, rank and text."""
        record = records.parse(line)
        if isinstance(record, Grown):
            return _shown(record) if self._grow(record) else None
        if isinstance(record, Piece):
            self._piece(record)
        elif isinstance(record, End):
            self.ended[record.attempt] = record
        elif is_new:
            return (self._attempt, b"-", line)
        return None

    @property
    def _attempt(self) -> int:
        found = [
            int(path.name.partition("-")[2]) for path in self.paths.root.glob("attempt-*") if path.is_dir()
        ]
        return max(found, default=0)

    def _grow(self, record: Grown) -> bool:
        """Adds what is not here yet; whether there was any."""
        path = self.paths.root / record.name
        here = path.stat().st_size if path.exists() else 0
        if record.offset > here:
            self.gaps[record.name] = here
            return False
        new = record.data[here - record.offset :]
        if not new:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(new)
        if record.offset <= self.gaps.get(record.name, -1):
            del self.gaps[record.name]
        return True

    def _piece(self, piece: Piece) -> None:
        path = self.paths.root / piece.name
        if path.exists() and path.stat().st_mtime_ns >= piece.version:
            return
        parts = self._pieces.setdefault(piece.name, {})
        if any(other.version != piece.version or other.count != piece.count for other in parts.values()):
            parts.clear()
        parts[piece.index] = piece
        if len(parts) < piece.count:
            return
        del self._pieces[piece.name]
        data = b"".join(parts[index].data for index in sorted(parts))
        if _LAST_WORD.fullmatch(piece.name) and "continues" not in json.loads(data):
            self._held[piece.name] = piece.version, data
            return
        self._put(piece.name, piece.version, data)

    def release(self) -> None:
        """Writes the run's last word, which was held until everything else is here: whoever reads it looks no further."""
        for name, (version, data) in self._held.items():
            self._put(name, version, data)
        self._held.clear()

    def _put(self, name: str, version: int, data: bytes) -> None:
        path = self.paths.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.part")
        with aside.open("wb") as file:
            file.write(self._at_home(name, data))
            file.flush()
            os.fsync(file.fileno())
        os.utime(aside, ns=(version, version))
        aside.replace(path)
        sync_directory(path.parent)

    def _at_home(self, name: str, data: bytes) -> bytes:
        """A plan names the run's directory, which is another one here."""
        if Path(name).name != _PLAN:
            return data
        return json.dumps({**json.loads(data), "run_dir": str(self.paths.root)}, indent=2).encode() + b"\n"

    def _merge(self, attempt: int, rows: list[tuple[str, bytes]]) -> None:
        logs = self.paths.attempt(attempt).logs
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / MERGED).open("ab") as file:
            file.write(b"".join(text + b"\n" for _, text in sorted(rows, key=lambda row: row[0])))

    def _is_new(self, pod: str, stamp: str, line: bytes) -> bool:
        """Whether no command has written this line yet: several may follow one run."""
        state = self.pods.get(pod)
        return (
            state is None or stamp > state.time or (stamp == state.time and hash_of(line) not in state.lines)
        )

    def _remember(self, pod: str, stamp: str, line: bytes) -> None:
        state = self.pods.setdefault(pod, PodState())
        if stamp > state.time:
            state.time, state.lines = stamp, [hash_of(line)]
        elif stamp == state.time and hash_of(line) not in state.lines:
            state.lines.append(hash_of(line))

    def _load(self) -> None:
        """How far the logs have been read, where another command has written that down meanwhile."""
        path = self.paths.root / _STATE
        version = path.stat().st_mtime_ns if path.exists() else 0
        if version != self._version:
            known, self._version = read_json(path) or {}, version
            self.pods |= {name: PodState(**state) for name, state in known.get("pods", {}).items()}
            self.ended |= {
                int(index): End(int(index), *rest) for index, rest in known.get("ended", {}).items()
            }

    def _save(self) -> None:
        pods = {name: {"time": s.time, "lines": s.lines} for name, s in self.pods.items()}
        ended = {str(index): [end.files, end.left] for index, end in self.ended.items()}
        path = self.paths.root / _STATE
        write_json(path, {"schema": 1, "pods": pods, "ended": ended})
        self._version = path.stat().st_mtime_ns


def _shown(record: Grown) -> tuple[int, bytes, bytes] | None:
    """What of a file's line people want to see among the lines of all ranks."""
    parts = Path(record.name).parts
    if len(parts) != 3 or parts[1] != "logs" or not parts[0].startswith("attempt-"):
        return None
    stem = Path(parts[2]).stem
    who = stem.removeprefix("rank_").lstrip("0") or "0" if stem.startswith("rank_") else stem
    return int(parts[0].partition("-")[2]), who.encode(), record.data.rstrip(b"\n")


def hash_of(text: bytes) -> str:
    """By which a line is known again."""
    return hashlib.sha256(text).hexdigest()[:16]
