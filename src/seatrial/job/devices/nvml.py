"""NVIDIA's GPUs by NVML (``nvidia-ml-py``): what the driver counts, and from Hopper on GPM's activity of the multiprocessors.

Fields: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html and group__nvmlGpm.html.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from seatrial.job.devices.base import NoDevicesError, given
from seatrial.runs.telemetry import Device

_MIB = 2**20
_KIB = 1024


class NvmlReader:
    """All GPUs of the job.

    Args:
        count: GPUs of each node that were asked for; 0 is all that the machine shows.
        environment: names the visible ones.
        nvml: the binding.

    Raises:
        NoDevicesError: no binding, no driver, or no GPU for the job.
    """

    at_least_s = 0.1

    def __init__(self, count: int = 0, environment: Mapping[str, str] = os.environ, nvml: Any = None) -> None:
        try:
            self._nvml: Any = nvml or importlib.import_module("pynvml")
        except ImportError as error:
            raise NoDevicesError("nvidia-ml-py is not installed") from error
        try:
            self._nvml.nvmlInit()
            handles = [
                self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self._nvml.nvmlDeviceGetCount())
            ]
            uuids = [_text(self._nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except self._nvml.NVMLError as error:
            raise NoDevicesError(f"NVML: {error}") from error
        chosen = given(uuids, environment, count)
        if not chosen:
            raise NoDevicesError("NVML shows no GPU of this job")
        self._handles = [handles[i] for i in chosen]
        self.devices = tuple(
            Device(
                index=i, uuid=uuids[i], name=_text(self._ask(handles[i], "nvmlDeviceGetName")),
                memory_bytes=_total(self._ask(handles[i], "nvmlDeviceGetMemoryInfo")),
                pci=_bus(self._ask(handles[i], "nvmlDeviceGetPciInfo")),
            )
            for i in chosen
        )  # fmt: skip
        self._gpm = [_Gpm.of(self._nvml, handle) for handle in self._handles]
        everywhere = all(self._gpm)
        self.source = "nvml+gpm" if everywhere else "nvml"
        self.metric = "sm_active" if everywhere else "gpu_busy"
        self.missing = (
            "" if everywhere else "GPM (activity of the multiprocessors) needs Hopper or newer and its driver"
        )
        self._xids = [0] * len(self._handles)
        self._events = self._register()

    def read(self) -> list[dict[str, float]]:
        """By GPU, what it tells; nothing of one that is lost."""
        self._take_events()
        return [self._read(i) for i in range(len(self._handles))]

    def _read(self, i: int) -> dict[str, float]:
        handle, nvml = self._handles[i], self._nvml
        rates = self._ask(handle, "nvmlDeviceGetUtilizationRates")
        memory = self._ask(handle, "nvmlDeviceGetMemoryInfo")
        bits = self._ask(
            handle, "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        )
        processes = self._ask(handle, "nvmlDeviceGetComputeRunningProcesses")
        found = {
            "busy_pct": getattr(rates, "gpu", None),
            "memory_bytes": getattr(memory, "used", None),
            "power_w": _over(self._ask(handle, "nvmlDeviceGetPowerUsage"), 1e3),
            "power_limit_w": _over(self._ask(handle, "nvmlDeviceGetEnforcedPowerLimit"), 1e3),
            "clock_mhz": self._ask(handle, "nvmlDeviceGetClockInfo", more=(nvml.NVML_CLOCK_SM,)),
            "temperature_c": self._ask(handle, "nvmlDeviceGetTemperature", more=(nvml.NVML_TEMPERATURE_GPU,)),
            "reasons": bits,
            "processes": None if processes is None else len(processes),
            "ecc_uncorrectable": self._ask(
                handle,
                "nvmlDeviceGetTotalEccErrors",
                more=(nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC),
            ),
            "xid": self._xids[i] if self._events is not None else None,
        }
        gpm = self._gpm[i]
        if gpm is not None:
            found |= gpm.read()
        if "pcie_tx_bytes_s" not in found:
            found["pcie_tx_bytes_s"] = _times(self._pcie(handle, "NVML_PCIE_UTIL_TX_BYTES"), _KIB)
            found["pcie_rx_bytes_s"] = _times(self._pcie(handle, "NVML_PCIE_UTIL_RX_BYTES"), _KIB)
        return {name: round(float(value), 2) for name, value in found.items() if value is not None}

    def _pcie(self, handle: Any, counter: str) -> float | None:
        # NVML measures for 20 ms at each call: too long for every GPU every second.
        return None if len(self._handles) > 2 else self._ask(
            handle, "nvmlDeviceGetPcieThroughput", more=(getattr(self._nvml, counter, 0),)
        )  # fmt: skip

    def _ask(self, handle: Any, *names: str, more: tuple[Any, ...] = ()) -> Any:
        """What the first of the calls that the binding has returns; None where the GPU does not tell."""
        for name in names:
            call: Callable[..., Any] | None = getattr(self._nvml, name, None)
            if call is not None:
                try:
                    return call(handle, *more)
                except self._nvml.NVMLError:
                    continue
        return None

    def _register(self) -> Any:
        """A set of events that Xids arrive in; None where the driver gives none to this user."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
            for handle in self._handles:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except (nvml.NVMLError, AttributeError):
            return None
        return events

    def _take_events(self) -> None:
        if self._events is None:
            return
        with contextlib.suppress(self._nvml.NVMLError):  # a time-out: there is none, or no more
            while True:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = _text(self._nvml.nvmlDeviceGetUUID(event.device))
                for i, device in enumerate(self.devices):
                    if device.uuid == uuid:
                        self._xids[i] = int(event.eventData)


