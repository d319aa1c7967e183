"""What a sampler saw of a node's devices: ``attempt-<k>/telemetry/node_00000.jsonl``.

The first line is the header, each further one a row of samples of all devices of the node at one time. A row stands for
``n`` samples: a file that would grow without end is halved (`Writer`), each two rows becoming one with their mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seatrial.runs.files import last_json_lines, replacing

if TYPE_CHECKING:
    import numpy as np

MAX_ROWS = 8192
"""Rows of a file before it is halved: 2.3 hours at one a second, and then at one in two, four … seconds."""
COLUMNS = {
    "busy_pct": "time in which any kernel ran (NVML utilization.gpu); of a CPU, processor time used of that given",
    "sm_pct": "streaming multiprocessors that had work, mean over time and over them (GPM SM_UTIL, DCGM SM_ACTIVE)",
    "tensor_pct": "cycles in which a tensor pipe was active (GPM ANY_TENSOR_UTIL)",
    "dram_pct": "memory bandwidth used (GPM DRAM_BW_UTIL)",
    "memory_bytes": "device memory used; of a CPU, resident memory of the job's processes",
    "power_w": "board power",
    "power_limit_w": "as enforced",
    "clock_mhz": "clock of the multiprocessors",
    "temperature_c": "of the chip",
    "reasons": "clock event reasons, bits of NVML",
    "processes": "compute processes on the device",
    "pcie_tx_bytes_s": "sent over PCIe",
    "pcie_rx_bytes_s": "received over PCIe",
    "nvlink_tx_bytes_s": "sent over NVLink",
    "nvlink_rx_bytes_s": "received over NVLink",
    "ecc_uncorrectable": "double-bit ECC errors since the driver was loaded",
    "xid": "last Xid that was seen since the sampler began, 0 for none",
}
"""What a row may hold of a device; what the device does not tell is left out."""
_SUMMED = {"reasons"}
"""Bits: of two rows, each that was set in either."""
_LAST = {"processes", "ecc_uncorrectable", "xid", "power_limit_w"}
IDLE_PCT = 5.0
"""A device under it does nothing."""
CLOCK_REASONS = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
    0x80: "power brake",
}  # fmt: skip
"""Why a clock is held back: NVML's bits (https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html)."""
METRICS = {
    "sm_active": ("sm_pct", "SM activity"),
    "gpu_busy": ("busy_pct", "GPU busy (any kernel ran; a hung collective reads 100 %)"),
    "cpu_busy": ("busy_pct", "processor time of the job (no GPU: a stand-in)"),
}
"""What use is measured by: the column, and its name for people. The best that all devices of a node have."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or the processors that a node gave to the job."""

    index: int
    uuid: str
    name: str
    kind: str = "gpu"
    """gpu or cpu."""
    memory_bytes: float | None = None
    """In all."""
    pci: str = ""
    """PCI address, where it has one."""


@dataclass(frozen=True, slots=True)
class Header:
    """Whose samples follow, and how they are taken."""

    node_rank: int
    host: str
    source: str
    """What was asked: nvml, nvml+gpm, nvidia-smi, amdsmi or psutil."""
    metric: str
    """A key of `METRICS`."""
    every_s: float
    started: float
    """Seconds since the epoch."""
    devices: tuple[Device, ...]
    rdma_ports: int = 0
    """InfiniBand or RoCE ports of the node that are active."""
    missing: str = ""
    """Why something better was not used, in words."""

    def to_row(self) -> dict[str, Any]:
        """The first line."""
        return {"schema": 1, **asdict(self)}


def header_from(row: Mapping[str, Any]) -> Header:
    """The header that a first line holds.

    Raises:
        ValueError, KeyError, TypeError: it is none of this version.
    """
    if row.get("schema") != 1:
        raise ValueError(f"schema {row.get('schema')!r}")
    fields = {key: value for key, value in row.items() if key not in ("schema", "devices")}
    return Header(devices=tuple(Device(**device) for device in row["devices"]), **fields)


@dataclass(frozen=True, slots=True)
class NodeTelemetry:
    """All samples of one node in one attempt.

    `times` (rows,) are seconds since the epoch, `counts` (rows,) samples that a row stands for, and `columns` by name
    (rows, devices), NaN where a device did not tell.
    """

    header: Header
    times: np.ndarray
    counts: np.ndarray
    columns: dict[str, np.ndarray]

    def column(self, name: str) -> np.ndarray:
        """One column (rows, devices), all NaN where no device ever told it."""
        import numpy as np

        found = self.columns.get(name)
        return found if found is not None else np.full((len(self.times), len(self.header.devices)), math.nan)

    @property
    def use(self) -> np.ndarray:
        """Use in percent (rows, devices), by the header's metric."""
        return self.column(METRICS[self.header.metric][0])

    def between(self, begin: float, end: float) -> NodeTelemetry:
        """The rows of ``[begin, end)``."""
        kept = (self.times >= begin) & (self.times < end)
        return NodeTelemetry(
            self.header, self.times[kept], self.counts[kept], {k: v[kept] for k, v in self.columns.items()}
        )


