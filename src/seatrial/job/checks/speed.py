"""Phase 1: how fast one GPU (or CPU rank) computes and moves data, with all of its node at work. One process a GPU.

``python -m seatrial.job.checks.speed``, started by the conductor.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from seatrial.job.checks import inject, monitor
from seatrial.job.checks.task import Task
from seatrial.job.checks.timing import measure
from seatrial.runs.samples import Sample

_MIB = 2**20
_GEMM_N = {"cuda": 8192, "cpu": 512}
_HASH_N = {"cuda": 4096, "cpu": 512}
_HASHES = 5
_MEMORY_BYTES = {"cuda": 1024 * _MIB, "cpu": 32 * _MIB}
_HOST_COPY_BYTES = 256 * _MIB
_COPY_CAP_S = {"cuda": 4.0, "cpu": 0.4}
_CPU_GEMM_CAP_S = 1.0
_MEET_S = 30.0
# Lowest compute capability that has tensor cores for it (CUDA C++ Programming Guide, "Compute Capabilities").
_NEEDS = {"fp32": (0, 0), "tf32": (8, 0), "bf16": (8, 0), "fp16": (7, 0), "fp8": (8, 9)}
_TORCH = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_device(task: Task) -> torch.device:
    """The GPU of this process, made current; or the CPU, with one thread a rank."""
    if task.device == "cuda":
        torch.cuda.set_device(task.gpu or 0)
        return torch.device("cuda", task.gpu or 0)
    torch.set_num_threads(1)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The GPU's model; of a CPU, the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def gpu_uuid(device: torch.device) -> str:
    """How the driver names the GPU: ``GPU-…``."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def usable(dtypes: Iterable[str], device: torch.device) -> tuple[list[str], list[str]]:
    """Of the precisions asked for, those that the device multiplies in, and those that it lacks."""
    has = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    names = list(dtypes)
    # Where nothing that was asked for is there, fp32 is.
    there = [n for n in names if (n == "fp32" if has is None else has >= _NEEDS[n])] or ["fp32"]
    return there, [n for n in names if n not in there]


