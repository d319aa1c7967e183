"""Which network NCCL uses, by what it says when it starts (``NCCL INFO Using network …``); read from the attempt's logs."""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK = re.compile(rb"NCCL INFO Using network (\S+)")
_HEAD_BYTES = 256 * 1024
_SOCKETS = "Socket"


def networks(logs: Path) -> set[str]:
    """Names of the networks that ranks of an attempt use: ``IB``, ``Socket``, ``AWS Libfabric``; empty where none says."""
    found = set()
    for path in sorted(logs.glob("nccl.*.log")):
        try:
            with path.open("rb") as file:
                found |= {m.decode(errors="replace") for m in _NETWORK.findall(file.read(_HEAD_BYTES))}
        except OSError:
            continue
    return found


def has_fallen_back(logs: Path, rdma_ports: int, nodes: int) -> bool | None:
    """Whether ranks of several nodes talk over sockets although their nodes have active RDMA ports; None where nothing tells.

    Args:
        logs: the attempt's.
        rdma_ports: active ones of a node.
        nodes: of the attempt.
    """
    if nodes < 2:
        return None
    used = networks(logs)
    return None if not used else _SOCKETS in used and rdma_ports > 0
