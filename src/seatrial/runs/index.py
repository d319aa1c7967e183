"""An index of a runs directory: derived, rebuilt when in doubt, never the truth.

One SQLite file for each runs directory, in the user's cache, so that directories that can't be written, or lie on a file system
without locks, have one as well. A manifest is replaced by a rename: its time, size and inode tell whether it is another one, and
only those that are get read again. Whatever is wrong with the file, it is thrown away and made anew, in memory if need be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from seatrial.runs.where import COLUMNS, NUMBERS

SCHEMA = 1
_BATCH = 2000
_BUSY_S = 30.0
_TRUSTED_S = 60.0
"""How long a runs directory whose own time is unchanged is not looked into. Whoever writes a manifest touches it
(`manifest.write_manifest`); what others put there is seen this much later."""
_TICK_S = 2.0
"""Two changes may have one time: file systems count in seconds, at worst."""
_DIGITS = re.compile(r"\d+")
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a file that anybody may have written can make of reading it."""
Stamp = tuple[str, int, int, int]
"""A run's id, and of its manifest: mtime in ns, bytes, inode."""


class Index:
    """The runs below a directory, as they are now.

    Args:
        root: the runs directory.
        path: the file; None is in the user's cache.
        say: told when the file had to be made anew.
    """

    def __init__(
        self, root: Path, path: Path | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._root = root
        self._misnamed: set[str] = set()
        self._say = say
        self._path = path or cache_path(root)
        self.db = self._open()
        try:
            self._update()
        except sqlite3.Error as error:
            self._anew(str(error))
            self._update()

    def query(self, sql: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a question; a file that proves damaged only now is made anew first."""
        values = tuple(values)
        try:
            return self.db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            self._anew(str(error))
            self._update()
            return self.db.execute(sql, values).fetchall()

    def rows(
        self, where: str = "1", values: Iterable[Any] = (), order: str = "run_id", limit: int = -1
    ) -> Iterator[dict[str, Any]]:
        """Runs that fit a condition (`where.parse`), one dict of `COLUMNS` each."""
        sql = f"SELECT {', '.join(COLUMNS)} FROM runs WHERE {where} ORDER BY {order} LIMIT ?"
        for row in self.query(sql, (*values, limit)):
            yield dict(zip(COLUMNS, row, strict=True))

    def value(self, run_id: str, expression: str) -> Any:
        """What a field (`where.field`) is of one run; None where there is no such run."""
        found = self.query(f"SELECT {expression} FROM runs WHERE run_id = ?", (run_id,))
        return found[0][0] if found else None

    def tags(self, where: str = "1", values: Iterable[Any] = ()) -> dict[str, list[str]]:
        """The tags of runs that fit a condition; a run without any has no entry."""
        found: dict[str, list[str]] = {}
        sql = f"SELECT run_id, tag FROM tags WHERE run_id IN (SELECT run_id FROM runs WHERE {where}) ORDER BY rowid"
        for run_id, tag in self.query(sql, values):
            found.setdefault(run_id, []).append(tag)
        return found

    def unreadable(self) -> dict[str, str]:
        """Runs whose manifest can't be read, and why."""
        return dict(self.query("SELECT run_id, error FROM broken ORDER BY run_id"))

    def close(self) -> None:
        """Lets go of the file."""
        self.db.close()

    # --- the file -------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            if db.execute("PRAGMA user_version").fetchone()[0] not in {0, SCHEMA}:
                db.close()
                self._path.unlink()
                db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            _create(db)
            return db
        except (OSError, sqlite3.Error) as error:
            return self._anew(str(error))

    def _anew(self, why: str) -> sqlite3.Connection:
        self._say(f"the index is made anew: {why}")
        with contextlib.suppress(Exception):
            self.db.close()
        try:
            self._path.unlink(missing_ok=True)
            self.db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            _create(self.db)
        except (OSError, sqlite3.Error):
            self.db = sqlite3.connect(":memory:", isolation_level=None)
            _create(self.db)
        return self.db

    def _update(self) -> None:
        began, root = time.time(), _stamp_of(self._root)
        checked, was, was_sign = self._facts()
        if (
            root is not None
            and root == was
            and 0 <= began - checked < _TRUSTED_S
            and checked - root / 1e9 > _TICK_S
        ):
            return
        stamps = scan(self._root)
        sign = _sign(stamps)
        if sign != was_sign:
            self._take(stamps)
        facts = {"sign": sign, "root": root, "checked": began}
        self.db.execute("INSERT OR REPLACE INTO facts VALUES ('state', ?)", (json.dumps(facts),))

    def _facts(self) -> tuple[float, int | None, str]:
        row = self.db.execute("SELECT value FROM facts WHERE name = 'state'").fetchone()
        known = json.loads(row[0]) if row else {}
        return known.get("checked", 0.0), known.get("root"), known.get("sign", "")

    def _take(self, found: list[Stamp]) -> None:
        stamps: list[Stamp] = [
            (_spelled(name), mtime_ns, size, inode) for name, mtime_ns, size, inode in found
        ]
        self._misnamed = {stamp[0] for stamp, each in zip(stamps, found, strict=True) if stamp[0] != each[0]}
        self.db.execute("BEGIN IMMEDIATE")
        try:
            known = {
                row[0]: tuple(row)
                for row in self.db.execute("SELECT run_id, mtime_ns, bytes, inode FROM stamps")
            }
            changed = [stamp for stamp in stamps if known.get(stamp[0]) != stamp]
            gone = known.keys() - {stamp[0] for stamp in stamps}
            for first in range(0, len(changed), _BATCH):
                self._read(changed[first : first + _BATCH])
            for run_id in gone:
                self._forget(run_id)
                self.db.execute("DELETE FROM stamps WHERE run_id = ?", (run_id,))
            self.db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise

    def _read(self, stamps: list[Stamp]) -> None:
        runs, tags, evals, broken = [], [], [], []
        for run_id, *_ in stamps:
            self._forget(run_id)
            try:
                if run_id in self._misnamed:
                    raise ValueError("its name is not UTF-8")
                row, its_tags, its_evals = facts(self._root / run_id, run_id)
            except UNREADABLE as error:
                broken.append((run_id, _spelled(f"{type(error).__name__}: {error}")))
                continue
            runs.append(row)
            tags += [(run_id, tag) for tag in its_tags]
            evals += [(run_id, *each) for each in its_evals]
        self.db.executemany(f"INSERT INTO runs VALUES ({', '.join('?' * len(COLUMNS))})", runs)
        self.db.executemany("INSERT INTO tags VALUES (?, ?)", tags)
        self.db.executemany("INSERT INTO evals VALUES (?, ?, ?, ?, ?)", evals)
        self.db.executemany("INSERT OR REPLACE INTO broken VALUES (?, ?)", broken)
        self.db.executemany("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?, ?)", stamps)

    def _forget(self, run_id: str) -> None:
        for table in ("runs", "tags", "evals", "broken"):
            self.db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))


