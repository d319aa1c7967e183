"""What a failed attempt's own words are known to mean: a catalogue, read over logs. Pure.

A signature is evidence, not a verdict: it comes with the line that it was found in, and what usually helps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to fail."""

    name: str
    pattern: str
    meaning: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A signature, and where it was seen."""

    signature: Signature
    source: str
    """Name of the log."""
    line: str


# Causes come before what they bring about: the first that fits a line is the one.
CATALOGUE: tuple[Signature, ...] = (
    Signature(
        "gpu memory", r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory",
        "a GPU has not enough memory for the batch",
        "train.batch_size=auto, a smaller train.batch_size with train.global_batch, or train.activation_checkpointing=true; "
        "seatrial train … --estimate",
    ),
    Signature(
        "shared memory",
        r"/dev/shm|unable to (?:open|mmap|allocate|write).{0,60}shared memory|insufficient shared memory|DataLoader worker.{0,80}Bus error|"
        r"torch_shm_manager|SIGBUS",
        "/dev/shm is too small for what loader workers pass to the rank",
        "a larger /dev/shm: docker --shm-size, an emptyDir of medium Memory, or the site's container settings; seatrial doctor",
    ),
    Signature(
        "host memory",
        r"oom[-_ ]kill|Out[ _]Of[ _]Memory|OUT_OF_MEMORY|Cannot allocate memory|can't allocate memory|Killed process \d+|"
        r"Exceeded job memory limit|MemoryError",
        "the node has not enough memory, or the job was promised less than it uses",
        "ask for more (slurm.mem=…), run fewer ranks a node, or fewer loader workers",
    ),
    Signature(
        "disk", r"No space left on device|Disk quota exceeded|ENOSPC|EDQUOT", "a file system is full, or a quota is used up",
        "df -h; quota -s; fewer checkpoints: train.keep_checkpoints=1",
    ),
    Signature(
        "gpu fault",
        r"NVRM: Xid|\bXid(?: \(| )?\d+|uncorrectable (?:NVLink|ECC)|ECC error|fallen off the bus|GPU is lost|"
        r"CUDA error: (?:an illegal memory access|unspecified launch failure|uncorrectable)|Unable to determine the device handle",
        "a GPU reported a hardware or driver error",
        "dmesg | grep -i xid on that node; leave the node out (slurm.exclude=[…]) and tell its owner",
    ),
    Signature(
        "driver", r"CUDA driver version is insufficient|forward compatibility was attempted|no CUDA-capable device|"
        r"CUDA initialization: .*|NVML: Driver/library version mismatch",
        "the node's driver does not fit this torch, or no GPU can be seen",
        "nvidia-smi on that node; a torch built for its driver's CUDA version; seatrial doctor",
    ),
    Signature(
        "nccl network",
        r"NCCL WARN .*(?:NET/|socket|IB)|ncclSystemError|ncclRemoteError|ncclInternalError|NET/IB ?: ?Got completion|ibv_\w+ failed|"
        r"Call to ibv_|unhandled system error",
        "GPUs could not talk over the network",
        "NCCL_DEBUG=INFO in the environment shows which transport was tried; is the interface right (NCCL_SOCKET_IFNAME), "
        "InfiniBand up (ibstat), locked memory unlimited (ulimit -l)?",
    ),
    Signature(
        "collective timeout",
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ ?ms for (?:recv|send)|wait timeout after \d+|"
        r"ProcessGroupNCCL.*[Tt]imeout",
        "a collective never ended: one rank was late, stuck or gone",
        "find the rank that is behind: seatrial runs show RUN names a frozen one; a long evaluation on one rank alone does this too",
    ),
    Signature(
        "port taken", r"EADDRINUSE|Address already in use", "a port was taken by another process",
        "try again: each attempt looks for another one",
    ),
    Signature(
        "rendezvous",
        r"connectFullMesh failed|client socket has timed out|failed to connect to .*(?:TCPStore|port)|"
        r"Name or service not known|Temporary failure in name resolution|Unable to (?:find|resolve) (?:address|hostname)",
        "ranks could not find each other",
        "do the nodes resolve and reach each other? GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface",
    ),
    Signature(
        "peer lost", r"Connection (?:reset|closed) by (?:remote )?peer|Broken pipe.*gloo|Socket closed|recvValue failed",
        "a rank lost its peer: look for another rank that failed before", "",
    ),
    Signature(
        "pyxis", r"pyxis: .*(?:error|failed)|enroot-\w+.*(?:ERROR|failed)|unrecognized option '--container-image",
        "the container could not be started", "does srun know --container-image here (Pyxis)? is the image's name right?",
    ),
    Signature(
        "gated model", r"GatedRepoError|401 Client Error|403 Client Error|Cannot access gated repo",
        "the model hub refused the download", "huggingface-cli login on a node, or a local directory as the model",
    ),
    Signature(
        "no network", r"couldn't connect to 'https?://|Max retries exceeded with url|OfflineModeIsEnabled",
        "the model hub could not be reached from the node",
        "download before: name a local directory as the model, or fill HF_HOME on a shared file system",
    ),
    Signature(
        "package", r"ModuleNotFoundError|No module named|ImportError", "a Python package is missing, or another version, on the node",
        "pip install it into the environment that all nodes share",
    ),
    Signature(
        "open files", r"Too many open files", "the limit on open files is too low", "ulimit -n 65536; seatrial doctor",
    ),
    Signature(
        "generic resource", r"Invalid generic resource|Requested node configuration is not available",
        "the cluster has no such GPUs, or calls them otherwise", "sinfo -o '%P %G %D' shows what there is: slurm.gpu_type=…",
    ),
    Signature(
        "time limit", r"DUE TO TIME LIMIT", "the time limit ended it before the ranks had saved",
        "a longer resources.time, or a longer train.stop_before_s to save in",
    ),
    Signature(
        "node failure", r"DUE TO NODE FAILURE|Node failure on|NODE_FAIL", "a node failed", "seatrial runs resume RUN",
    ),
    Signature(
        "permission", r"Permission denied|PermissionError", "a file may not be read or written there", "ls -ld on that node",
    ),
    Signature(
        "missing file", r"FileNotFoundError|No such file or directory", "a file is not there on that node",
        "put it on a file system that all nodes share",
    ),
)  # fmt: skip
_COMPILED = [(signature, re.compile(signature.pattern)) for signature in CATALOGUE]


def diagnose(logs: Mapping[str, Sequence[str]]) -> list[Finding]:
    """The signatures in some logs, causes first, each once.

    Args:
        logs: lines by name of log; those of the first failing rank come first.
    """
    found: dict[str, Finding] = {}
    for source, lines in logs.items():
        for line in lines:
            signature = _of(line)
            if signature is not None and signature.name not in found:
                found[signature.name] = Finding(signature, source, line.strip()[:300])
    order = {signature.name: index for index, signature in enumerate(CATALOGUE)}
    return sorted(found.values(), key=lambda finding: order[finding.signature.name])


def sentences(findings: Iterable[Finding]) -> list[str]:
    """For people: meaning, evidence, and what usually helps."""
    lines = []
    for finding in findings:
        signature = finding.signature
        lines.append(f"{signature.meaning}    [{finding.source}] {finding.line}")
        if signature.remedy:
            lines.append(f"  next: {signature.remedy}")
    return lines


def _of(line: str) -> Signature | None:
    return next((signature for signature, pattern in _COMPILED if pattern.search(line)), None)