def matrix_product(dtype: str, n: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """A product of two n x n matrices of random normal numbers, ready to be repeated; sets whether fp32 may be TF32.

    Zeros would switch fewer transistors and so draw less power: the clocks would be those of no real work.
    """
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    if dtype == "fp8":
        a = torch.randn(n, n, device=device).to(torch.float8_e4m3fn)
        b = torch.randn(n, n, device=device).to(torch.float8_e4m3fn).t()  # cuBLASLt wants it column-major.
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(
            a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    x, y = (torch.randn(n, n, device=device).to(_TORCH[dtype]) for _ in range(2))
    out = torch.empty_like(x)
    return lambda: torch.mm(x, y, out=out)


def gemm(task: Task, dtype: str, device: torch.device, watched: list[monitor.Reading]) -> Sample:
    """TFLOP/s of 2·M·N·K operations; what the GPU says of itself meanwhile is added to `watched`."""
    n = _GEMM_N[device.type]
    work = matrix_product(dtype, n, device)
    work()
    watch = monitor.Monitor(*monitor.reader(gpu_uuid(device))) if device.type == "cuda" else None
    cap_s = task.spec.gemm_s if watch else min(task.spec.gemm_s, _CPU_GEMM_CAP_S)
    with watch or nullcontext():
        blocks = measure(
            work,
            device,
            cap_s=cap_s,
            least_s=cap_s / 4 if watch else 0.0,
            slow=inject.slow_down(task, task.gpu),
        )
    tera = 2 * n**3 / 1e12
    detail: dict[str, Any] = {"m": n, "n": n, "k": n, **blocks.detail()}
    if dtype == "fp8":
        detail |= {"format": "e4m3", "accumulation": "fast", "output": "bf16"}
    if watch:
        watched += watch.readings
        detail |= monitor.summary(watch.readings) | ({"not_watched": watch.reason} if watch.reason else {})
    values = [rate * tera for rate in blocks.rates]
    return task.sample(
        "gemm", f"gemm_{dtype}", blocks.typical * tera, values=values, unit="TFLOP/s", detail=detail
    )


def gemms(task: Task, device: torch.device, together: int) -> list[monitor.Reading]:
    """Writes a sample for each precision, where wanted; returns what the GPU said of itself during all of them."""
    names, lacking = usable(task.spec.dtypes, device)
    more = {"device": device_name(device), "left_out": lacking, "processes": together}
    watched: list[monitor.Reading] = []
    for dtype in names:
        sample = attempt(task, "gemm", f"gemm_{dtype}", partial(gemm, task, dtype, device, watched))
        if task.wants("gemm"):
            task.write(sample.model_copy(update={"detail": sample.detail | more}))
    return watched


def watch_samples(task: Task, watched: list[monitor.Reading]) -> list[Sample]:
    """What held the clocks back, and the PCIe link while it was awake: an idle link trains down."""
    bits, detail = monitor.all_bits(watched), monitor.summary(watched)
    detail["counts"] = monitor.count_bits(watched)
    pretended = inject.throttle_reasons(task, task.gpu, bits or 0)
    if pretended != (bits or 0):
        bits, detail["injected"] = pretended, inject.faults(task, "throttling", task.gpu)[0][0]
    nothing = "" if watched else "the GPU could not be read during the products"
    found = []
    if task.wants("throttle"):
        reason = nothing or ("" if bits is not None else "the GPU does not tell why its clocks are held back")
        found.append(
            task.sample(
                "throttle", "throttle_bits", bits, reason=reason if bits is None else "", detail=detail
            )
        )
    if task.wants("pcie") and task.device == "cuda":
        for metric, name in (("pcie_gen_load", "pcie_gen"), ("pcie_width_load", "pcie_width")):
            told = [int(value) for r in watched if (value := getattr(r, name)) is not None]
            reason = "" if told else nothing or "the GPU does not tell its PCIe link"
            found.append(
                task.sample(
                    "pcie", metric, max(told, default=None), reason=reason, detail={"under_load": True}
                )
            )
    return found


def fixed_matrix(n: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """n x n numbers in [-1, 1), the same on every machine: from integers, since floats depend on the vector unit."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-(2**23), 2**23, (n, n), generator=generator, dtype=torch.int32)
    return (whole.to(torch.float32) / 2**23).to(dtype)


def gemm_result(task: Task, device: torch.device) -> Sample:
    """SHA-256 of a fixed product's bits, computed several times; the distinct ones where they differ."""
    n, dtype = _HASH_N[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _NEEDS["bf16"]:
        dtype = torch.float16
    a, b = (fixed_matrix(n, seed, dtype).to(device) for seed in (1, 2))
    torch.set_float32_matmul_precision("highest")
    hashes = []
    for turn in range(_HASHES):
        product = torch.mm(a, b)
        if turn == _HASHES // 2 and inject.flips(task, "wrong-result", task.gpu):
            inject.flip_bit(product)
        hashes.append(hashlib.sha256(product.cpu().view(torch.uint8).numpy().data).hexdigest())
    distinct = list(dict.fromkeys(hashes))
    detail = {"dtype": str(dtype).removeprefix("torch."), "shape": [n, n, n], "times": _HASHES,
              "torch": torch.__version__, "device": device_name(device)}  # fmt: skip
    value = distinct[0] if len(distinct) == 1 else distinct
    return task.sample("gemm_result", "gemm_hash", value, detail=detail)


def rate_sample(
    task: Task,
    check: str,
    metric: str,
    work: Callable[[], object],
    device: torch.device,
    moved_bytes: int,
    **detail: Any,
) -> Sample:
    """GB/s of a copy that reads and writes so many bytes."""
    blocks = measure(work, device, cap_s=_COPY_CAP_S[device.type], slow=inject.slow_down(task, task.gpu))
    values = [rate * moved_bytes / 1e9 for rate in blocks.rates]
    return task.sample(check, metric, blocks.typical * moved_bytes / 1e9, values=values, unit="GB/s",
                       detail={"bytes": moved_bytes, **blocks.detail(), **detail})  # fmt: skip


def memory(task: Task, device: torch.device, metric: str) -> Sample:
    """GB/s that are read and written: copy a = b, or triad a = b + s·c (STREAM, https://www.cs.virginia.edu/stream/ref.html)."""
    size = _MEMORY_BYTES[device.type]
    a, b, c = (torch.full((size // 4,), float(i), device=device) for i in range(3))
    if metric == "memory_copy":
        return rate_sample(task, "memory", metric, lambda: a.copy_(b), device, 2 * size)
    return rate_sample(task, "memory", metric, lambda: torch.add(b, c, alpha=3.0, out=a), device, 3 * size)


def host_copy(task: Task, device: torch.device, metric: str) -> Sample:
    """GB/s between pinned memory of the host and the GPU, one way: ``h2d`` or ``d2h``."""
    host = torch.empty(_HOST_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_HOST_COPY_BYTES, dtype=torch.uint8, device=device)
    source, target = (host, there) if metric == "h2d" else (there, host)
    work = lambda: target.copy_(source, non_blocking=True)  # noqa: E731
    return rate_sample(task, "host_copy", metric, work, device, _HOST_COPY_BYTES, pinned=True)


def attempt(task: Task, check: str, metric: str, work: Callable[[], Sample]) -> Sample:
    """What `work` measures; where it fails, a sample without a value that says why. Frees the GPU's memory after it."""
    try:
        return work()
    except Exception as error:
        return task.sample(check, metric, reason=f"{type(error).__name__}: {str(error).strip()[:300]}")
    finally:
        if task.device == "cuda":
            torch.cuda.empty_cache()


def meet(task: Task, program: str) -> int:
    """Waits for the other processes of this node, so that all work at once; how many were there after half a minute.

    At the time that the conductor set (``start_at``, seconds since the epoch), else when each has left its file in the
    attempt's directory.
    """
    if "start_at" in task.options:
        time.sleep(max(0.0, float(task.options["start_at"]) - time.time()))
        return task.nproc
    place = (
        task.run_dir
        / f"attempt-{task.attempt}"
        / "meet"
        / f"{program}-{task.repeat}"
        / f"node-{task.node_rank}"
    )
    place.mkdir(parents=True, exist_ok=True)
    (place / str(task.gpu)).touch()
    limit = time.monotonic() + _MEET_S
    while (there := len(list(place.iterdir()))) < task.nproc and time.monotonic() < limit:
        time.sleep(0.01)
    return there


def main() -> int:
    """Measures what the task wants of phase 1; 0, whatever came out."""
    task = Task.from_env()
    device = open_device(task)
    inject.hang_if(task, task.gpu)
    together = meet(task, "speed")
    if task.wants("gemm") or task.wants("throttle"):
        watched = gemms(task, device, together)
        if device.type == "cuda" or inject.throttle_reasons(task, task.gpu, 0):
            task.write_all(watch_samples(task, watched))
    if task.wants("gemm_result"):  # After the products: what errs, errs when it is hot.
        task.write(attempt(task, "gemm_result", "gemm_hash", partial(gemm_result, task, device)))
    if task.wants("memory"):
        for metric in ("memory_copy", "memory_triad"):
            task.write(attempt(task, "memory", metric, partial(memory, task, device, metric)))
    if task.wants("host_copy") and device.type == "cuda":
        for metric in ("h2d", "d2h"):
            task.write(attempt(task, "host_copy", metric, partial(host_copy, task, device, metric)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
