"""Copying part of a run away for good: verified there, and listed so that ``seatrial runs pull RUN --from URL`` brings it back."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from seatrial.runs import commit
from seatrial.runs.clock import now
from seatrial.runs.files import sha256_file
from seatrial.runs.mirror import SEALED, STATE
from seatrial.runs.paths import RunPaths
from seatrial.runs.stores import ABSENT, Store


def archive(paths: RunPaths, name: str, store: Store) -> None:
    """Copies a directory of a run (all of it, where `name` is empty), and the run's own records beside it.

    Raises:
        StoreError: not all of it arrived as it is here; nothing may be removed then.
    """
    answer = store.read(f"{paths.run_id}/{STATE}")
    listed: dict[str, Any] = json.loads(answer[0])["files"] if answer else {}
    for path in sorted(_files(paths, name), key=lambda p: (p.name == commit.MARKER, p)):
        key = path.relative_to(paths.root).as_posix()
        with tempfile.TemporaryDirectory(prefix="seatrial-archive-") as directory:
            # Weights don't change; records may, while they are read.
            source = path
            if key.partition("/")[0] not in SEALED:
                source = Path(directory, "file")
                shutil.copyfile(path, source)
            sha256, size = sha256_file(source), source.stat().st_size
            if listed.get(key, {}).get("sha256") != sha256:
                store.put(source, f"{paths.run_id}/{key}", sha256)
        listed[key] = {"sha256": sha256, "bytes": size, "at": now()}
    data = json.dumps({"schema": 1, "url": store.url, "files": dict(sorted(listed.items()))}, indent=2) + "\n"
    store.write(f"{paths.run_id}/{STATE}", data.encode(), when=answer[1] if answer else ABSENT)


def _files(paths: RunPaths, name: str) -> list[Path]:
    records = [
        p for p in paths.root.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != STATE
    ]
    inside = paths.root / name if name else paths.root
    below = [
        p
        for p in inside.rglob("*")
        if p.is_file() and not p.is_symlink() and p.name != STATE and not p.name.startswith(".")
    ]
    return sorted({*records, *below})
