"""What a node is and how it does, alone: ``python -m seatrial.job.checks.host``, one process a node, without torch.

Each probe runs in a thread of its own: one that raises or doesn't end becomes samples without a value, which say so, and
the others go on.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from seatrial.errors import SeatrialError
from seatrial.job.checks import disks, fabric, inject, kernel_log, node_gpus, system
from seatrial.job.checks.place import Place
from seatrial.job.checks.task import Task
from seatrial.runs.samples import Sample


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to look at."""

    check: str
    measure: Callable[[Place], Iterable[Sample]]
    metrics: tuple[str, ...]
    """What is missing when it fails."""


PROBES = (
    Probe("gpus", node_gpus.gpus, ("gpu_count", "gpu_model")),
    Probe("gpu_idle", node_gpus.gpu_idle, ("gpu_memory_used",)),
    Probe("versions", system.versions, ("driver", "kernel", "python", "torch", "transformers", "seatrial", "vbios")),
    Probe("shared_memory", system.shared_memory, ("shm_gib",)),
    Probe("locked_memory", system.locked_memory, ("locked_memory_bytes",)),
    Probe("open_files", system.open_files, ("open_files",)),
    Probe("cpu", system.cpu, ("cores_per_gpu", "governor")),
    Probe("ecc", node_gpus.ecc, ("ecc_uncorrected", "ecc_corrected", "sram_uncorrected")),
    Probe("row_remap", node_gpus.row_remap, ("row_remap_pending", "row_remap_failed")),
    Probe("xid", kernel_log.xid, ("xids",)),
    Probe("pcie", node_gpus.pcie, ("pcie_gen", "pcie_width")),
    Probe("infiniband", fabric.infiniband, ("ib_ports",)),
    Probe("rdma", fabric.rdma, ("uverbs", "peermem", "acs")),
    Probe("local_disk", disks.local_disk, ("local_write_gb_s", "local_read_gb_s", "local_free_gib")),
    Probe("shared_disk", disks.shared_disk, ("shared_write_gb_s", "shared_free_gib")),
)  # fmt: skip
"""Every probe of a node, in the order in which they begin."""


def measure(place: Place, probes: Iterable[Probe] = PROBES) -> Iterator[list[Sample]]:
    """What each probe that the task wants found, as they end; those that are late come last."""
    ended: queue.SimpleQueue[tuple[Probe, list[Sample]]] = queue.SimpleQueue()

    def run(probe: Probe) -> None:
        found: list[Sample] = []
        try:
            found.extend(probe.measure(place))
        except Exception as error:
            found.extend(_without(place, probe, in_one_line(error), found))
        ended.put((probe, found))

    waiting = [probe for probe in probes if place.task.wants(probe.check)]
    deadline = time.monotonic() + place.limit_s
    for probe in waiting:
        threading.Thread(target=run, args=(probe,), daemon=True).start()
    while waiting:
        try:
            probe, found = ended.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        waiting.remove(probe)
        yield inject.altered(place.task, found)
    for probe in waiting:
        late = _without(place, probe, f"did not end within {place.limit_s:g} s", ())
        yield inject.altered(place.task, late)


def in_one_line(error: BaseException) -> str:
    """An error as a reason."""
    if isinstance(error, SeatrialError):
        text = f"{error.what}: {error.evidence}" if error.evidence else error.what
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def main() -> None:
    """Measures, and writes down what is known as soon as it is."""
    task = Task.from_env()
    inject.silent_if(task)
    for found in measure(Place(task)):
        task.write_all(found)
    # A thread that waits for a dead disk would keep the interpreter from ending.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _without(place: Place, probe: Probe, reason: str, found: Iterable[Sample]) -> list[Sample]:
    there = {sample.metric for sample in found}
    return [
        place.sample(probe.check, metric, reason=reason) for metric in probe.metrics if metric not in there
    ]


if __name__ == "__main__":
    main()
