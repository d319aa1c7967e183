"""Where there is no GPU: processor time that the ranks use, of what the node gives to the job. A stand-in, and named so."""

from __future__ import annotations

import contextlib
import os
import time

import psutil

from seatrial.runs.telemetry import Device

_OURS = ("seatrial.job.mirror", "seatrial.job.track", "seatrial.job.sampler")
_LOOK_EVERY_S = 2.0


class ProcessorReader:
    """One device: the processors that the agent may run on.

    Args:
        agent: its pid; what runs below it is the job, but for what serves the record.
    """

    source = "psutil"
    metric = "cpu_busy"
    at_least_s = 0.5

    def __init__(self, agent: int, missing: str = "") -> None:
        self._agent = agent
        self.missing = missing
        affinity = getattr(os, "sched_getaffinity", None)
        self._cores = len(affinity(agent)) if affinity is not None else (os.cpu_count() or 1)
        self.devices: tuple[Device, ...] = (
            Device(0, "", f"{self._cores} processors", "cpu", float(psutil.virtual_memory().total)),
        )
        self._found: list[psutil.Process] = []
        self._looked_at = float("-inf")
        self._used: dict[tuple[int, float], float] = {}
        self._last = time.monotonic()
        self._spent()  # what runs already has its past behind it

    def read(self) -> list[dict[str, float]]:
        """Use since the last reading, and what the processes hold in memory."""
        spent, held = self._spent()
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        busy = 100 * spent / (self._cores * elapsed) if elapsed > 0 else 0.0
        count = float(len(self._used))
        return [{"busy_pct": round(min(busy, 100.0), 2), "memory_bytes": held, "processes": count}]

    def _spent(self) -> tuple[float, float]:
        """Processor seconds since the last call, and bytes of memory; of a process that has ended, the last part is lost."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._found = self._processes()
        used, held, spent = {}, 0.0, 0.0
        for process in self._found:
            with contextlib.suppress(psutil.Error):
                with process.oneshot():
                    times, key = process.cpu_times(), (process.pid, process.create_time())
                    held += process.memory_info().rss
                used[key] = times.user + times.system
                spent += max(0.0, used[key] - self._used.get(key, 0.0))
        self._used = used
        return spent, held

    def _processes(self) -> list[psutil.Process]:
        try:
            below = psutil.Process(self._agent).children(recursive=True)
        except psutil.Error:
            return []
        return [process for process in below if process.pid != os.getpid() and not _is_ours(process)]


def _is_ours(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return True
    return any(word in words for word in _OURS)
