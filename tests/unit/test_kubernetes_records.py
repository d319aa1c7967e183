"""What pods tell in their logs arrives whole, in order and once, whatever the streams do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seatrial.backends.kubernetes import records
from seatrial.backends.kubernetes.courier import Courier, of_first, of_other
from seatrial.backends.kubernetes.delivery import MERGED, Delivery
from seatrial.backends.kubernetes.records import End, Grown, Piece
from seatrial.runs.paths import RunPaths

TEXT = st.binary(max_size=20_000)


@given(st.binary(max_size=30_000), st.integers(0, 10**9))
def test_a_file_that_grows_comes_back(data: bytes, offset: int) -> None:
    at = offset
    back = b""
    for line in records.grown_lines("a/b.log", offset, data, final=True):
        assert b"\n" not in line
        assert len(line) < 16_000
        record = records.parse(line)
        assert isinstance(record, Grown)
        assert record.offset == at
        at += len(record.data)
        back += record.data
    # A last line without an end has none here either.
    assert back == data


@given(st.binary(max_size=30_000))
def test_a_file_that_comes_whole_comes_back(data: bytes) -> None:
    pieces = [records.parse(line) for line in records.whole_lines("x.json", 7, data)]
    assert all(isinstance(piece, Piece) and piece.count == len(pieces) for piece in pieces)
    assert b"".join(piece.data for piece in pieces if isinstance(piece, Piece)) == data


@given(st.binary(max_size=200))
def test_no_line_breaks_it(line: bytes) -> None:
    records.parse(line.replace(b"\n", b""))


def test_names_that_lead_out_are_no_records() -> None:
    for name in ("/etc/passwd", "../x", "a/../../x"):
        assert records.parse(f"[{name} +0] x".encode()) is None


class Pod:
    """A run's directory in the cluster, and its log."""

    def __init__(self, root: Path) -> None:
        self.paths = RunPaths(root)
        self.lines: list[bytes] = []
        self.paths.attempt(0).logs.mkdir(parents=True)

    def courier(self) -> Courier:
        return Courier(self.paths.root, 0, of_first(2), self.lines.append)


def here(root: Path) -> Delivery:
    (root / "run").mkdir(parents=True, exist_ok=True)
    return Delivery(RunPaths(root / "run"))


def give(delivery: Delivery, lines: list[bytes], start: int = 0) -> None:
    for i, line in enumerate(lines):
        delivery.lines.put(("p", f"2026-01-01T00:00:00.{start + i:09d}Z", line))
    delivery.write({"p": 0})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["metrics.jsonl", "attempt-0/logs/rank_00000.log", "attempt-0/logs/rank_00001.log"]
            ),
            TEXT,
        ),
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_what_is_told_again_changes_nothing(
    tmp_path_factory: Any, writes: list[tuple[str, bytes]], seed: int
) -> None:
    root = tmp_path_factory.mktemp("run")
    pod, copy = Pod(root / "there"), here(root)
    courier = pod.courier()
    for name, data in writes:
        with (pod.paths.root / name).open("ab") as file:
            file.write(data)
        courier._listed_at = float("-inf")
        courier._look()
    (pod.paths.root / "attempt-0" / "facts.json").write_text("{}")
    (pod.paths.root / "attempt-0" / "exit.json").write_text('{"outcome": "completed"}')
    courier.finish(last=True)
    rng = random.Random(seed)
    at = 0
    while at < len(pod.lines):
        # Streams that are cut begin again a little before where they were.
        start = max(0, at - rng.randint(0, 5))
        end = min(len(pod.lines), at + rng.randint(1, 10))
        give(copy, pod.lines[start:end], start)
        at = end
    assert not (root / "run" / "attempt-0" / "exit.json").exists(), "the last word comes last"
    copy.release()
    assert copy.missing() == []
    for path in pod.paths.root.rglob("*"):
        if path.is_file() and path.name != "plan.json" and path.stat().st_size:
            assert (root / "run" / path.relative_to(pod.paths.root)).read_bytes() == path.read_bytes()


