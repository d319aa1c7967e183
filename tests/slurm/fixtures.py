"""One real Slurm of each kind a session, started when a test first asks for it and clean before the next one does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import FOREIGN, SlurmCluster


def _session(mode: str, *, accounting: bool) -> Iterator[SlurmCluster]:
    reason = SlurmCluster.unavailable(mode=mode, accounting=accounting)
    if reason:
        pytest.skip(reason)
    with SlurmCluster(nodes=2, gpus=8, mode=mode, accounting=accounting) as cluster:
        yield cluster


def _for_one_test(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    for name in [name for name in os.environ if FOREIGN.fullmatch(name)]:
        monkeypatch.delenv(name)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.clean()


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    yield from _session("auto", accounting=True)


@pytest.fixture(scope="session")
def slurm_plain_cluster() -> Iterator[SlurmCluster]:
    yield from _session("plain", accounting=False)


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Two nodes of eight pretend GPUs with accounting; as root the nodes have networks and processes of their own.

    For the time of the test this process is a user of it: SLURM_CONF is set.
    """
    yield from _for_one_test(slurm_cluster, monkeypatch)


@pytest.fixture
def slurm_ns(slurm: SlurmCluster) -> SlurmCluster:
    """The same, for tests that cut cables or need nodes with names that resolve."""
    if slurm.mode != "ns":
        pytest.skip(SlurmCluster.unavailable(mode="ns"))
    return slurm


@pytest.fixture
def slurm_plain(slurm_plain_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Two nodes that share this machine's name and network, without accounting: up in half a second, no root needed."""
    yield from _for_one_test(slurm_plain_cluster, monkeypatch)
