"""Runs and GPUs as Prometheus metrics. Pure: pictures in, families of samples out.

What dcgm-exporter measures too has its names, units and labels (4.5 to 4.8), so that existing dashboards and rules read it:
https://github.com/NVIDIA/dcgm-exporter, etc/default-counters.csv.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from seatrial.watch.picture import DeviceNow, Picture

_MIB = 2**20
_NS_LABELS = ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname")
THROTTLES = {
    "power cap": "power_cap", "hardware slowdown": "hw_slowdown", "software thermal slowdown": "sw_thermal",
    "hardware thermal slowdown": "hw_thermal", "power brake": "power_brake",
}  # fmt: skip


@dataclass(slots=True)
class Family:
    """All samples of one metric."""

    name: str
    help: str
    kind: str = "gauge"
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Of:
    name: str
    help: str
    value: Callable[[DeviceNow], float | None]


def _free_mib(d: DeviceNow) -> float | None:
    if d.memory_bytes is None or d.memory_total_bytes is None:
        return None
    return (d.memory_total_bytes - d.memory_bytes) / _MIB


_GPU = (
    _Of("DCGM_FI_DEV_GPU_UTIL", "Time in which any kernel ran, percent.", lambda d: d.busy_pct),
    _Of(
        "DCGM_FI_PROF_SM_ACTIVE",
        "Multiprocessors that had work, mean over time and over them, 0 to 1.",
        lambda d: _ratio(d.sm_pct),
    ),
    _Of(
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "Cycles in which a tensor pipe was active, 0 to 1.",
        lambda d: _ratio(d.tensor_pct),
    ),
    _Of("DCGM_FI_PROF_DRAM_ACTIVE", "Memory bandwidth used, 0 to 1.", lambda d: _ratio(d.dram_pct)),
    _Of(
        "DCGM_FI_DEV_FB_USED",
        "Device memory used, MiB.",
        lambda d: None if d.memory_bytes is None else d.memory_bytes / _MIB,
    ),
    _Of("DCGM_FI_DEV_FB_FREE", "Device memory free, MiB.", _free_mib),
    _Of("DCGM_FI_DEV_POWER_USAGE", "Board power, W.", lambda d: d.power_w),
    _Of("DCGM_FI_DEV_SM_CLOCK", "Clock of the multiprocessors, MHz.", lambda d: d.clock_mhz),
    _Of("DCGM_FI_DEV_GPU_TEMP", "Temperature, degrees Celsius.", lambda d: d.temperature_c),
    _Of("DCGM_FI_DEV_XID_ERRORS", "Last Xid since the sampler began; 0 for none.", lambda d: d.xid),
    _Of(
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "Double-bit ECC errors since the driver was loaded.",
        lambda d: d.ecc_uncorrectable,
    ),
    _Of("DCGM_FI_PROF_PCIE_TX_BYTES", "Sent over PCIe, bytes/s.", lambda d: d.pcie_tx_bytes_s),
    _Of("DCGM_FI_PROF_PCIE_RX_BYTES", "Received over PCIe, bytes/s.", lambda d: d.pcie_rx_bytes_s),
    _Of("DCGM_FI_PROF_NVLINK_TX_BYTES", "Sent over NVLink, bytes/s.", lambda d: d.nvlink_tx_bytes_s),
    _Of("DCGM_FI_PROF_NVLINK_RX_BYTES", "Received over NVLink, bytes/s.", lambda d: d.nvlink_rx_bytes_s),
    _Of("seatrial_gpu_power_limit_watts", "Power limit as enforced.", lambda d: d.power_limit_w),
    _Of("seatrial_gpu_processes", "Compute processes on the GPU.", lambda d: d.processes),
    _Of("seatrial_gpu_sample_age_seconds", "Since the last sample of the GPU.", lambda d: d.age_s),
)

_RUN: tuple[tuple[str, str, Callable[[Picture], float | None]], ...] = (
    ("seatrial_run_info", "A run that is not over, or has been for a few minutes.", lambda p: 1),
    ("seatrial_run_step", "Optimizer steps done.", lambda p: p.step),
    ("seatrial_run_steps", "Optimizer steps planned.", lambda p: p.num_steps),
    ("seatrial_run_loss", "Mean training loss of the last window.", lambda p: p.loss),
    ("seatrial_run_steps_per_second", "Optimizer steps a second, this attempt.", lambda p: p.steps_per_s),
    ("seatrial_run_tokens_per_second", "Tokens a second, all ranks.", lambda p: p.tokens_per_s),
    ("seatrial_run_samples_per_second", "Samples a second, all ranks.", lambda p: p.samples_per_s),
    ("seatrial_run_mfu_ratio", "Model FLOPs utilisation of the hardware's dense peak.", lambda p: p.mfu),
    ("seatrial_run_mfu_of_measured_ratio", "The same of what the acceptance test measured.", lambda p: p.mfu_of_measured),
    ("seatrial_run_goodput_ratio", "Useful steps' time over the wall time of all attempts.", lambda p: p.goodput),
    ("seatrial_run_heartbeat_age_seconds", "Of the rank that has been silent the longest.", lambda p: p.heartbeat_age_s),
    ("seatrial_run_utilisation_ratio", "Mean use of all devices in training, over the last minutes.",
     lambda p: None if not p.gate or p.gate.get("mean_pct") is None else p.gate["mean_pct"] / 100),
    ("seatrial_run_gpus", "Devices that samples come from.", lambda p: len(p.devices)),
    ("seatrial_run_gpu_hours", "Device-hours allocated, all attempts.", lambda p: p.gpu_hours),
)  # fmt: skip


def families(
    pictures: Iterable[Picture], jobs: Mapping[str, str] | None = None, node: str | None = None
) -> list[Family]:
    """Everything that the pictures tell; what they don't is left out, and never 0.

    Args:
        pictures: of runs.
        jobs: the scheduler's job of a run, by its id.
        node: only the devices of this host.
    """
    found: dict[str, Family] = {}

    def add(name: str, text: str, labels: dict[str, str], value: float | None) -> None:
        if value is not None and value == value:
            found.setdefault(name, Family(name, text)).samples.append((labels, float(value)))

    for p in pictures:
        run = {"run": p.run_id, "name": p.name, "attempt": str(p.attempt)}
        for name, text, figure in _RUN:
            add(name, text, {**run, "state": p.state} if name == "seatrial_run_info" else run, figure(p))
        for phase, seconds in p.phases.items():
            add(
                "seatrial_run_phase_seconds",
                "Seconds of a step by phase, mean over ranks.",
                {**run, "phase": phase},
                seconds,
            )
        if p.cause:
            kind = re.split(r"[:(]", p.cause)[0].strip()
            add("seatrial_run_cause_info", "What holds a run up most.", {**run, "cause": kind}, 1)
        fallen = None if p.transport_fallback is None else float(p.transport_fallback)
        add(
            "seatrial_run_transport_fallback", "Whether NCCL uses sockets where nodes have RDMA.", run, fallen
        )
        for d in p.devices:
            if node is None or d.node == node:
                _device(add, d, {"seatrial_run": p.run_id, "hpc_job": (jobs or {}).get(p.run_id, "")})
    return list(found.values())


def _device(
    add: Callable[[str, str, dict[str, str], float | None], None], d: DeviceNow, more: dict[str, str]
) -> None:
    if d.kind != "gpu":
        labels = {"Hostname": d.node, "seatrial_run": more["seatrial_run"]}
        add(
            "seatrial_cpu_busy_ratio",
            "Processor time of the job, of what the node gave it, 0 to 1.",
            labels,
            _ratio(d.busy_pct),
        )
        return
    values = (str(d.index), d.uuid, d.pci, f"nvidia{d.index}", d.name, d.node)
    labels = dict(zip(_NS_LABELS, values, strict=True)) | more
    for of in _GPU:
        add(of.name, of.help, labels, of.value(d))
    if d.clock_mhz is not None:
        for word, reason in THROTTLES.items():
            add(
                "seatrial_gpu_throttled",
                "Whether the clock is held back.",
                {**labels, "reason": reason},
                float(word in d.throttled),
            )


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
