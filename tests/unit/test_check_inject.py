"""Each fault on purpose: who has it, what it does, and that nobody else has it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seatrial.job.checks import fabric, host, inject, kernel_log, node_gpus, system
from seatrial.job.checks.task import Task
from seatrial.runs.samples import Sample
from seatrial.spec import injections
from seatrial.spec.checks import SUITES

from .check_nodes import Tools, by_metric, fixture, make_place, make_task, said

TESTED = {
    "slow-gpu", "slow-node", "slow-link", "lost-gpu", "wrong-driver", "small-shm", "low-memlock", "hung-probe", "dead-node",
    "dead-rank", "flipped-bits", "wrong-result", "throttling", "xid", "wrong-transport", "slow-clock",
}  # fmt: skip


class EndedError(Exception):
    pass


def task(*words: str, node_rank: int = 1, **more: Any) -> Task:
    suite = SUITES["quick"].model_dump(mode="json")
    return Task(
        node=f"node{node_rank}", node_rank=node_rank, nodes={0: "node0", 1: "node1", 2: "node2"}, nproc=4, gpu=None,
        device="cpu", checks=("versions",), suite=suite, run_dir=Path(), attempt=1, out=Path(), inject=words, **more,
    )  # fmt: skip


def test_every_fault_is_tested_here() -> None:
    assert set(injections.KINDS) == TESTED


def test_slow_gpus_and_nodes() -> None:
    words = (
        "slow-gpu:node=1,gpu=2,factor=0.8",
        "slow-gpu:node=1,gpu=3,factor=0.4",
        "slow-node:node=2,factor=0.5",
    )
    assert [inject.slow_down(task(*words), gpu) for gpu in range(4)] == [1.0, 1.0, 0.8, 0.4]
    assert [inject.slow_down(task(*words, node_rank=2), gpu) for gpu in range(2)] == [0.5, 0.5]
    assert inject.slow_down(task(*words, node_rank=0), 2) == 1.0


def test_a_slow_link_is_slow_both_ways_and_nowhere_else() -> None:
    words = ("slow-link:node=0,peer=1,factor=0.3", "slow-link:node=1,peer=2,factor=0.6")
    sends = {
        (a, b): inject.slow_send(task(*words, node_rank=a), b) for a in range(3) for b in range(3) if a != b
    }
    assert sends == {(0, 1): 0.3, (1, 0): 0.3, (1, 2): 0.6, (2, 1): 0.6, (0, 2): 1.0, (2, 0): 1.0}
    assert inject.slow_send(task(*words)) == 1.0
    slow = task(*words, "slow-node:node=1,factor=0.5")
    assert [inject.slow_send(slow, peer) for peer in (0, 2, None)] == [0.3, 0.5, 0.5]
    assert inject.slow_down(task(*words), 0) == 1.0


@given(st.floats(0.05, 1.0), st.floats(0.0, 100.0))
def test_what_is_slowed_down_takes_as_long_as_its_factor_says(factor: float, elapsed_s: float) -> None:
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        inject.stretch(elapsed_s, factor)
    assert elapsed_s + sum(slept) == pytest.approx(elapsed_s / factor)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("hung-probe", lambda given: inject.hang_if(given, 2)),
        ("dead-node", inject.silent_if),
        ("dead-rank", lambda given: inject.die_if(given, 2)),
    ],
)
def test_what_hangs_and_dies(monkeypatch: pytest.MonkeyPatch, kind: str, call: Any) -> None:
    def end(argument: float) -> None:
        raise EndedError(argument)

    monkeypatch.setattr(time, "sleep", end)
    monkeypatch.setattr(os, "_exit", end)
    call(task(f"{kind}:node=0"))
    with pytest.raises(EndedError) as caught:
        call(task(f"{kind}:node=1"))
    assert caught.value.args[0] == (inject.KILLED if kind == "dead-rank" else 3600)
    if kind != "dead-node":
        call(task(f"{kind}:node=1,gpu=3"))


@pytest.mark.parametrize("kind", ["flipped-bits", "wrong-result"])
def test_whose_results_are_false(kind: str) -> None:
    given = task(f"{kind}:node=1,gpu=0")
    assert inject.flips(given, kind, 0)
    assert not inject.flips(given, kind, 1)
    assert not inject.flips(task(f"{kind}:node=0,gpu=0"), kind, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.float64])
def test_a_flipped_bit_changes_one_number(dtype: torch.dtype) -> None:
    numbers = torch.ones(6, 7, dtype=dtype)
    inject.flip_bit(numbers)
    changed = (numbers != 1).nonzero().tolist()
    assert changed == [[3, 0]]
    assert torch.isfinite(numbers.float()).all()
    assert abs(float(numbers[3, 0]) - 1) > 0.2
    inject.flip_bit(numbers)
    assert bool((numbers == 1).all())


def test_readings_that_lie() -> None:
    given = task("throttling:node=1,gpu=0", "wrong-transport:node=1", "slow-clock:node=1,value=-12.5")
    assert [inject.throttle_reasons(given, gpu, 0x4) for gpu in (0, 1)] == [0x44, 0x4]
    assert inject.transport(given, "NET/IB") == "NET/Socket"
    assert inject.now_s(given) == pytest.approx(time.time() - 12.5, abs=1)
    assert inject.clock_offset_s(task("slow-clock:node=1")) == 60
    sound = task("throttling:node=0", "wrong-transport:node=0", "slow-clock:node=0")
    assert inject.throttle_reasons(sound, 0, 0x1) == 0x1
    assert inject.transport(sound, "NET/IB") == "NET/IB" and inject.clock_offset_s(sound) == 0


def altered(directory: Path, probe: Any, *words: str) -> dict[tuple[str, int | None], Sample]:
    tools = Tools(
        listing=said(fixture("listing-570-h100x8.csv")),
        log=said(fixture("log-570-h100x8.xml")),
        dmesg=said(fixture("dmesg.txt")),
    )
    place = make_place(directory, tools, inject=words)
    (place.root / "dev/shm").mkdir(parents=True, exist_ok=True)
    return by_metric(inject.altered(place.task, list(probe(place))))


def test_lost_gpus_are_gone_from_every_reading(tmp_path: Path) -> None:
    words = ("lost-gpu:node=0,gpu=3", "lost-gpu:node=0,gpu=5", "lost-gpu:node=1,gpu=0")
    found = altered(tmp_path, node_gpus.gpus, *words)
    count = found["gpu_count", None]
    assert count.value == 6 and count.detail["injected"] == "lost-gpu:node=0,gpu=5"
    assert count.detail["indices"] == [0, 1, 2, 4, 6, 7]
    assert [int(uuid[4:12]) for uuid in count.detail["uuids"]] == [0, 1, 2, 4, 6, 7]
    assert sorted(gpu for _, gpu in found if gpu is not None) == [0, 1, 2, 4, 6, 7]
    assert ("ecc_uncorrected", 3) not in altered(tmp_path, node_gpus.ecc, *words)
    assert altered(tmp_path, node_gpus.gpus)["gpu_count", None].value == 8


def test_a_lost_gpu_is_lost_where_nothing_lists_gpus(tmp_path: Path) -> None:
    (sample,) = inject.altered(
        make_task(tmp_path, inject=("lost-gpu:node=0",), nproc=4),
        [Sample(check="gpus", metric="gpu_count", node="node0", reason="nvidia-smi: not found")],
    )
    assert sample.value == 3 and not sample.reason


@pytest.mark.parametrize(
    ("probe", "word", "metric", "value"),
    [
        (system.versions, "wrong-driver:node=0,value=535.104.05", "driver", "535.104.05"),
        (system.versions, "wrong-driver:node=0", "driver", "470.57.02"),
        (system.shared_memory, "small-shm:node=0", "shm_gib", 0.0625),
        (system.locked_memory, "low-memlock:node=0", "locked_memory_bytes", 65536),
    ],
)
def test_other_values_are_read(tmp_path: Path, probe: Any, word: str, metric: str, value: Any) -> None:
    sound = altered(tmp_path, probe, word.replace("node=0", "node=1"))[metric, None]
    assert sound.value != value and "injected" not in sound.detail
    sample = altered(tmp_path, probe, word)[metric, None]
    assert (sample.value, sample.reason, sample.detail["injected"]) == (value, "", word)


def test_a_wrong_driver_differs_from_those_of_nodes_without_any(tmp_path: Path) -> None:
    word = "wrong-driver:node=1"
    bare = [Sample(check="versions", metric="driver", node="x", reason="nvidia-smi: not found")]
    drivers = [
        inject.altered(make_task(tmp_path, node_rank=rank, inject=(word,)), bare)[0] for rank in range(3)
    ]
    assert [sample.value for sample in drivers] == ["550.54.15", "470.57.02", "550.54.15"]
    assert all(sample.detail["injected"] == word for sample in drivers)
    assert inject.altered(make_task(tmp_path, inject=("xid:node=1",)), bare) == bare


def test_little_locked_memory_matters_to_an_infiniband_port(tmp_path: Path) -> None:
    assert altered(tmp_path, fabric.infiniband)["ib_ports", None].value == []
    sample = altered(tmp_path, fabric.infiniband, "low-memlock:node=0")["ib_ports", None]
    assert [port["state"] for port in sample.value] == ["ACTIVE"] and sample.detail["injected"]


def test_an_xid_is_added_to_those_that_are_there(tmp_path: Path) -> None:
    sample = altered(tmp_path, kernel_log.xid, "xid:node=0,value=48")["xids", None]
    assert [row["xid"] for row in sample.value] == [31, 79, 94, 48]
    assert kernel_log.parse_xids([sample.value[-1]["line"]])[0]["xid"] == 48
    sample = altered(tmp_path, kernel_log.xid, "xid:node=0")["xids", None]
    assert sample.value[-1]["xid"] == 79 and "fallen off the bus" in sample.value[-1]["line"]


def test_the_probes_of_a_node_show_its_faults(tmp_path: Path) -> None:
    place = make_place(
        tmp_path, checks=("shared_memory", "versions"), inject=("small-shm:node=0", "wrong-driver:node=0")
    )
    found = by_metric([sample for some in host.measure(place) for sample in some])
    assert found["shm_gib", None].value == 0.0625 and found["driver", None].value == "470.57.02"
