"""The simulated cloud for these tests, and clusters in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("nebius", reason="the extra 'cluster' is not installed")

from seatrial.testing.s3 import S3Server
from tests.nebius.cloud import FakeCloud
from tests.nebius.server import NebiusServer

TENANT, PROJECT = "tenant-e00a1", "project-e00b2"
TOKEN = "t0k3n-of-the-test"


@pytest.fixture
def cloud(tmp_path_factory: pytest.TempPathFactory) -> FakeCloud:
    """With a project, a subnet, the group of editors, and quotas that fit."""
    found = FakeCloud(tmp_path_factory.mktemp("cloud") / "cloud.sqlite")
    found.set(projects={PROJECT: "eu-north1"}, tokens=[TOKEN], secret="sesame")
    found.create("nebius_vpc_v1_subnet", PROJECT, "default-subnet")
    found.create("nebius_iam_v1_group", TENANT, "editors")
    for name, limit, unit in (
        ("compute.instance.count", 50, "count"), ("compute.instance.gpu.h100", 16, "count"), ("compute.instance.non-gpu.vcpu", 400, "count"),
        ("compute.gpucluster.count", 1, "count"), ("compute.filesystem.count", 10, "count"),
        ("compute.filesystem.size.network-ssd", 20 * 2**40, "byte"), ("compute.disk.size.network-ssd", 20 * 2**40, "byte"),
        ("compute.disk.size.network-ssd-io-m3", 20 * 2**40, "byte"), ("mk8s.cluster.count", 2, "count"),
    ):  # fmt: skip
        found.set_quota(TENANT, name, limit, unit=unit)
        found.set_quota(PROJECT, name, None, unit=unit)
    return found


@pytest.fixture
def server(cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[NebiusServer]:
    with NebiusServer(cloud) as found:
        monkeypatch.setenv("SEATRIAL_NEBIUS", found.address)
        monkeypatch.setenv("NEBIUS_IAM_TOKEN", TOKEN)
        yield found


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Address of a server that speaks S3."""
    pytest.importorskip("moto", reason="needs moto[server]: pip install 'moto[server]'")
    with S3Server() as found:
        yield f"http://127.0.0.1:{found.port}"
