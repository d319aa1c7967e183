"""Whether one GPU (or CPU rank) opens and computes: ``python -m seatrial.job.checks.gpu``, one process each, so that
one that hangs can be ended alone. Whoever started it writes down that it hung or died.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil

from seatrial.job.checks import inject
from seatrial.job.checks.host import in_one_line
from seatrial.job.checks.task import Task
from seatrial.runs.plan import Device
from seatrial.runs.samples import Sample

if TYPE_CHECKING:
    import torch

_GIB = 2**30
_SIZE = 256
_NO_CUDA = "torch is built without it, or this rank uses none"


class WrongResultError(Exception):
    """The device computes, and wrongly."""


def look(task: Task) -> list[Sample]:
    """Opens the device of the task, and says what it is, what memory is free, and which libraries serve it."""
    found: list[Sample] = []
    gpu = 0 if task.gpu is None else task.gpu
    try:
        if gpu in inject.lost_gpus(task):
            raise RuntimeError("No such device")
        detail = open_device(gpu, task.device)
    except (ImportError, OSError, RuntimeError, AssertionError, WrongResultError) as error:
        words = {word for word, _ in inject.faults(task, "lost-gpu", gpu)}
        if task.wants("gpus"):
            found.append(
                task.sample("gpus", "gpu_opens", False, reason=in_one_line(error), detail=_injected(words))
            )
        if task.wants("gpu_idle"):
            found.append(
                task.sample("gpu_idle", "gpu_memory_free_gib", unit="GiB", reason="it does not open")
            )
        return found
    if task.wants("gpus"):
        found.append(task.sample("gpus", "gpu_opens", True, detail=detail))
    if task.wants("gpu_idle"):
        free = {"total_gib": detail["total_gib"]}
        found.append(
            task.sample("gpu_idle", "gpu_memory_free_gib", detail["free_gib"], unit="GiB", detail=free)
        )
    if task.wants("versions") and gpu == 0:
        for name, version in libraries(task.device).items():
            reason = "" if version else _NO_CUDA
            found.append(task.sample("versions", name, version, gpu=None, reason=reason))
    return found


def open_device(index: int, device: Device) -> dict[str, Any]:
    """Opens a device, has it multiply two matrices, and compares with the CPU's result.

    The entries are whole numbers below 8: their products and sums of 256 are exact in fp32, and in tf32 too, so every
    device must give the same bits, whatever the order of its sums.

    Returns:
        name, uuid, free_gib, total_gib and capability (GPUs only).

    Raises:
        ImportError, OSError: torch can't be loaded.
        RuntimeError, AssertionError: torch can't use the device.
        WrongResultError: the product is wrong.
    """
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(index)
    left, right = (
        torch.randint(-8, 8, (_SIZE, _SIZE), generator=generator, dtype=torch.int64) for _ in range(2)
    )
    place = torch.device(device, index) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.init()  # says why there is none
        torch.cuda.set_device(place)
    product = (left.float().to(place) @ right.float().to(place)).cpu()
    wrong = int((product.to(torch.int64) != left @ right).sum())
    if wrong:
        raise WrongResultError(f"{wrong} of {_SIZE * _SIZE} entries of a product of matrices are wrong")
    return _cuda(place) if device == "cuda" else _cpu()


def libraries(device: Device) -> dict[str, str | None]:
    """Versions of what torch brings for GPUs; None where it has none, or the device is no GPU."""
    import torch
    import torch.distributed as dist

    cudnn = torch.backends.cudnn.version() if device == "cuda" else None
    nccl = dist.is_available() and dist.is_nccl_available() and device == "cuda"
    return {
        "cuda": torch.version.cuda if device == "cuda" else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if nccl else None,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def _cuda(device: torch.device) -> dict[str, Any]:
    import torch

    about = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": about.name,
        "uuid": f"GPU-{about.uuid}" if hasattr(about, "uuid") else None,
        "free_gib": round(free / _GIB, 3),
        "total_gib": round(total / _GIB, 3),
        "capability": f"{about.major}.{about.minor}",
    }


def _cpu() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "name": "cpu",
        "uuid": None,
        "free_gib": round(memory.available / _GIB, 3),
        "total_gib": round(memory.total / _GIB, 3),
        "capability": None,
    }


def _injected(words: set[str]) -> dict[str, Any]:
    return {"injected": ", ".join(sorted(words))} if words else {}


def main() -> None:
    """Looks, and writes down what was found."""
    task = Task.from_env()
    inject.silent_if(task)
    inject.hang_if(task, task.gpu)
    task.write_all(look(task))


if __name__ == "__main__":
    main()
