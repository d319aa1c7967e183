"""What a GPU says of itself while it works: clocks, what holds them back, power, temperature, its PCIe link. No torch.

By NVML where its Python binding is installed, else by nvidia-smi; both know a GPU by its UUID, since their numbering need
not be that of CUDA.
"""

from __future__ import annotations

import importlib
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.job.devices.smi import REASONS

_NVML_EVERY_S = 0.2
_SMI_EVERY_S = 0.5
_FIELDS = ("clocks.sm", "power.draw", "temperature.gpu", "pcie.link.gen.current", "pcie.link.width.current",
           "enforced.power.limit", "power.default_limit")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a GPU; None is what it does not tell."""

    bits: int | None = None
    """Clock event reasons: 0x4 power cap, 0x8 hardware slowdown, 0x20 and 0x40 thermal, 0x80 power brake
    (https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html)."""
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    pcie_gen: float | None = None
    pcie_width: float | None = None
    power_limit_w: float | None = None
    """As enforced now."""
    power_limit_default_w: float | None = None


def parse_smi(text: str) -> Reading:
    """A line of ``nvidia-smi --query-gpu=REASONS,… --format=csv,noheader,nounits``, fields as `query` asks for them.

    Raises:
        ValueError: another number of fields.
    """
    words = [word.strip() for word in text.strip().splitlines()[-1].split(",")] if text.strip() else []
    if len(words) != 1 + len(_FIELDS):
        raise ValueError(f"nvidia-smi said {text.strip()[:200]!r}")
    bits = int(words[0], 16) if words[0].startswith("0x") else None
    return Reading(bits, *(_number(word) for word in words[1:]))


def query(uuid: str, reasons: str) -> list[str]:
    """The command that `parse_smi` reads."""
    wanted = ",".join((reasons, *_FIELDS))
    return ["nvidia-smi", "-i", uuid, f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]


def smi_reader(uuid: str, run: command.CommandRunner = command.run) -> Callable[[], Reading]:
    """Reads one GPU by nvidia-smi; the field's older name is tried where the newer one is refused.

    Raises:
        PlatformError: (when read) there is no nvidia-smi, or it refuses.
    """

    def read() -> Reading:
        for reasons in REASONS:
            done = run(query(uuid, reasons), timeout_s=10)
            if done.returncode == 0:
                return parse_smi(done.stdout)
        raise PlatformError("nvidia-smi can't read the GPU", evidence=(done.stdout + done.stderr)[:300])

    return read


def nvml_reader(uuid: str, nvml: Any) -> Callable[[], Reading]:
    """Reads one GPU by NVML's Python binding.

    Raises:
        Exception: NVML's own, where there is no such GPU.
    """
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    bits = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    bits = bits or nvml.nvmlDeviceGetCurrentClocksThrottleReasons

    def ask(call: Callable[..., Any], *more: Any) -> Any:
        try:
            return call(handle, *more)
        except nvml.NVMLError:
            return None

    def read() -> Reading:
        power, limit = ask(nvml.nvmlDeviceGetPowerUsage), ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
        default = ask(nvml.nvmlDeviceGetPowerManagementDefaultLimit)
        return Reading(
            bits=ask(bits),
            sm_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            power_w=None if power is None else power / 1e3,
            temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            pcie_gen=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration),
            pcie_width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth),
            power_limit_w=None if limit is None else limit / 1e3,
            power_limit_default_w=None if default is None else default / 1e3,
        )

    return read


def reader(uuid: str) -> tuple[Callable[[], Reading], float]:
    """What reads a GPU here, and how many seconds to leave between two readings."""
    try:
        return nvml_reader(uuid, importlib.import_module("pynvml")), _NVML_EVERY_S
    except Exception:  # No binding, no library of the driver, or a GPU (MIG) that NVML names otherwise.
        return smi_reader(uuid), _SMI_EVERY_S


class Monitor:
    """Reads a GPU from a thread while the block runs; a reader that fails ends it, and `reason` says why."""

    def __init__(self, read: Callable[[], Reading], every_s: float) -> None:
        self._read = read
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.readings: list[Reading] = []
        self.reason = ""

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        self._done.set()
        self._thread.join(timeout=15)

    def _loop(self) -> None:
        while True:
            try:
                reading = self._read()
            except Exception as error:
                self.reason = str(error)
                return
            if self._done.is_set() and self.readings:
                return  # Read after the work ended.
            self.readings.append(reading)
            if self._done.wait(self._every_s):
                return


def all_bits(readings: Sequence[Reading]) -> int | None:
    """Every bit that was set at any time; None where the GPU never told."""
    told = [reading.bits for reading in readings if reading.bits is not None]
    if not told:
        return None
    every = 0
    for bits in told:
        every |= bits
    return every


def count_bits(readings: Sequence[Reading]) -> dict[str, int]:
    """By bit (``0x40``), in how many readings it was set."""
    counts: dict[str, int] = {}
    for reading in readings:
        for shift in range((reading.bits or 0).bit_length()):
            if reading.bits is not None and reading.bits >> shift & 1:
                name = f"{1 << shift:#x}"
                counts[name] = counts.get(name, 0) + 1
    return counts


def summary(readings: Sequence[Reading]) -> dict[str, Any]:
    """Of each figure that the GPU told: lowest, median and highest."""
    found: dict[str, Any] = {"readings": len(readings)}
    for name in (field.name for field in fields(Reading) if field.name != "bits"):
        told = [value for r in readings if (value := getattr(r, name)) is not None]
        if told:
            found[name] = {"min": min(told), "median": statistics.median(told), "max": max(told)}
    return found


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None  # [N/A], [Not Supported], [Unknown Error]
