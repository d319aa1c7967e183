"""Lines that real failures print, and what they are taken for."""

from __future__ import annotations

import re

import pytest

from seatrial.launch.signatures import CATALOGUE, diagnose, sentences

# From logs of torch, NCCL, Slurm and the kernel.
LINES = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB": "gpu memory",
    "RuntimeError: unable to write to file </torch_3221_1>: No space left on device (28) in /dev/shm": "shared memory",
    "RuntimeError: DataLoader worker (pid 913) is killed by signal: Bus error. It is possible that dataloader's workers are "
    "out of shared memory.": "shared memory",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=26.batch. Some of the step tasks have been OOM Killed.": "host memory",
    "srun: error: node0: task 0: Out Of Memory": "host memory",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 549755813888 bytes.": "host memory",
    "OSError: [Errno 28] No space left on device: '/shared/runs/x/checkpoints'": "disk",
    "OSError: [Errno 122] Disk quota exceeded": "disk",
    "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.": "gpu fault",
    "RuntimeError: CUDA error: an illegal memory access was encountered": "gpu fault",
    "RuntimeError: The NVIDIA driver on your system is too old; CUDA driver version is insufficient for CUDA runtime": "driver",
    "gpu-a:811:902 [0] transport/net_ib.cc:1295 NCCL WARN NET/IB : Got completion from peer with status=12": "nccl network",
    "torch.distributed.DistBackendError: NCCL error … ncclSystemError: System call (e.g. socket, malloc) failed": "nccl network",
    "[rank3]:[E502] ProcessGroupNCCL.cpp:607] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7": "collective timeout",
    "RuntimeError: The server socket has failed to listen: EADDRINUSE, message: address already in use": "port taken",
    "RuntimeError: Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error": "rendezvous",
    "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:40113": "peer lost",
    "slurmstepd: error: pyxis: container start failed with error code: 1": "pyxis",
    "huggingface_hub.errors.GatedRepoError: 401 Client Error.": "gated model",
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files": "no network",
    "ModuleNotFoundError: No module named 'flash_attn'": "package",
    "OSError: [Errno 24] Too many open files": "open files",
    "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification": "generic resource",
    "slurmstepd-node0: error: *** JOB 7 ON node0 CANCELLED AT 2026-11-25T23:00:56 DUE TO TIME LIMIT ***": "time limit",
    "PermissionError: [Errno 13] Permission denied: '/data/train.parquet'": "permission",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/train.parquet'": "missing file",
}


@pytest.mark.parametrize(
    ("line", "name"), LINES.items(), ids=[f"{n}-{i}" for i, n in enumerate(LINES.values())]
)
def test_a_line_is_taken_for_its_cause(line: str, name: str) -> None:
    assert [finding.signature.name for finding in diagnose({"rank 0": ["step 3", line]})] == [name]


def test_what_went_well_is_taken_for_nothing() -> None:
    lines = [
        "step 10 loss 0.3",
        "saved checkpoint",
        "epoch 1 of 3",
        "UserWarning: memory format",
        "Xidlist",
        "page 79",
    ]
    assert diagnose({"rank 0": lines}) == []


def test_the_cause_comes_before_what_followed_and_each_once() -> None:
    lost = "Connection closed by peer [10.0.0.2]:40113"
    found = diagnose(
        {"rank 0": [lost, lost], "rank 3": ["CUDA out of memory. Tried …", "CUDA out of memory. Tried …"]}
    )
    assert [(f.signature.name, f.source) for f in found] == [
        ("gpu memory", "rank 3"),
        ("peer lost", "rank 0"),
    ]
    said = sentences(found)
    assert "[rank 3] CUDA out of memory" in said[0] and "train.batch_size=auto" in said[1]


def test_every_signature_is_tried_and_says_something() -> None:
    assert len({signature.name for signature in CATALOGUE}) == len(CATALOGUE)
    untried = {s.name for s in CATALOGUE} - set(LINES.values()) - {"node failure"}
    assert not untried
    for signature in CATALOGUE:
        re.compile(signature.pattern)
        assert signature.meaning and not signature.meaning.endswith(".")
