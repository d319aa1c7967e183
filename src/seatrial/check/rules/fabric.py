"""Rules on the network: ports, RDMA devices, and what carried the collectives."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from seatrial.check.cluster import Cluster, active
from seatrial.check.findings import found
from seatrial.check.metrics import number
from seatrial.check.rules.common import FAIL, PASS, SKIP, WARN
from seatrial.runs.acceptance import Finding
from seatrial.runs.samples import Sample

FLAPS = 5
"""Times that a link may have gone down, beyond what is usual here, before one is warned
(https://github.com/Azure/azurehpc-health-checks: more than 5 in a day)."""


def infiniband(cluster: Cluster) -> list[Finding]:
    """Ports of each node against those of the same name on the others."""
    samples = cluster.read("infiniband", "ib_ports")
    ports = {s.node: {f"{p['device']}/{p['port']}": p for p in s.value} for s in samples}
    if not any(ports.values()):
        return [found(s, SKIP, "no RDMA device") for s in samples]
    count = Counter(sum(active(p) for p in mine.values()) for mine in ports.values())
    usual = max(count, key=lambda n: (count[n], n))
    downs = median(
        [
            p["link_downed"]
            for mine in ports.values()
            for p in mine.values()
            if p.get("link_downed") is not None
        ]
        or [0]
    )
    findings = []
    for s in samples:
        up = {name: p for name, p in ports[s.node].items() if active(p)}
        wrong = [_port(ports, name, p) for name, p in ports[s.node].items()]
        bad = [say for say in wrong if say]
        if len(up) < usual and not bad:
            bad = [f"{len(up)} active ports, {usual} on most nodes"]
        flapped = [
            f"{name} went down {p['link_downed']} times"
            for name, p in up.items()
            if (p.get("link_downed") or 0) > downs + FLAPS
        ]
        if bad:
            findings.append(
                found(
                    s,
                    FAIL,
                    "; ".join(bad),
                    blame="node",
                    code="port",
                    measured=len(up),
                    expected=usual,
                    remedy=f"ibstat on {s.node}; reseat or exchange the cable, look at the switch's port",
                )
            )
        elif flapped:
            findings.append(
                found(
                    s,
                    WARN,
                    "; ".join(flapped),
                    blame="node",
                    code="flapping",
                    measured=len(up),
                    expected=usual,
                    remedy=f"mlxlink -d DEVICE -c on {s.node}; reseat or exchange the cable, then reset the counters",
                )
            )
        else:
            findings.append(
                found(s, PASS, f"{len(up)} active ports{_rates(up)}", measured=len(up), expected=usual)
            )
    return findings


def _port(ports: dict[str, dict[str, dict[str, Any]]], name: str, port: dict[str, Any]) -> str:
    """What is wrong with one port, seen from the same port of the other nodes; empty where nothing is."""
    others = [mine[name] for mine in ports.values() if name in mine]
    up = sum(active(p) for p in others)
    if not active(port):
        return f"{name} is {port.get('state')}, active on {up} nodes" if up * 2 > len(others) else ""
    rates = Counter(float(p["rate_gbps"]) for p in others if active(p) and p.get("rate_gbps"))
    if not rates:
        return ""
    usual = max(rates, key=lambda rate: (rates[rate], rate))
    own = port.get("rate_gbps") or 0
    return f"{name} runs at {own:g} Gbit/s, most at {usual:g}" if own < usual else ""


def _rates(up: dict[str, dict[str, Any]]) -> str:
    rates = sorted({p["rate_gbps"] for p in up.values() if p.get("rate_gbps")})
    return f" of {', '.join(f'{rate:g}' for rate in rates)} Gbit/s" if rates else ""


def rdma(cluster: Cluster) -> list[Finding]:
    """Devices in the job, and what lets a network card and a GPU talk directly; only where InfiniBand is active."""
    findings = []
    for s in cluster.all("rdma"):
        ports = cluster.infiniband.get(s.node)
        gpus = cluster.profile == "gpu"
        if ports is None:
            findings.append(found(s, SKIP, "no active InfiniBand"))
        elif s.metric == "uverbs" and s.value is not None:
            devices = len({port["device"] for port in ports})
            few = int(s.value) < devices
            findings.append(
                found(
                    s,
                    FAIL if few else PASS,
                    f"{s.value} RDMA devices can be opened in the job, {devices} are active",
                    blame="config",
                    code="no_rdma",
                    expected=devices,
                    remedy="pass /dev/infiniband into the container (Kubernetes: the RDMA device plugin's "
                    "resource, such as rdma/ib: 1)",
                )
            )
        elif s.metric == "peermem" and gpus:
            findings.append(
                found(
                    s,
                    PASS if s.value else WARN,
                    f"GPU memory by {s.value}" if s.value else s.reason or "no way to GPU memory",
                    blame="config",
                    code="no_peermem",
                    expected="nvidia_peermem or dma-buf",
                    remedy=f"modprobe nvidia_peermem on {s.node}",
                )
            )
        elif s.metric == "acs" and s.value is not None and gpus:
            findings.append(
                found(
                    s,
                    WARN if s.value else PASS,
                    f"{len(s.value)} PCIe bridges send peers' traffic through the root"
                    if s.value
                    else "no PCIe bridge redirects peers' traffic",
                    blame="config",
                    code="acs",
                    expected=[],
                    remedy="switch ACS off in the BIOS, or setpci -s BRIDGE ECAP_ACS+0x6.w=0000 for each",
                )
            )
        elif s.value is not None:
            findings.append(found(s, PASS, f"{s.metric}: {s.value}"))
    return findings


def transport(cluster: Cluster) -> list[Finding]:
    """What carried the collectives inside a node: never sockets between GPUs."""
    return _carried(
        cluster,
        "transport",
        "NCCL_DEBUG=INFO: look why P2P and SHM are off (NCCL_P2P_DISABLE, NCCL_SHM_DISABLE, /dev/shm)",
    )


def cluster_transport(cluster: Cluster) -> list[Finding]:
    """What carried the collectives between nodes: InfiniBand where a node has it."""
    return _carried(
        cluster,
        "cluster_transport",
        "NCCL_DEBUG=INFO: look at NCCL_IB_DISABLE, NCCL_IB_HCA, and libibverbs in the image",
    )


def _carried(cluster: Cluster, check: str, remedy: str) -> list[Finding]:
    samples = [s for s in cluster.read(check) if isinstance(s.value, str)]
    findings = []
    for s in samples:
        others = [o.value for o in samples if o.metric == s.metric]
        usual, count = max(Counter(others).items(), key=lambda item: (item[1], item[0]))
        sockets = "socket" in s.value.lower()
        forbidden = sockets and (
            s.node in cluster.infiniband if check == "cluster_transport" else cluster.profile == "gpu"
        )
        odd = s.value != usual and count * 2 > len(others)
        more = {"blame": "config", "code": "wrong_transport", "remedy": f"on {s.node}: {remedy}"}
        if forbidden:
            why = "with active InfiniBand" if check == "cluster_transport" else "between GPUs of one node"
            findings.append(
                found(
                    s,
                    FAIL,
                    f"{s.metric} is {s.value}, {why}",
                    expected="IB" if "network" in s.metric else usual,
                    **more,
                )
            )
        elif odd:
            worse = FAIL if sockets else WARN
            findings.append(
                found(
                    s,
                    worse,
                    f"{s.metric} is {s.value}; {count} of {len(others)} nodes have {usual}",
                    expected=usual,
                    **more,
                )
            )
        else:
            findings.append(found(s, PASS, f"{s.metric}: {s.value}"))
    return findings


def data(check: str, cluster: Cluster) -> list[Finding]:
    """Collectives give the right numbers, at each size."""
    findings = []
    for s in cluster.read(check, "wrong_elements"):
        count = number(s) or 0
        op = s.detail.get("op", "a collective")
        if not count:
            findings.append(found(s, PASS, "all numbers are right", expected=0))
            continue
        findings.append(
            _wrong(s, count, f"{op} of {s.detail['bytes']} bytes" if "bytes" in s.detail else str(op))
        )
    return findings


def _wrong(s: Sample, count: float, op: str) -> Finding:
    """Blames the GPU of the sample; where nobody could tell it, the node, or of a collective over all nodes the network."""
    say = f"{count:.0f} wrong numbers in {op}"
    if s.gpu is None and s.check == "cluster_data":
        remedy = "seatrial check --only gemm_result,node_data,pairs    (which node it is)"
        say = f"the cluster: {say}; which rank it came from can't be told"
        return Finding(check=s.check, metric=s.metric, verdict=FAIL, judge="rule", message=say, blame="fabric", code="wrong_data",
                       measured=count, expected=0, remedy=remedy)  # fmt: skip
    remedy = f"take {s.node} out of use; memory test of its GPUs: dcgmi diag -r 3"
    return found(s, FAIL, say, blame="node", code="wrong_data", expected=0, remedy=remedy)
