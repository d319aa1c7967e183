"""What is read of a node besides its GPUs: the kernel's log, the network cards, limits, disks."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.job.checks import disks, fabric, kernel_log, system
from seatrial.job.checks.kernel_log import parse_xids
from seatrial.job.checks.shared import look

from .check_nodes import Tools, by_metric, fixture, make_place, make_task, put, said


def xids(text: str) -> list[tuple[int, str, float | None]]:
    return [(row["xid"], row["device"], row["seconds_after_boot"]) for row in parse_xids(text.splitlines())]


def test_xids_of_dmesg() -> None:
    assert xids(fixture("dmesg.txt")) == [
        (31, "0000:3b:00", 8123.512345), (79, "0000:4c:00", 91234.678901), (94, "0000:5d:00", 91240.1),
    ]  # fmt: skip
    assert parse_xids(fixture("dmesg.txt").splitlines())[1]["line"].endswith("GPU has fallen off the bus.")


def test_xids_of_kmsg_and_the_journal() -> None:
    assert xids(fixture("kmsg.txt")) == [(48, "0000:3b:00", 8123.512345)]
    assert xids(fixture("journal.txt")) == [(13, "0000:19:00", 4411.2211)]


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1e7, allow_nan=False)), max_size=20), st.text())
def test_every_xid_is_found_in_any_noise(logged: list[tuple[int, float]], noise: str) -> None:
    noise = noise.replace("NVRM", "")
    lines = []
    for number, seconds in logged:
        lines += [noise, f"[{seconds:12.6f}] NVRM: Xid (PCI:0000:3b:00): {number}, pid=1, x"]
    found = parse_xids(lines)
    assert [row["xid"] for row in found] == [number for number, _ in logged]
    assert all(abs(row["seconds_after_boot"] - s) < 1e-5 for row, (_, s) in zip(found, logged, strict=True))


REFUSED = said(code=1, stderr="dmesg: read kernel buffer failed: Operation not permitted")
HINT = "Hint: You are currently not seeing messages from other users and the system."


def test_without_permission_xids_are_not_measured(tmp_path: Path) -> None:
    tools = Tools(dmesg=REFUSED, journalctl=said("-- No entries --\n", stderr=HINT))
    (sample,) = kernel_log.xid(make_place(tmp_path, tools))
    assert sample.value is None
    for word in ("Operation not permitted", "kmsg", "not seeing messages", "dmesg_restrict"):
        assert word in sample.reason


def test_the_first_log_that_reaches_back_to_the_boot_is_read(tmp_path: Path) -> None:
    tools = Tools(dmesg=REFUSED, journalctl=said(fixture("journal.txt")))
    place = make_place(tmp_path, tools)
    (sample,) = kernel_log.xid(place)
    assert (sample.detail["source"], [row["xid"] for row in sample.value]) == ("journalctl -k -b", [13])
    put(place.root, {"dev/kmsg": fixture("kmsg.txt")})
    (sample,) = kernel_log.xid(place)
    assert (sample.detail["source"], [row["xid"] for row in sample.value]) == ("/dev/kmsg", [48])


def test_a_log_without_its_beginning_says_so(tmp_path: Path) -> None:
    rest = "\n".join(fixture("dmesg.txt").splitlines()[4:])
    (sample,) = kernel_log.xid(make_place(tmp_path, Tools(dmesg=said(rest))))
    assert len(sample.value) == 3 and "begins 8124 s after boot" in sample.reason
    tools = Tools(dmesg=said(rest), journalctl=said(fixture("journal.txt")))
    (sample,) = kernel_log.xid(make_place(tmp_path, tools))
    assert sample.detail["source"] == "journalctl -k -b" and not sample.reason


def port(root: Path, name: str, number: int = 1, **changes: str) -> None:
    values = {"state": "4: ACTIVE", "phys_state": "5: LinkUp", "link_layer": "InfiniBand", "rate": "400 Gb/sec (4X NDR)",
              "counters/link_downed": "0", "counters/link_error_recovery": "0", "counters/symbol_error": "0"} | changes  # fmt: skip
    base = f"sys/class/infiniband/{name}"
    put(root, {f"{base}/ports/{number}/{key}": f"{value}\n" for key, value in values.items()})
    put(root, {f"{base}/fw_ver": "28.39.1002\n"})


def test_infiniband_ports(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    port(place.root, "mlx5_0")
    port(
        place.root,
        "mlx5_1",
        state="1: DOWN",
        phys_state="3: Disabled",
        rate="10 Gb/sec (4X SDR)",
        **{"counters/link_downed": "7"},
    )
    (sample,) = fabric.infiniband(place)
    good, bad = sample.value
    assert good == {
        "device": "mlx5_0", "port": 1, "state": "ACTIVE", "physical_state": "LinkUp", "link_layer": "InfiniBand",
        "rate_gbps": 400.0, "link_downed": 0, "link_error_recovery": 0, "symbol_errors": 0, "firmware": "28.39.1002",
    }  # fmt: skip
    assert (bad["state"], bad["physical_state"], bad["rate_gbps"], bad["link_downed"]) == (
        "DOWN",
        "Disabled",
        10,
        7,
    )


def test_no_card_is_an_answer_and_a_missing_counter_is_none(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    (sample,) = fabric.infiniband(place)
    assert sample.value == [] and "no RDMA device" in sample.reason
    put(place.root, {"sys/class/infiniband/efa_0/ports/1/state": "4: ACTIVE\n"})
    (sample,) = fabric.infiniband(place)
    assert sample.value[0]["link_downed"] is None and sample.value[0]["rate_gbps"] is None


def test_rdma_devices_and_peer_memory(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    found = by_metric(list(fabric.rdma(place)))
    assert found["uverbs", None].value == 0 and found["peermem", None].value is None
    put(
        place.root, {"dev/infiniband/uverbs0": "", "dev/infiniband/uverbs1": "", "dev/infiniband/rdma_cm": ""}
    )
    put(
        place.root,
        {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06"},
    )
    put(place.root, {"proc/sys/kernel/osrelease": "5.4.0-100-generic"})
    found = by_metric(list(fabric.rdma(place)))
    assert found["uverbs", None].value == 2 and found["peermem", None].value is None
    put(place.root, {"proc/sys/kernel/osrelease": "6.8.0-60-generic"})
    assert fabric.peer_memory(place.root) == "dma-buf"
    put(place.root, {"sys/module/nvidia_peermem/refcnt": "0"})
    assert fabric.peer_memory(place.root) == "nvidia_peermem"


def space(*capabilities: tuple[int, int], size: int = 4096) -> bytes:
    """A configuration space with extended capabilities (id, control word at offset 6)."""
    data = bytearray(size)
    for number, (kind, control) in enumerate(capabilities):
        offset = 0x100 + 0x40 * number
        following = offset + 0x40 if number + 1 < len(capabilities) else 0
        struct.pack_into("<IHH", data, offset, kind | 1 << 16 | following << 20, 0, control)
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (space((0x0001, 0xFFFF), (0x000D, 0x1D)), True),  # as Linux sets it: SV, RR, CR, UF
        (space((0x000D, 0x1)), False),
        (space((0x0001, 0x4)), False),
        (space(size=256), False),
        (b"\xff" * 4096, False),
        (space((0x000D, 0x4))[:0x104], False),
    ],
)
def test_access_control_of_a_bridge(content: bytes, expected: bool) -> None:
    assert fabric.redirects(content) is expected


@given(st.binary(max_size=1024))
def test_no_configuration_space_hangs_or_breaks(tail: bytes) -> None:
    fabric.redirects(bytes(256) + tail)


def test_bridges_that_only_root_may_read_are_not_measured(tmp_path: Path) -> None:
    devices = "bus/pci/devices"
    assert fabric.access_control(tmp_path)[0] == []
    put(
        tmp_path, {f"{devices}/0000:00:01.0/class": "0x060400\n", f"{devices}/0000:00:01.0/config": bytes(64)}
    )
    put(
        tmp_path,
        {f"{devices}/0000:19:00.0/class": "0x030200\n", f"{devices}/0000:19:00.0/config": space((0x000D, 4))},
    )
    value, why, detail = fabric.access_control(tmp_path)
    assert value is None and "only for root" in why and detail["unread"] == ["0000:00:01.0"]
    put(tmp_path, {f"{devices}/0000:00:01.0/config": space((0x000D, 0x1D))})
    assert fabric.access_control(tmp_path)[0] == ["0000:00:01.0"]


def test_the_tightest_quota_counts(tmp_path: Path) -> None:
    assert system.cpu_quota(tmp_path) is None
    put(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods/pod1/c1\n",
            "sys/fs/cgroup/kubepods/pod1/c1/cpu.max": "max 100000\n",
        },
    )
    assert system.cpu_quota(tmp_path) is None
    put(tmp_path, {"sys/fs/cgroup/kubepods/pod1/cpu.max": "250000 100000\n"})
    assert system.cpu_quota(tmp_path) == 2.5
    put(tmp_path, {"proc/self/cgroup": "4:cpu,cpuacct:/job\n3:memory:/job\n", "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
                   "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"})  # fmt: skip
    assert system.cpu_quota(tmp_path) == 1.5


def test_cores_for_each_gpu_and_governors(tmp_path: Path) -> None:
    place = make_place(tmp_path, nproc=2)
    cores = len(os.sched_getaffinity(0))
    found = by_metric(list(system.cpu(place)))
    assert found["cores_per_gpu", None].value == cores / 2
    assert found["governor", None].value is None and "cpufreq" in found["governor", None].reason
    base = "sys/devices/system/cpu"
    put(
        place.root,
        {
            f"{base}/cpu0/cpufreq/scaling_governor": "performance\n",
            f"{base}/cpu1/cpufreq/scaling_governor": "powersave\n",
        },
    )
    put(place.root, {f"{base}/cpu7/cpufreq/scaling_governor": "ondemand\n"})
    assert system.governors(place.sysfs, [0, 1]) == ["performance", "powersave"]
    put(place.root, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert by_metric(list(system.cpu(place)))["cores_per_gpu", None].value == 0.25


def test_versions_come_from_the_kernel_module_where_the_tool_fails(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    found = by_metric(list(system.versions(place)))
    assert found["driver", None].value is None and "can't be started" in found["driver", None].reason
    assert found["torch", None].value and found["python", None].value and found["seatrial", None].value
    for line in (
        "NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue",
        "NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Rel",
    ):
        put(place.root, {"proc/driver/nvidia/version": f"NVRM version: {line}\n"})
        assert by_metric(list(system.versions(place)))["driver", None].value == "550.54.15"
    place = make_place(tmp_path, Tools(listing=said(fixture("listing-570-h100x8.csv"))))
    found = by_metric(list(system.versions(place)))
    assert (found["driver", None].value, found["vbios", None].value) == ("570.124.06", "96.00.A5.00.01")


def test_limits_are_those_of_this_process(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    for probe in (system.locked_memory, system.open_files):
        (sample,) = probe(place)
        assert sample.value == "unlimited" or sample.value > 0
    (sample,) = system.shared_memory(place)
    assert sample.value is None and "No such file" in sample.reason
    (place.root / "dev/shm").mkdir(parents=True)
    (sample,) = system.shared_memory(place)
    assert sample.value > 0 and sample.detail["free_gib"] <= sample.value


def test_disks_are_measured_and_left_clean(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    found = by_metric([*disks.local_disk(place), *disks.shared_disk(place)])
    for name in ("local_write_gb_s", "local_read_gb_s", "shared_write_gb_s"):
        sample = found[name, None]
        assert sample.value > 0 and sample.detail["size_mib"] == 4
        assert sample.detail["method"] in ("O_DIRECT", "fdatasync")
    assert found["local_free_gib", None].value > 0 and found["shared_free_gib", None].value > 0
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {Path("attempt-1/shared/node0")}


def test_a_disk_that_knows_no_direct_writes_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disks, "_reopen", lambda path: None)
    found = disks.throughput(tmp_path, 2 * disks.BLOCK)
    assert (found.direct, found.size_bytes) == (False, 2 * disks.BLOCK) and found.read_gb_s > 0


def test_a_full_disk_is_not_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Usage:
        free = disks.GIB

    monkeypatch.setattr(disks.shutil, "disk_usage", lambda path: Usage)
    found = by_metric(list(disks.local_disk(make_place(tmp_path))))
    assert found["local_free_gib", None].value == 1
    assert (
        found["local_write_gb_s", None].value is None
        and "nothing was written" in found["local_write_gb_s", None].reason
    )


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    put(tmp_path, {"proc/mounts": f"/dev/a / ext4 rw 0 0\nfs:/x {tmp_path}/my\\040data lustre rw 0 0\n"})
    (tmp_path / "my data" / "run").mkdir(parents=True)
    assert disks.file_system(tmp_path, tmp_path / "my data" / "run") == "lustre"
    assert disks.file_system(tmp_path, tmp_path) == "ext4"
    assert disks.file_system(tmp_path / "none", tmp_path) is None


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_what_others_wrote_is_read_and_checked(tmp_path: Path) -> None:
    nodes = {0: "node0", 1: "node1", 2: "node2", 3: "node3"}
    tasks = [make_task(tmp_path, node=name, node_rank=rank, nodes=nodes) for rank, name in nodes.items()]
    for task in tasks[:3]:
        disks.leave(task)
    damaged = disks.shared_path(tasks[2], "node2")
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    clock = Clock()
    found = by_metric(look(tasks[0], patience_s=30, clock=clock, sleep=clock.sleep))
    visible = found["shared_visible", None]
    assert visible.value == ["node1"] and clock.now >= 30
    assert "another hash" in visible.detail["missing"]["node2"]
    assert visible.detail["missing"]["node3"] == "No such file or directory"
    assert found["shared_read_gb_s", None].value > 0


def test_a_file_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    late = make_task(tmp_path, node="node1", node_rank=1)
    timer = threading.Timer(0.3, disks.leave, [late])
    timer.start()
    found = by_metric(look(make_task(tmp_path), patience_s=20))
    timer.join()
    assert (
        found["shared_visible", None].value == ["node1"]
        and not found["shared_visible", None].detail["missing"]
    )


def test_reading_ends_in_time_however_many_nodes_there_are(tmp_path: Path) -> None:
    nodes = {n: f"node{n}" for n in range(50)}
    clock = Clock()

    def slow() -> float:
        clock.now += 1
        return clock.now

    found = by_metric(look(make_task(tmp_path, nodes=nodes), patience_s=10, clock=slow, sleep=clock.sleep))
    missing = found["shared_visible", None].detail["missing"]
    assert clock.now < 15 and len(missing) == 49
    assert missing["node1"] == "No such file or directory" and missing["node49"] == "not looked for"


def test_a_single_node_reads_nobodys_file(tmp_path: Path) -> None:
    found = by_metric(look(make_task(tmp_path, nodes={0: "node0"}), patience_s=0))
    assert (
        found["shared_visible", None].value is None
        and "no other node" in found["shared_visible", None].reason
    )


@pytest.mark.parametrize(("nodes", "mib"), [(1, 64), (8, 32), (64, 4), (1024, 1)])
def test_the_more_nodes_the_smaller_the_files(tmp_path: Path, nodes: int, mib: int) -> None:
    task = make_task(tmp_path, nodes={n: f"node{n}" for n in range(nodes)}, options={})
    disks.leave(task)
    size, _ = disks.read_left(disks.shared_path(task, "node0"))
    assert size == mib * 2**20 + 32
