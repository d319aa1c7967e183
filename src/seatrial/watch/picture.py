"""One look at a run: everything that the live view, the exporter and ``--json`` show, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceNow:
    """One GPU (or the processors of a node that has none) at the time of the look; None is not told."""

    node: str
    node_rank: int
    index: int
    uuid: str
    name: str
    kind: str
    """gpu or cpu."""
    metric: str
    """What `use_pct` is: sm_active, gpu_busy or cpu_busy."""
    use_pct: float | None = None
    """At the last sample."""
    mean_pct: float | None = None
    """Over training in the last minutes."""
    history: tuple[float | None, ...] = ()
    """Use over the last minutes, oldest first, at most 60 values."""
    busy_pct: float | None = None
    sm_pct: float | None = None
    tensor_pct: float | None = None
    dram_pct: float | None = None
    memory_bytes: float | None = None
    memory_total_bytes: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    """Why its clock is held back, in words: power cap, thermal slowdown, power brake."""
    processes: int | None = None
    pcie_tx_bytes_s: float | None = None
    pcie_rx_bytes_s: float | None = None
    nvlink_tx_bytes_s: float | None = None
    nvlink_rx_bytes_s: float | None = None
    ecc_uncorrectable: float | None = None
    xid: int | None = None
    pci: str = ""
    age_s: float = 0.0
    """Since its last sample."""


@dataclass(frozen=True, slots=True)
class RankNow:
    """Where one rank is, by its heartbeat."""

    rank: int
    step: int
    phase: str
    age_s: float
    """Since its last sign of life."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A run at one time."""

    run_id: str
    name: str
    state: str
    reason: str = ""
    attempt: int = 0
    handle: str = ""
    """Of the attempt: ``slurm://1234/…``."""
    time: float = 0.0
    """Of the look, seconds since the epoch."""
    elapsed_s: float | None = None
    """Since the attempt started; to its end, when it has ended."""
    phase: str = ""
    step: int = 0
    num_steps: int | None = None
    loss: float | None = None
    loss_history: tuple[float, ...] = ()
    """At most 120 values, oldest first."""
    steps_per_s: float | None = None
    tokens_per_s: float | None = None
    samples_per_s: float | None = None
    eta_s: float | None = None
    mfu: float | None = None
    """Of the hardware's specification, as a fraction."""
    mfu_of_measured: float | None = None
    """Of what the acceptance test measured on this hardware, as a fraction."""
    goodput: float | None = None
    """Useful steps' time over wall time of all attempts, as a fraction."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds a step in the last window, mean over ranks, by phase."""
    cause: str = ""
    """What holds it up, in one line, or empty."""
    gate: dict[str, Any] | None = None
    """What the utilisation gate would say of the last minutes."""
    warnings: tuple[str, ...] = ()
    devices: tuple[DeviceNow, ...] = ()
    ranks: tuple[RankNow, ...] = ()
    transport_fallback: bool | None = None
    """Whether ranks talk over sockets although their nodes have RDMA; None where nothing tells."""
    gpu_hours: float | None = None
    """Allocated so far, all attempts."""

    @property
    def heartbeat_age_s(self) -> float | None:
        """Of the rank that has been silent the longest."""
        return max((rank.age_s for rank in self.ranks), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"schema": 1, **asdict(self), "heartbeat_age_s": self.heartbeat_age_s}
