"""Asking devices: NVML with and without GPM, nvidia-smi, amdsmi, and processors where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seatrial.job import sampler
from seatrial.job.devices.amd import AmdReader
from seatrial.job.devices.base import NoDevicesError, given
from seatrial.job.devices.choose import reader
from seatrial.job.devices.nvml import NvmlReader
from seatrial.job.devices.processors import ProcessorReader
from seatrial.job.devices.smi import SmiReader
from seatrial.runs.telemetry import Device, Header, Writer, read_node
from seatrial.testing.gpus import VARIABLE, FakeGpus, Gpu, NVMLError, binding

BUSY = Gpu(
    busy=100, sm=71.5, tensor=40, used_mib=60000, power_w=650.5, processes=1, temperature_c=61, reasons=4
)


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    fake = FakeGpus(tmp_path / "gpus", [BUSY, Gpu()])
    monkeypatch.setenv(VARIABLE, str(fake.states))
    monkeypatch.setenv("PATH", os.pathsep.join([str(fake.directory), os.environ["PATH"]]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def nvml(count: int = 0, **environment: str) -> NvmlReader:
    return NvmlReader(count, environment, SimpleNamespace(**binding()))


def test_nvml_tells_activity_of_the_multiprocessors(gpus: FakeGpus) -> None:
    asked = nvml()
    assert (asked.source, asked.metric, asked.missing) == ("nvml+gpm", "sm_active", "")
    assert [d.name for d in asked.devices] == ["NVIDIA H100 80GB HBM3"] * 2
    assert asked.devices[1].pci == "00000000:01:00.0"
    busy, idle = asked.read()
    assert busy == {
        "busy_pct": 100, "sm_pct": 71.5, "tensor_pct": 40, "dram_pct": 35.75, "memory_bytes": 60000 * 2**20, "power_w": 650.5,
        "power_limit_w": 700, "clock_mhz": 1980, "temperature_c": 61, "reasons": 4, "processes": 1, "ecc_uncorrectable": 0,
        "xid": 0, "pcie_tx_bytes_s": 100 * 2**20, "pcie_rx_bytes_s": 200 * 2**20,
    }  # fmt: skip
    assert idle["sm_pct"] == 0 and idle["processes"] == 0
    assert "nvlink_tx_bytes_s" not in busy, "a metric that the GPU does not have is not 0"


def test_without_gpm_busy_is_what_there_is_and_why_is_said(gpus: FakeGpus) -> None:
    gpus.say([BUSY, Gpu(sm=None, busy=30)])
    asked = nvml()
    assert (asked.source, asked.metric) == ("nvml", "gpu_busy") and "Hopper" in asked.missing
    assert asked.read()[1]["busy_pct"] == 30


def test_a_lost_gpu_tells_nothing_and_the_others_go_on(gpus: FakeGpus) -> None:
    asked = nvml()
    gpus.say([BUSY, Gpu(lost=True, xid=79)])
    busy, lost = asked.read()
    assert busy["sm_pct"] == 71.5
    assert lost == {"xid": 79}, "nothing but what the driver said of it"
    gpus.say([Gpu(**{**vars(BUSY), "xid": 31}), Gpu(lost=True, xid=79)])
    assert [device.get("xid") for device in asked.read()] == [31, 79]


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 0, [0, 1, 2]), (None, 2, [0, 1]), ("1", 0, [1]), ("2,0", 0, [2, 0]), ("GPU-b", 0, [1]), ("", 0, []), ("-1", 0, []),
        ("1,9,0", 0, [1]), (" 1, 2", 0, [1, 2]),
    ],
)  # fmt: skip
def test_which_gpus_are_the_jobs(visible: str | None, count: int, expected: list[int]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert given(["GPU-aaaa", "GPU-bbbb", "GPU-cccc"], environment, count) == expected


def test_no_gpu_of_the_job_is_said(gpus: FakeGpus) -> None:
    with pytest.raises(NoDevicesError, match="no GPU of this job"):
        nvml(CUDA_VISIBLE_DEVICES="")
    asked = nvml(CUDA_VISIBLE_DEVICES="1")
    assert [d.index for d in asked.devices] == [1]


def test_nvidia_smi_where_the_binding_is_missing(gpus: FakeGpus) -> None:
    asked = SmiReader(environment={})
    assert asked.metric == "gpu_busy" and "nvidia-ml-py" in asked.missing
    busy, idle = asked.read()
    assert busy == {
        "busy_pct": 100, "memory_bytes": 60000 * 2**20, "power_w": 650.5, "power_limit_w": 700, "clock_mhz": 1980,
        "temperature_c": 61, "ecc_uncorrectable": 0, "reasons": 4,
    }  # fmt: skip
    gpus.say([BUSY, Gpu(lost=True)])
    assert asked.read() == [busy, {}]
    assert idle["busy_pct"] == 0


def test_the_choice_says_why_nothing_can_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    with pytest.raises(NoDevicesError, match=r"nvidia-ml-py is not installed; amdsmi: .*; nvidia-smi: "):
        reader("cuda", 0, os.getpid())
    assert isinstance(reader("cpu", 0, os.getpid()), ProcessorReader)


def test_amd_by_its_own_binding() -> None:
    class Amd:
        AmdSmiTemperatureType = SimpleNamespace(HOTSPOT=1)
        AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
        amdsmi_init = staticmethod(lambda: None)
        amdsmi_get_processor_handles = staticmethod(lambda: ["h0"])
        amdsmi_get_gpu_device_uuid = staticmethod(lambda h: "uuid-0")
        amdsmi_get_gpu_asic_info = staticmethod(lambda h: {"market_name": "AMD Instinct MI300X"})
        amdsmi_get_gpu_vram_usage = staticmethod(lambda h: {"vram_total": 196288, "vram_used": 1024})
        amdsmi_get_gpu_activity = staticmethod(lambda h: {"gfx_activity": 88, "umc_activity": "N/A"})
        amdsmi_get_power_info = staticmethod(
            lambda h: {"current_socket_power": 512, "power_limit": 750_000_000}
        )
        amdsmi_get_temp_metric = staticmethod(lambda h, sensor, metric: 55)
        amdsmi_get_gpu_process_list = staticmethod(lambda h: [1, 2])

        @staticmethod
        def amdsmi_get_gpu_total_ecc_count(h: str) -> dict[str, int]:
            raise RuntimeError("not supported")

    asked = AmdReader(environment={}, amd=Amd)
    assert asked.devices == (Device(0, "uuid-0", "AMD Instinct MI300X", memory_bytes=196288 * 2**20),)
    assert asked.read() == [
        {
            "busy_pct": 88,
            "memory_bytes": 2**30,
            "power_w": 512,
            "power_limit_w": 750,
            "temperature_c": 55,
            "processes": 2,
        }
    ]


LOOPS = """
import subprocess, sys
loop = [sys.executable, "-c", "while True: pass"]
children = [subprocess.Popen(loop), subprocess.Popen([*loop, "seatrial.job.mirror"])]
print("ready", flush=True)
sys.stdin.read()
for child in children:
    child.kill()
    child.wait()