def read_attempt(attempt: Path, last_bytes: int | None = None) -> list[NodeTelemetry]:
    """The samples of every node of an attempt, by node rank; nodes whose file can't be read are left out.

    Args:
        attempt: its directory.
        last_bytes: read no more than so much of the end of each node's file.
    """
    found = [read_node(path, last_bytes) for path in sorted((attempt / "telemetry").glob("node_*.jsonl"))]
    return [node for node in found if node is not None]


def read_node(path: Path, last_bytes: int | None = None) -> NodeTelemetry | None:
    """One node's samples; None without a header. A line that a crash cut off is left out.

    Args:
        path: the node's file.
        last_bytes: read no more than so much of its end.
    """
    header, rows = _read(path, last_bytes)
    return None if header is None else from_rows(header, rows)


def last_rows(path: Path, last_bytes: int) -> tuple[Header | None, list[dict[str, Any]]]:
    """A node's header, and the rows at the end of its file, as they are written."""
    return _read(path, last_bytes)


def _read(path: Path, last_bytes: int | None = None) -> tuple[Header | None, list[dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            header = header_from(json.loads(file.readline()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, []
    rows = last_json_lines(path, last_bytes)
    return header, [row for row in rows if "d" in row]  # the header is a row of the file, too


def from_rows(header: Header, rows: Sequence[Mapping[str, Any]]) -> NodeTelemetry:
    """Rows as arrays; a row with another number of devices is left out."""
    import numpy as np  # the sampler and the agent import this module, and need none

    num = len(header.devices)
    good = [row for row in rows if len(row.get("d", ())) == num and isinstance(row.get("t"), int | float)]
    columns: dict[str, np.ndarray] = {}
    for i, row in enumerate(good):
        for j, device in enumerate(row["d"]):
            for name, value in device.items():
                if name in COLUMNS and isinstance(value, int | float):
                    if name not in columns:
                        columns[name] = np.full((len(good), num), math.nan)
                    columns[name][i, j] = value
    times = np.array([row["t"] for row in good], dtype=float)
    counts = np.array([row.get("n", 1) for row in good], dtype=float)
    return NodeTelemetry(header, times, counts, columns)


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """One row for two that follow each other: means by their numbers of samples, at the time of the second."""
    n, m = a.get("n", 1), b.get("n", 1)
    devices = []
    for one, other in zip(a["d"], b["d"], strict=True):
        device: dict[str, float] = {}
        for name in {**one, **other}:
            if name not in one or name not in other:
                device[name] = other.get(name, one.get(name))
            elif name in _SUMMED:
                device[name] = int(one[name]) | int(other[name])
            elif name in _LAST:
                device[name] = other[name]
            else:
                device[name] = round((n * one[name] + m * other[name]) / (n + m), 2)
        devices.append(device)
    return {"t": b["t"], "n": n + m, "d": devices}


class Writer:
    """Appends a node's rows, and halves the file when it is long.

    Args:
        path: the node's file; what an earlier sampler of the same attempt wrote stays.
        header: its first line.
        max_rows: rows before it is halved.
    """

    def __init__(self, path: Path, header: Header, max_rows: int = MAX_ROWS) -> None:
        self._path = path
        self._max_rows = max_rows
        self._together = 1
        self._pending: dict[str, Any] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = 0
        known, rows = _read(path)
        if known is not None and known.devices == header.devices:
            self._rows = len(rows)
            self._together = max((row.get("n", 1) for row in rows), default=1)
            self._file = path.open("ab", buffering=0)
        else:
            self._file = path.open("wb", buffering=0)
            self._file.write(_line(header.to_row()))

    def add(self, row: Mapping[str, Any]) -> None:
        """One row of samples; rows of a long file are written several as one."""
        whole = dict(row) if self._pending is None else merged(self._pending, row)
        if whole.get("n", 1) < self._together:
            self._pending = whole
            return
        self._pending = None
        self._file.write(_line(whole))
        self._rows += 1
        if self._rows >= self._max_rows:
            self._halve()

    def close(self) -> None:
        """Writes what waits for its second half."""
        if self._pending is not None:
            self._file.write(_line(self._pending))
            self._pending = None
        self._file.close()

    def _halve(self) -> None:
        header, rows = _read(self._path)
        pairs = [merged(*rows[i : i + 2]) for i in range(0, len(rows) - 1, 2)] + (
            rows[-1:] if len(rows) % 2 else []
        )
        with replacing(self._path) as aside:
            head = [] if header is None else [header.to_row()]
            aside.write_bytes(b"".join(map(_line, [*head, *pairs])))
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._rows, self._together = len(pairs), 2 * self._together


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"
