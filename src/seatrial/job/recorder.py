"""Lets a rank write its flight recorder (the last collectives) while its main thread hangs in one of them.

The signal that asks for stacks is also written into a pipe by the interpreter's own handler (``signal.set_wakeup_fd``),
which needs no bytecode to run; a thread waits at the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from seatrial.job.heartbeat import STACK_SIGNAL
from seatrial.runs.files import write_json

_MOST_ENTRIES = 64
_KEPT = ("profiling_name", "process_group", "collective_seq_id", "p2p_seq_id", "is_p2p", "state", "retired", "time_created_ns",
         "input_sizes", "input_dtypes")  # fmt: skip


def record_flight(path: Path) -> None:
    """From now on, `STACK_SIGNAL` also writes this rank's last collectives to `path`. In the main thread."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_serve, args=(read_end, path), daemon=True, name="flight recorder").start()


def _serve(read_end: int, path: Path) -> None:
    while numbers := os.read(read_end, 64):
        if STACK_SIGNAL in numbers:
            with contextlib.suppress(Exception):  # torch's own formats; a rank that hangs has trouble enough
                write(path)


def write(path: Path) -> None:
    """Writes the last collectives of this process: ``{"schema", "entries": […], "pg_status": {…}}``."""
    found = _dump()
    if found is None:
        return
    entries = [{key: entry.get(key) for key in _KEPT} for entry in found.get("entries", [])[-_MOST_ENTRIES:]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": 1, "entries": entries, "pg_status": found.get("pg_status", {})})


def _dump() -> dict[str, Any] | None:
    import torch

    c10d: Any = getattr(torch._C, "_distributed_c10d", None)
    # Of any backend since 2.8 or so; NCCL's alone before.
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        dump = getattr(c10d, name, None)
        if dump is not None:
            text = dump(includeCollectives=True, onlyActive=False)
            parsed = json.loads(text if isinstance(text, str) else bytes(text).decode())
            return parsed if isinstance(parsed, dict) else None
    return None
