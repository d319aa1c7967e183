"""Which way of asking there is on this node: the best that works, and why nothing better did."""

from __future__ import annotations

from seatrial.job.devices.amd import AmdReader
from seatrial.job.devices.base import DeviceReader, NoDevicesError
from seatrial.job.devices.nvml import NvmlReader
from seatrial.job.devices.processors import ProcessorReader
from seatrial.job.devices.smi import SmiReader


def reader(device: str, count: int, agent: int) -> DeviceReader:
    """The best reader here.

    Args:
        device: of the plan: cuda or cpu.
        count: GPUs of each node that were asked for; 0 is all.
        agent: pid of this node's agent.

    Raises:
        NoDevicesError: the job is on GPUs, and nothing here can be asked about them.
    """
    if device == "cpu":
        return ProcessorReader(agent)
    refusals = []
    for kind in (NvmlReader, AmdReader, SmiReader):
        try:
            return kind(count)
        except NoDevicesError as refusal:
            refusals.append(str(refusal))
    raise NoDevicesError("; ".join(refusals))
