"""When a rate counts as steady, which reading stands for it, and what a GPU says of itself meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seatrial.command import Completed
from seatrial.errors import PlatformError
from seatrial.job.checks import monitor
from seatrial.job.checks.monitor import Monitor, Reading, all_bits, count_bits, parse_smi, smi_reader, summary
from seatrial.job.checks.speed import fixed_matrix, usable
from seatrial.job.checks.timing import half_width, measure, steady

CPU = torch.device("cpu")
LINE = "0x0000000000000044, 1410, 688.31, 71, 5, 16, 700.00, 700.00\n"


class Stopwatch:
    """A device whose iterations take the seconds of a list, one after another, then its last for ever."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.calls = 0

    def __call__(self, work: Callable[[], object], iterations: int, device: torch.device) -> float:
        self.calls += 1
        return iterations * (self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0])


def test_a_steady_rate_ends_after_three_blocks() -> None:
    blocks = measure(lambda: None, CPU, cap_s=60, elapsed=Stopwatch(0.01))
    assert blocks.converged and len(blocks.rates) == 3 and blocks.iterations == 5
    assert blocks.typical == pytest.approx(100)
    assert blocks.detail()["half_width"] == 0


def test_warm_devices_are_waited_for() -> None:
    blocks = measure(lambda: None, CPU, cap_s=60, least_s=1, elapsed=Stopwatch(0.01))
    assert blocks.converged and blocks.seconds == pytest.approx(1)


def test_a_rate_that_never_settles_is_said() -> None:
    class Noisy(Stopwatch):
        def __call__(self, work: Callable[[], object], iterations: int, device: torch.device) -> float:
            return super().__call__(work, iterations, device) * (1 + self.calls % 2)

    blocks = measure(lambda: None, CPU, cap_s=1, elapsed=Noisy(0.01))
    assert not blocks.converged and 1 <= blocks.seconds < 1.2
    assert blocks.detail()["half_width"] > 0.01


def test_a_slowed_device_is_really_slower() -> None:
    began = time.perf_counter()
    blocks = measure(lambda: None, CPU, cap_s=0.01, slow=0.5, elapsed=Stopwatch(0.01))
    assert time.perf_counter() - began > 0.15
    assert 40 < blocks.typical <= 50


@given(st.lists(st.floats(1, 100), min_size=2, max_size=40))
def test_steady_is_within_the_readings(rates: list[float]) -> None:
    for busy in (True, False):
        assert min(rates) <= steady(rates, busy=busy) <= max(rates)
    assert steady(rates, busy=True) >= sorted(rates)[len(rates) // 2] or len(rates) < 4


@given(st.lists(st.floats(1, 100), min_size=2, max_size=40), st.floats(0.1, 10))
def test_half_width_is_relative(rates: list[float], scale: float) -> None:
    assert half_width([scale * r for r in rates]) == pytest.approx(half_width(rates), abs=1e-9)


def test_half_width_is_that_of_a_median() -> None:
    # Five readings, standard deviation 1.5811: 2.776 * sqrt(pi / 2) * 1.5811 / sqrt(5) / 100.
    assert half_width([98, 99, 100, 101, 102]) == pytest.approx(0.0246, abs=1e-4)
    assert half_width([1.0]) == math.inf


def test_the_older_name_of_the_field_is_tried() -> None:
    asked: list[str] = []

    def run(argv: Sequence[str], **_: Any) -> Completed:
        asked.append(argv[3])
        old = "clocks_throttle_reasons.active" in argv[3]
        refusal = 'Field "clocks_event_reasons.active" is not a valid field to query.\n'
        return Completed(tuple(argv), 0 if old else 2, LINE if old else refusal, "")

    reading = smi_reader("GPU-1", run)()
    assert len(asked) == 2
    assert reading == Reading(0x44, 1410, 688.31, 71, 5, 16, 700, 700)


def test_what_the_gpu_does_not_tell_is_none() -> None:
    reading = parse_smi("[N/A], 1410, [Not Supported], 71, [N/A], [N/A], [N/A], [N/A]\n")
    assert reading.bits is None and reading.power_w is None and reading.sm_clock_mhz == 1410
    assert all_bits([reading]) is None and all_bits([]) is None
    for text in ("", "No devices were found\n"):
        with pytest.raises(ValueError):
            parse_smi(text)


def test_a_reader_that_refuses_is_said() -> None:
    def run(argv: Sequence[str], **_: Any) -> Completed:
        return Completed(tuple(argv), 15, "", "GPU is lost")

    with Monitor(smi_reader("GPU-1", run), 0.01) as watch:
        time.sleep(0.05)
    assert watch.readings == [] and "can't read" in watch.reason
    with pytest.raises(PlatformError, match="can't read"):
        smi_reader("GPU-1", run)()


def test_bits_are_gathered_over_all_readings() -> None:
    readings = [Reading(0x4, 1400), Reading(0x44, 1200), Reading(None, None), Reading(0x0, 1500)]
    assert all_bits(readings) == 0x44
    assert count_bits(readings) == {"0x4": 2, "0x40": 1}
    assert summary(readings)["sm_clock_mhz"] == {"min": 1200, "median": 1400, "max": 1500}
    assert "power_w" not in summary(readings)


def test_a_monitor_reads_while_the_block_runs() -> None:
    with Monitor(lambda: Reading(0x4), 0.01) as watch:
        time.sleep(0.1)
    seen = len(watch.readings)
    assert seen >= 3
    time.sleep(0.05)
    assert len(watch.readings) == seen


def test_nvml_is_asked_by_uuid_and_in_its_units() -> None:
    class Fake(SimpleNamespace):
        class NVMLError(Exception): ...

        NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

        def __getattr__(self, name: str) -> Callable[..., Any]:
            answers = {
                "nvmlDeviceGetHandleByUUID": "handle", "nvmlDeviceGetCurrentClocksThrottleReasons": 0x20,
                "nvmlDeviceGetPowerUsage": 650_000, "nvmlDeviceGetClockInfo": 1755, "nvmlDeviceGetTemperature": 64,
                "nvmlDeviceGetEnforcedPowerLimit": 700_000, "nvmlInit": None,
            }  # fmt: skip
            if name == "nvmlDeviceGetCurrentClocksEventReasons":
                raise AttributeError(name)

            def call(*words: Any) -> Any:
                if name not in answers:
                    raise self.NVMLError("Not Supported")
                return answers[name]

            return call

    assert monitor.nvml_reader("GPU-1", Fake())() == Reading(0x20, 1755, 650, 64, None, None, 700, None)


def test_a_cpu_multiplies_in_fp32_only() -> None:
    assert usable(["tf32", "bf16"], CPU) == (["fp32"], ["tf32", "bf16"])
    assert usable(["fp32", "fp8"], CPU) == (["fp32"], ["fp8"])


def test_the_fixed_matrix_is_the_same_everywhere() -> None:
    first = fixed_matrix(64, 1, torch.float32)
    assert torch.equal(first, fixed_matrix(64, 1, torch.float32)) and not torch.equal(
        first, fixed_matrix(64, 2, torch.float32)
    )
    assert first.abs().max() <= 1 and first[0, 0].item() == 0.5152631998062134


def test_smi_is_asked_for_what_is_parsed() -> None:
    argv = monitor.query("GPU-1", "clocks_event_reasons.active")
    assert argv[:3] == ["nvidia-smi", "-i", "GPU-1"]
    assert len(argv[3].split(",")) == len(LINE.split(","))
    assert Path(argv[0]).name == "nvidia-smi"
