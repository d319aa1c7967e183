"""Probes of the network cards: InfiniBand ports, RDMA devices, and what lets a card and a GPU talk directly."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seatrial.job.checks.place import Place, read
from seatrial.job.checks.smi import number, whole
from seatrial.runs.samples import Sample

_BRIDGE = "0x0604"
_STANDARD_BYTES = 256
_ACS_ID, _ACS_CONTROL, _REQUEST_REDIRECT = 0x000D, 6, 0x4
"""Extended capability, offset of its control word, and the bit: PCI Express Base Specification, "ACS Extended Capability";
PCI_EXT_CAP_ID_ACS, PCI_ACS_CTRL and PCI_ACS_RR of Linux's pci_regs.h."""


def infiniband(place: Place) -> Iterable[Sample]:
    """Every port that the kernel shows; none is an answer too."""
    ports = read_ports(place.sysfs)
    reason = "" if ports else f"no RDMA device under {place.sysfs / 'class/infiniband'}"
    return [place.sample("infiniband", "ib_ports", ports, reason=reason)]


def read_ports(sysfs: Path) -> list[dict[str, Any]]:
    """Ports of a sysfs tree (Linux, Documentation/ABI/stable/sysfs-class-infiniband); a counter that is missing is None."""
    ports = sorted((sysfs / "class/infiniband").glob("*/ports/*"), key=lambda p: (p.parts[-3], int(p.name)))
    return [_port(path) for path in ports]


def rdma(place: Place) -> Iterable[Sample]:
    """Devices that this user may open, peer memory, and PCIe access control."""
    devices = sorted((place.root / "dev/infiniband").glob("uverbs*"))
    mine = [device.name for device in devices if os.access(device, os.R_OK | os.W_OK)]
    forbidden = [device.name for device in devices if device.name not in mine]
    reason = f"no permission for {', '.join(forbidden)}" if forbidden else ""
    yield place.sample("rdma", "uverbs", len(mine), reason=reason, detail={"devices": mine})
    way = peer_memory(place.root)
    reason = "" if way else "neither nvidia_peermem nor the open kernel module (dma-buf) is loaded"
    yield place.sample("rdma", "peermem", way, reason=reason)
    redirecting, why, detail = access_control(place.sysfs)
    yield place.sample("rdma", "acs", redirecting, reason=why, detail=detail)


def peer_memory(root: Path) -> str | None:
    """How a network card reaches GPU memory: a kernel module, or dma-buf, which takes NVIDIA's open kernel module and
    Linux 5.12 (NCCL's documentation, "GPU Direct RDMA"); None where there is no way."""
    for module in ("nvidia_peermem", "nv_peer_mem"):
        if (root / "sys/module" / module).is_dir():
            return module
    is_open = "Open Kernel Module" in (read(root / "proc/driver/nvidia/version") or "")
    release = re.match(r"(\d+)\.(\d+)", read(root / "proc/sys/kernel/osrelease") or "")
    recent = release is not None and (int(release[1]), int(release[2])) >= (5, 12)
    return "dma-buf" if is_open and recent else None


def access_control(sysfs: Path) -> tuple[list[str] | None, str, dict[str, Any]]:
    """PCIe bridges that redirect requests between devices through the root, which slows copies between GPUs and cards.

    Returns:
        Their addresses, or None where configuration space can't be read; why; what was seen.
    """
    bridges = [
        path for path in sorted((sysfs / "bus/pci/devices").glob("*"))
        if (read(path / "class") or "").startswith(_BRIDGE)
    ]  # fmt: skip
    redirecting, unread = [], []
    for bridge in bridges:
        try:
            space = (bridge / "config").read_bytes()
        except OSError:
            space = b""
        if len(space) < _STANDARD_BYTES:
            unread.append(bridge.name)
        elif redirects(space):
            redirecting.append(bridge.name)
    detail = {"bridges": len(bridges), "unread": unread}
    if unread and not redirecting:
        return (
            None,
            f"configuration space of {len(unread)} of {len(bridges)} bridges is only for root",
            detail,
        )
    return redirecting, "" if bridges else "no PCIe bridge is seen from here", detail


def redirects(space: bytes) -> bool:
    """Whether a device's configuration space (up to 4096 bytes) has ACS, with request redirect on."""
    offset, seen = 0x100, set[int]()
    while 0x100 <= offset <= len(space) - 4 and offset not in seen:
        seen.add(offset)
        head = int.from_bytes(space[offset : offset + 4], "little")
        if head in (0, 0xFFFFFFFF):
            return False
        if head & 0xFFFF == _ACS_ID:
            control = space[offset + _ACS_CONTROL : offset + _ACS_CONTROL + 2]
            return bool(int.from_bytes(control, "little") & _REQUEST_REDIRECT)
        offset = head >> 20 & 0xFFC
    return False


def _port(path: Path) -> dict[str, Any]:
    device = path.parents[1]
    counters = path / "counters"
    return {
        "device": device.name,
        "port": int(path.name),
        "state": _after_colon(read(path / "state")),
        "physical_state": _after_colon(read(path / "phys_state")),
        "link_layer": read(path / "link_layer"),
        "rate_gbps": number(read(path / "rate")),
        "link_downed": whole(read(counters / "link_downed")),
        "link_error_recovery": whole(read(counters / "link_error_recovery")),
        "symbol_errors": whole(read(counters / "symbol_error")),
        "firmware": read(device / "fw_ver"),
    }


def _after_colon(text: str | None) -> str | None:
    """``ACTIVE`` of ``4: ACTIVE``."""
    return None if text is None else text.partition(":")[2].strip() or text
