"""What carried a collective: NCCL's own log, and the counters of ports and network interfaces. Pure, but for two readers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA comm 0x… nRanks 16
_VIA = re.compile(r"NCCL INFO (?:Channel|Ring) \d+(?:/\d+)? : .* via (.+?)(?: comm 0x.*)?$", re.MULTILINE)
_USING = re.compile(r"NCCL INFO Using network (.+?)\s*$", re.MULTILINE)
_NICS = re.compile(r"NCCL INFO NET/[\w ]+ ?: Using (.+?)(?:;|$)", re.MULTILINE)
_NIC = re.compile(r"\[\d+\]([\w.\-]+):")
_CHANNELS = re.compile(r"NCCL INFO (\d+) coll channels(?:, \d+ collnet channels)?(?:, (\d+) nvls channels)?")
_VERSION = re.compile(r"NCCL version (\S+)")
# AllReduce: 268435456 Bytes -> Algo NVLS proto SIMPLE channel{Lo..Hi}={0..15}; numbers before NCCL 2.24.
_ALGO = re.compile(r"NCCL INFO (?:\w+: )?\d+ Bytes -> Algo (\w+) proto (\w+)")
# nccl_common.h of NCCL 2.19 to 2.23 (NCCL_ALGO_TREE …).
_ALGOS = ("Tree", "Ring", "CollNetDirect", "CollNetChain", "NVLS", "NVLSTree", "PAT")
_NAMES = {name.upper(): name for name in _ALGOS} | {"NVLS_TREE": "NVLSTree", "COLLNET_DIRECT": "CollNetDirect",
                                                    "COLLNET_CHAIN": "CollNetChain"}  # fmt: skip
_DATA_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Transport:
    """What NCCL's log says of the ranks that wrote it."""

    via: Mapping[str, int]
    """Connections by kind: ``P2P/CUMEM``, ``SHM/direct``, ``NET/IB/GDRDMA``."""
    networks: tuple[str, ...]
    """``IB``, ``Socket``, ``AWS Libfabric``: what was chosen for other nodes, used or not."""
    nics: tuple[str, ...]
    channels: int
    """Most of a communicator."""
    nvls_channels: int
    """More than 0: switches of NVLink reduce."""
    algos: Mapping[str, int]
    """Operations by algorithm, where the log has them."""
    version: str

    @property
    def inside(self) -> str:
        """Between GPUs of a node: ``P2P/CUMEM, NVLS``."""
        kinds = [kind for kind in sorted(self.via) if not kind.startswith("NET")]
        return ", ".join([*kinds, "NVLS"] if self.nvls_channels else kinds)

    @property
    def between(self) -> str:
        """Between nodes: ``NET/IB/GDRDMA``; empty where nothing went there."""
        return ", ".join(kind for kind in sorted(self.via) if kind.startswith("NET"))


def parse(log: str) -> Transport:
    """Reads ``NCCL_DEBUG=INFO`` of one or more ranks, one after the other (NCCL 2.4 to 2.28; INIT and TUNING)."""
    channels = [(int(coll), int(nvls or 0)) for coll, nvls in _CHANNELS.findall(log)]
    nics = dict.fromkeys(nic for line in _NICS.findall(log) for nic in _NIC.findall(line))
    version = _VERSION.search(log)
    return Transport(
        via=Counter(_kind(words) for words in _VIA.findall(log)),
        networks=tuple(dict.fromkeys(_USING.findall(log))),
        nics=tuple(nics),
        channels=max((coll for coll, _ in channels), default=0),
        nvls_channels=max((nvls for _, nvls in channels), default=0),
        algos=Counter(_algo(name) for name, _ in _ALGO.findall(log)),
        version=version.group(1) if version else "",
    )


def _kind(words: str) -> str:
    """A connection without the number of its device: ``NET/IB/0(1)/GDRDMA/Shared`` is ``NET/IB/GDRDMA``."""
    if words.startswith("direct shared memory"):
        return "SHM/direct"
    parts = words.strip().replace("direct pointer", "direct").split("/")
    kept = [part for part in parts if part != "Shared" and not re.fullmatch(r"\d+(\(\d+\))?", part)]
    return "/".join(kept[:2] if kept[0] == "SHM" else kept)


def _algo(name: str) -> str:
    if name.isdigit():
        return _ALGOS[int(name)] if int(name) < len(_ALGOS) else name
    return _NAMES.get(name.upper(), name)


def sent_bytes(sys: Path = Path("/sys")) -> dict[str, int]:
    """Bytes that each network interface and InfiniBand port has sent so far; ports count words of four bytes.

    Source: https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-class-infiniband (port_xmit_data).
    """
    found = {}
    for path in sys.glob("class/net/*/statistics/tx_bytes"):
        if (count := _whole(path)) is not None:
            found[path.parts[-3]] = count
    for path in sys.glob("class/infiniband/*/ports/*/counters/port_xmit_data"):
        if (count := _whole(path)) is not None:
            found[f"{path.parts[-5]}:{path.parts[-3]}"] = count * _DATA_WORD_BYTES
    return found


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was sent in between, by interface: those that sent anything, the busiest first."""
    more = {name: count - before[name] for name, count in after.items() if name in before}
    return dict(sorted(((n, c) for n, c in more.items() if c > 0), key=lambda item: (-item[1], item[0])))


def _whole(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # A virtual function may refuse its counters.
