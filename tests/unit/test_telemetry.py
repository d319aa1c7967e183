"""Samples of devices: written a row at a time, halved when there are many, read back as arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.runs.telemetry import (
    Device,
    Header,
    Writer,
    from_rows,
    last_rows,
    merged,
    read_attempt,
    read_node,
)

GPUS = tuple(Device(i, f"GPU-{i}", "NVIDIA H100", memory_bytes=8e10) for i in range(2))
HEADER = Header(0, "node-1", "nvml+gpm", "sm_active", 1.0, 1000.0, GPUS)


def row(t: float, *use: float | None) -> dict[str, object]:
    return {"t": t, "d": [{} if u is None else {"sm_pct": u, "reasons": 4 if u > 90 else 0} for u in use]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "telemetry" / "node_00000.jsonl"
    writer = Writer(path, HEADER)
    writer.add(row(1001, 80, 10))
    writer.add(row(1002, 90, None))
    writer.close()
    node = read_node(path)
    assert node is not None and node.header == HEADER
    assert node.times.tolist() == [1001, 1002] and node.counts.tolist() == [1, 1]
    np.testing.assert_array_equal(node.use, [[80, 10], [90, np.nan]])
    assert np.isnan(node.column("power_w")).all(), "what no device told is not there, and never 0"
    assert node.between(1001.5, 1003).times.tolist() == [1002]
    assert [n.header.host for n in read_attempt(tmp_path)] == ["node-1"]


def test_a_torn_line_a_foreign_row_and_a_missing_header_end_nothing(tmp_path: Path) -> None:
    path = tmp_path / "node_00000.jsonl"
    Writer(path, HEADER).close()
    with path.open("a") as file:
        file.write(
            json.dumps(row(1001, 1, 2)) + "\n" + json.dumps(row(1002, 1)) + "\n" + '{"t": 1003, "d": [{"sm_'
        )
    node = read_node(path)
    assert node is not None and node.times.tolist() == [1001], "a row of other devices is left out"
    assert read_node(tmp_path / "none.jsonl") is None
    (tmp_path / "node_00001.jsonl").write_text('{"schema": 9}\n')
    (tmp_path / "node_00002.jsonl").write_text("")
    assert (
        read_node(tmp_path / "node_00001.jsonl") is None and read_node(tmp_path / "node_00002.jsonl") is None
    )


def test_the_end_of_a_long_file_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "node_00000.jsonl"
    writer = Writer(path, HEADER)
    for t in range(1000):
        writer.add(row(t, 50, 50))
    header, rows = last_rows(path, 1000)
    assert header == HEADER and 0 < len(rows) < 30 and rows[-1]["t"] == 999


def test_a_sampler_that_is_started_again_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "node_00000.jsonl"
    for begin in (0, 10):
        writer = Writer(path, HEADER, max_rows=8)
        for t in range(begin, begin + 10):
            writer.add(row(t, 50, 50))
        writer.close()
    node = read_node(path)
    assert node is not None and node.counts.sum() == 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=200), st.integers(2, 16))
def test_a_file_is_bounded_and_keeps_its_means(
    tmp_path_factory: pytest.TempPathFactory, uses: list[tuple[float, float]], most: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "node_00000.jsonl"
    writer = Writer(path, HEADER, max_rows=most)
    for t, use in enumerate(uses):
        writer.add(row(t, *use))
    writer.close()
    node = read_node(path)
    assert node is not None
    assert len(node.times) <= most + 1
    assert node.counts.sum() == len(uses)
    assert (np.diff(node.times) > 0).all()
    if uses:
        assert node.times[-1] == len(uses) - 1
        mean = np.average(node.use, axis=0, weights=node.counts)
        np.testing.assert_allclose(mean, np.mean(uses, axis=0), atol=0.1)


def test_two_rows_become_one() -> None:
    a = {"t": 1, "n": 3, "d": [{"sm_pct": 10, "reasons": 0b100, "processes": 1, "xid": 0}]}
    b = {"t": 2, "d": [{"sm_pct": 50, "reasons": 0b001, "processes": 2, "xid": 79, "power_w": 5}]}
    assert merged(a, b) == {
        "t": 2, "n": 4, "d": [{"sm_pct": 20, "reasons": 0b101, "processes": 2, "xid": 79, "power_w": 5}],
    }  # fmt: skip


def test_columns_that_nobody_knows_are_left_out() -> None:
    node = from_rows(HEADER, [{"t": 1, "d": [{"sm_pct": 1, "new": 3}, {"sm_pct": "x"}]}])
    assert set(node.columns) == {"sm_pct"} and np.isnan(node.use[0, 1])
