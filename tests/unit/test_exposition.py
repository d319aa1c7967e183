"""Runs and GPUs as Prometheus metrics: names, units and labels of dcgm-exporter where it measures the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.errors import SpecError
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from seatrial.watch import exporter
from seatrial.watch.exporter import Exporter, active_runs, serve, text
from seatrial.watch.exposition import families
from seatrial.watch.picture import Picture
from tests.trees import make_run

from .test_view import PROCESSORS, devices, picture

GOLDEN = Path(__file__).parents[1] / "golden" / "exporter.txt"
pytest.importorskip("prometheus_client", reason="needs prometheus-client")


def exposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *pictures: Picture) -> str:
    """The answer over these runs; what depends on the machine is left out."""
    runs = iter(pictures)
    monkeypatch.setattr(
        exporter, "active_runs", lambda root, now: [RunPaths(tmp_path / p.run_id) for p in pictures]
    )
    answer = text(Exporter(tmp_path, lambda paths: next(runs)))
    return "".join(
        line
        for line in answer.splitlines(True)
        if "seconds" not in line.split("{")[0] and "run_root" not in line
    )


def test_two_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Callable[[str, Path], None]
) -> None:
    shown = replace(picture(2, 2), handle="slurm://4711/seatrial", devices=picture(2, 2).devices[:3])
    golden(exposed(tmp_path, monkeypatch, shown, replace(PROCESSORS, run_id="laptop-run")), GOLDEN)


def test_units_are_dcgms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = exposed(tmp_path, monkeypatch, picture(1, 1))
    labels = 'gpu="0",hpc_job="",modelName="NVIDIA H100 80GB HBM3"'
    for name, value in (
        ("DCGM_FI_DEV_GPU_UTIL", "99.0"),
        ("DCGM_FI_PROF_SM_ACTIVE", "0.8"),
        ("DCGM_FI_DEV_FB_USED", "62976.0"),
    ):
        line = next(line for line in answer.splitlines() if line.startswith(name + "{"))
        assert labels in line and line.endswith(" " + value)


def test_what_was_not_told_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = exposed(tmp_path, monkeypatch, Picture("r", "r", "pending"))
    assert "seatrial_run_info" in answer and "seatrial_run_loss" not in answer and "DCGM" not in answer
    assert "seatrial_queue_pending 1.0" in answer


@settings(max_examples=50, deadline=None)
@given(st.lists(devices, max_size=6), st.text(max_size=30))
def test_every_answer_can_be_parsed(found: list[object], name: str) -> None:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families

    shown = replace(picture(1, 1), name=name, devices=tuple(found))  # type: ignore[arg-type]

    class Made:
        def collect(self) -> object:
            for family in families([shown]):
                metric = Metric(family.name, family.help, family.kind)
                for labels, value in family.samples:
                    metric.add_sample(family.name, labels, value)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Made())  # type: ignore[arg-type]
    parsed = [
        s for f in text_string_to_metric_families(generate_latest(registry).decode()) for s in f.samples
    ]
    assert len(parsed) == sum(len(f.samples) for f in families([shown]))
    assert next(s for s in parsed if s.name == "seatrial_run_info").labels["name"] == name


def test_one_bad_run_hides_no_other_and_close_scrapes_share_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, now = [], [1000.0]

    def look(paths: RunPaths) -> Picture:
        looked.append(paths.run_id)
        if paths.run_id == "bad":
            raise SpecError("it can't be read")
        return Picture(paths.run_id, "x", "running")

    monkeypatch.setattr(
        exporter, "active_runs", lambda root, at: [RunPaths(tmp_path / n) for n in ("bad", "good")]
    )
    asked = Exporter(tmp_path, look, clock=lambda: now[0])
    names = {f.name: f.samples for f in asked.families()}
    assert names["seatrial_exporter_unreadable_runs"][0][1] == 1 and len(names["seatrial_run_info"]) == 1
    now[0] += 0.5
    asked.families()
    assert looked == ["bad", "good"]
    now[0] += 1
    asked.families()
    assert len(looked) == 4


def test_runs_that_are_over_are_told_of_for_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "runs"
    make_run(root, "ended")  # at 10:01 that day
    make_run(root, "going", state=RunState.RUNNING)
    from datetime import UTC, datetime

    at = datetime(2026, 11, 26, 10, 5, tzinfo=UTC).timestamp()
    assert sorted(p.run_id for p in active_runs(root, at)) == ["ended", "going"]
    assert [p.run_id for p in active_runs(root, at + 600)] == ["going"]
    assert active_runs(tmp_path / "none", at) == []


@pytest.mark.parametrize("address", ["0.0.0.0", "10.0.0.1", "::"])
def test_others_are_not_let_in_without_encryption(tmp_path: Path, address: str) -> None:
    with pytest.raises(SpecError, match="can be reached by others"):
        serve(Exporter(tmp_path, lambda paths: Picture("r", "r", "running")), address, 0)
    with pytest.raises(SpecError, match="go together"):
        serve(
            Exporter(tmp_path, lambda paths: Picture("r", "r", "running")),
            address,
            0,
            certificate=tmp_path / "c.pem",
        )
