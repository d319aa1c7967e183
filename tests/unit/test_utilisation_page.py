"""The page's section on the use of devices: charts, heat map, figures, and what is not known."""

from __future__ import annotations

import copy
import math
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.report import build_report
from seatrial.report.heat import colour_class, heat_map, phase_chart, runs
from seatrial.report.utilisation import section
from seatrial.runs.files import write_json

from .report_run import make_run

percent = st.one_of(st.none(), st.floats(0, 100))


def made(nodes: int = 2, gpus: int = 8, times: int = 120) -> dict[str, Any]:
    """What `seatrial watch` writes of a run with one idle GPU and a slow loader."""
    rows = [
        {"label": f"node-{n} gpu {g}", "use_pct": [None if t < 6 else (2.0 if (n, g) == (1, 5) else 60 + 30 * math.sin(t / 7 + g)) for t in range(times)]}
        for n in range(nodes) for g in range(gpus)
    ]  # fmt: skip
    seconds = [10.0 * t + 5 for t in range(times)]
    steps = list(range(10, 310, 10))
    return {
        "schema": 1, "verdict": "FAIL", "message": "SM activity 61.0 % (mean of 16 devices over 1100 s, coverage 99%): 80 % is required",
        "metric": "sm_active", "metric_name": "SM activity", "missing": "", "required_pct": 80, "mean_pct": 61.0, "coverage": 0.99,
        "idle": ["node-1 gpu 5: 2 %, no process"],
        "causes": [{"kind": "data-bound", "sentence": "data-bound: 260 of 410 ms in the loader", "evidence": ["63% of a step waits for its batch"],
                    "remedy": "more processors for each rank"}],
        "devices": [{"node": f"node-{n}", "node_rank": n, "index": g, "name": "NVIDIA H100 80GB HBM3", "mean_pct": 2.0 if (n, g) == (1, 5) else 61.0 + g,
                     "coverage": 0.99, "memory_bytes_max": 6e10, "power_w_mean": 610.0, "processes": 1.0} for n in range(nodes) for g in range(gpus)],
        "spans": [{"name": "start-up", "begin_s": 0.0, "end_s": 60.0}, {"name": "training", "begin_s": 60, "end_s": 900},
                  {"name": "evaluation", "begin_s": 900.0, "end_s": 960.0}],
        "series": {"times_s": seconds, "use_pct": [60 + 20 * math.sin(t / 9) for t in range(times)], "tensor_pct": [30.0] * times,
                   "power_w": [9000 + 900 * math.sin(t / 9) for t in range(times)], "memory_bytes": [9.6e11] * times, "clock_mhz": None},
        "heat": {"times_s": seconds, "rows": rows},
        "phases": {"steps": steps, "seconds": {"data": [0.26] * 30, "forward": [0.05] * 30, "backward": [0.08] * 30, "communication": [0.01] * 30,
                                               "optimizer": [0.008] * 30, "checkpoint": [0.002] * 30, "evaluate": [0.0] * 30}},
        "mfu": 0.21, "mfu_reason": "", "mfu_of_measured": None, "mfu_of_measured_reason": "no acceptance test of these devices is known: seatrial check",
        "goodput": 0.93, "device_hours": 5.3, "wasted_device_hours": 2.1, "price_per_gpu_hour": 2.5, "cost": 13.25, "wasted_cost": 5.25,
    }  # fmt: skip


def test_the_section_says_verdict_cause_cost_and_what_is_unmeasured() -> None:
    found = section(made())
    assert found is not None and found["title"] == "Use of the GPUs" and found["verdict"] == "FAIL"
    assert found["devices"][0][:3] == ["node-1 5", "NVIDIA H100 80GB HBM3", "2.0 %"], "the idle one first"
    facts = dict(found["facts"])
    assert facts["MFU"] == "21.0%" and facts["MFU of what the acceptance test measured"].startswith(
        "unmeasured: no acceptance test"
    )
    assert facts["Cost"] == "13.25, 5.25 of it for nothing (at 2.5 a GPU and hour)"
    assert len(found["charts"]) == 4 and "start-up" in found["charts"][0] and "node-1 gpu 5" in found["heat"]


def test_a_run_that_nobody_sampled_has_no_section() -> None:
    assert section(None) is None
    assert section(made() | {"mean_pct": None, "required_pct": None}) is None
    unmeasured = section(made() | {"mean_pct": None, "verdict": "UNMEASURED"})
    assert unmeasured is not None, "what was required and not measured is said"


def test_nothing_but_what_is_there() -> None:
    empty = made() | {
        "causes": [], "devices": [], "spans": [], "series": {"times_s": []}, "heat": {"times_s": [], "rows": []},
        "phases": {"steps": [], "seconds": {}}, "mfu": None, "goodput": None, "cost": None, "wasted_device_hours": None, "idle": [],
    }  # fmt: skip
    found = section(empty)
    assert found is not None and found["charts"] == [] and found["heat"] == ""


def test_names_are_escaped() -> None:
    hostile = copy.deepcopy(made(1, 2))
    hostile["heat"]["rows"][0]["label"] = "<script>alert(1)</script> gpu 0"
    hostile["spans"][0]["name"] = "<b>x</b>"
    found = section(hostile)
    assert found is not None and "<script>" not in found["heat"] and "<b>x" not in "".join(found["charts"])


def test_a_thousand_devices_are_drawn_small_and_soon() -> None:
    began = time.process_time()
    drawn = heat_map(made(128, 8, 160)["heat"], "SM activity")
    assert time.process_time() - began < 5
    assert len(drawn) < 2_500_000 and drawn.count("<path") <= 6
    assert len(re.findall(r"<text class=\"end small\"", drawn)) <= 40


@given(st.lists(percent, min_size=1, max_size=200))
def test_neighbours_of_one_colour_are_drawn_as_one_and_none_is_lost(values: list[float | None]) -> None:
    found = runs(values)
    assert sum(number for _, _, number in found) == len(values)
    assert [kind for kind, first, number in found for _ in range(number)] == [colour_class(v) for v in values]
    assert all(a[0] != b[0] for a, b in pairwise(found))


def test_phases_of_one_step_and_of_thousands() -> None:
    one = phase_chart({"steps": [5], "seconds": {"data": [0.1], "forward": [0.2]}})
    assert one.count("<polygon") == 2
    many = phase_chart(
        {"steps": list(range(5000)), "seconds": {"data": [0.1] * 5000, "forward": [0.2] * 5000}}
    )
    assert len(many) < 40_000 and "forward 67%" in many
    assert phase_chart({"steps": [], "seconds": {}}) == ""


@pytest.mark.parametrize("with_use", [True, False])
def test_the_whole_page(tmp_path: Path, with_use: bool) -> None:
    run = make_run(tmp_path)
    if with_use:
        write_json(run.utilisation, made())
    page = build_report(run).read_text()
    assert ("Use of the GPUs" in page) is with_use
    assert ("data-bound: 260 of 410 ms in the loader" in page) is with_use
