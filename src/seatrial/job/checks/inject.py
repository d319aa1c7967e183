"""Faults on purpose, done where the real ones would show. Imports no torch: programs without it use this too.

What a rank can do it does: `slow_down`, `slow_send`, `hang_if`, `die_if`, `flip_bit`. What no rank can do is put into
what was read: `altered` for samples of phase 0, `throttle_reasons`, `transport`, `clock_offset_s` for those who read
them. Samples that were altered say so in ``detail.injected``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from seatrial.job.checks.task import Task
from seatrial.runs.samples import Sample
from seatrial.spec import injections
from seatrial.spec.injections import Injection

if TYPE_CHECKING:
    import torch

KILLED = 137
"""Exit code of a process that the kernel kills with SIGKILL (128 + 9), as a shell reports it."""
HW_THERMAL_SLOWDOWN = 0x40
"""NVML's bit (nvml.h, nvmlClocksEventReasonHwThermalSlowdown)."""
_SMALL_SHM_GIB = 64 / 1024
_LOW_MEMLOCK_BYTES = 64 * 1024
_DRIVER, _WRONG_DRIVER = "550.54.15", "470.57.02"
_XID_TEXT = {79: "GPU has fallen off the bus."}


def faults(task: Task, kind: str, gpu: int | None = None) -> list[tuple[str, Injection]]:
    """Every fault of a kind that concerns this node (and its GPU `gpu`, where both name one), with its word."""
    found = []
    for word in task.inject:
        fault = injections.parse(word)
        mine = task.node_rank in (fault.node, fault.peer)
        if fault.kind == kind and mine and (fault.gpu is None or gpu is None or fault.gpu == gpu):
            found.append((word, fault))
    return found


def slow_down(task: Task, gpu: int | None) -> float:
    """What is left of the speed at which this node's GPU `gpu` computes; 1.0 is all of it (slow-gpu, slow-node)."""
    both = faults(task, "slow-gpu", gpu) + faults(task, "slow-node")
    return min((fault.factor for _, fault in both), default=1.0)


def slow_send(task: Task, peer: int | None = None) -> float:
    """What is left of the speed at which this node sends to the node of rank `peer`; 1.0 is all of it.

    A slow link is slow both ways, and only between its two nodes; without a `peer`, only slow-node counts.
    """
    factors = [fault.factor for _, fault in faults(task, "slow-node")]
    factors += [
        fault.factor
        for _, fault in faults(task, "slow-link")
        if {fault.node, fault.peer} == {task.node_rank, peer}
    ]
    return min(factors, default=1.0)


def stretch(elapsed_s: float, factor: float) -> None:
    """Sleeps until what took `elapsed_s` has taken as long as it would at `factor` of the speed."""
    if factor < 1:
        time.sleep(elapsed_s * (1 / factor - 1))


def hang_if(task: Task, gpu: int | None) -> None:
    """Never returns where this probe is to hang (hung-probe)."""
    if faults(task, "hung-probe", gpu):
        _for_ever()


def silent_if(task: Task) -> None:
    """Never returns on a node that is to be dead (dead-node): what was started on it doesn't answer."""
    if faults(task, "dead-node"):
        _for_ever()


def die_if(task: Task, gpu: int | None) -> None:
    """Ends this process at once, as a kill would, where it is to die (dead-rank)."""
    if faults(task, "dead-rank", gpu):
        os._exit(KILLED)


def flips(task: Task, kind: str, gpu: int | None) -> bool:
    """Whether results of this rank are to be falsified: `kind` is ``flipped-bits`` or ``wrong-result``."""
    return bool(faults(task, kind, gpu))


