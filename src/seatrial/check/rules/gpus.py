"""Rules on GPUs: that they are there, idle, sound, and not held back."""

from __future__ import annotations

from typing import Any

from seatrial.check.cluster import Cluster
from seatrial.check.findings import found
from seatrial.check.metrics import number
from seatrial.check.rules.common import FAIL, PASS, WARN
from seatrial.check.specification import below_band
from seatrial.runs.acceptance import Finding
from seatrial.runs.samples import Sample
from seatrial.runs.telemetry import CLOCK_REASONS

IDLE_MIB = 1024.0
"""Memory in use on an idle GPU: the driver and its daemons take some hundred MiB, a leaked process gigabytes."""
SRAM_ERRORS = 4
"""Uncorrectable SRAM errors above which NVIDIA exchanges a GPU (https://github.com/stas00/ml-engineering,
compute/accelerator/nvidia/debug.md)."""
XID_FAIL = {48: "double-bit memory error", 64: "row remapping failed", 74: "NVLink error", 79: "the GPU fell off the bus",
            95: "uncontained memory error", 119: "the GPU's system processor timed out", 120: "the GPU's system processor failed"}  # fmt: skip
XID_WARN = {63: "a row was remapped", 92: "many corrected memory errors", 94: "contained memory error"}
"""Groups of https://docs.nvidia.com/deploy/xid-errors/; all others (13, 31, 43, 45, 68, 109, …) are mostly applications'."""
HELD_BACK = {bit: CLOCK_REASONS[bit] for bit in (0x8, 0x40, 0x80)}
HEAT = 0x20
POWER_CAP = 0x4
"""Bits of the NVML clocks event reasons
(https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html)."""


def gpus(cluster: Cluster) -> list[Finding]:
    """As many GPUs as asked for, of the model asked for, each of them opens."""
    findings = []
    asked = cluster.spec.resources.gpus_per_node
    counts = {s.node: int(s.value) for s in cluster.read("gpus", "gpu_count")}
    ranks = cluster.spec.resources.nproc
    wanted = next((n for n in (asked, ranks) if isinstance(n, int) and n), max(counts.values(), default=0))
    for s in cluster.read("gpus", "gpu_count"):
        # The bus shows a GPU that fell off the driver's list.
        on_bus = s.detail.get("on_bus")
        lost = len(on_bus) - counts[s.node] if isinstance(on_bus, list) and asked == "auto" else 0
        short = counts[s.node] < wanted or lost > 0
        say = f"{counts[s.node]} GPUs" + (f", {max(wanted, counts[s.node] + lost)} wanted" if short else "")
        say += f" ({s.reason})" if s.reason else ""
        findings.append(
            found(
                s,
                FAIL if short else PASS,
                say,
                blame="node",
                code="lost_gpu",
                expected=wanted,
                remedy=f"nvidia-smi on {s.node}; dmesg | grep Xid; reset or restart the node, or exclude it",
            )
        )
    part = cluster.spec.gpu_model
    names = [str(s.value) for s in cluster.read("gpus", "gpu_model")]
    usual = max(sorted(set(names)), key=names.count, default="")
    for s in cluster.read("gpus", "gpu_model"):
        wrong = part is not None and part.upper() not in str(s.value).upper()
        odd = part is None and s.value != usual
        say = str(s.value) + (
            f", not the {part} that was asked for" if wrong else f"; most are {usual}" if odd else ""
        )
        findings.append(
            found(
                s,
                FAIL if wrong else WARN if odd else PASS,
                say,
                blame="config",
                code="wrong_model",
                expected=part or usual,
                remedy=f"ask for nodes of one model, or leave out {s.node}",
            )
        )
    for s in cluster.read("gpus", "gpu_opens"):
        good = s.value is True
        findings.append(
            found(
                s,
                PASS if good else FAIL,
                "opens and computes" if good else f"does not open: {s.reason or s.value}",
                blame="node",
                code="not_opened",
                expected=True,
                remedy=f"nvidia-smi -i {s.gpu} -r on {s.node} (reset), then restart the node",
            )
        )
    return findings


