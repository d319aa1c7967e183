"""Pretend NVIDIA GPUs: NVML's Python binding and ``nvidia-smi``, reading what they say from a file that a test may change.

What is true to the original: names, units, return codes and exceptions of the calls that Seatrial uses, GPM's samples (no
value before the second one), a lost GPU that raises at each call, Xids as events. What is not: nothing is computed, and
figures stay as they were written until they are written anew.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "SEATRIAL_FAKE_GPUS"
"""Names the file of states."""
_SHIM = "from seatrial.testing.gpus import binding\nglobals().update(binding())\n"
_SMI = '#!/bin/sh\nexec "{python}" -m seatrial.testing.gpus "$@"\n'


@dataclass(frozen=True)
class Gpu:
    """What one pretend GPU says."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = ""
    busy: int = 0
    """Percent."""
    sm: float | None = 0.0
    """Percent; None has no GPM."""
    tensor: float = 0.0
    used_mib: int = 600
    total_mib: int = 81559
    power_w: float = 70.0
    limit_w: float = 700.0
    clock_mhz: int = 1980
    temperature_c: int = 34
    reasons: int = 0
    """Clock event reasons, bits."""
    processes: int = 0
    ecc: int = 0
    xid: int = 0
    lost: bool = False
    """Fallen off the bus: each call fails."""


@dataclass
class FakeGpus:
    """A node's pretend GPUs.

    Args:
        directory: gets the programs and the file of states.
        gpus: what they say.
    """

    directory: Path
    gpus: list[Gpu] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "pynvml.py").write_text(_SHIM)
        smi = self.directory / "nvidia-smi"
        smi.write_text(_SMI.format(python=sys.executable))
        smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
        self.say(self.gpus)

    @property
    def states(self) -> Path:
        """The file."""
        return self.directory / "gpus.json"

    def say(self, gpus: list[Gpu]) -> None:
        """From now on they say this."""
        self.gpus = [
            Gpu(**(asdict(gpu) | {"uuid": gpu.uuid or f"GPU-{i:08d}-0000-0000-0000-000000000000"}))
            for i, gpu in enumerate(gpus)
        ]
        aside = self.states.with_suffix(".tmp")
        aside.write_text(json.dumps([asdict(gpu) for gpu in self.gpus]))
        aside.replace(self.states)

    def environment(self, outer: dict[str, str] | None = None) -> dict[str, str]:
        """An environment in which programs find these GPUs and no others."""
        env = dict(os.environ if outer is None else outer)
        env.pop("CUDA_VISIBLE_DEVICES", None)
        return env | {
            VARIABLE: str(self.states),
            "PATH": os.pathsep.join([str(self.directory), env.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.directory), env.get("PYTHONPATH", "")])),
        }


def read_states() -> list[Gpu]:
    """What the GPUs say at the moment."""
    return [Gpu(**row) for row in json.loads(Path(os.environ[VARIABLE]).read_text())]


