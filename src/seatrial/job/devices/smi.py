"""NVIDIA's GPUs by nvidia-smi, where the Python binding of NVML is not installed: dearer to ask, and no activity of the multiprocessors."""

from __future__ import annotations

import os
from collections.abc import Mapping

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.job.devices.base import NoDevicesError, given
from seatrial.runs.telemetry import Device

_MIB = 2**20
# The names since driver 535.54.03, and before.
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_STATIC = ("uuid", "name", "memory.total", "pci.bus_id")
_FIELDS = (
    ("busy_pct", "utilization.gpu", 1), ("memory_bytes", "memory.used", _MIB), ("power_w", "power.draw", 1),
    ("power_limit_w", "enforced.power.limit", 1), ("clock_mhz", "clocks.sm", 1), ("temperature_c", "temperature.gpu", 1),
    ("ecc_uncorrectable", "ecc.errors.uncorrected.volatile.total", 1),
)  # fmt: skip


class SmiReader:
    """All GPUs of the job.

    Args:
        count: GPUs of each node that were asked for; 0 is all.
        environment: names the visible ones.
        run: runs commands.

    Raises:
        NoDevicesError: there is no nvidia-smi, or no GPU for the job.
    """

    source = "nvidia-smi"
    metric = "gpu_busy"
    missing = "activity of the multiprocessors needs the Python package nvidia-ml-py"
    at_least_s = 5.0

    def __init__(
        self,
        count: int = 0,
        environment: Mapping[str, str] = os.environ,
        run: command.CommandRunner = command.run,
    ) -> None:
        self._run = run
        try:
            rows = self._query(_STATIC)
        except PlatformError as error:
            raise NoDevicesError(f"nvidia-smi: {error.what}") from error
        chosen = given([row[0] for row in rows], environment, count)
        if not chosen:
            raise NoDevicesError("nvidia-smi shows no GPU of this job")
        self.devices = tuple(
            Device(i, rows[i][0], rows[i][1], memory_bytes=_scaled(rows[i][2], _MIB), pci=rows[i][3].lower())
            for i in chosen
        )
        self._reasons = REASONS[0] if self._knows(REASONS[0]) else REASONS[1]

    def read(self) -> list[dict[str, float]]:
        """By GPU, what it tells."""
        rows = {
            row[0]: row[1:]
            for row in self._query(("uuid", self._reasons, *(field for _, field, _ in _FIELDS)))
        }
        return [self._row(rows.get(device.uuid, [])) for device in self.devices]

    def _row(self, words: list[str]) -> dict[str, float]:
        if len(words) != 1 + len(_FIELDS):
            return {}
        found = {name: _scaled(word, unit) for (name, _, unit), word in zip(_FIELDS, words[1:], strict=True)}
        if words[0].startswith("0x"):
            found["reasons"] = float(int(words[0], 16))
        return {name: value for name, value in found.items() if value is not None}

    def _knows(self, field: str) -> bool:
        try:
            return bool(self._query((field,)))
        except PlatformError:
            return False

    def _query(self, fields: tuple[str, ...]) -> list[list[str]]:
        argv = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        done = self._run(argv, timeout_s=10)
        if done.returncode != 0:
            raise PlatformError("nvidia-smi refuses", evidence=(done.stdout + done.stderr)[:300])
        return [
            [word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()
        ]


def _scaled(word: str, unit: float) -> float | None:
    try:
        return float(word) * unit
    except ValueError:
        return None  # [N/A], [Not Supported], [Unknown Error]
