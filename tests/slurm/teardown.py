"""Ends a cluster and all that belongs to it, from what its directory says; also when its owner has died.

python -m tests.slurm.teardown DIRECTORY OWNER_PID     # waits for the owner's end, then tears down
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.slurm import processes
from tests.slurm.plan import RECORD, Plan


def down(directory: Path, *, keep_logs: bool = False) -> None:
    """Kills the cluster's processes and removes its network, cgroups and directory.

    Nothing is asked to end in order: none of it is used again. A directory without a record is left alone.

    Args:
        directory: the cluster's.
        keep_logs: leaves the directory's log/ behind.
    """
    try:
        plan = Plan.from_json((directory / RECORD).read_text())
    except FileNotFoundError:
        return
    # Until none is found: a daemon may have started a process while it was looked for.
    for _ in range(10):
        if not (found := _everything(plan)):
            break
        processes.kill(found)
    if plan.namespaces:
        # Cables go with their namespaces, but when the kernel finds the time.
        for name in interfaces(plan):
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
    _remove_cgroups(plan)
    if keep_logs:
        for path in directory.iterdir():
            if path.is_dir() and path.name != "log":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
    else:
        shutil.rmtree(directory, ignore_errors=True)


def interfaces(plan: Plan) -> list[str]:
    """The cluster's bridge and the host's ends of its cables, those that are there; the cables first."""
    ours = {plan.bridge, *map(plan.link, plan.names)} if plan.namespaces else set()
    return sorted((name for _, name in socket.if_nameindex() if name in ours), reverse=True)


def _everything(plan: Plan) -> list[psutil.Process]:
    found = [*processes.holders(plan), *processes.daemons(plan)]
    return processes.with_children(found) + ([] if plan.namespaces else processes.of_jobs(plan))


def _remove_cgroups(plan: Plan) -> None:
    if not plan.memory_limits:
        return

    def remove() -> bool:
        for path, _, _ in os.walk(plan.memory_root, topdown=False):
            with contextlib.suppress(OSError):  # a task that is still being killed holds it
                Path(path).rmdir()
        return not plan.memory_root.exists()

    processes.until(5, remove)


def keep_watch(directory: Path, owner: int) -> None:
    """Waits until the owner has gone, then ends what it left; returns early when the directory goes."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(owner)
        while not select.select([descriptor], [], [], 2)[0]:
            if not (directory / RECORD).exists():
                return
    time.sleep(0.2)
    down(directory)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_watch(Path(sys.argv[1]), int(sys.argv[2]))
