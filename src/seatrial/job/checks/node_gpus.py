"""Probes of a node's GPUs through the driver's own tool; torch is not asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import psutil

from seatrial.job.checks.place import Place
from seatrial.job.checks.smi import Counters, Gpu, Process, as_detail, pci_gpus
from seatrial.runs.samples import Sample

_UNSUPPORTED = "nvidia-smi: not available for this GPU"
_NO_PIDS = "processes of the host are not seen from inside this container (start it with the host's pids)"


def gpus(place: Place) -> Iterable[Sample]:
    """How many the driver lists, and their models."""
    listing = place.smi.listing()
    driver = next((gpu.driver for gpu in listing.gpus), None)
    # The bus shows every GPU of the machine, also those that a container or a scheduler keeps from this job.
    on_bus = pci_gpus(place.sysfs) if place.has_whole_machine() else None
    detail = {**as_detail(listing.gpus), "driver": driver, "on_bus": on_bus}
    yield place.sample(
        "gpus", "gpu_count", len(listing.gpus), reason="; ".join(listing.problems)[:300], detail=detail
    )
    for gpu in listing.gpus:
        yield place.sample(
            "gpus", "gpu_model", gpu.name, gpu=gpu.index,
            detail={"uuid": gpu.uuid, "serial": gpu.serial, "bus_id": gpu.bus_id, "total_mib": gpu.total_mib},
        )  # fmt: skip


def gpu_idle(place: Place) -> Iterable[Sample]:
    """Memory in use, and by whom. ``ours`` are the processes under the one that started this."""
    counters, why = _counters(place)
    for gpu in place.smi.listing().gpus:
        one = counters.get(gpu.uuid)
        detail: dict[str, Any] = {"total_mib": gpu.total_mib}
        reason = why
        if one is not None:
            detail["processes"] = [describe(process) for process in one.processes]
            detail["clock_reasons"] = list(one.clock_reasons)
            hidden = any(row["user"] is None for row in detail["processes"]) or not one.processes
            reason = _NO_PIDS if hidden and not place.sees_host_pids() else ""
        if gpu.used_mib is None:
            reason = _UNSUPPORTED
        yield place.sample(
            "gpu_idle",
            "gpu_memory_used",
            gpu.used_mib,
            unit="MiB",
            gpu=gpu.index,
            reason=reason,
            detail=detail,
        )


def ecc(place: Place) -> Iterable[Sample]:
    """Errors since the driver was loaded; of SRAM, those ever, which is what a replacement is decided by."""
    for gpu, one in _each(place):
        off = "" if one.ecc else "ECC is off" if one.ecc is False else _UNSUPPORTED
        ever = {"uncorrected_ever": one.uncorrected_ever, "corrected_ever": one.corrected_ever}
        for metric, value, detail in (
            ("ecc_uncorrected", one.uncorrected, ever),
            ("ecc_corrected", one.corrected, ever),
            (
                "sram_uncorrected",
                one.sram_uncorrected_ever,
                {"threshold_exceeded": one.sram_threshold_exceeded},
            ),
        ):
            reason = off or (_UNSUPPORTED if value is None else "")
            yield place.sample(
                "ecc", metric, None if off else value, gpu=gpu.index, reason=reason, detail=detail
            )


def row_remap(place: Place) -> Iterable[Sample]:
    """Whether a row waits for a reset to be remapped, and whether a remapping failed."""
    for gpu, one in _each(place):
        for metric, value in (
            ("row_remap_pending", one.remap_pending),
            ("row_remap_failed", one.remap_failed),
        ):
            reason = _UNSUPPORTED if value is None else ""
            yield place.sample(
                "row_remap", metric, value, gpu=gpu.index, reason=reason, detail=dict(one.remapped)
            )


def pcie(place: Place) -> Iterable[Sample]:
    """Generation and width now. An idle link may have trained down: the judge is told that there was no load."""
    for gpu in place.smi.listing().gpus:
        detail = {"max_gen": gpu.pcie_gen_max, "max_width": gpu.pcie_width_max, "under_load": False}
        for metric, value in (("pcie_gen", gpu.pcie_gen), ("pcie_width", gpu.pcie_width)):
            reason = _UNSUPPORTED if value is None else ""
            yield place.sample("pcie", metric, value, gpu=gpu.index, reason=reason, detail=detail)


def describe(process: Process) -> dict[str, Any]:
    """A process by pid, name and user; the user is None where its pid is not of this process's world."""
    name, user, ours = process.name, None, False
    try:
        found = psutil.Process(process.pid)
        name, user = name or found.name(), found.username()
        ours = process.pid == os.getpid() or _starter() in {process.pid, *(p.pid for p in found.parents())}
    except psutil.Error:
        pass
    return {"pid": process.pid, "name": name, "user": user, "mib": process.mib, "ours": ours}


def _starter() -> int | None:
    """The process that started this one; None where it has gone and init took over, which everybody descends from."""
    parent = os.getppid()
    return None if parent == 1 else parent


def _counters(place: Place) -> tuple[dict[str, Counters], str]:
    try:
        return place.smi.counters(), ""
    except Exception as error:
        return {}, f"processes could not be read: {error}".splitlines()[0]


def _each(place: Place) -> Iterable[tuple[Gpu, Counters]]:
    counters = place.smi.counters()
    for gpu in place.smi.listing().gpus:
        yield gpu, counters.get(gpu.uuid, Counters(gpu.uuid))
