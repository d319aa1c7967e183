"""What a way of asking has in common, and which GPUs are the job's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from seatrial.runs.telemetry import Device
from seatrial.runs.visible import visible


class DeviceReader(Protocol):
    """Asks all devices of this node that the job has."""

    source: str
    metric: str
    """What use is measured by: a key of `runs.telemetry.METRICS`."""
    devices: tuple[Device, ...]
    missing: str
    """Why something better was not used; empty where there is nothing better."""
    at_least_s: float
    """Seconds to leave between two readings, since asking costs something."""

    def read(self) -> list[dict[str, float]]:
        """By device, the columns of `runs.telemetry.COLUMNS` that it tells; nothing of one that does not answer.

        Raises:
            Exception: of the library or program that is asked, when it fails as a whole.
        """


class NoDevicesError(Exception):
    """This way of asking finds no device here; the message says why."""


def given(uuids: Sequence[str], environment: Mapping[str, str], count: int) -> list[int]:
    """Indices of the GPUs that the job was given, of those that the machine shows.

    Args:
        uuids: of all GPUs that the machine shows, in the order of its bus.
        environment: ``CUDA_VISIBLE_DEVICES`` (or AMD's) names some by index or by the beginning of their UUID.
        count: of each node, as asked for; 0 is all.
    """
    named = next(
        (
            environment[key]
            for key in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
            if key in environment
        ),
        None,
    )
    shown = visible([(str(i), uuid) for i, uuid in enumerate(uuids)], named)
    return shown[: count or None] if named is None else shown