def flip_bit(tensor: torch.Tensor) -> None:
    """Flips, in place, one bit of the middle element of a contiguous tensor.

    It is bit 0 of the element's highest byte: of an integer a large power of two, of bf16, fp32 and fp64 a bit of the
    exponent that changes the number by a factor of 4 or more, and neither to infinity nor to NaN for numbers near 1.
    """
    import torch

    raw = tensor.detach().view(-1).view(torch.uint8)
    size = tensor.element_size()
    raw[(tensor.numel() // 2) * size + size - 1] ^= 1


def throttle_reasons(task: Task, gpu: int | None, bits: int) -> int:
    """The bits that were read of why clocks are held back, with hardware thermal slowdown added (throttling)."""
    return bits | HW_THERMAL_SLOWDOWN if faults(task, "throttling", gpu) else bits


def transport(task: Task, name: str) -> str:
    """The transport that was read, or NCCL's name of sockets (wrong-transport)."""
    return "NET/Socket" if faults(task, "wrong-transport") else name


def clock_offset_s(task: Task) -> float:
    """By how much this node's clock is to be off (slow-clock); 0 is not at all."""
    return sum(float(fault.value or 60) for _, fault in faults(task, "slow-clock"))


def now_s(task: Task) -> float:
    """Seconds since the epoch as this node's clock, with its fault, says."""
    return time.time() + clock_offset_s(task)


def lost_gpus(task: Task) -> set[int]:
    """Indices of this node's GPUs that the driver is not to list (lost-gpu; the last where none is named)."""
    return {task.nproc - 1 if f.gpu is None else f.gpu for _, f in faults(task, "lost-gpu")}


def altered(task: Task, samples: Iterable[Sample]) -> list[Sample]:
    """Samples of the host's probes as they read with this node's faults: lost-gpu, wrong-driver, small-shm,
    low-memlock, xid.

    What a fault needs to be one is pretended too: an active InfiniBand port for low-memlock, and for wrong-driver another
    driver on nodes that have none.
    """
    gone = lost_gpus(task)
    kept = [s for s in samples if s.gpu is None or s.gpu not in gone]
    return [_altered(task, sample) for sample in kept]


def _altered(task: Task, sample: Sample) -> Sample:
    change = _CHANGES.get((sample.check, sample.metric))
    if change is None:
        return sample
    kind, function = change
    if kind == "wrong-driver" and sample.value is None and (word := _word(task, kind)):
        # Where no node has a driver, none could differ.
        sample = sample.model_copy(update={"value": _DRIVER, "reason": "", "detail": {"injected": word}})
    for word, fault in faults(task, kind):
        update = function(task, sample, fault)
        detail = {**sample.detail, **update.pop("detail", {}), "injected": word}
        sample = sample.model_copy(update={"reason": "", **update, "detail": detail})
    return sample


def _word(task: Task, kind: str) -> str:
    """The first fault of a kind, whichever node has it."""
    return next((word for word in task.inject if injections.parse(word).kind == kind), "")


def _fewer(task: Task, sample: Sample, fault: Injection) -> dict[str, Any]:
    gone = task.nproc - 1 if fault.gpu is None else fault.gpu
    indices = sample.detail.get("indices", list(range(task.nproc)))
    listed = {
        key: [item for index, item in zip(indices, value, strict=True) if index != gone]
        for key, value in sample.detail.items()
        if isinstance(value, list) and len(value) == len(indices) and key != "on_bus"
    }
    return {"value": (len(indices) if sample.value is None else sample.value) - 1, "detail": listed}


def _with_xid(task: Task, sample: Sample, fault: Injection) -> dict[str, Any]:
    number = int(fault.value or 79)
    line = f"NVRM: Xid (PCI:0000:3b:00): {number}, {_XID_TEXT.get(number, 'put there on purpose.')}"
    row = {"xid": number, "device": "0000:3b:00", "line": line, "seconds_after_boot": 4242.0}
    return {"value": [*(sample.value or []), row]}


def _with_port(task: Task, sample: Sample, fault: Injection) -> dict[str, Any]:
    if any(port["state"] == "ACTIVE" for port in sample.value or []):
        return {}
    port = {
        "device": "mlx5_0", "port": 1, "state": "ACTIVE", "physical_state": "LinkUp", "link_layer": "InfiniBand",
        "rate_gbps": 400.0, "link_downed": 0, "link_error_recovery": 0, "symbol_errors": 0, "firmware": "28.39.1002",
    }  # fmt: skip
    return {"value": [*(sample.value or []), port]}


_CHANGES: dict[tuple[str, str], tuple[str, Any]] = {
    ("gpus", "gpu_count"): ("lost-gpu", _fewer),
    ("versions", "driver"): (
        "wrong-driver",
        lambda task, sample, fault: {"value": fault.value or _WRONG_DRIVER},
    ),
    ("shared_memory", "shm_gib"): (
        "small-shm",
        lambda task, sample, fault: {"value": _SMALL_SHM_GIB, "detail": {"free_gib": _SMALL_SHM_GIB}},
    ),
    ("locked_memory", "locked_memory_bytes"): (
        "low-memlock",
        lambda task, sample, fault: {"value": _LOW_MEMLOCK_BYTES},
    ),
    ("infiniband", "ib_ports"): ("low-memlock", _with_port),
    ("xid", "xids"): ("xid", _with_xid),
}
"""By check and metric: the kind of fault that changes it, and what it makes of a sample."""


def _for_ever() -> None:
    while True:
        time.sleep(3600)
