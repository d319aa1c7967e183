"""The gate between phases, as the conductor starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seatrial.check import gate
from seatrial.runs import samples
from seatrial.runs.files import write_text
from seatrial.runs.samples import Sample
from tests.unit.check_samples import host, names, spec, with_value


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    wanted = spec("report", "versions", "gpus", "gemm")
    write_text(tmp_path / "spec.json", wanted.model_dump_json(by_alias=True))
    return tmp_path


def wrote(run_dir: Path, rows: list[Sample]) -> None:
    for row in rows:
        samples.append(run_dir / "attempt-1" / "samples" / f"{row.node}.jsonl", [row])


def said(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    assert gate.main([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return dict(json.loads(lines[0]))


def test_healthy_nodes_all_go_on(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrote(run_dir, [s for node in names(3) for s in host(node, gpus=1)])
    assert said(capsys, run_dir, 1, "--after", 0) == {"leave_out": {}, "peak_tflops": 989.0}


def test_who_would_mislead_the_others_is_left_out_with_the_reason(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [s for node in names(3) for s in host(node, gpus=1)]
    wrote(run_dir, with_value(rows, "nccl", "node001", "2.18.1"))
    answer = said(capsys, run_dir, 1, "--after", 0, "--nodes", "node000,node001,node002,node009")
    assert answer["leave_out"] == {
        "node001": "nccl is 2.18.1; 2 of 3 nodes have 2.27.5",
        "node009": "it never reported",
    }


def test_what_should_be_measured_again_is_said_when_asked(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [s for node in names(2) for s in host(node, gpus=4)]
    rows += [
        Sample(
            check="gemm",
            metric="gemm_bf16",
            node=node,
            gpu=gpu,
            unit="TFLOP/s",
            value=660.0 if (node, gpu) == ("node001", 2) else 745.0,
        )
        for node in names(2)
        for gpu in range(4)
    ]
    wrote(run_dir, rows)
    answer = said(capsys, run_dir, 1, "--after", 1, "--suspects")
    assert answer["leave_out"] == {}
    assert answer["again"] == {"parts": [{"check": "gemm", "node": "node001", "gpu": 2}], "pairs": []}


def test_a_directory_that_is_no_acceptance_test_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate.main([str(tmp_path), "1", "--after", "0"]) == 2
    assert "is not an acceptance test" in capsys.readouterr().err
