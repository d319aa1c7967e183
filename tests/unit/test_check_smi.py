"""What is read of nvidia-smi: several drivers, a lost GPU, a tool that hangs or is not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.command import Completed
from seatrial.errors import PlatformError
from seatrial.job.checks import node_gpus
from seatrial.job.checks.smi import FIELDS, Once, Process, number, parse_counters, parse_listing, whole

from .check_nodes import Tools, by_metric, fixture, make_place, put, said

H100 = Tools(listing=said(fixture("listing-570-h100x8.csv")), log=said(fixture("log-570-h100x8.xml")))


def test_a_whole_node_is_listed() -> None:
    listing = parse_listing(fixture("listing-570-h100x8.csv"))
    assert [gpu.index for gpu in listing.gpus] == list(range(8)) and not listing.problems
    first = listing.gpus[0]
    assert (first.name, first.driver, first.vbios) == (
        "NVIDIA H100 80GB HBM3",
        "570.124.06",
        "96.00.A5.00.01",
    )
    assert (first.serial, first.used_mib, first.total_mib) == ("1650000000000", 1, 81559)
    assert [gpu.pcie_gen for gpu in listing.gpus].index(4) == 3
    assert [gpu.pcie_width for gpu in listing.gpus].index(8) == 6


def test_what_a_driver_does_not_support_is_none() -> None:
    (gpu,) = parse_listing(fixture("listing-535-t4.csv")).gpus
    assert (gpu.serial, gpu.vbios, gpu.pcie_width, gpu.pcie_width_max) == (None, None, None, None)
    assert (gpu.pcie_gen, gpu.pcie_gen_max, gpu.used_mib) == (1, 3, 0)


@pytest.mark.parametrize(
    ("name", "left", "said_of"),
    [("listing-550-a100x8-lost-row.csv", 7, "[GPU is lost]"), ("listing-610-h100x8-lost-line.csv", 7, "GPU1: 0000:3B:00.0")],
)  # fmt: skip
def test_a_lost_gpu_is_not_counted_and_is_named(tmp_path: Path, name: str, left: int, said_of: str) -> None:
    place = make_place(tmp_path, Tools(listing=said(fixture(name), code=15)))
    count = by_metric(list(node_gpus.gpus(place)))["gpu_count", None]
    assert count.value == left
    assert said_of in count.reason


def test_a_driver_that_lists_nobody_for_one_that_is_lost_is_asked_for_each(tmp_path: Path) -> None:
    lines = fixture("listing-570-h100x8.csv").splitlines()
    by_bus = {line.split(", ")[1].lower().removeprefix("0000"): line for line in lines}
    lost = "0000:3b:00.0"

    def answer(argv: Sequence[str]) -> Completed:
        wanted = [word.removeprefix("--id=") for word in argv if word.startswith("--id=")]
        if wanted and wanted[0] == "0000:4c:00.0":
            raise PlatformError("nvidia-smi did not end within 12 s")
        if not wanted or wanted[0] == lost:
            return said(f"Unable to determine the device handle for GPU {lost}: Unknown Error\n", code=255)
        return said(by_bus[wanted[0]] + "\n")

    place = make_place(tmp_path, Tools(listing=answer))
    put(place.root, {"proc/2/comm": "kthreadd\n"})
    for bus in by_bus:
        put(
            place.root,
            {
                f"sys/bus/pci/devices/{bus}/vendor": "0x10de\n",
                f"sys/bus/pci/devices/{bus}/class": "0x030200\n",
            },
        )
    put(
        place.root,
        {
            "sys/bus/pci/devices/0000:18:00.0/vendor": "0x15b3\n",
            "sys/bus/pci/devices/0000:18:00.0/class": "0x020700",
        },
    )
    count = by_metric(list(node_gpus.gpus(place)))["gpu_count", None]
    assert count.value == 6
    assert "device handle for GPU 0000:3b:00.0" in count.reason
    assert lost in count.detail["on_bus"] and len(count.detail["on_bus"]) == 8


def test_gpus_that_are_kept_from_this_job_are_not_lost(tmp_path: Path) -> None:
    device = {"vendor": "0x10de\n", "class": "0x030200\n"}
    for comm, visible, expected in (
        ("bash", None, None),
        ("kthreadd", "0,1", None),
        ("kthreadd", None, ["0000:19:00.0"]),
    ):
        place = make_place(tmp_path, H100, visible=visible)
        put(place.root, {f"sys/bus/pci/devices/0000:19:00.0/{key}": value for key, value in device.items()})
        put(place.root, {"proc/2/comm": f"{comm}\n"})
        assert by_metric(list(node_gpus.gpus(place)))["gpu_count", None].detail["on_bus"] == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("2,0", [2, 0]), ("", []), ("7,9,1", [7]), ("GPU-00000003", [3]), ("-1", [])],
)
def test_only_the_jobs_gpus_are_counted(visible: str, expected: list[int]) -> None:
    listing = parse_listing(fixture("listing-570-h100x8.csv"), visible)
    assert [int(gpu.uuid[4:12]) for gpu in listing.gpus] == expected
    assert [gpu.index for gpu in listing.gpus] == list(range(len(expected)))


def test_parts_of_gpus_are_not_counted_as_none(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="MIG instances"):
        make_place(tmp_path, H100, visible="MIG-12345678-aaaa").smi.listing()
    assert len(make_place(tmp_path, H100, visible="0,1").smi.listing().gpus) == 2


def test_no_gpu_is_an_answer_and_no_driver_is_none(tmp_path: Path) -> None:
    place = make_place(tmp_path, Tools(listing=said("No devices were found\n", code=6)))
    (count,) = node_gpus.gpus(place)
    assert count.value == 0 and count.reason == "No devices were found"
    mismatch = "Failed to initialize NVML: Driver/library version mismatch"
    place = make_place(tmp_path, Tools(listing=said(mismatch, code=18)))
    with pytest.raises(PlatformError) as caught:
        place.smi.listing()
    assert caught.value.evidence == mismatch


def test_counters_of_new_and_old_drivers() -> None:
    h100 = parse_counters(fixture("log-570-h100x8.xml"))
    assert len(h100) == 8
    good, bad = h100[:2]
    assert (good.ecc, good.uncorrected, good.corrected, good.corrected_ever) == (True, 0, 3, 8)
    assert (good.sram_threshold_exceeded, good.remap_pending, good.remap_failed) == (False, False, False)
    assert (bad.uncorrected, bad.uncorrected_ever, bad.sram_uncorrected_ever) == (3, 7, 5)
    assert (bad.sram_threshold_exceeded, bad.remap_pending, bad.remapped) == (
        True, True, {"correctable": 1, "uncorrectable": 2},
    )  # fmt: skip
    assert bad.clock_reasons == ("hw_slowdown", "hw_thermal_slowdown")
    (v100,) = parse_counters(fixture("log-418-v100.xml"))
    assert (v100.uncorrected, v100.corrected, v100.uncorrected_ever, v100.corrected_ever) == (1, 12, 2, 40)
    assert (v100.sram_uncorrected_ever, v100.remap_pending) == (None, None)
    assert v100.clock_reasons == ("sw_power_cap",)
    assert v100.processes == (Process(77, None, None),)


def test_what_is_not_supported_is_not_measured(tmp_path: Path) -> None:
    tools = Tools(listing=said(fixture("listing-535-t4.csv")), log=said(fixture("log-535-t4.xml")))
    place = make_place(tmp_path, tools, nproc=1)
    found = [*node_gpus.ecc(place), *node_gpus.row_remap(place)]
    assert all(sample.value is None and sample.reason for sample in found)
    assert by_metric(found)["ecc_uncorrected", 0].reason == "ECC is off"
    width = by_metric(list(node_gpus.pcie(place)))["pcie_width", 0]
    assert width.value is None and "not available" in width.reason


def test_each_gpu_has_its_samples(tmp_path: Path) -> None:
    found = by_metric([
        *node_gpus.gpus(make_place(tmp_path, H100)), *node_gpus.ecc(make_place(tmp_path, H100)),
        *node_gpus.row_remap(make_place(tmp_path, H100)), *node_gpus.pcie(make_place(tmp_path, H100)),
    ])  # fmt: skip
    assert [found["ecc_uncorrected", gpu].value for gpu in range(8)] == [0, 3, 0, 0, 0, 0, 0, 0]
    assert [found["sram_uncorrected", gpu].value for gpu in range(2)] == [0, 5]
    assert found["row_remap_pending", 1].value is True and found["row_remap_failed", 1].value is False
    assert found["pcie_gen", 3].value == 4 and found["pcie_gen", 3].detail["max_gen"] == 5
    assert found["pcie_width", 6].value == 8 and found["pcie_width", 6].detail["under_load"] is False
    assert found["gpu_model", 7].value == "NVIDIA H100 80GB HBM3"
    assert len(found["gpu_count", None].detail["uuids"]) == 8


def test_processes_are_named_by_pid(tmp_path: Path) -> None:
    own = fixture("log-570-h100x8.xml").replace("4000123", str(os.getpid()))
    place = make_place(tmp_path, Tools(listing=H100.answers["listing"], log=said(own)))
    put(place.root, {"proc/2/comm": "kthreadd\n"})
    (row,) = by_metric(list(node_gpus.gpu_idle(place)))["gpu_memory_used", 1].detail["processes"]
    assert row == {
        "pid": os.getpid(), "name": "python3", "user": psutil.Process().username(), "mib": 1024.0, "ours": True,
    }  # fmt: skip
    assert node_gpus.describe(Process(1, "x", None))["ours"] is False


def test_a_container_says_that_it_does_not_see_the_hosts_pids(tmp_path: Path) -> None:
    place = make_place(tmp_path, H100)
    put(place.root, {"proc/2/comm": "bash\n"})
    found = by_metric(list(node_gpus.gpu_idle(place)))
    assert found["gpu_memory_used", 1].value == 1 and "host's pids" in found["gpu_memory_used", 1].reason
    (row,) = found["gpu_memory_used", 1].detail["processes"]
    assert (row["pid"], row["user"], row["ours"]) == (4000123, None, False)


def test_memory_is_known_where_counters_are_not(tmp_path: Path) -> None:
    place = make_place(
        tmp_path, Tools(listing=H100.answers["listing"], log=said("Segmentation fault", code=139))
    )
    sample = by_metric(list(node_gpus.gpu_idle(place)))["gpu_memory_used", 0]
    assert sample.value == 1 and "no XML" in sample.reason


def test_counters_are_asked_for_one_by_one_where_one_gpu_is_lost(tmp_path: Path) -> None:
    whole_log = fixture("log-570-h100x8.xml")
    head, *gpus = whole_log.removesuffix("</nvidia_smi_log>\n").split("\t<gpu ")

    def answer(argv: Sequence[str]) -> Completed:
        uuid = next((word[5:] for word in argv if word.startswith("--id=")), None)
        if uuid is None:
            return said("GPU is lost. Reboot the system to recover this GPU", code=15)
        return said(head + "".join("\t<gpu " + gpu for gpu in gpus if uuid in gpu) + "</nvidia_smi_log>")

    tools = Tools(listing=said(fixture("listing-610-h100x8-lost-line.csv")), log=answer)
    counters = make_place(tmp_path, tools).smi.counters()
    assert len(counters) == 7 and sum(one.uncorrected or 0 for one in counters.values()) == 0


def test_the_tool_is_asked_once_and_its_failure_is_everybodys(tmp_path: Path) -> None:
    tools = Tools(listing=H100.answers["listing"], log=PlatformError("nvidia-smi did not end within 12 s"))
    place = make_place(tmp_path, tools)
    for probe in (node_gpus.ecc, node_gpus.row_remap):
        with pytest.raises(PlatformError, match="did not end"):
            list(probe(place))
    list(node_gpus.pcie(place))
    assert len(tools.asked) == 2


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    listing = parse_listing(text)
    assert len(listing.gpus) + len(listing.problems) <= len(text.splitlines())
    with pytest.raises(PlatformError):
        parse_counters(text)


_field = st.text("".join(chr(n) for n in range(33, 127) if chr(n) != ","), min_size=1, max_size=12)


@settings(max_examples=30)
@given(
    st.lists(
        st.fixed_dictionaries({name: _field for name in FIELDS if name not in ("index", "uuid", "name")}),
        max_size=9,
    )
)
def test_every_line_that_is_a_gpu_is_one(rows: list[dict[str, str]]) -> None:
    whole_rows = [{**row, "index": str(i), "uuid": f"GPU-{i}", "name": "H100"} for i, row in enumerate(rows)]
    listing = parse_listing("\n".join(", ".join(row[name] for name in FIELDS) for row in whole_rows))
    assert [gpu.uuid for gpu in listing.gpus] == [row["uuid"] for row in whole_rows]
    assert all(gpu.used_mib is None or isinstance(gpu.used_mib, float) for gpu in listing.gpus)


@given(st.integers(0, 10**6), st.sampled_from(["", "x", " MiB", " %", " W"]))
def test_a_number_is_read_with_any_unit(value: int, unit: str) -> None:
    assert number(f" {value}{unit}") == whole(f"{value}{unit}") == value


@pytest.mark.parametrize("text", ["[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "", None, "ERR!"])
def test_what_is_no_number_is_none(text: str | None) -> None:
    assert number(text) is None


def test_a_reading_that_failed_fails_for_all() -> None:
    calls = []

    def read() -> int:
        calls.append(1)
        raise ValueError("no")

    once = Once(read)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            once()
    assert len(calls) == 1
