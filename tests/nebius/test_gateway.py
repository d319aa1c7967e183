"""The real SDK, through our gateway, against the simulated cloud."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from seatrial.errors import PlatformError, SpecError
from seatrial.provision.nebius import account
from seatrial.provision.nebius.cloud import Capacity, Cloud, MissingError
from tests.nebius.cloud import FakeCloud
from tests.nebius.conftest import PROJECT, TENANT, TOKEN
from tests.nebius.server import NebiusServer

pytestmark = pytest.mark.integration


def quota_failure(error: Exception) -> list[tuple[str, int, int]]:
    """Quota, limit and total that was asked for, of an error of the SDK; none where it is about something else."""
    found = []
    for service_error in getattr(getattr(error, "status", None), "service_errors", None) or []:
        for violation in getattr(getattr(service_error, "quota_failure", None), "violations", None) or []:
            found.append((violation.quota, int(violation.limit), int(violation.requested)))
    return found


def test_what_there_is(cloud: FakeCloud, server: NebiusServer) -> None:
    gateway = Cloud()
    assert gateway.whoami() == "me@example.org"
    assert gateway.project(PROJECT).region == "eu-north1"
    [subnet] = gateway.subnets(PROJECT)
    assert account.subnet_of(gateway, PROJECT) == subnet.id
    assert gateway.kubernetes_versions() == ["1.30", "1.31", "1.32"]
    assert gateway.token() == TOKEN
    with pytest.raises(MissingError):
        gateway.project("project-e00none")


def test_long_lists_come_in_pages(cloud: FakeCloud, server: NebiusServer) -> None:
    cloud.set(page=3)
    for i in range(8):
        cloud.create("nebius_compute_v1_filesystem", PROJECT, f"fs-{i}", {"size_bytes": 2**30 * (i + 1)})
    found = Cloud().things("nebius_compute_v1_filesystem", PROJECT)
    assert [t.name for t in found] == [f"fs-{i}" for i in range(8)]
    assert found[7].size_bytes == 8 * 2**30
    quotas = {q.name: q for q in Cloud().quotas(TENANT, "tenant")}
    assert len(quotas) == 9
    assert quotas["compute.filesystem.count"].usage == 8
    assert {q.limit for q in Cloud().quotas(PROJECT, "project")} == {None}


def test_a_quota_that_is_used_up_is_told_in_numbers(cloud: FakeCloud, server: NebiusServer) -> None:
    from nebius.api.nebius.common.v1 import ResourceMetadata
    from nebius.api.nebius.compute.v1 import CreateGpuClusterRequest, GpuClusterServiceClient

    cloud.set_quota(TENANT, "compute.gpucluster.count", 0)
    gateway = Cloud()
    client = GpuClusterServiceClient(gateway._connected())
    request = CreateGpuClusterRequest(metadata=ResourceMetadata(parent_id=PROJECT, name="x"))
    with pytest.raises(Exception, match="Quota limit exceeded") as refused:
        client.create(request, retries=1).wait()
    assert quota_failure(refused.value) == [("compute.gpucluster.count", 0, 1)]


def test_what_is_free(cloud: FakeCloud, server: NebiusServer) -> None:
    asked = (TENANT, "eu-north1", "gpu-h100-sxm", "8gpu-128vcpu-1600gb", "fabric-6")
    assert Cloud().capacity(*asked) is None, "these credentials may not see it"
    cloud.set(
        advice=[
            ["eu-north1", "fabric-3", "gpu-h100-sxm", "8gpu-128vcpu-1600gb", "HIGH", 40],
            ["eu-north1", "fabric-6", "gpu-h100-sxm", "8gpu-128vcpu-1600gb", "LOW", 1],
        ]
    )
    assert Cloud().capacity(*asked) == Capacity("low", 1)
    assert Cloud().capacity(*asked[:-1], "fabric-9") is None


class TestCredentials:
    def test_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("NEBIUS_IAM_TOKEN", raising=False)
        monkeypatch.delenv("SEATRIAL_NEBIUS", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(SpecError, match="no credentials") as refused:
            Cloud().whoami()
        assert "nebius profile create" in refused.value.remedy

    def test_expired(self, cloud: FakeCloud, server: NebiusServer) -> None:
        cloud.set(tokens=["another"])
        with pytest.raises(PlatformError, match="does not accept your credentials") as refused:
            Cloud().project(PROJECT)
        assert TOKEN not in str(refused.value)

    def test_no_server_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEATRIAL_NEBIUS", "example.org:443")
        with pytest.raises(SpecError, match="for servers on this machine"):
            Cloud().whoami()

    def test_a_server_that_is_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEATRIAL_NEBIUS", "127.0.0.1:9")
        monkeypatch.setenv("NEBIUS_IAM_TOKEN", TOKEN)
        with pytest.raises(PlatformError, match="does not answer"):
            Cloud().whoami()


class TestAccount:
    def test_made_once(self, cloud: FakeCloud, server: NebiusServer, tmp_path: Path) -> None:
        """Where the recipe's own script makes a key each time a shell enters its directory."""
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        first = account.ensure(Cloud(), TENANT, PROJECT, "demo", private)
        assert len(first.made) == 4
        for _ in range(3):
            again = account.ensure(Cloud(), TENANT, PROJECT, "demo", private)
            assert again.made == ()
            assert again.key == first.key
        assert len(cloud.things("nebius_iam_v2_access_key")) == 1
        assert len(cloud.things("nebius_storage_v1_bucket")) == 1
        assert stat.S_IMODE((private / "key.json").stat().st_mode) == 0o600

    def test_a_key_that_ends_soon_is_replaced(
        self, cloud: FakeCloud, server: NebiusServer, tmp_path: Path
    ) -> None:
        account.ensure(Cloud(), TENANT, PROJECT, "demo", tmp_path)
        kept = json.loads((tmp_path / "key.json").read_text())
        (tmp_path / "key.json").write_text(json.dumps({**kept, "ends": "2020-01-01T00:00:00+00:00"}))
        again = account.ensure(Cloud(), TENANT, PROJECT, "demo", tmp_path)
        assert len(again.made) == 1
        assert len(cloud.things("nebius_iam_v2_access_key")) == 1

    def test_a_key_that_somebody_deleted(self, cloud: FakeCloud, server: NebiusServer, tmp_path: Path) -> None:  # fmt: skip
        account.ensure(Cloud(), TENANT, PROJECT, "demo", tmp_path)
        [key] = cloud.things("nebius_iam_v2_access_key")
        cloud.delete(key.id)
        assert len(account.ensure(Cloud(), TENANT, PROJECT, "demo", tmp_path).made) == 1

    def test_forgotten(self, cloud: FakeCloud, server: NebiusServer, tmp_path: Path) -> None:
        account.ensure(Cloud(), TENANT, PROJECT, "demo", tmp_path)
        assert account.forget_key(Cloud(), tmp_path)
        assert cloud.things("nebius_iam_v2_access_key") == []
        assert not account.forget_key(Cloud(), tmp_path)

    def test_two_at_once(self, cloud: FakeCloud, server: NebiusServer, tmp_path: Path) -> None:
        done: list[account.Account] = []

        def go(name: str) -> None:
            (tmp_path / name).mkdir()
            done.append(account.ensure(Cloud(), TENANT, PROJECT, name, tmp_path / name))

        threads = [threading.Thread(target=go, args=(name,)) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(done) == 2
        assert len({d.service_account for d in done}) == 1
        assert len(cloud.things("nebius_storage_v1_bucket")) == 1

    def test_without_an_administrator(self, cloud: FakeCloud, server: NebiusServer, tmp_path: Path) -> None:
        cloud.set(no_admin=True)
        with pytest.raises(PlatformError, match="takes an administrator of the tenant") as refused:
            account.ensure(Cloud(), TENANT, PROJECT, "demo", tmp_path)
        assert "nebius iam group-membership create" in refused.value.remedy

    def test_no_subnet(self, cloud: FakeCloud, server: NebiusServer) -> None:
        cloud.create("nebius_vpc_v1_subnet", PROJECT, "another")
        with pytest.raises(SpecError, match="which subnet") as refused:
            account.subnet_of(Cloud(), PROJECT)
        assert "another" in refused.value.evidence
