"""Whether this node reads what the others wrote: ``python -m seatrial.job.checks.shared``, one process a node, after
`seatrial.job.checks.host` has left its files everywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from seatrial.job.checks import inject
from seatrial.job.checks.disks import read_left, shared_path
from seatrial.job.checks.place import LIMIT_SHARE
from seatrial.job.checks.task import Task
from seatrial.runs.samples import Sample

PATIENCE_S = 30.0
"""How long a file may take to appear: NFS clients believe for as long that it isn't there (nfs(5), acdirmin, 30 s)."""
_PAUSE_S = 0.2


def look(
    task: Task,
    *,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Sample]:
    """Reads every other node's file, as soon as it is there.

    Args:
        task: whose other `nodes` are read.
        patience_s: how long they are waited for.
        clock: seconds.
        sleep: waits.
    """
    deadline = clock() + patience_s
    missing = {name: "not looked for" for rank, name in sorted(task.nodes.items()) if rank != task.node_rank}
    others, seen, total, elapsed_s = len(missing), [], 0, 0.0
    while missing:
        _refresh(task)
        for name in list(missing):
            try:
                size, took_s = read_left(shared_path(task, name))
            except (OSError, ValueError) as error:
                missing[name] = getattr(error, "strerror", None) or str(error)
            else:
                del missing[name]
                seen.append(name)
                total, elapsed_s = total + size, elapsed_s + took_s
            if clock() >= deadline:
                break
        if not missing or clock() >= deadline:
            break
        sleep(_PAUSE_S)
    alone = "" if others else "there is no other node"
    cached = "written on this machine, and so read from its memory" if task.rehearse else ""
    detail = {"missing": missing, "others": others}
    rate = round(total / elapsed_s / 1e9, 4) if elapsed_s else None
    return [
        task.sample("shared_disk", "shared_visible", sorted(seen) if others else None, reason=alone, detail=detail),
        task.sample(
            "shared_disk", "shared_read_gb_s", rate, unit="GB/s",
            reason=cached if rate else alone or "nothing could be read", detail={"bytes": total, "files": len(seen)},
        ),
    ]  # fmt: skip


def _refresh(task: Task) -> None:
    """Has a network file system ask anew what is in the directory."""
    try:
        with os.scandir(shared_path(task, task.node).parent) as entries:
            any(entries)
    except OSError:
        pass


def main() -> None:
    """Reads, and writes down what was found."""
    task = Task.from_env()
    inject.silent_if(task)
    if task.wants("shared_disk"):
        task.write_all(look(task, patience_s=min(PATIENCE_S, LIMIT_SHARE * task.spec.probe_timeout_s)))


if __name__ == "__main__":
    main()
