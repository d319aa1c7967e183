"""Rules on a node as a whole: its limits, versions, processors, clock and disks."""

from __future__ import annotations

from collections import Counter, defaultdict

from seatrial.check.cluster import Cluster
from seatrial.check.findings import found
from seatrial.check.metrics import number
from seatrial.check.rules.common import FAIL, GIB, PASS, WARN, threshold
from seatrial.runs.acceptance import Finding
from seatrial.runs.samples import Sample

SHM_GIB = (1.0, 8.0)
"""Below the first FAIL, below the second WARN: NCCL and loader workers pass data through /dev/shm; containers come with
64 MB (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html, "Shared memory")."""
OPEN_FILES = (1024, 4096)
"""Sockets between ranks, loader workers and mapped shards add up."""
CORES_PER_GPU = (1.0, 4.0)
"""A rank with less than one core is slowed down by its own loader; NCCL's helpers want two more."""
CLOCK_S = (30.0, 1.0)
"""Above the first FAIL (tokens and certificates are refused), above the second WARN (logs can't be put in order)."""
FREE_SHARE = (0.05, 0.20)
FREE_GIB = (5.0, 20.0)
"""Free space where the size of the whole isn't known: two models and two checkpoints with optimizer state take 4 GiB."""
LOCKED_BYTES = 64 * GIB
"""What InfiniBand must be able to lock, where it isn't without limit: buffers of all ranks of a node."""
DECISIVE = ("torch", "cuda", "nccl", "driver")
"""Versions that must agree; a difference in others is only warned of."""


def versions(cluster: Cluster) -> list[Finding]:
    """Each version against what most nodes have; where no majority is, all are warned of."""
    findings = []
    for metric in sorted({s.metric for s in cluster.read("versions")}):
        samples = cluster.read("versions", metric)
        by_node = {s.node: str(s.value) for s in samples}
        ranked = Counter(by_node.values()).most_common()
        usual, count = ranked[0]
        tied = len(ranked) > 1 and count * 2 <= len(by_node)
        decisive = metric in DECISIVE
        for sample in {s.node: s for s in samples}.values():
            own = by_node[sample.node]
            if len(ranked) == 1:
                findings.append(found(sample, PASS, f"{metric} {own}, as everywhere", expected=usual))
            elif tied:
                named = "; ".join(f"{version} on {_names([n for n, v in by_node.items() if v == version])}"
                                  for version, _ in sorted(ranked))  # fmt: skip
                findings.append(
                    found(
                        sample,
                        WARN,
                        f"{metric} differs, and no version has a majority: {named}",
                        blame="config",
                        code="version_differs",
                        remedy=f"install one {metric} on all nodes",
                    )
                )
            elif own == usual:
                findings.append(
                    found(
                        sample, PASS, f"{metric} {own}, as on {count} of {len(by_node)} nodes", expected=usual
                    )
                )
            else:
                findings.append(
                    found(
                        sample,
                        FAIL if decisive else WARN,
                        f"{metric} is {own}; {count} of {len(by_node)} nodes have {usual}",
                        blame="config",
                        code=f"{metric}_differs" if decisive else "version_differs",
                        expected=usual,
                        remedy=f"install {metric} {usual} on {sample.node}, or run with --exclude {sample.node}",
                    )
                )
    return findings


def shared_memory(cluster: Cluster) -> list[Finding]:
    """Size of /dev/shm."""
    return [
        found(s, threshold(float(s.value), fail=SHM_GIB[0], warn=SHM_GIB[1]), f"/dev/shm has {float(s.value):.3g} GiB",
              blame="config", code="small_shm", expected=f">= {SHM_GIB[1]:g}",
              remedy="mount -o remount,size=16G /dev/shm    (docker run --shm-size=16g; Kubernetes: an emptyDir with medium Memory)")
        for s in cluster.read("shared_memory", "shm_gib")
    ]  # fmt: skip


def locked_memory(cluster: Cluster) -> list[Finding]:
    """What a process may lock: InfiniBand registers whole buffers, nothing else locks memory."""
    findings = []
    for s in cluster.read("locked_memory", "locked_memory_bytes"):
        limit = number(s)
        if limit is None or limit >= LOCKED_BYTES:
            findings.append(
                found(s, PASS, f"{'any amount' if limit is None else f'{limit / GIB:.4g} GiB'} may be locked")
            )
        elif s.node in cluster.infiniband:
            findings.append(
                found(
                    s,
                    FAIL,
                    f"{limit / 1024:.0f} KiB may be locked, with active InfiniBand",
                    blame="config",
                    code="low_memlock",
                    expected="unlimited",
                    remedy="ulimit -l unlimited in the job (Slurm: LimitMEMLOCK=infinity in slurmd's unit, "
                    "and PropagateResourceLimitsExcept=MEMLOCK)",
                )
            )
        else:
            findings.append(
                found(s, PASS, f"{limit / 1024:.0f} KiB may be locked; without InfiniBand nothing needs more")
            )
    return findings


