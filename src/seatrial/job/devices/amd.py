"""AMD's GPUs by its own binding (``amdsmi``, part of ROCm). Its "gfx activity" is what NVML calls busy: any kernel ran."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from seatrial.job.devices.base import NoDevicesError, given
from seatrial.runs.telemetry import Device

_MIB = 2**20


class AmdReader:
    """All GPUs of the job.

    Args:
        count: GPUs of each node that were asked for; 0 is all.
        environment: names the visible ones.
        amd: the binding.

    Raises:
        NoDevicesError: no binding, no driver, or no GPU for the job.
    """

    source = "amdsmi"
    metric = "gpu_busy"
    missing = "amdsmi tells no activity of the compute units"
    at_least_s = 1.0

    def __init__(self, count: int = 0, environment: Mapping[str, str] = os.environ, amd: Any = None) -> None:
        try:
            self._amd: Any = amd or importlib.import_module("amdsmi")
            self._amd.amdsmi_init()
            handles = self._amd.amdsmi_get_processor_handles()
        except Exception as error:  # the binding loads a library, and raises what that raises
            raise NoDevicesError(f"amdsmi: {error}") from error
        uuids = [str(self._ask("amdsmi_get_gpu_device_uuid", handle) or "") for handle in handles]
        chosen = given(uuids, environment, count)
        if not chosen:
            raise NoDevicesError("amdsmi shows no GPU of this job")
        self._handles = [handles[i] for i in chosen]
        self.devices = tuple(
            Device(
                i, uuids[i], str((self._ask("amdsmi_get_gpu_asic_info", handles[i]) or {}).get("market_name", "AMD GPU")),
                memory_bytes=_number((self._ask("amdsmi_get_gpu_vram_usage", handles[i]) or {}).get("vram_total"), _MIB),
                pci=str(self._ask("amdsmi_get_gpu_device_bdf", handles[i]) or "").lower(),
            )
            for i in chosen
        )  # fmt: skip

    def read(self) -> list[dict[str, float]]:
        """By GPU, what it tells."""
        return [self._read(handle) for handle in self._handles]

    def _read(self, handle: Any) -> dict[str, float]:
        amd = self._amd
        activity = self._ask("amdsmi_get_gpu_activity", handle) or {}
        memory = self._ask("amdsmi_get_gpu_vram_usage", handle) or {}
        power = self._ask("amdsmi_get_power_info", handle) or {}
        processes = self._ask("amdsmi_get_gpu_process_list", handle)
        ecc = self._ask("amdsmi_get_gpu_total_ecc_count", handle) or {}
        heat = None
        if hasattr(amd, "AmdSmiTemperatureType"):
            kind, now = amd.AmdSmiTemperatureType.HOTSPOT, amd.AmdSmiTemperatureMetric.CURRENT
            heat = self._ask("amdsmi_get_temp_metric", handle, kind, now)
        found = {
            "busy_pct": _number(activity.get("gfx_activity")),
            "dram_pct": _number(activity.get("umc_activity")),
            "memory_bytes": _number(memory.get("vram_used"), _MIB),
            # Newer generations tell the first, older ones the second.
            "power_w": _number(power.get("current_socket_power"))
            or _number(power.get("average_socket_power")),
            "power_limit_w": _number(power.get("power_limit"), 1e-6),  # in microwatts
            "temperature_c": _number(heat),
            "processes": None if processes is None else float(len(processes)),
            "ecc_uncorrectable": _number(ecc.get("uncorrectable_count")),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _ask(self, name: str, handle: Any, *more: Any) -> Any:
        call: Callable[..., Any] | None = getattr(self._amd, name, None)
        if call is None:
            return None
        try:
            return call(handle, *more)
        except Exception:  # AmdSmiException and its kin, which differ between versions
            return None


def _number(value: Any, unit: float = 1.0) -> float | None:
    return float(value) * unit if isinstance(value, int | float) and not isinstance(value, bool) else None
