"""Probes of the node itself, from inside the job: versions, limits, shared memory, processors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path

from seatrial import __version__
from seatrial.errors import PlatformError
from seatrial.job.checks.place import Place, read
from seatrial.runs.samples import Sample

_GIB = 2**30


def versions(place: Place) -> Iterable[Sample]:
    """Everything that must be the same on every node and that torch needn't be loaded for."""
    driver, vbios, why = _driver(place)
    for metric, value, reason in (
        ("driver", driver, why),
        ("vbios", vbios, why or "nvidia-smi: not available for this GPU"),
        ("kernel", platform.release(), ""),
        ("python", platform.python_version(), ""),
        ("torch", _version("torch"), "torch: not installed"),
        ("transformers", _version("transformers"), "transformers: not installed"),
        ("seatrial", __version__, ""),
    ):
        yield place.sample("versions", metric, value, reason="" if value else reason)


def shared_memory(place: Place) -> Iterable[Sample]:
    """Size of ``/dev/shm``."""
    path = place.root / "dev/shm"
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return [place.sample("shared_memory", "shm_gib", reason=str(error), unit="GiB")]
    detail = {"free_gib": round(usage.free / _GIB, 3)}
    return [place.sample("shared_memory", "shm_gib", round(usage.total / _GIB, 3), unit="GiB", detail=detail)]


def locked_memory(place: Place) -> Iterable[Sample]:
    """Soft limit of this process, which is one of the job's."""
    return [
        place.sample("locked_memory", "locked_memory_bytes", _soft(resource.RLIMIT_MEMLOCK), unit="bytes")
    ]


def open_files(place: Place) -> Iterable[Sample]:
    """Soft limit of this process, which is one of the job's."""
    return [place.sample("open_files", "open_files", _soft(resource.RLIMIT_NOFILE))]


def cpu(place: Place) -> Iterable[Sample]:
    """Cores that this job may use, for each GPU, and how their clocks are governed."""
    usable = sorted(os.sched_getaffinity(0))
    quota = cpu_quota(place.root)
    cores = len(usable) if quota is None else min(len(usable), quota)
    detail = {"affinity": len(usable), "quota": quota, "total": os.cpu_count(), "per_node": cores}
    yield place.sample("cpu", "cores_per_gpu", round(cores / place.task.nproc, 3), detail=detail)
    found = governors(place.sysfs, usable)
    reason = "" if found else "the kernel governs no clocks here (no cpufreq: a virtual machine?)"
    yield place.sample("cpu", "governor", ", ".join(found) or None, reason=reason)


def cpu_quota(root: Path) -> float | None:
    """Cores that control groups allow this process, the tightest of its group and those above; None is no limit.

    Version 2 has ``cpu.max`` (Linux, Documentation/admin-guide/cgroup-v2.rst), version 1 ``cpu.cfs_quota_us``
    (Documentation/scheduler/sched-bwc.rst).
    """
    quotas = []
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            quotas.append(_quota(base.joinpath(*parts[:depth])))
    return min((quota for quota in quotas if quota is not None), default=None)


def governors(sysfs: Path, cores: Iterable[int]) -> list[str]:
    """The clock governors of these cores, each once."""
    base = sysfs / "devices/system/cpu"
    return sorted({word for core in cores if (word := read(base / f"cpu{core}/cpufreq/scaling_governor"))})


def _quota(group: Path) -> float | None:
    both = (read(group / "cpu.max") or "").split()
    if not both:
        both = [read(group / "cpu.cfs_quota_us") or "", read(group / "cpu.cfs_period_us") or ""]
    if len(both) != 2 or not both[0].isdigit() or not both[1].isdigit() or not int(both[1]):
        return None
    return int(both[0]) / int(both[1])


def _driver(place: Place) -> tuple[str | None, str | None, str]:
    """Driver, firmware of the GPUs, and why not; the kernel module answers for a tool that doesn't."""
    try:
        gpus = place.smi.listing().gpus
    except PlatformError as error:
        match = re.search(
            r"Module\s+(?:for \S+\s+)?(\d+\.[\d.]+)", read(place.root / "proc/driver/nvidia/version") or ""
        )
        return match[1] if match else None, None, f"{error.what}: {error.evidence}".splitlines()[0]
    return (
        next((g.driver for g in gpus), None),
        ", ".join(sorted({g.vbios for g in gpus if g.vbios})) or None,
        "",
    )


def _soft(which: int) -> int | str:
    value = resource.getrlimit(which)[0]
    return "unlimited" if value == resource.RLIM_INFINITY else value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
