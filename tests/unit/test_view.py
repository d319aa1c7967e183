"""The live view: golden screens, and for any picture at any size nothing wider or longer than the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seatrial.watch import live
from seatrial.watch.marks import bar, duration, fitted, short, spark
from seatrial.watch.picture import DeviceNow, Picture, RankNow
from seatrial.watch.view import State, node_at, num_rows, render

GOLDEN = Path(__file__).parents[1] / "golden" / "view"
WAVE = tuple(float(50 + 45 * ((i * 7) % 10) / 10) for i in range(60))


def gpu(rank: int, index: int, use: float | None = None, **more: object) -> DeviceNow:
    use = (80.0 + (rank * 7 + index * 3) % 20) if use is None else use
    known: dict[str, object] = {
        "node": f"node-{rank:02d}", "node_rank": rank, "index": index, "uuid": f"GPU-{rank}-{index}", "name": "NVIDIA H100 80GB HBM3",
        "kind": "gpu", "metric": "sm_active", "use_pct": use, "mean_pct": use - 1, "history": WAVE, "busy_pct": 99.0, "sm_pct": use,
        "tensor_pct": use / 2, "memory_bytes": 61.5 * 2**30, "memory_total_bytes": 79.6 * 2**30, "power_w": 650.0 + index,
        "power_limit_w": 700.0, "clock_mhz": 1755.0, "temperature_c": 60.0 + index, "processes": 1,
    }  # fmt: skip
    return DeviceNow(**(known | more))  # type: ignore[arg-type]


def picture(nodes: int = 1, gpus: int = 8, **more: object) -> Picture:
    devices = [gpu(n, i) for n in range(nodes) for i in range(gpus)]
    if len(devices) > 5:
        devices[5] = gpu(0, 5, 3.0, processes=0, throttled=("power brake",))
    known: dict[str, object] = {
        "run_id": "llama-20261126-101500-3f2a", "name": "llama", "state": "running", "phase": "training", "elapsed_s": 4210.0,
        "step": 1234, "num_steps": 3000, "loss": 2.3456, "loss_history": tuple(4 - i / 60 for i in range(100)), "steps_per_s": 2.44,
        "tokens_per_s": 812_345.0, "samples_per_s": 200.0, "eta_s": 724.0, "mfu": 0.41, "mfu_of_measured": 0.57, "goodput": 0.93,
        "phases": {"data": 0.26, "forward": 0.05, "backward": 0.08, "communication": 0.01, "optimizer": 0.008, "other": 0.002},
        "cause": "data-bound: 260 of 410 ms in the loader", "gpu_hours": 9.4, "devices": tuple(devices),
        "gate": {"verdict": "FAIL", "mean_pct": 71.0, "message": "SM activity 71.0 % (mean of 8 devices over 3600 s, coverage 99%): 80 % is required"},
        "warnings": ("node-00 gpu 5: power brake", "idle: node-00 gpu 5: 3 %, no process"),
        "ranks": tuple(RankNow(r, 1234 - (r == 3), "training" if r != 3 else "reducing", 0.5 + 40 * (r == 3)) for r in range(nodes * gpus)),
    }  # fmt: skip
    return Picture(**(known | more))  # type: ignore[arg-type]


PROCESSORS = picture(1, 1, devices=(gpu(0, 0, 63.0, kind="cpu", metric="cpu_busy", node="laptop", sm_pct=None, tensor_pct=None, power_w=None,
                                        power_limit_w=None, clock_mhz=None, temperature_c=None),), mfu=None, mfu_of_measured=None)  # fmt: skip
NOTHING = Picture("new-20261126-101500-0000", "new", "pending", reason="Priority")
ENDED = picture(1, 8, state="failed", phase="", reason="rank 3 was killed by SIGKILL", eta_s=None)
LONG = picture(2, 2, run_id="a-run-with-a-name-of-sixty-letters-that-goes-on-and-on-for-ever-20261126", devices=tuple(
    gpu(n, i, node=f"computeinstance-e00abcdefghijklmnopqrstuvwxyz-{n}.eu-north1.internal", throttled=("power cap",)) for n in range(2) for i in range(2)))  # fmt: skip

SCREENS = {
    "1_gpu_80x24": (picture(1, 1), 80, 24, State()),
    "8_gpus_80x24": (picture(1, 8), 80, 24, State()),
    "8_gpus_200x50": (picture(1, 8), 200, 50, State()),
    "128_gpus_80x24": (picture(16, 8), 80, 24, State()),
    "128_gpus_200x50": (picture(16, 8), 200, 50, State()),
    "128_gpus_one_node_200x50": (picture(16, 8), 200, 50, State(node="node-00", sort="use")),
    "128_ranks_80x24": (picture(16, 8), 80, 24, State(ranks=True, keys=True)),
    "512_gpus_scrolled_80x24": (picture(64, 8), 80, 24, State(row=40)),
    "processors_80x24": (PROCESSORS, 80, 24, State()),
    "nothing_yet_80x24": (NOTHING, 80, 24, State()),
    "ended_80x24": (ENDED, 80, 24, State()),
    "long_names_80x24": (LONG, 80, 24, State()),
    "ascii_80x24": (picture(1, 8), 80, 24, State(unicode=False)),
    "small_40x10": (picture(16, 8), 40, 10, State()),
}


@pytest.mark.parametrize("name", SCREENS)
def test_screens(name: str, golden: Callable[[str, Path], None]) -> None:
    shown, width, height, state = SCREENS[name]
    golden(
        "\n".join(line.plain.rstrip() for line in render(shown, width, height, state)) + "\n",
        GOLDEN / f"{name}.txt",
    )


def test_ascii_is_ascii() -> None:
    shown, width, height, state = SCREENS["ascii_80x24"]
    assert all(line.plain.isascii() for line in render(shown, width, height, state))


percent = st.one_of(st.none(), st.floats(0, 100))
devices = st.builds(
    DeviceNow, node=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=70), node_rank=st.integers(0, 99),
    index=st.integers(0, 15), uuid=st.just(""), name=st.just("x"), kind=st.sampled_from(["gpu", "cpu"]),
    metric=st.sampled_from(["sm_active", "gpu_busy", "cpu_busy"]), use_pct=percent, mean_pct=percent,
    history=st.lists(percent, max_size=60).map(tuple), memory_bytes=st.one_of(st.none(), st.floats(0, 1e12)),
    power_w=st.one_of(st.none(), st.floats(0, 2000)), temperature_c=percent, processes=st.one_of(st.none(), st.integers(0, 999)),
    throttled=st.lists(st.sampled_from(["power cap", "power brake"]), max_size=3).map(tuple),
)  # fmt: skip
pictures = st.builds(
    Picture, run_id=st.text(st.characters(codec="ascii", categories=("L",)), min_size=1, max_size=90), name=st.just("x"),
    state=st.sampled_from(["running", "completed", "failed", "pending"]), reason=st.sampled_from(["", "one\ntwo"]),
    phase=st.sampled_from(["", "training", "evaluation"]), step=st.integers(0, 10**9), num_steps=st.one_of(st.none(), st.integers(1, 10**9)),
    loss=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    loss_history=st.lists(st.floats(-1e9, 1e9), max_size=120).map(tuple), elapsed_s=st.one_of(st.none(), st.floats(0, 1e7)),
    eta_s=st.one_of(st.none(), st.floats(0, 1e9)), tokens_per_s=st.one_of(st.none(), st.floats(0, 1e12)), mfu=st.one_of(st.none(), st.floats(0, 2)),
    phases=st.dictionaries(st.sampled_from(["data", "forward", "backward", "other"]), st.floats(0, 100)),
    cause=st.text(st.characters(codec="ascii", categories=("L", "Zs")), max_size=300), warnings=st.lists(st.text(max_size=0) | st.just("w" * 200), max_size=9).map(tuple),
    devices=st.lists(devices, max_size=40).map(tuple),
    ranks=st.lists(st.builds(RankNow, st.integers(0, 99), st.integers(0, 10**6), st.just("training"), st.floats(0, 1e6)), max_size=40).map(tuple),
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    pictures,
    st.integers(20, 300),
    st.integers(5, 100),
    st.integers(0, 50),
    st.booleans(),
    st.sampled_from(["node", "use", "power"]),
)
def test_nothing_is_wider_or_longer_than_the_terminal(
    shown: Picture, width: int, height: int, row: int, ranks: bool, sort: str
) -> None:
    lines = render(shown, width, height, State(sort=sort, row=row, ranks=ranks))
    assert 0 < len(lines) <= height
    assert max(line.cell_len for line in lines) <= width
    assert not any("\n" in line.plain for line in lines)


def test_each_gpu_can_be_reached_by_keys() -> None:
    """Down to the last node, into it, sorted by use, and back."""
    shown, state, height = picture(64, 8), State(), 24
    assert num_rows(shown, height, state) == 64
    for _ in range(70):
        state = live.pressed("j", state, shown, height)
    assert state.row == 63 and node_at(shown, height, state) == "node-63"
    assert any("node-63" in line.plain for line in render(shown, 80, height, state))
    state = live.pressed("enter", state, shown, height)
    assert (state.node, state.row) == ("node-63", 0) and num_rows(shown, height, state) == 8
    assert live.pressed("s", state, shown, height).sort == "use"
    assert live.pressed("escape", state, shown, height).node is None
    assert live.pressed("p", state, shown, height).ranks and live.pressed("?", state, shown, height).keys
    assert live.pressed("x", state, shown, height) == state


def test_sorted_by_use_the_idle_ones_come_first() -> None:
    lines = [line.plain for line in render(picture(1, 8), 120, 40, State(sort="use"))]
    first = next(line for line in lines if re.match(r"node-00 gpu", line))
    assert re.match(r"node-00 gpu 5 +3 %", first) and "power brake" in first


def test_plain_lines_say_each_thing_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = picture(1, 8)
    shown = iter(
        [
            replace(running, phase="starting", warnings=(), cause=""),
            running,
            running,
            replace(ENDED, phase=""),
        ]
    )
    monkeypatch.setattr(live.time, "sleep", lambda seconds: None)
    live.plain_lines(lambda: next(shown), 1.0)
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in out if not line.startswith(" ")] == [
        "running",
        "running",
        "failed",
    ]
    assert sum("data-bound" in line for line in out) == 1
    assert "use 76 % of 8 devices (1 under 50 %)" in out[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h 00 min"), (200_000, "2 d 7 h"), (None, "")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_marks() -> None:
    assert spark([0, 50, 100, None], 4, 100) == "▁▅█·"
    assert spark([1, 2, 3], 2) == "▁█" and spark([], 5) == "" and spark([5, 5], 2) == "▁▁"
    assert bar(50, 4) == "██░░" and bar(None, 2) == "··" and bar(250, 3) == "███"
    assert fitted(["aaaa", "bb", "cccccc", "d"], 11) == "aaaa  bb  d"
    assert short(812_345) == "812k" and short(0.0123) == "0.0123" and short(2.5e9) == "2.5G"
