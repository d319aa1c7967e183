"""This machine, collected and judged: what `seatrial doctor` says."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seatrial import command
from seatrial.backends.machine import Machine, probe
from seatrial.errors import PlatformError
from seatrial.runs.evidence import Evidence, Verdict

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 9)
MIN_SHM_GIB = 1.0
"""PyTorch passes batches of loader workers through /dev/shm; containers come with 64 MB, and a bus error."""
MIN_OPEN_FILES = 4096
"""Sockets between ranks, loader workers and memory-mapped shards add up; many systems give 1024."""
MIN_DISK_GIB = 5.0
"""Two models and two checkpoints with optimizer state of a base-sized encoder (≈ 110 M parameters) take about 4 GiB."""
TOOLS = {
    "git": ("--version", "records the commit of each run"),
    "ssh": ("-V", "reaches other machines"),
    "sbatch": ("--version", "submits to Slurm"),
    "kubectl": ("version --client", "talks to Kubernetes"),
    "terraform": ("version", "provisions clusters"),
    "nvidia-smi": ("--version", "lists GPUs"),
}
_TIMEOUT_S = 20.0
_HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was seen, before anybody judges it."""

    machine: Machine
    fingerprint: dict[str, Any]
    """What `seatrial.job.fingerprint` printed; ``{"error": …}`` when it could not run."""
    tools: dict[str, str | None]
    """First line of the version by tool; None where there is none."""
    hub: str
    """Where the model hub is."""
    hub_error: str | None
    disk_free_gib: float
    runs_dir: str
    python: tuple[int, int]


def collect(runs_dir: Path, runner: command.CommandRunner = command.run) -> Sample:
    """Looks at this machine; the slow looks run side by side, each with a time limit."""
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    existing = next(p for p in (runs_dir, *runs_dir.parents) if p.exists())
    with ThreadPoolExecutor() as pool:
        fingerprint = pool.submit(_fingerprint, runner)
        machine = pool.submit(probe, runner)
        reached = pool.submit(_hub_error, hub)
        tools = {name: pool.submit(_version, name, words, runner) for name, (words, _) in TOOLS.items()}
        return Sample(
            machine=machine.result(),
            fingerprint=fingerprint.result(),
            tools={name: version.result() for name, version in tools.items()},
            hub=hub,
            hub_error=reached.result(),
            disk_free_gib=shutil.disk_usage(existing).free / 2**30,
            runs_dir=str(runs_dir),
            python=sys.version_info[:2],
        )


def judge(sample: Sample) -> list[Evidence]:
    """A verdict on each finding. FAIL stops `seatrial train` here; WARN will hurt; SKIP does not apply here."""
    return [
        _python(sample),
        _torch(sample),
        _gpus(sample),
        _shm(sample),
        _open_files(sample),
        _locked_memory(sample),
        _disk(sample),
        *(_tool(sample, name) for name in TOOLS),
        _hub(sample),
    ]


def _verdict(
    check: str, verdict: Verdict, measured: Any, expected: Any = None, unit: str = "", *, say: str
) -> Evidence:
    return Evidence(
        check=check,
        verdict=verdict,
        measured=measured,
        expected=expected,
        unit=unit,
        source="doctor",
        message=say,
    )


def _python(sample: Sample) -> Evidence:
    good = sample.python >= MIN_PYTHON
    version = ".".join(map(str, sample.python))
    wanted = ".".join(map(str, MIN_PYTHON))
    say = f"Python {version}" if good else f"Python {version}: install {wanted} or newer"
    return _verdict("python", Verdict.PASS if good else Verdict.FAIL, version, f">= {wanted}", say=say)


def _torch(sample: Sample) -> Evidence:
    facts = sample.fingerprint.get("torch", {})
    problem = sample.fingerprint.get("error") or facts.get("error")
    wanted = ".".join(map(str, MIN_TORCH))
    if problem:
        return _verdict(
            "torch", Verdict.FAIL, None, f">= {wanted}", say=f"{problem}. pip install 'seatrial[train]'"
        )
    version = facts["version"]
    say = f"torch {version}, CUDA {facts['cuda'] or 'none (CPU build)'}, NCCL {facts['nccl'] or 'none'}"
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TORCH:
        return _verdict(
            "torch", Verdict.FAIL, version, f">= {wanted}", say=f"{say}. pip install 'torch>={wanted}'"
        )
    return _verdict("torch", Verdict.PASS, version, f">= {wanted}", say=say)


def _gpus(sample: Sample) -> Evidence:
    there = len(sample.machine.gpus)
    seen = sample.fingerprint.get("torch", {}).get("gpus")
    if there == 0:
        return _verdict("gpus", Verdict.SKIP, 0, say=f"no GPU ({sample.machine.evidence}): runs use the CPU")
    names = ", ".join(sorted(set(sample.machine.gpus)))
    if seen is None:
        return _verdict("gpus", Verdict.UNMEASURED, there, say=f"{there} × {names}; torch could not be asked")
    if len(seen) == there:
        return _verdict(
            "gpus", Verdict.PASS, there, there, "GPUs", say=f"{there} × {names}, all seen by torch"
        )
    cuda = sample.fingerprint["torch"]["cuda"]
    why = (
        "this torch is a CPU build: pip install a CUDA build (see pytorch.org)"
        if cuda is None
        else f"driver too old for CUDA {cuda}? {sample.fingerprint['host'].get('nvidia_driver')}"
    )
    return _verdict(
        "gpus",
        Verdict.FAIL,
        len(seen),
        there,
        "GPUs",
        say=f"{there} × {names}, torch sees {len(seen)}: {why}",
    )