def cache_path(root: Path) -> Path:
    """Where the index of a runs directory is."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return (
        home
        / "seatrial"
        / "index"
        / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.sqlite3"
    )


def scan(root: Path) -> list[Stamp]:
    """Each run below, by name, with what tells whether its manifest is another one."""
    found: list[Stamp] = []
    try:
        names = sorted(os.listdir(root))  # noqa: PTH208 - a hundred thousand of them
    except (FileNotFoundError, NotADirectoryError):
        return []
    stat, prefix = os.stat, f"{root}/"
    for name in names:
        try:
            about = stat(f"{prefix}{name}/manifest.json")
        except OSError:
            continue
        found.append((name, about.st_mtime_ns, about.st_size, about.st_ino))
    return found


def facts(directory: Path, run_id: str) -> tuple[tuple[Any, ...], list[str], list[tuple[str, Any, Any, Any]]]:
    """A run's row, its tags, and what was measured of it, by metric: original, trained, difference.

    Raises:
        OSError, ValueError, …: of `UNREADABLE`, where the manifest is not one, or has what no manifest has.
    """
    manifest = json.loads((directory / "manifest.json").read_bytes())
    results, attempts = manifest["results"], manifest["attempts"]
    last = attempts[-1] if attempts else {}
    times = [_span_s(attempt) for attempt in attempts]
    gpu_s = sum(
        span * attempt["nodes"] * attempt["nproc"]
        for span, attempt in zip(times, attempts, strict=True)
        if attempt["device"] == "cuda"
    )
    gpus = manifest["environment"].get("torch", {}).get("gpus") or []
    judged = results.get("comparison") or results.get("check") or {}
    failure = last.get("failure") if manifest["state"] != "completed" else None
    row = {
        "run_id": run_id, "name": manifest["name"], "task": manifest["task"], "state": manifest["state"], "created": manifest["created"],
        "ended": last.get("ended"), "model": results.get("model", {}).get("name"), "platform": str(last.get("handle") or "").partition(":")[0] or None,
        "nodes": last.get("nodes"), "ranks": last["nodes"] * last["nproc"] if last else None, "device": last.get("device"),
        "gpu": (gpus[0].get("name") if isinstance(gpus[0], dict) else gpus[0]) if gpus else None, "run_time_s": sum(times),
        "gpu_hours": gpu_s / 3600, "steps": results.get("training", {}).get("steps"), "loss": results.get("training", {}).get("last_loss"),
        "eval_loss": results.get("training", {}).get("best_eval_loss"), "verdict": judged.get("verdict"), "gate": judged.get("gate_passed"),
        "utilisation": results.get("utilisation", {}).get("mean"), "failure": cause(failure), "version": manifest["seatrial_version"],
    }  # fmt: skip
    evals = []
    if results.get("comparison"):
        with contextlib.suppress(FileNotFoundError):
            metrics = json.loads((directory / "comparison.json").read_bytes())["metrics"]
            evals = [
                (name, each["original"], each["trained"], each["difference"])
                for name, each in metrics.items()
            ]
    for column, value in row.items():
        _check(column, value, number=column in NUMBERS)
    for tag in manifest["tags"]:
        _check("tags", tag, number=False)
    for name, *numbers in evals:
        _check("a metric's name", name, number=False)
        for value in numbers:
            _check(str(name), value, number=True)
    return tuple(row[column] for column in COLUMNS), list(manifest["tags"]), evals


def _check(name: str, value: Any, *, number: bool) -> None:
    """Raises `ValueError` for what is of the wrong kind, or what SQLite can't hold (64 bits, UTF-8)."""
    if value is None:
        return
    if number and not (isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)):
        raise ValueError(f"{name} is {str(value)[:40]!r}, no number")
    if not number:
        if not isinstance(value, str):
            raise ValueError(f"{name} is {str(value)[:40]!r}, no text")
        value.encode()