def open_files(cluster: Cluster) -> list[Finding]:
    """How many files a process may open."""
    findings = []
    for s in cluster.read("open_files", "open_files"):
        limit = number(s)
        verdict = PASS if limit is None else threshold(limit, fail=OPEN_FILES[0], warn=OPEN_FILES[1])
        say = f"{'any number of' if limit is None else f'{limit:.0f}'} open files"
        findings.append(
            found(
                s,
                verdict,
                say,
                blame="config",
                code="few_open_files",
                expected=f">= {OPEN_FILES[1]}",
                remedy="ulimit -n 65536 in the job, or LimitNOFILE=65536 in the unit that starts it",
            )
        )
    return findings


def cpu(cluster: Cluster) -> list[Finding]:
    """Cores for each GPU, and the governor."""
    findings = []
    for s in cluster.read("cpu", "cores_per_gpu"):
        cores = float(s.value)
        verdict = threshold(cores, fail=CORES_PER_GPU[0], warn=CORES_PER_GPU[1])
        if cluster.profile != "gpu":
            findings.append(
                found(s, PASS, f"{cores:.3g} cores for each rank; nothing is asked of a CPU's ranks")
            )
            continue
        findings.append(
            found(
                s,
                verdict,
                f"{cores:.3g} cores for each GPU",
                blame="config",
                code="few_cores",
                expected=f">= {CORES_PER_GPU[1]:g}",
                remedy="ask for more: --cpus-per-gpu=8 (Slurm), resources.requests.cpu (Kubernetes)",
            )
        )
    for s in cluster.read("cpu", "governor"):
        names = {
            str(name)
            for name in (s.value if isinstance(s.value, list) else str(s.value).replace(",", " ").split())
        }
        # A desktop or a VM has no say in it, and it costs no result: warned of where GPUs wait for CPUs.
        slow = names & {"powersave", "conservative", "userspace"} and cluster.profile == "gpu"
        findings.append(
            found(
                s,
                WARN if slow else PASS,
                f"governor {', '.join(sorted(names))}",
                blame="config",
                code="slow_governor",
                expected="performance",
                remedy="cpupower frequency-set -g performance",
            )
        )
    return findings


def clock(cluster: Cluster) -> list[Finding]:
    """Difference to the first node's clock, in seconds."""
    findings = []
    for s in cluster.read("clock"):
        skew = number(s)
        if skew is None:
            continue
        verdict = FAIL if abs(skew) > CLOCK_S[0] else WARN if abs(skew) > CLOCK_S[1] else PASS
        findings.append(
            found(
                s,
                verdict,
                f"the clock is {abs(skew):.3g} s {'ahead' if skew > 0 else 'behind'}",
                blame="config",
                code="clock_skew",
                expected=f"<= {CLOCK_S[1]:g}",
                remedy=f"chronyc makestep on {s.node}, and see why chronyd is not in step",
            )
        )
    return findings


def local_disk(cluster: Cluster) -> list[Finding]:
    """Free space; the throughput has no threshold of its own, peers and history judge it."""
    return [_free(s) for s in cluster.read("local_disk", "local_free_gib")]


def shared_disk(cluster: Cluster) -> list[Finding]:
    """What every node wrote is read on all the others; free space."""
    findings = [_free(s) for s in cluster.read("shared_disk", "shared_free_gib")]
    lacking: dict[str, list[str]] = defaultdict(list)
    seen = cluster.read("shared_disk", "shared_visible")
    # Whom half of the nodes or more can't read did not write what they see; else it is the reader who is cut off.
    for s in seen:
        for name in s.detail.get("missing", []):
            lacking[str(name)].append(s.node)
    for s in seen:
        missing = [str(name) for name in s.detail.get("missing", [])]
        unread = len(lacking[s.node])
        if unread * 2 >= max(len(seen) - 1, 1) and unread:
            say = f"the run directory: what it wrote is not seen on {_names(lacking[s.node])}"
        elif any(len(lacking[name]) * 2 < max(len(seen) - 1, 1) for name in missing):
            say = f"the run directory: it does not see what {_names(missing)} wrote"
        else:
            findings.append(found(s, PASS, f"the run directory is shared with {len(s.value)} nodes"))
            continue
        findings.append(
            found(
                s,
                FAIL,
                say,
                blame="config",
                code="not_shared",
                expected="every node's file",
                remedy=f"findmnt -T RUN_DIR on {s.node} and on another node: mount the same file system, or --runs-dir DIRECTORY on it",
            )
        )
    return findings


def _free(sample: Sample) -> Finding:
    free, total = float(sample.value), sample.detail.get("total_gib")
    if total:
        share = free / float(total)
        verdict = threshold(share, fail=FREE_SHARE[0], warn=FREE_SHARE[1]) if free < 1024 else PASS
        say = f"{free:.4g} GiB free, {share:.0%} of the disk"
    else:
        verdict = threshold(free, fail=FREE_GIB[0], warn=FREE_GIB[1])
        say = f"{free:.4g} GiB free"
    where = sample.detail.get("directory", "/")
    return found(sample, verdict, say, blame="config", code="disk_full", remedy=f"du -xh {where} | sort -h | tail: free space on {sample.node}")  # fmt: skip


def _names(names: list[str], most: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