"""


def test_processors_stand_in_where_there_is_no_gpu() -> None:
    """Two loops below an agent; one of them serves the record, and is not counted."""
    agent = subprocess.Popen(
        [sys.executable, "-c", LOOPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert agent.stdin is not None and agent.stdout is not None
    try:
        assert agent.stdout.readline() == "ready\n"
        asked = ProcessorReader(agent.pid)
        time.sleep(1.0)
        used = asked.read()[0]
    finally:
        agent.stdin.close()
        agent.wait(20)
        agent.stdout.close()
    cores = len(os.sched_getaffinity(0))
    assert asked.metric == "cpu_busy" and asked.devices[0].kind == "cpu"
    assert 5 / cores < used["busy_pct"] <= 115 / cores
    assert used["processes"] == 1 and used["memory_bytes"] > 1e6


class Steady:
    """A reader that fails once, and otherwise counts."""

    source, metric, missing, at_least_s = "nvml", "gpu_busy", "", 0.1
    devices = (Device(0, "GPU-0", "x"),)

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> list[dict[str, float]]:
        self.reads += 1
        if self.reads == 2:
            raise NVMLError(999, "Unknown Error")
        return [{"busy_pct": 50.0}]


def test_a_reading_that_fails_is_missing_and_sampling_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampler, "_AGAIN_S", 0.01)
    asked, done = Steady(), threading.Event()
    path = tmp_path / "node_00000.jsonl"
    writer = Writer(path, Header(0, "n", "nvml", "gpu_busy", 0.02, 0.0, asked.devices))

    def wait(seconds: float) -> bool:
        return asked.reads >= 6 or done.wait(seconds)

    sampler.sample(asked, writer, 0.02, wait)
    writer.close()
    node = read_node(path)
    assert node is not None and len(node.times) == 5
    assert "NVMLError: Unknown Error" in capsys.readouterr().out


def test_the_pretend_binding_has_the_names_of_the_real_one() -> None:
    """What the fake offers exists in nvidia-ml-py, so that no test passes on a call that there is not."""
    real: Any = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    missing = [name for name in binding() if not hasattr(real, name)]
    assert missing == []
    constants = {k: v for k, v in binding().items() if isinstance(v, int)}
    assert {k: getattr(real, k) for k in constants} == constants
    metrics = real.c_nvmlGpmMetricsGet_t()
    assert hasattr(metrics, "sample1") and hasattr(metrics.metrics[0], "metricId")