def gpu_idle(cluster: Cluster) -> list[Finding]:
    """No process of somebody else, and memory free."""
    findings = []
    for s in cluster.read("gpu_idle", "gpu_memory_used"):
        used = float(s.value)
        foreign: list[dict[str, Any]] = [p for p in s.detail.get("processes", []) if not p.get("ours")]
        if foreign:
            named = ", ".join(
                f"{p.get('name', '?')} (pid {p.get('pid')}, {p.get('mib', '?')} MiB)" for p in foreign
            )
            pids = " ".join(str(p.get("pid")) for p in foreign)
            findings.append(
                found(
                    s,
                    FAIL,
                    f"in use by {named}",
                    blame="config",
                    code="foreign_process",
                    expected="no process",
                    remedy=f"on {s.node}: ps -fp {pids.replace(' ', ',')}; end it if nobody owns it: kill {pids}",
                )
            )
        else:
            busy = used > IDLE_MIB
            findings.append(
                found(
                    s,
                    WARN if busy else PASS,
                    f"{used:.0f} MiB in use" + (", by no process that can be seen" if busy else ""),
                    blame="config",
                    code="memory_in_use",
                    expected=f"<= {IDLE_MIB:g}",
                    remedy=f"nvidia-smi -i {s.gpu} on {s.node}, outside of the container",
                )
            )
    for s in cluster.read("gpu_idle", "gpu_memory_free_gib"):
        findings.append(found(s, PASS, f"{float(s.value):.4g} GiB free"))
    return findings


def ecc(cluster: Cluster) -> list[Finding]:
    """Memory errors that could not be corrected."""
    findings = []
    for s in cluster.all("ecc"):
        if s.value is None and s.reason == "ECC is off":
            say = "ECC is off: errors of memory go unnoticed"
            findings.append(
                found(
                    s,
                    WARN,
                    say,
                    blame="config",
                    code="ecc_off",
                    remedy=f"nvidia-smi -i {s.gpu} -e 1 on {s.node}, restart it",
                )
            )
        count = number(s)
        if count is None:
            continue
        name = s.metric.replace("_", " ").removeprefix("ecc ")
        if s.metric == "sram_uncorrected":
            verdict = FAIL if count > SRAM_ERRORS else WARN if count else PASS
        elif s.metric == "ecc_uncorrected":
            verdict = FAIL if count else PASS
        else:
            verdict = PASS
        findings.append(
            found(
                s,
                verdict,
                f"{count:.0f} {name} memory errors",
                blame="node",
                code="memory_errors",
                expected=0,
                remedy=f"nvidia-smi -i {s.gpu} -r on {s.node}, check again; exchange the GPU if they come back",
            )
        )
    return findings


def row_remap(cluster: Cluster) -> list[Finding]:
    """Rows of memory that could not be remapped (FAIL), or wait for a reset to be (WARN)."""
    findings = []
    for s in cluster.read("row_remap"):
        yes = s.value is True or str(s.value).strip().lower() in ("yes", "1", "true")
        failed = s.metric == "row_remap_failed"
        state = ("failed" if failed else "pending") if yes else ("no failure" if failed else "none pending")
        findings.append(
            found(
                s,
                (FAIL if failed else WARN) if yes else PASS,
                f"row remapping: {state}",
                blame="node",
                code="row_remap",
                remedy="exchange the GPU"
                if failed
                else f"nvidia-smi -i {s.gpu} -r on {s.node}, or restart the node",
            )
        )
    return findings


def xid(cluster: Cluster) -> list[Finding]:
    """Errors that the driver logged since boot, by group."""
    findings = []
    for s in cluster.read("xid", "xids"):
        numbers = sorted({int(x["xid"]) for x in s.value if float(x.get("seconds_after_boot") or 0) >= 0})
        bad = [n for n in numbers if n in XID_FAIL]
        odd = [n for n in numbers if n in XID_WARN]
        if bad:
            say = "; ".join(f"Xid {n}: {XID_FAIL[n]}" for n in bad)
        elif odd:
            say = "; ".join(f"Xid {n}: {XID_WARN[n]}" for n in odd)
        else:
            say = f"Xid {', '.join(map(str, numbers))}, of applications" if numbers else "no Xid since boot"
        devices = sorted({str(x.get("device", "")) for x in s.value if int(x["xid"]) in (*bad, *odd)} - {""})
        say += f" ({', '.join(devices)})" if devices else ""
        findings.append(
            found(
                s,
                FAIL if bad else WARN if odd else PASS,
                say,
                blame="node",
                code="xid",
                measured=numbers,
                expected="none",
                remedy=f"take {s.node} out of use; nvidia-bug-report.sh; reset the GPU or exchange it"
                if bad
                else f"nvidia-smi -r on {s.node}, then check again",
            )
        )
    return findings


