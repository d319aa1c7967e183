"""The specification's verdict: a rate against what hardware of this model reaches elsewhere, and against physics.

Hardware that the table does not know is UNMEASURED here, never passed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

from seatrial.check.cluster import Cluster, active
from seatrial.check.findings import found
from seatrial.check.floors import SANE, Algo, Floor, Floors, Gpu, shipped
from seatrial.check.metrics import COLLECTIVES, number, rate
from seatrial.runs.acceptance import Finding
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample

GEMM_SHAPE = 8192
"""The references of matrix products are for this one in all three dimensions."""
LARGE_BYTES = 8 * 2**30
"""The references of collectives are for this size and more."""
LESS_LARGE_BYTES = 2**30
LESS_LARGE = 0.95
"""Share of the reference that is asked for from 1 GiB on: 362 of 382 GB/s were published for 1 and 16 GiB
(https://github.com/stas00/ml-engineering, network/benchmarks, 4 nodes of B200)."""
_JUDGED = ("gemm", "memory", "host_copy", "peer_copy", "node_collectives", "cluster_collectives")


def judge(cluster: Cluster, table: Floors | None = None) -> list[Finding]:
    """The specification's verdict of every rate that the table has something to say of."""
    if cluster.profile != "gpu":
        return []
    table = table or shipped()
    parts: dict[tuple[Any, ...], list[Sample]] = defaultdict(list)
    for check in _JUDGED:
        for sample in _largest(cluster.all(check)):
            if rate(sample) and number(sample) is not None:
                key = (check, sample.metric, sample.node, sample.gpu, sample.peer_gpu)
                parts[key].append(sample)
    findings: dict[tuple[Any, ...], Finding] = {}
    for key, samples in parts.items():
        finding = _judge_part(cluster, table, samples)
        # One line says that a model is unknown, not one for each of its GPUs.
        once = (
            (finding.check, finding.metric, finding.message) if finding.verdict is Verdict.UNMEASURED else key
        )
        findings[once] = finding
    return list(findings.values())


def below_band(cluster: Cluster, node: str, gpu: int | None, table: Floors | None = None) -> bool:
    """Whether any matrix product of a GPU is under what is warned of."""
    table = table or shipped()
    for sample in cluster.read("gemm"):
        if (sample.node, sample.gpu) == (node, gpu) and (value := number(sample)) is not None:
            floor, _ = _reference(cluster, table, sample)
            if floor and value < floor.warn:
                return True
    return False


def _largest(samples: Iterable[Sample]) -> list[Sample]:
    """Of collectives the largest size of each operation and part; of everything else all."""
    samples = list(samples)
    top: dict[tuple[str, str], float] = {}
    for sample in samples:
        key = (sample.metric, sample.node)
        top[key] = max(top.get(key, 0), sample.detail.get("bytes", 0))
    return [
        s for s in samples if s.metric not in COLLECTIVES or s.detail.get("bytes", 0) == top[s.metric, s.node]
    ]


def _judge_part(cluster: Cluster, table: Floors, samples: list[Sample]) -> Finding:
    sample = samples[0]
    value = median(float(s.value) for s in samples)
    floor, scale = _reference(cluster, table, sample)
    gpu = table.gpu(cluster.model(sample.node, sample.gpu))
    peak = gpu.limit(sample.metric) if gpu and sample.check != "cluster_collectives" else None
    what = f"{sample.metric} is {value:.4g} {sample.unit}"
    common = {"judge": "specification", "measured": value}
    if (
        peak
        and value > SANE[1] * peak
        and not (sample.metric in COLLECTIVES and _algo(cluster, sample) == "nvls")
    ):
        say = f"{what}, more than the physical {peak:g}: the measurement is wrong"
        return found(sample, Verdict.WARN, say, code="impossible", blame="config", expected=peak,
                     remedy=f"seatrial check --only {sample.check}", **common)  # fmt: skip
    if floor is None:
        return Finding(
            check=sample.check, metric=sample.metric, verdict=Verdict.UNMEASURED, judge="specification",
            message=f"{sample.metric}: {_why_none(cluster, gpu, sample)}", code="no_reference", unit=sample.unit,
            remedy="seatrial check --save-baseline NAME    (then the own history judges)",
        )  # fmt: skip
    warn, fail = floor.warn * scale, floor.fail * scale
    common |= {"expected": round(fail, 3), "source": f"{floor.source} ({floor.kind}, {floor.date})"}
    if value >= warn:
        return found(sample, Verdict.PASS, f"{what}; {floor.value * scale:.4g} is usual", **common)
    say = f"{what}, {1 - value / (floor.value * scale):.0%} under the usual {floor.value * scale:.4g}"
    verdict = Verdict.WARN if value >= fail or floor.kind == "provisional" else Verdict.FAIL
    if floor.kind == "provisional":
        say += " (a provisional reference: it may only warn)"
    network = sample.check == "cluster_collectives"
    remedy = (
        "seatrial check --only pairs,cluster_transport    (which node or link is slow, and over which network)"
        if network
        else f"nvidia-smi -q -d PERFORMANCE,CLOCK,POWER on {sample.node}; then seatrial check --only {sample.check}"
    )
    return found(
        sample,
        verdict,
        say,
        blame="fabric" if network else "node",
        code="below_floor",
        remedy=remedy,
        **common,
    )


def _reference(cluster: Cluster, table: Floors, sample: Sample) -> tuple[Floor | None, float]:
    """The reference that holds for a sample, and what it is multiplied by."""
    gpu = table.gpu(cluster.model(sample.node, sample.gpu))
    if gpu is None:
        return None, 1.0
    if sample.check == "host_copy":
        generation, lanes = _pcie(cluster, sample)
        return table.find(f"pcie{generation}", sample.metric), (lanes or 16) / 16
    if sample.check == "gemm":
        shape = [sample.detail.get(side, GEMM_SHAPE) for side in ("m", "n", "k")]
        return (table.find(gpu.name, sample.metric) if set(shape) == {GEMM_SHAPE} else None), 1.0
    if sample.metric not in COLLECTIVES:
        return table.find(gpu.name, sample.metric), 1.0
    size = sample.detail.get("bytes", 0)
    if size < LESS_LARGE_BYTES:
        return None, 1.0
    scale = 1.0 if size >= LARGE_BYTES else LESS_LARGE
    if sample.check == "cluster_collectives":
        ports = _ports(cluster)
        ring = str(sample.detail.get("algo", "")).lower() == "ring"
        if not ring or ports is None:
            return None, 1.0
        count, gbps = ports
        return table.find(f"net{gbps:g}", sample.metric), scale * count
    ranks = sample.detail.get("ranks")
    return table.find(gpu.name, sample.metric, algo=_algo(cluster, sample), ranks=ranks), scale


def _why_none(cluster: Cluster, gpu: Gpu | None, sample: Sample) -> str:
    model = cluster.model(sample.node, sample.gpu)
    if gpu is None:
        return f"no reference for {model or 'a GPU whose model could not be read'}"
    if sample.metric in COLLECTIVES and sample.detail.get("bytes", 0) < LESS_LARGE_BYTES:
        return f"references begin at 1 GiB, the largest here is {sample.detail.get('bytes', 0) / 2**20:g} MiB"
    if sample.check == "cluster_collectives":
        return "references are for all_reduce as a ring over InfiniBand ports of one rate"
    if sample.check == "host_copy":
        return "no reference for this PCIe generation, or it could not be read"
    return f"no reference for {model}" + (
        f" with {sample.detail['ranks']} ranks" if "ranks" in sample.detail else ""
    )


def _algo(cluster: Cluster, sample: Sample) -> Algo:
    """Whether a collective was reduced in the switch: as its log says, else as the transport's proof of the node does."""
    said = str(sample.detail.get("algo", ""))
    if not said:
        said = " ".join(str(s.value) for s in cluster.read("transport", "transport") if s.node == sample.node)
    return "nvls" if "NVLS" in said.upper() else "ring"


def _pcie(cluster: Cluster, sample: Sample) -> tuple[int | None, int | None]:
    """Generation and width of a GPU's link, rather as they were under load."""
    read: dict[str, int] = {}
    for metric in ("pcie_gen", "pcie_width", "pcie_gen_load", "pcie_width_load"):
        for other in cluster.read("pcie", metric):
            if (other.node, other.gpu) == (sample.node, sample.gpu):
                read[metric.removesuffix("_load")] = int(other.value)
    return read.get("pcie_gen"), read.get("pcie_width")


def _ports(cluster: Cluster) -> tuple[int, float] | None:
    """How many active ports a node has, and their Gbit/s; None where nodes or ports differ, or none is known."""
    seen = set()
    for sample in cluster.read("infiniband", "ib_ports"):
        rates = [float(port["rate_gbps"]) for port in sample.value if active(port) and port.get("rate_gbps")]
        seen.add((len(rates), *sorted(set(rates))))
    if len(seen) != 1:
        return None
    count, *rates = seen.pop()
    return (int(count), float(rates[0])) if count and len(rates) == 1 else None
