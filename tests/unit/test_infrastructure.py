"""Snapshots of a machine: complete, without secrets, and what changed between two."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from seatrial.cli.main import cli
from seatrial.errors import SpecError
from seatrial.launch.infrastructure import collect, differences, without_secrets
from seatrial.testing import FakeRunner
from tests.trees import make_run

SMI = (
    "GPU-1, NVIDIA H100 80GB HBM3, 1652, 96.00.89, 550.54.15, 00000000:01:00.0, 81559 MiB, 700.00 W\n"
    "GPU-2, NVIDIA H100 80GB HBM3, 1653, 96.00.89, 550.54.15, 00000000:02:00.0, 81559 MiB, 700.00 W\n"
)
PYTHON = {"python": "CPython 3.12.3", "packages": {"torch": "2.11.0"}, "torch": {"version": "2.11.0", "nccl": "2.28.9"},
          "variables": {"NCCL_IB_HCA": "mlx5_0,mlx5_1", "HF_ENDPOINT": "https://me:hunter22@hub"}}  # fmt: skip


def runner(smi: str | tuple[int, str, str] = SMI) -> FakeRunner:
    import sys

    return FakeRunner({f"{sys.executable} -m seatrial.job.fingerprint": json.dumps(PYTHON), "nvidia-smi --query-gpu": smi,
                       "nvidia-smi topo": "GPU0 GPU1\nX NV18\n"})  # fmt: skip


@pytest.fixture
def taken(tmp_path: Path) -> dict[str, Any]:
    make_run(tmp_path / "runs", "r-1")
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n')
    return collect(tmp_path / "runs", tmp_path, runner=runner(), root=tmp_path, index=tmp_path / "index")


def test_everything_is_there(taken: dict[str, Any]) -> None:
    assert taken["os"]["release"] == "Ubuntu 24.04.1 LTS"
    assert [gpu["serial"] for gpu in taken["gpus"]] == ["1652", "1653"]
    assert "NV18" in taken["gpu_topology"]
    assert taken["infiniband"]["mlx5_0/1"]["rate"] == "400 Gb/sec (4X NDR)"
    assert taken["torch"]["nccl"] == "2.28.9" and taken["packages"]["torch"] == "2.11.0"
    assert taken["runs"]["states"] == {"completed": 1}
    assert taken["variables"] == {"NCCL_IB_HCA": "mlx5_0,mlx5_1", "HF_ENDPOINT": "redacted"}


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    found = collect(tmp_path, tmp_path, runner=FakeRunner(), root=tmp_path, index=tmp_path / "index")
    assert "can't be started" in found["gpus"]["unread"] and "error" in found["torch"]
    found = collect(
        tmp_path,
        tmp_path,
        runner=runner((9, "", "NVIDIA-SMI has failed")),
        root=tmp_path,
        index=tmp_path / "index",
    )
    assert found["gpus"] == {"unread": "NVIDIA-SMI has failed"}


def test_what_changed_is_told_in_words(taken: dict[str, Any]) -> None:
    later = json.loads(json.dumps(taken)) | {"taken": "later"}
    assert differences(taken, later) == []
    later["gpus"][1] |= {"uuid": "GPU-9", "serial": "1999"}
    later["gpus"][0]["driver_version"] = "570.12"
    later["packages"] |= {"torch": "2.12.0", "peft": "0.19"}
    del later["variables"]["NCCL_IB_HCA"]
    told = differences(taken, later)
    assert "gpus GPU-1.driver_version: 550.54.15 → 570.12" in told
    assert "gpus GPU-9.serial: 1999 is new" in told and "gpus GPU-2.serial: 1653 is gone" in told
    assert "package torch: 2.11.0 → 2.12.0" in told and "package peft: 0.19 is new" in told
    assert "variable NCCL_IB_HCA: mlx5_0,mlx5_1 is gone" in told


@given(
    st.text(string.ascii_letters + string.digits, min_size=32, max_size=64),
    st.sampled_from(["{}", "Bearer {}", "hf_{}", "https://u:{}@h/x", "a={},b=1"]),
)
def test_no_key_is_kept(key: str, form: str) -> None:
    assert key not in json.dumps(without_secrets({"NCCL_NOTE": form.format(key)}))


@pytest.mark.parametrize(
    "value",
    [
        "mlx5_0,mlx5_1",
        "/shared/lib/libnccl-net.so",
        "expandable_segments:True",
        "0,1,2,3",
        "GPU-d464cbd0-381a-9efe-ef84-17f7e936754e",
    ],
)
def test_what_is_no_key_is_kept(value: str) -> None:
    assert without_secrets({"NCCL_X": value}) == {"NCCL_X": value}


def test_the_command(tmp_path: Path, taken: dict[str, Any]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(taken))
    call = CliRunner()
    assert (
        call.invoke(
            cli, ["snapshot", "diff", str(tmp_path / "a"), str(tmp_path / "b")], standalone_mode=False
        ).stdout
        == "nothing has changed\n"
    )
    for wrong in ("none", "c"):
        (tmp_path / "c").write_text("[]")
        done = call.invoke(
            cli, ["snapshot", "diff", str(tmp_path / "a"), str(tmp_path / wrong)], standalone_mode=False
        )
        assert isinstance(done.exception, SpecError)