class _Gpm:
    """One GPU's profiling metrics, each a mean over the time since the last reading."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._before, self._after = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
        nvml.nvmlGpmSampleGet(handle, self._before)
        self._wanted = (
            ("sm_pct", nvml.NVML_GPM_METRIC_SM_UTIL, 1),
            ("tensor_pct", nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, 1),
            ("dram_pct", nvml.NVML_GPM_METRIC_DRAM_BW_UTIL, 1),
            ("pcie_tx_bytes_s", nvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, _MIB),
            ("pcie_rx_bytes_s", nvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, _MIB),
            ("nvlink_rx_bytes_s", nvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, _MIB),
            ("nvlink_tx_bytes_s", nvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, _MIB),
        )

    @classmethod
    def of(cls, nvml: Any, handle: Any) -> _Gpm | None:
        """None where the GPU, its driver or the binding has no GPM."""
        try:
            if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                return None
            return cls(nvml, handle)
        except (nvml.NVMLError, AttributeError):
            return None

    def read(self) -> dict[str, float]:
        nvml = self._nvml
        try:
            nvml.nvmlGpmSampleGet(self._handle, self._after)
            asked = nvml.c_nvmlGpmMetricsGet_t()
            asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
            asked.numMetrics = len(self._wanted)
            asked.sample1, asked.sample2 = self._before, self._after
            for i, (_, number, _) in enumerate(self._wanted):
                asked.metrics[i].metricId = number
            nvml.nvmlGpmMetricsGet(asked)
        except nvml.NVMLError:
            return {}
        self._before, self._after = self._after, self._before
        return {
            name: asked.metrics[i].value * unit
            for i, (name, _, unit) in enumerate(self._wanted)
            # Each has a return code of its own, and no value where there is none (NVLink of a PCIe card).
            if asked.metrics[i].nvmlReturn == nvml.NVML_SUCCESS
            and asked.metrics[i].value == asked.metrics[i].value
        }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _total(memory: Any) -> float | None:
    return None if memory is None else float(memory.total)


def _bus(pci: Any) -> str:
    return "" if pci is None else _text(pci.busId).lower()


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
