"""What this machine and this Python are: ``python -m seatrial.job.fingerprint`` prints it as one JSON document.

Kept with every run, and read by `seatrial doctor`. Works without torch, and then says why there is none.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from seatrial import command
from seatrial.errors import PlatformError

_GIB = 2**30
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME",
              "TOKENIZERS_PARALLELISM", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # fmt: skip
_PREFIXES = ("NCCL_", "GLOO_", "TORCH_", "UCX_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


def fingerprint() -> dict[str, Any]:
    """Plain data: Python, packages, machine, limits, torch, GPUs, and the variables that change how they behave."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "host": machine(),
        "limits": limits(),
        "torch": torch_facts(),
        "variables": variables(dict(os.environ)),
        "packages": dict(
            sorted(
                (d.metadata["Name"], d.version)
                for d in importlib.metadata.distributions()
                if d.metadata["Name"]
            )
        ),
    }


def machine() -> dict[str, Any]:
    """Names, cores, memory and shared memory."""
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus_total": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / _GIB, 2),
        "shm_gib": None if shm is None else round(shm.total / _GIB, 3),
        "shm_free_gib": None if shm is None else round(shm.free / _GIB, 3),
        "nvidia_driver": _driver(),
    }


def node_facts() -> dict[str, Any]:
    """What is kept of each node of an attempt. Imports no torch."""
    packages = {name: _version(name) for name in ("seatrial", "torch", "transformers")}
    return {
        **machine(),
        "limits": limits(),
        "gpus": _listed_gpus(),
        "python": sys.version.split()[0],
        "packages": packages,
    }


def limits() -> dict[str, int | None]:
    """Soft limits of this process; None for unlimited."""

    def soft(which: int) -> int | None:
        value = resource.getrlimit(which)[0]
        return None if value == resource.RLIM_INFINITY else value

    return {"open_files": soft(resource.RLIMIT_NOFILE), "locked_memory_bytes": soft(resource.RLIMIT_MEMLOCK)}


def torch_facts() -> dict[str, Any]:
    """Versions, backends and GPUs as torch sees them; ``{"error": …}`` where it can't be imported."""
    try:
        import torch
        import torch.distributed as dist
    except (ImportError, OSError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    backends = [name for name in ("gloo", "nccl", "mpi") if getattr(dist, f"is_{name}_available")()]
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if "nccl" in backends else None,
        "backends": backends,
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "gpus": [],
    }
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        facts["gpus"].append(
            f"{found.name}, {found.total_memory / _GIB:.1f} GiB, compute capability {found.major}.{found.minor}, "
            f"uuid {getattr(found, 'uuid', 'unknown')}"
        )
    return facts


def variables(environment: dict[str, str]) -> dict[str, str]:
    """By name only those that change how a run behaves; nothing that could be a secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in _VARIABLES or name.startswith(_PREFIXES)) and not any(word in name for word in _SECRET)
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _listed_gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,driver_version", "--format=csv,noheader"]
    try:
        done = command.run(query, timeout_s=30)
    except PlatformError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _driver() -> str | None:
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return None


if __name__ == "__main__":
    print(json.dumps(fingerprint()))  # noqa: T201 - this is the output