class NVMLError(Exception):
    """As the binding raises it, with the library's code."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


_NOT_SUPPORTED, _TIMEOUT, _LOST = 3, 10, 15


class _Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class _MetricsGet:
    """``c_nvmlGpmMetricsGet_t``."""

    def __init__(self) -> None:
        self.version = self.numMetrics = 0
        self.sample1: Any = None
        self.sample2: Any = None
        self.metrics: list[Any] = [_Plain(metricId=0, nvmlReturn=0, value=0.0) for _ in range(210)]


def binding() -> dict[str, Any]:
    """The names of the module ``pynvml``, as far as Seatrial uses them."""
    told: dict[str, int] = {}

    def state(handle: int) -> Gpu:
        gpu = read_states()[handle]
        if gpu.lost:
            raise NVMLError(_LOST, "GPU is lost")
        return gpu

    def by_index(index: int) -> int:
        if index >= len(read_states()):
            raise NVMLError(2, "Invalid Argument")
        return index

    def sample_get(handle: int, sample: dict[str, Any]) -> dict[str, Any]:
        gpu = state(handle)
        if gpu.sm is None:
            raise NVMLError(_NOT_SUPPORTED, "Not Supported")
        sample |= {"sm": gpu.sm, "tensor": gpu.tensor}
        return sample

    def metrics_get(asked: _MetricsGet) -> _MetricsGet:
        if asked.version != 1 or not asked.sample1 or not asked.sample2:
            raise NVMLError(2, "Invalid Argument")
        values = {
            2: asked.sample2["sm"],
            5: asked.sample2["tensor"],
            10: asked.sample2["sm"] / 2,
            20: 100.0,
            21: 200.0,
        }
        for metric in asked.metrics[: asked.numMetrics]:
            metric.value = values.get(metric.metricId, 0.0)
            metric.nvmlReturn = 0 if metric.metricId in values else _NOT_SUPPORTED
        return asked

    def event_wait(events: object, timeout_ms: int) -> _Plain:
        for i, gpu in enumerate(read_states()):
            if gpu.xid and told.get(gpu.uuid) != gpu.xid:
                told[gpu.uuid] = gpu.xid
                return _Plain(device=i, eventType=8, eventData=gpu.xid)
        raise NVMLError(_TIMEOUT, "Timeout")

    return {
        "NVMLError": NVMLError, "NVML_SUCCESS": 0, "NVML_CLOCK_SM": 1, "NVML_TEMPERATURE_GPU": 0,
        "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1, "NVML_VOLATILE_ECC": 0, "NVML_PCIE_UTIL_TX_BYTES": 0,
        "NVML_PCIE_UTIL_RX_BYTES": 1, "NVML_GPM_METRICS_GET_VERSION": 1, "NVML_GPM_METRIC_SM_UTIL": 2,
        "NVML_GPM_METRIC_ANY_TENSOR_UTIL": 5, "NVML_GPM_METRIC_DRAM_BW_UTIL": 10, "NVML_GPM_METRIC_PCIE_TX_PER_SEC": 20,
        "NVML_GPM_METRIC_PCIE_RX_PER_SEC": 21, "NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC": 60,
        "NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC": 61, "nvmlEventTypeXidCriticalError": 8,
        "c_nvmlGpmMetricsGet_t": _MetricsGet,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(read_states()),
        "nvmlDeviceGetHandleByIndex": by_index,
        # Of a lost GPU too: a process that knew it goes on knowing its names.
        "nvmlDeviceGetUUID": lambda handle: read_states()[handle].uuid,
        "nvmlDeviceGetName": lambda handle: state(handle).name,
        "nvmlDeviceGetMemoryInfo": lambda handle: _Plain(
            total=state(handle).total_mib * 2**20, used=state(handle).used_mib * 2**20
        ),
        "nvmlDeviceGetPciInfo": lambda handle: _Plain(busId=f"00000000:{handle:02X}:00.0".encode()),
        "nvmlDeviceGetUtilizationRates": lambda handle: _Plain(gpu=state(handle).busy, memory=0),
        "nvmlDeviceGetPowerUsage": lambda handle: int(state(handle).power_w * 1e3),
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: int(state(handle).limit_w * 1e3),
        "nvmlDeviceGetClockInfo": lambda handle, kind: state(handle).clock_mhz,
        "nvmlDeviceGetTemperature": lambda handle, sensor: state(handle).temperature_c,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: state(handle).reasons,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [_Plain(pid=1)] * state(handle).processes,
        "nvmlDeviceGetTotalEccErrors": lambda handle, kind, counter: state(handle).ecc,
        "nvmlDeviceGetPcieThroughput": lambda handle, counter: 1000 * (not state(handle).lost),
        "nvmlGpmQueryDeviceSupport": lambda handle: _Plain(isSupportedDevice=int(state(handle).sm is not None)),
        "nvmlGpmSampleAlloc": dict,
        "nvmlGpmSampleGet": sample_get,
        "nvmlGpmMetricsGet": metrics_get,
        "nvmlEventSetCreate": object,
        "nvmlDeviceRegisterEvents": lambda handle, kinds, events: None,
        "nvmlEventSetWait_v2": event_wait,
    }  # fmt: skip


def smi(argv: list[str]) -> int:
    """``nvidia-smi --query-gpu=… --format=csv,noheader[,nounits]``; other questions are refused, as an unknown option is."""
    fields = next(
        (word.removeprefix("--query-gpu=") for word in argv if word.startswith("--query-gpu=")), None
    )
    if fields is None:
        sys.stderr.write(f"ERROR: Option {' '.join(argv)} is not recognized.\n")
        return 2
    for i, gpu in enumerate(read_states()):
        if gpu.lost:
            continue
        known = {
            "index": i, "uuid": gpu.uuid, "name": gpu.name, "driver_version": "580.159.03", "memory.total": gpu.total_mib,
            "memory.used": gpu.used_mib, "utilization.gpu": gpu.busy, "power.draw": f"{gpu.power_w:.2f}",
            "enforced.power.limit": f"{gpu.limit_w:.2f}", "clocks.sm": gpu.clock_mhz, "temperature.gpu": gpu.temperature_c,
            "clocks_event_reasons.active": f"0x{gpu.reasons:016X}", "pci.bus_id": f"00000000:{i:02X}:00.0",
            "ecc.errors.uncorrected.volatile.total": gpu.ecc, "mig.mode.current": "Disabled",
        }  # fmt: skip
        unknown = [name for name in fields.split(",") if name not in known]
        if unknown:
            sys.stdout.write(f'Field "{unknown[0]}" is not a valid field to query.\n')
            return 2
        sys.stdout.write(", ".join(str(known[name]) for name in fields.split(",")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(smi(sys.argv[1:]))
