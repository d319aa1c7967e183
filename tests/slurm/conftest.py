"""All of these need a Slurm that is started here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seatrial.runs import commit
from tests.integration.conftest import Seatrial, dropout_encoder, encoder, reviews, seatrial
from tests.slurm.attached import Attached
from tests.slurm.cluster import SlurmCluster
from tests.slurm.fixtures import _for_one_test

__all__ = ["dropout_encoder", "encoder", "reviews", "seatrial"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def _slurm_four() -> Iterator[SlurmCluster]:
    if reason := SlurmCluster.unavailable(accounting=False):
        pytest.skip(reason)
    with SlurmCluster(nodes=4, gpus=8, accounting=False) as cluster:
        yield cluster


@pytest.fixture
def slurm_four(_slurm_four: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Four nodes without accounting, where partitions preempt each other."""
    yield from _for_one_test(_slurm_four, monkeypatch)


@pytest.fixture
def attach(seatrial: Seatrial) -> Iterator[Callable[..., Attached]]:
    """Starts a command that stays attached to its run, ``attach(slurm, "train", …)``; once a test."""
    started: list[Attached] = []

    def start(slurm: SlurmCluster, *words: str, **env: str) -> Attached:
        started.append(Attached(seatrial, slurm, *words, **env))
        return started[-1]

    yield start
    for attached in started:
        attached.close()


@pytest.fixture(scope="session")
def training(reviews: Path, dropout_encoder: Path) -> list[str]:
    """Words that train a small model with dropout on CPU ranks, save often, and leave predictions out."""
    return [
        "train", "--model", str(dropout_encoder), "--data", str(reviews), "--gpus", "0", "--max-steps", "45",
        "--learning-rate", "2e-3", "--max-length", "32", "--train-only", "train.global_batch=16",
        "train.checkpoint_every=10",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, training: list[str]) -> Callable[[int], str | None]:
    """The weights that so many ranks end with when all is well, on this machine without Slurm; each trained once."""
    known: dict[int, str | None] = {}

    def weights(nproc: int) -> str | None:
        if nproc not in known:
            seatrial = Seatrial(tmp_path_factory.mktemp("undisturbed"))
            done = seatrial(*training, "--on", "local", "--nproc", str(nproc))
            assert done.code == 0, done.stderr
            known[nproc] = commit.weights_sha256(done.run.model("trained"))
        return known[nproc]

    return weights