def _shm(sample: Sample) -> Evidence:
    size = sample.fingerprint.get("host", {}).get("shm_gib")
    if size is None:
        return _verdict("shared_memory", Verdict.UNMEASURED, None, say="/dev/shm could not be read")
    good = size >= MIN_SHM_GIB
    say = f"/dev/shm has {size:g} GiB"
    if not good:
        say += ": mount -o remount,size=8G /dev/shm    (docker run --shm-size=8g)"
    return _verdict(
        "shared_memory", Verdict.PASS if good else Verdict.WARN, size, f">= {MIN_SHM_GIB:g}", "GiB", say=say
    )


def _open_files(sample: Sample) -> Evidence:
    limits = sample.fingerprint.get("limits")
    if limits is None:
        return _verdict("open_files", Verdict.UNMEASURED, None, say="the limit could not be read")
    count = limits["open_files"]
    good = count is None or count >= MIN_OPEN_FILES
    say = f"{'any number of' if count is None else count} open files" + (
        "" if good else f": ulimit -n {MIN_OPEN_FILES}"
    )
    return _verdict(
        "open_files", Verdict.PASS if good else Verdict.WARN, count, f">= {MIN_OPEN_FILES}", say=say
    )


def _locked_memory(sample: Sample) -> Evidence:
    limits = sample.fingerprint.get("limits")
    if limits is None:
        return _verdict("locked_memory", Verdict.UNMEASURED, None, say="the limit could not be read")
    limit = limits["locked_memory_bytes"]
    if limit is None:
        return _verdict("locked_memory", Verdict.PASS, None, "unlimited", say="unlimited locked memory")
    say = f"{limit} bytes may be locked; InfiniBand wants all: ulimit -l unlimited"
    # RDMA registers whole buffers; without InfiniBand nothing locks memory.
    if Path("/sys/class/infiniband").is_dir():
        return _verdict("locked_memory", Verdict.WARN, limit, "unlimited", "bytes", say=say)
    return _verdict(
        "locked_memory", Verdict.SKIP, limit, "unlimited", "bytes", say=f"no InfiniBand here ({say})"
    )


def _disk(sample: Sample) -> Evidence:
    free = round(sample.disk_free_gib, 1)
    good = free >= MIN_DISK_GIB
    say = f"{free} GiB free for {sample.runs_dir}" + (
        "" if good else ": --runs-dir DIRECTORY on a larger disk"
    )
    return _verdict(
        "disk", Verdict.PASS if good else Verdict.WARN, free, f">= {MIN_DISK_GIB:g}", "GiB", say=say
    )


def _tool(sample: Sample, name: str) -> Evidence:
    version = sample.tools.get(name)
    if version is None:
        return _verdict(name, Verdict.SKIP, None, say=f"not installed; it {TOOLS[name][1]}")
    return _verdict(name, Verdict.PASS, version, say=version)


def _hub(sample: Sample) -> Evidence:
    if sample.hub_error is None:
        return _verdict("hub", Verdict.PASS, "reachable", say=f"{sample.hub} answers")
    return _verdict(
        "hub", Verdict.WARN, "unreachable", "reachable",
        say=f"{sample.hub}: {sample.hub_error}. Pass local paths: --model DIRECTORY --data FILE.csv",
    )  # fmt: skip


def _fingerprint(runner: command.CommandRunner) -> dict[str, Any]:
    try:
        done = runner([sys.executable, "-m", "seatrial.job.fingerprint"], timeout_s=_TIMEOUT_S)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except PlatformError as error:
        return {"error": str(error)}
    except (ValueError, IndexError):
        return {"error": (done.stderr.strip().splitlines() or ["the fingerprint printed nothing"])[-1][:300]}


def _version(name: str, words: str, runner: command.CommandRunner) -> str | None:
    if shutil.which(name) is None:
        return None
    try:
        done = runner([name, *words.split()], timeout_s=_TIMEOUT_S)
    except PlatformError as error:
        return f"installed, but: {error.what}"
    return next(iter((done.stdout or done.stderr).strip().splitlines()), "installed")


def _hub_error(hub: str) -> str | None:
    """Why the hub can't be reached, by one TCP connection (to the proxy, where one is set); None when it can."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return "HF_HUB_OFFLINE is set"
    scheme = urlsplit(hub).scheme or "https"
    proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY")
    target = urlsplit(proxy or hub)
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        with socket.create_connection((target.hostname or "", port), timeout=_HUB_TIMEOUT_S):
            return None
    except OSError as error:
        return f"{target.hostname}:{port}: {error}"