def test_a_gap_is_seen_and_filled(tmp_path: Path) -> None:
    pod, copy = Pod(tmp_path / "there"), here(tmp_path)
    log = pod.paths.attempt(0).rank_log(0)
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    pod.courier().finish(last=True)
    give(copy, [line for line in pod.lines if b"line 1" not in line])  # rotated away
    assert copy.missing() == ["attempt-0/logs/rank_00000.log"]
    again: list[bytes] = []
    Courier(pod.paths.root, 0, lambda name: True, again.append).tell(copy.sizes())
    copy.gaps.clear()
    give(copy, again, 1000)
    assert copy.missing() == []
    assert (tmp_path / "run/attempt-0/logs/rank_00000.log").read_text() == log.read_text()


def test_a_copy_goes_on_in_another_process(tmp_path: Path) -> None:
    pod, copy = Pod(tmp_path / "there"), here(tmp_path)
    pod.paths.attempt(0).rank_log(0).write_text("one\ntwo\nthree\n")
    pod.courier().finish(last=True)
    give(copy, pod.lines[:2])
    other = here(tmp_path)
    assert other.pods["p"].time == copy.pods["p"].time
    give(other, pod.lines, 0)
    assert (tmp_path / "run/attempt-0/logs/rank_00000.log").read_text() == "one\ntwo\nthree\n"


def test_lines_of_all_ranks_are_merged_by_time(tmp_path: Path) -> None:
    copy = here(tmp_path)
    copy.lines.put(("b", "2026-01-01T00:00:02.000000000Z", b"[attempt-0/logs/rank_00001.log +0] second"))
    copy.lines.put(("a", "2026-01-01T00:00:01.000000000Z", b"[attempt-0/logs/rank_00000.log +0] first"))
    copy.write({"a": 0, "b": 1})
    assert (tmp_path / "run/attempt-0/logs" / MERGED).read_text().splitlines() == [
        "2026-01-01T00:00:01.000000000Z 0/0 first",
        "2026-01-01T00:00:02.000000000Z 1/1 second",
    ]


def test_every_file_is_told_by_one_pod() -> None:
    first, others = of_first(4), [of_other(0, rank, 4) for rank in (1, 2)]
    for rank in range(12):
        name = f"attempt-0/logs/rank_{rank:05d}.log"
        assert [mine(name) for mine in (first, *others)] == [rank // 4 == node for node in range(3)]
    assert first("metrics.jsonl")
    assert not any(mine("metrics.jsonl") for mine in others)
    assert not first("manifest.json")
    for name in (
        "logs/agent_00001.log",
        "telemetry/node_00001.jsonl",
        "phases/rank_00005.jsonl",
        "logs/sampler_00001.log",
    ):
        assert [mine(f"attempt-0/{name}") for mine in (first, *others)] == [False, True, False], name
    assert not any(mine("attempt-0/events/rank_00005.jsonl") for mine in (first, *others))
    assert first("attempt-0/events/rank_00000.jsonl")


def test_a_plan_names_the_directory_that_it_lies_in(tmp_path: Path) -> None:
    copy = here(tmp_path)
    data = json.dumps({"run_dir": "/seatrial/runs/x", "attempt": 1}).encode()
    give(copy, list(records.whole_lines("attempt-1/plan.json", 5, data)))
    assert json.loads((tmp_path / "run/attempt-1/plan.json").read_text())["run_dir"] == str(tmp_path / "run")


def test_an_end_says_what_is_too_large(tmp_path: Path) -> None:
    pod = Pod(tmp_path / "there")
    (pod.paths.root / "big.json").write_bytes(b"x" * (5 << 20))
    pod.courier().finish(last=True)
    end = records.parse(pod.lines[-1])
    assert isinstance(end, End)
    assert end.left == {"big.json": 5 << 20}
