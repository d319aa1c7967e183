"""Which processes belong to a cluster. They are found by its directory's path, which no other process names so."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from tests.slurm.plan import Plan

DAEMONS = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "slurmstepd"}
NODE_PROGRAM = Path(__file__).with_name("node.py")


def until(timeout_s: float, condition: Callable[[], object], every_s: float = 0.03) -> bool:
    """Asks again and again; whether the condition came to hold in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every_s)
    return True


def living() -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                yield process
        except psutil.Error:
            continue


def words(process: psutil.Process) -> list[str]:
    """Its command line; empty when it has gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def daemons(plan: Plan, name: str = "") -> list[psutil.Process]:
    """The cluster's daemons, or those of one name."""
    own = f"{plan.directory}/"
    found = []
    for process in living():
        argv = words(process)
        program = Path(argv[0]).name if argv else ""
        wanted = program == name if name else program in DAEMONS
        if wanted and any(own in word for word in argv):
            found.append(process)
    return found


def slurmd(plan: Plan, node: str) -> psutil.Process | None:
    """The slurmd of a node, if it runs."""
    return next((p for p in daemons(plan, "slurmd") if words(p)[-2:] == ["-N", node]), None)


def node_init(plan: Plan, node: str) -> psutil.Process | None:
    """Process 1 of a node in namespaces, if it runs."""
    return next(iter(_inits(plan, node, "python")), None)


def holders(plan: Plan) -> list[psutil.Process]:
    """All that keeps namespaces alive: the nodes' first processes, and the ones that started them."""
    return [*_inits(plan, None, "python"), *_inits(plan, None, "unshare")]


def _inits(plan: Plan, node: str | None, program: str) -> list[psutil.Process]:
    found = []
    for process in living():
        argv = words(process)
        if str(NODE_PROGRAM) not in argv or (Path(argv[0]).name == "unshare") != (program == "unshare"):
            continue
        directory, name = argv[argv.index(str(NODE_PROGRAM)) + 1 :][:2]
        if directory == str(plan.directory) and node in {None, name}:
            found.append(process)
    return found


def in_namespace_of(init: psutil.Process) -> list[psutil.Process]:
    """All processes of the node whose first process is given."""
    try:
        own = Path(f"/proc/{init.pid}/ns/pid").readlink()
    except OSError:
        return []
    found = []
    for process in living():
        try:
            if Path(f"/proc/{process.pid}/ns/pid").readlink() == own:
                found.append(process)
        except OSError:
            continue
    return found


def of_jobs(plan: Plan, node: str | None = None) -> list[psutil.Process]:
    """Where nodes share the host's processes: the steps' daemons and tasks, of one node or of all.

    A step's daemon writes into its slurmd's log, and a task has its job's environment. A task that clears its own is
    found below its step, or not at all once it has left that, too.
    """
    nodes = [node] if node else plan.names
    logs = {str(plan.directory / "log" / f"slurmd-{name}.log") for name in nodes}
    roots = []
    for process in living():
        try:
            if process.name() == "slurmstepd":
                ours = any(file.path in logs for file in process.open_files())
            else:
                environment = process.environ()
                ours = environment.get("SLURM_CONF") == str(plan.conf) and "SLURM_JOB_ID" in environment
                ours = ours and environment.get("SLURMD_NODENAME") in nodes
        except (psutil.Error, OSError):
            continue
        if ours:
            roots.append(process)
    return with_children(roots)


def with_children(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """These and all below them. Asks each process for its parent once: a large cluster has thousands."""
    children: dict[int, list[psutil.Process]] = {}
    for process in living():
        with contextlib.suppress(psutil.Error):
            children.setdefault(process.ppid(), []).append(process)
    found: dict[int, psutil.Process] = {}
    waiting = list(processes)
    while waiting:
        process = waiting.pop()
        if process.pid not in found:
            found[process.pid] = process
            waiting += children.get(process.pid, [])
    return list(found.values())


def kill(processes: Iterable[psutil.Process], timeout_s: float = 10) -> None:
    """SIGKILL, and waits until they have gone; what the number of one names by then is left alone (psutil looks)."""
    processes = list(processes)
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue
    until(timeout_s, lambda: not any(alive(process) for process in processes), 0.01)


def alive(process: psutil.Process) -> bool:
    """Whether it runs; not one that only waits to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
