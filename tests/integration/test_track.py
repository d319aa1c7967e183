"""Real trackers: an MLflow server on loopback, W&B offline, TensorBoard's own reader; and one that is down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from seatrial.runs import tracking
from tests.integration.conftest import Done, Seatrial


def train(seatrial: Seatrial, reviews: Path, encoder: Path, trackers: str, *more: str, **env: str) -> Done:
    return seatrial(
        "train", "--model", str(encoder), "--data", str(reviews), "--gpus", "0", "--max-steps", "30", "--learning-rate", "2e-3",
        "--max-length", "32", "--track", trackers, "train.log_every=5", *more, **env,
    )  # fmt: skip


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("mlflow.server", reason="needs MLflow with its server: pip install mlflow")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    server = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, 15)
    server.wait()


def test_mlflow_has_the_run_and_a_resumed_attempt_goes_on_in_it(
    seatrial: Seatrial, reviews: Path, encoder: Path, mlflow_server: str
) -> None:
    from mlflow.tracking import MlflowClient

    env = {"MLFLOW_TRACKING_URI": mlflow_server}
    killed = seatrial(
        "train", "--model", str(encoder), "--data", str(reviews), "--gpus", "0", "--max-steps", "30", "--learning-rate", "2e-3", "--max-length",
        "32", "--track", "mlflow", "train.log_every=5", "train.checkpoint_every=10", "--train-only", fault="kill:rank=0,step=17", **env,
    )  # fmt: skip
    assert killed.code == 4
    first = tracking.read(killed.run.root)["mlflow"]
    assert first["id"]
    done = seatrial("runs", "resume", killed.run.run_id, **env)
    assert done.code == 0, done.stderr
    again = tracking.read(killed.run.root)["mlflow"]
    assert again["id"] == first["id"] and again["error"] is None
    client = MlflowClient(mlflow_server)
    run = client.get_run(first["id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.max_steps"] == "30"
    assert run.data.tags["seatrial.run_id"] == killed.run.run_id
    assert {metric.step for metric in client.get_metric_history(first["id"], "train/loss")} >= {
        1,
        5,
        10,
        15,
        20,
        25,
        30,
    }
    assert done.manifest.trackers["mlflow"]["id"] == first["id"]


def test_one_that_is_down_stops_nothing(seatrial: Seatrial, reviews: Path, encoder: Path) -> None:
    pytest.importorskip("mlflow", reason="needs MLflow's client: pip install mlflow-skinny")
    done = train(seatrial, reviews, encoder, "mlflow", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.code == 0, done.stderr
    assert "mlflow was not told all" in done.stderr
    assert done.manifest.state == "completed"


def test_wandb_offline_and_tensorboard_at_once(seatrial: Seatrial, reviews: Path, encoder: Path) -> None:
    pytest.importorskip("wandb", reason="needs W&B: pip install wandb")
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train(seatrial, reviews, encoder, "wandb,tensorboard", WANDB_MODE="offline")
    assert done.code == 0, done.stderr
    assert list((done.run.root / "wandb").glob("offline-run-*/*.wandb"))
    curve = EventAccumulator(str(done.run.root / "tensorboard"))
    curve.Reload()
    assert [event.step for event in curve.Scalars("train/loss")] == [1, 5, 10, 15, 20, 25, 30]
    assert len(curve.Scalars("trained/accuracy")) == 1


def test_a_library_that_is_not_there_is_said_before_anything_is_written(
    seatrial: Seatrial, reviews: Path, encoder: Path
) -> None:
    try:
        import wandb  # noqa: F401
    except ImportError:
        done = train(seatrial, reviews, encoder, "wandb")
        assert done.code == 2 and "pip install 'seatrial[wandb]'" in done.stderr
        assert not seatrial.runs_dir.exists()
    else:
        pytest.skip("W&B is installed")