def pcie(cluster: Cluster) -> list[Finding]:
    """Generation and width of a GPU's link against what both ends can; an idle link is slower on purpose."""
    findings = []
    loaded = {
        (s.node, s.gpu, s.metric.removesuffix("_load"))
        for s in cluster.read("pcie", "pcie_gen_load", "pcie_width_load")
    }
    most = {
        (s.node, s.gpu, s.metric): s.detail[key]
        for s in cluster.read("pcie", "pcie_gen", "pcie_width")
        if (key := "max_" + s.metric.removeprefix("pcie_")) in s.detail
    }
    for s in cluster.read("pcie"):
        kind = s.metric.removesuffix("_load")
        value = number(s)
        if value is None or (kind == s.metric and (s.node, s.gpu, kind) in loaded):
            continue
        can = s.detail.get("max_" + kind.removeprefix("pcie_"), most.get((s.node, s.gpu, kind)))
        word = "PCIe generation" if kind == "pcie_gen" else "PCIe lanes"
        low = can is not None and value < float(can)
        # The width does not change with load; the generation does.
        idle = kind == "pcie_gen" and s.metric == kind and not s.detail.get("under_load", False)
        verdict = PASS if not low or idle else FAIL
        say = (
            f"{word}: {value:.0f}"
            + (f" of {float(can):.0f}" if can is not None else "")
            + (" while idle" if idle and low else "")
        )
        findings.append(
            found(
                s,
                verdict,
                say,
                blame="node",
                code="slow_pcie",
                expected=can,
                remedy=f"lspci -vv on {s.node} (LnkCap, LnkSta); reseat the card or the riser, look at the BIOS' link settings",
            )
        )
    return findings


def throttle(cluster: Cluster) -> list[Finding]:
    """Clocks held back while at work."""
    return [_throttle(cluster, s) for s in cluster.read("throttle", "throttle_bits")]


def _throttle(cluster: Cluster, s: Sample) -> Finding:
    bits = int(s.value)
    named = [name for bit, name in HELD_BACK.items() if bits & bit]
    below = below_band(cluster, s.node, s.gpu)
    enforced, default = _watts(s, "power_limit_w"), _watts(s, "power_limit_default_w")
    capped = enforced is not None and default is not None and enforced < default
    remedy = f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER -i {s.gpu} on {s.node}; look at fans, coolant and power supplies"
    common: dict[str, Any] = {
        "blame": "node",
        "code": "throttled",
        "remedy": remedy,
        "measured": hex(bits),
        "expected": "0x0",
    }
    if named:
        return found(s, FAIL, f"held back at work by {', '.join(named)}", **common)
    if bits & HEAT:
        return found(
            s,
            FAIL if below else WARN,
            "held back at work by heat" + (", and slow" if below else ""),
            **common,
        )
    if bits & POWER_CAP and (below or capped):
        why = f"set to {enforced:g} of {default:g} W" if capped else "and slow"
        if capped:
            common["remedy"] = f"nvidia-smi -i {s.gpu} -pl {default:g} on {s.node}"
        return found(s, WARN, f"held back at work by the power limit, {why}", **common)
    return found(
        s,
        PASS,
        "not held back" + (" but by its power limit, as usual" if bits & POWER_CAP else ""),
        measured=hex(bits),
    )


def _watts(sample: Sample, name: str) -> float | None:
    told = sample.detail.get(name)
    watts = told.get("median") if isinstance(told, dict) else told
    return None if watts is None else float(watts)