def _spelled(text: str) -> str:
    """A text in UTF-8: what can't be, such as a name in another encoding, is escaped."""
    return text.encode(errors="backslashreplace").decode()


def cause(failure: dict[str, Any] | None) -> str | None:
    """A failure without its numbers, so that those of one kind are counted as one."""
    return None if failure is None else _DIGITS.sub("N", str(failure.get("what", "unknown")))


def _span_s(attempt: dict[str, Any]) -> float:
    if not attempt.get("ended"):
        return 0.0
    span = datetime.fromisoformat(attempt["ended"]) - datetime.fromisoformat(attempt["started"])
    return max(0.0, span.total_seconds())


def _stamp_of(root: Path) -> int | None:
    try:
        return root.stat().st_mtime_ns
    except OSError:
        return None


def _sign(stamps: list[Stamp]) -> str:
    return hashlib.sha256("\n".join(map(repr, stamps)).encode()).hexdigest()


def _create(db: sqlite3.Connection) -> None:
    columns = ", ".join(f"{name} {'REAL' if name in NUMBERS else 'TEXT'}" for name in COLUMNS)
    db.executescript(
        f"""
        BEGIN IMMEDIATE;
        CREATE TABLE IF NOT EXISTS runs ({columns}, PRIMARY KEY (run_id)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS tags (run_id TEXT, tag TEXT);
        CREATE TABLE IF NOT EXISTS evals (run_id TEXT, metric TEXT, original REAL, trained REAL, difference REAL);
        CREATE TABLE IF NOT EXISTS broken (run_id TEXT PRIMARY KEY, error TEXT);
        CREATE TABLE IF NOT EXISTS stamps (run_id TEXT PRIMARY KEY, mtime_ns INTEGER, bytes INTEGER, inode INTEGER) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
        CREATE INDEX IF NOT EXISTS tags_of ON tags (run_id, tag);
        CREATE INDEX IF NOT EXISTS evals_of ON evals (run_id, metric);
        PRAGMA user_version = {SCHEMA};
        COMMIT;
        """
    )
