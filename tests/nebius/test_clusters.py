"""Clusters in a simulated cloud: the whole story, and each of the ways in which it is known to go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.nebius.cloud import FakeCloud
from tests.nebius.clusters import PROJECT, TENANT, TOKEN, Clusters, has_terraform, until
from tests.nebius.recipe import VERSIONS
from tests.nebius.server import NebiusServer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not has_terraform(), reason="terraform is not on PATH"),
]
pytest.importorskip("tf", reason="the provider of the tests needs the package tf")
FILESYSTEM, GROUP = "nebius_compute_v1_filesystem", "nebius_mk8s_v1_node_group"
ALL_SYSTEMS = {"demo-controller-spool", "demo-jail", "demo-accounting", "demo-jail-submount-training", "demo-jail-submount-inference"}  # fmt: skip


@pytest.fixture
def clusters(tmp_path: Path, cloud: FakeCloud, server: NebiusServer) -> Clusters:
    return Clusters(tmp_path, cloud, server.address)


@pytest.fixture
def made(clusters: Clusters) -> Clusters:
    clusters.write()
    done = clusters("up", "-y")
    assert done.code == 0, done.said
    return clusters


def secrets_of(clusters: Clusters) -> list[str]:
    """All that must be in no file outside the private directory: token, password, the key's secret."""
    private = clusters.work / "private"
    found = [clusters.token, json.loads((private / "secrets.json").read_text())["backups_password"]]
    if (private / "key.json").exists():
        found.append(json.loads((private / "key.json").read_text())["secret"])
    return found


def files_with(root: Path, words: list[str]) -> list[Path]:
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and any(word.encode() in path.read_bytes() for word in words)
    ]  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_from_nothing_to_a_cluster_and_back(
    version: str, tmp_path: Path, cloud: FakeCloud, server: NebiusServer
) -> None:
    clusters = Clusters(tmp_path, cloud, server.address, version)
    words = ["--tenant", TENANT, "--project", PROJECT, "--region", "eu-north1", "--fabric", "fabric-6"]
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUTZDHBmnGAyFKKSDMwHKJWxSZs4QmzWt2PrvvTGCuy"
    written = clusters("init", "demo", "--template", "2x8-h100", "--ssh-key", key, "--recipe", str(clusters.recipe), *words)  # fmt: skip
    assert written.code == 0, written.said
    clusters.edit("state={kind: local}")
    checked = clusters("preflight")
    assert checked.code == 0, checked.said
    assert "as me@example.org" in checked.stdout
    assert "a day (list prices of 2026-09-20" in checked.stdout
    planned = clusters("plan")
    assert planned.code == 0, planned.said
    assert "MAKE" in planned.stdout and "demo-jail" in planned.stdout and "2,048 GiB" in planned.stdout
    assert cloud.things(FILESYSTEM) == []
    up = clusters("up", "-y")
    assert up.code == 0, up.said
    assert clusters.names(FILESYSTEM) == ALL_SYSTEMS
    assert clusters.names(GROUP) == {"system", "controller", "login", "accounting", "worker-0"}
    assert "demo is up: 10 nodes are ready" in up.stdout
    assert "made module.k8s.nebius_mk8s_v1_cluster.this in" in up.stderr
    status = clusters("status", "demo")
    assert status.code == 0, status.said
    assert "worker-0: 2 of 2 nodes ready" in status.stdout
    assert "login: 192.0.2.10" in status.stdout
    again = clusters("up", "-y")
    assert again.code == 0 and "nothing to do" in again.stdout, again.said
    with_secrets = files_with(tmp_path, secrets_of(clusters))
    assert clusters.work / "private" / "secrets.json" in with_secrets
    assert {path.parent for path in with_secrets} == {clusters.work / "private"}
    assert stat.S_IMODE(clusters.work.stat().st_mode) == 0o700
    assert not list(clusters.work.rglob("plan.bin"))
    down = clusters("down", "demo", "--confirm", "demo")
    assert down.code == 0, down.said
    assert "LOST FOR EVER  demo-jail: 2,048 GiB" in down.stdout
    assert "gone: all 13 things" in down.stdout
    for kind in (FILESYSTEM, GROUP, "nebius_mk8s_v1_cluster", "nebius_compute_v1_gpu_cluster", "nebius_vpc_v1_allocation"):  # fmt: skip
        assert cloud.things(kind) == []
    assert not clusters.work.exists()
    print({"preflight": checked.took_s, "plan": planned.took_s, "up": up.took_s, "down": down.took_s})


class TestTheEightProblems:
    """Of the tutorial that this replaces: found before anything is made, explained, and mended. (1 to 4, and 7: test_cluster_preflight.)"""

    def test_1_to_3_programs_are_missing(self, clusters: Clusters) -> None:
        clusters.write()
        for name in ("nebius", "kubectl", "jq"):
            (clusters.root / "bin" / name).unlink()
        (clusters.root / "bin" / "yq").write_text("#!/bin/sh\necho yq 0.0.0\n")
        done = clusters("up", "-y", PATH=str(clusters.root / "bin"))
        assert done.code == 2
        for name in ("terraform", "nebius", "kubectl"):
            assert f"no {name} on PATH" in done.stderr
        assert "another yq" in done.stderr
        assert clusters.cloud.things(FILESYSTEM) == []

    def test_4_a_terraform_that_is_too_old(self, clusters: Clusters) -> None:
        clusters.write()
        fake = clusters.root / "bin" / "terraform"
        fake.write_text('#!/bin/sh\necho \'{"terraform_version": "1.8.5"}\'\n')
        fake.chmod(0o755)
        done = clusters("plan")
        assert done.code == 2
        assert "is 1.8.5, and the recipe says >= 1.8, but its validations" in done.stderr

    def test_5_a_quota_in_exact_bytes(self, clusters: Clusters) -> None:
        """The tutorial's: 7,284,264,534,016 bytes wanted, 5,497,558,138,880 allowed."""
        clusters.cloud.set_quota(
            TENANT, "compute.filesystem.size.network-ssd", 5_497_558_138_880, unit="byte"
        )
        clusters.write(
            "storage.submounts.0.size_gib=2048", "storage.submounts.1.size_gib=2048", "storage.accounting={size_gib: 512}"
        )  # fmt: skip
        found = clusters("preflight")
        assert found.code == 1
        assert "7,284,264,534,016 bytes (6,784 GiB) needed" in found.stdout
        assert "the tenant's limit is 5,497,558,138,880 bytes (5,120 GiB)" in found.stdout
        assert "storage.jail 2,048 GiB" in found.stdout and "storage.spool 128 GiB" in found.stdout
        assert "make it fit 5,497,558,138,880 bytes" in found.stdout
        refused = clusters("up", "-y")
        assert refused.code == 2 and clusters.cloud.things(FILESYSTEM) == []
        clusters.edit("storage.submounts.0.size_gib=1024", "storage.submounts.1.size_gib=1024")
        mended = clusters("preflight")
        assert mended.code == 0, mended.said

    def test_5_a_quota_of_the_project(self, clusters: Clusters) -> None:
        clusters.cloud.set_quota(PROJECT, "compute.gpucluster.count", 0)
        clusters.write()
        found = clusters("preflight")
        assert found.code == 1
        assert "the project's limit is 0" in found.stdout

    def test_5_a_quota_that_shrank_meanwhile(self, clusters: Clusters) -> None:
        """Fails on the way: what was made is kept, the quota is named with its places, and the same command goes on."""
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 1.0})
        process = clusters.start("up", "-y")
        until(lambda: len(clusters.cloud.things(FILESYSTEM)) >= 1)
        clusters.cloud.set_quota(TENANT, "mk8s.cluster.count", 0)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 4, stdout + stderr
        assert "mk8s.cluster.count (limit 0, requested 1)" in stderr
        assert "1 in all are asked for, 0 are allowed" in stderr
        clusters.cloud.set_quota(TENANT, "mk8s.cluster.count", 2)
        again = clusters("up", "-y")
        assert again.code == 0, again.said
        assert "demo-jail" not in again.stdout, "what is there is not made again"

    def test_5_a_quota_for_what_is_added(self, made: Clusters) -> None:
        """What is there is in the usage; only what the plan adds is held to the limit."""
        made.cloud.set_quota(TENANT, "compute.filesystem.size.network-ssd", 5000 * 2**30, unit="byte")
        assert made("up", "-y").code == 0
        made.edit("storage.jail={size_gib: 4096}")
        refused = made("up", "-y")
        assert refused.code == 2
        assert f"{(4352 + 2048) * 2**30:,} bytes (6,400 GiB) needed with what is used" in refused.stderr
        assert "demo-jail 2,048 GiB" in refused.stderr

    def test_6_a_file_system_never_shrinks(self, made: Clusters) -> None:
        made.edit("storage.jail={size_gib: 1024}")
        planned = made("plan")
        assert planned.code == 1
        assert "SHRINK" in planned.stdout and "2,048 GiB → 1,024 GiB" in planned.stdout
        refused = made("up", "-y")
        assert refused.code == 2
        assert "a file system can't shrink" in refused.stderr
        assert "keep the size (2048 GiB)" in refused.stderr
        made.edit("storage.jail={size_gib: 4096}")
        grown = made("up", "-y")
        assert grown.code == 0, grown.said
        [jail] = [row for row in made.cloud.things(FILESYSTEM) if row.name == "demo-jail"]
        assert jail.data["size_bytes"] == 4096 * 2**30

    def test_6_a_file_system_is_not_lost_by_a_change(self, made: Clusters) -> None:
        made.edit("storage.submounts.1=DROP")
        refused = made("up", "-y")
        assert refused.code == 2 and "its data would be lost" in refused.stderr
        assert "demo-jail-submount-inference" in made.names(FILESYSTEM)
        address = 'module.filestore.nebius_compute_v1_filesystem.jail_submount["inference"]'
        assert f"--lose '{address}'" in refused.stderr
        on_purpose = made("up", "-y", "--lose", address)
        assert on_purpose.code == 0, on_purpose.said
        assert "demo-jail-submount-inference" not in made.names(FILESYSTEM)

    def test_7_a_module_is_missing(self, clusters: Clusters) -> None:
        clusters.write()
        (clusters.recipe.parent / "modules/nfs-server/main.tf").unlink()
        done = clusters("up", "-y")
        assert done.code == 2
        assert "the recipe's module nfs-server is not there" in done.stderr

    def test_8_it_exists_already(self, clusters: Clusters) -> None:
        """Terraform was killed while it made things: they are in the cloud, and not in its state."""
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 20})
        process = clusters.start("up", "-y")
        until(lambda: len(clusters.cloud.things(FILESYSTEM)) == 5)
        os.kill(clusters.terraform_pid(), signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == 4
        clusters.cloud.set(slow_s=0)
        planned = clusters("plan")
        assert planned.code == 0, planned.said
        assert planned.stdout.count("ADOPT") == 5
        again = clusters("up", "-y")
        assert again.code == 0, again.said
        assert clusters.names(FILESYSTEM) == ALL_SYSTEMS
        assert "nothing to do" in clusters("plan").stdout

    def test_8_of_somebody_else(self, clusters: Clusters) -> None:
        """What nothing here began to make is shown, and taken over only when that is asked for."""
        clusters.write()
        clusters.cloud.create(FILESYSTEM, PROJECT, "demo-jail", {"size_bytes": 2048 * 2**30})
        refused = clusters("up", "-y")
        assert refused.code == 2
        assert "nothing here began to make them" in refused.stderr and "demo-jail" in refused.stderr
        done = clusters("up", "-y", "--adopt")
        assert done.code == 0, done.said

    def test_8_a_larger_one_of_somebody_else(self, clusters: Clusters) -> None:
        """To adopt it would shrink it: refused."""
        clusters.write()
        clusters.cloud.create(FILESYSTEM, PROJECT, "demo-jail", {"size_bytes": 9000 * 2**30})
        refused = clusters("up", "-y", "--adopt")
        assert refused.code == 2
        assert "can't shrink (9,000 GiB → 2,048 GiB)" in refused.stderr

    def test_8_of_a_machine_that_is_lost(self, made: Clusters) -> None:
        """Its directory and its state are gone, the cluster is there: taken over whole, and removed from here."""
        shutil.rmtree(made.work)
        refused = made("up", "-y")
        assert refused.code == 2 and "has a cluster soperator-demo already" in refused.stderr
        planned = made("plan", "--adopt")
        assert planned.code == 0, planned.said
        assert planned.stdout.count("ADOPT") == 13
        done = made("up", "-y", "--adopt")
        assert done.code == 0, done.said
        assert made("down", "demo", "--confirm", "demo").code == 0
        assert made.cloud.things(GROUP) == []


class TestOnTheWay:
    def test_ctrl_c_finishes_what_is_begun(self, clusters: Clusters) -> None:
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 3})
        process = clusters.start("up", "-y")
        until(lambda: len(clusters.cloud.things(FILESYSTEM)) == 5)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stdout + stderr
        assert "finishes what it has begun" in stderr
        assert "seatrial cluster up" in stderr
        clusters.cloud.set(slow_s=0)
        planned = clusters("plan")
        assert "ADOPT" not in planned.stdout, "the state knows all that was made"
        assert clusters("up", "-y").code == 0

    def test_ctrl_c_while_nothing_is_in_the_making(self, clusters: Clusters) -> None:
        clusters.write()
        process = clusters.start("plan")
        until(lambda: (clusters.work / "private" / "terraform.pid").exists())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert not list(clusters.work.rglob("plan.bin"))
        assert clusters("plan").code == 0

    def test_the_command_is_killed_and_terraform_goes_on(self, clusters: Clusters) -> None:
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 6})
        process = clusters.start("up", "-y")
        until(lambda: len(clusters.cloud.things(FILESYSTEM)) == 5)
        process.kill()
        process.communicate()
        pid = clusters.terraform_pid()
        refused = clusters("plan")
        assert refused.code == 2
        assert f"process {pid}" in refused.stderr
        clusters.cloud.set(slow_s=0)
        until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        assert clusters("up", "-y").code == 0
        assert clusters.names(FILESYSTEM) == ALL_SYSTEMS

    def test_two_at_once(self, clusters: Clusters) -> None:
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 5})
        process = clusters.start("up", "-y")
        until(lambda: clusters.cloud.things(FILESYSTEM))
        refused = clusters("up", "-y")
        assert refused.code == 2
        assert "another command works on the cluster demo" in refused.stderr
        process.communicate(timeout=120)
        assert process.returncode == 0

    def test_a_token_that_expires_between_plan_and_apply(self, clusters: Clusters) -> None:
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 2})
        process = clusters.start("up", "-y")
        until(lambda: len(clusters.cloud.things(FILESYSTEM)) >= 1)
        clusters.cloud.set(tokens=["fresh"])
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 4
        assert "log in again" in stderr and TOKEN not in stderr
        clusters.token = "fresh"
        clusters.cloud.set(slow_s=0)
        done = clusters("up", "-y")
        assert done.code == 0, done.said

    def test_nodes_that_wait_for_capacity_are_told(self, clusters: Clusters) -> None:
        """The cloud accepts a node group and tries again and again: without a look at its events, that is a hang."""
        clusters.write()
        clusters.cloud.set(no_capacity=["gpu-h100-sxm"])
        process = clusters.start("up", "-y")
        seen = []
        assert process.stderr is not None
        for line in process.stderr:
            seen.append(line)
            if "waiting  worker-0: 0 of 2 nodes; the cloud says NotEnoughCapacity" in line:
                break
        else:
            pytest.fail("".join(seen))
        clusters.cloud.set(no_capacity=[])
        process.communicate(timeout=120)
        assert process.returncode == 0

    def test_the_file_is_edited_meanwhile(self, clusters: Clusters) -> None:
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 2})
        process = clusters.start("up", "-y")
        until(lambda: clusters.cloud.things(FILESYSTEM))
        clusters.edit("storage.jail={size_gib: 3000}")
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "was edited meanwhile" in stderr
        assert "2,048 GiB → 3,000 GiB" in clusters("plan").stdout

    def test_a_state_in_a_bucket_that_a_dead_process_locked(self, clusters: Clusters, s3: str) -> None:
        """With a real S3 protocol server: own key for each cluster, locked, and unlocked by name."""
        import boto3

        from seatrial.provision.nebius.account import bucket_name

        bucket = bucket_name(TENANT, PROJECT)
        client = boto3.client("s3", endpoint_url=s3, aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")  # fmt: skip
        client.create_bucket(Bucket=bucket)
        clusters.write()
        clusters.edit(f"state={{kind: s3, endpoint: '{s3}'}}")
        clusters.cloud.set(slow_s={FILESYSTEM: 30})
        process = clusters.start("up", "-y")
        until(lambda: len(clusters.cloud.things(FILESYSTEM)) == 5)
        os.kill(clusters.terraform_pid(), signal.SIGKILL)
        process.communicate(timeout=60)
        clusters.cloud.set(slow_s=0)
        keys = {o["Key"] for o in client.list_objects_v2(Bucket=bucket)["Contents"]}
        assert "demo/slurm-k8s.tfstate.tflock" in keys
        locked = clusters("up", "-y")
        assert locked.code == 2
        assert "the cluster's state is locked" in locked.stderr
        lock_id = locked.stderr.rpartition("--unlock ")[2].split()[0]
        done = clusters("up", "-y", "--unlock", lock_id)
        assert done.code == 0, done.said
        assert "demo/slurm-k8s.tfstate" in {o["Key"] for o in client.list_objects_v2(Bucket=bucket)["Contents"]}  # fmt: skip
        private = clusters.work / "private"
        for path in files_with(clusters.root, secrets_of(clusters)):
            assert private in path.parents, path
        assert len(clusters.cloud.things("nebius_iam_v2_access_key")) == 1
        down = clusters("down", "demo", "--confirm", "demo")
        assert down.code == 0, down.said
        assert "the state of this project's clusters; it stays" in down.stdout
        assert clusters.cloud.things("nebius_iam_v2_access_key") == []


class TestDown:
    def test_what_the_state_does_not_know_is_not_forgotten(self, clusters: Clusters) -> None:
        """Terraform was killed before it could save: by its state nothing is there, and five file systems cost money."""
        clusters.write()
        clusters.cloud.set(slow_s={FILESYSTEM: 20})
        process = clusters.start("up", "-y")
        until(lambda: len(clusters.cloud.things(FILESYSTEM)) == 5)
        os.kill(clusters.terraform_pid(), signal.SIGKILL)
        process.communicate(timeout=60)
        clusters.cloud.set(slow_s=0)
        refused = clusters("down", "demo", "--confirm", "demo")
        assert refused.code == 2
        assert "exist that its state does not know" in refused.stderr and "demo-jail" in refused.stderr
        assert clusters.work.exists()
        assert clusters("up", "-y").code == 0
        assert clusters("down", "demo", "--confirm", "demo").code == 0
        assert clusters.cloud.things(FILESYSTEM) == []

    def test_not_made_here(self, clusters: Clusters) -> None:
        done = clusters("down", "other", "--confirm", "other")
        assert done.code == 2
        assert "this machine made no cluster 'other'" in done.stderr

    def test_the_name_is_typed(self, made: Clusters) -> None:
        for words in ([], ["--confirm", "dem"]):
            done = made("down", "demo", *words)
            assert done.code == 2
            assert made.names(FILESYSTEM) == ALL_SYSTEMS

    def test_what_can_not_be_removed_is_told(self, made: Clusters) -> None:
        """A disk that a volume made inside the cluster is not Terraform's: it is named, since it costs money."""
        made.cloud.create("nebius_compute_v1_disk", PROJECT, "pvc-0123")
        done = made("down", "demo", "--confirm", "demo")
        assert done.code == 0, done.said
        assert "still in the project: compute_v1_disk pvc-0123" in done.stdout


class TestConnect:
    def test_a_cluster_whose_name_begins_alike(self, made: Clusters) -> None:
        made.cloud.create(
            "nebius_vpc_v1_allocation", PROJECT, "a-demo-2-login", {"address": "198.51.100.7/32"}
        )
        for row in made.cloud.things("nebius_vpc_v1_allocation"):
            if row.name == "demo-login":
                made.cloud.update(row.id, {"address": "192.0.2.77/32"})
        assert "login: 192.0.2.77" in made("status", "demo").stdout

    def test_a_profile(self, made: Clusters) -> None:
        config = made.home / "config" / "seatrial" / "config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text("# mine\ndefaults:\n  slurm: {account: nlp}   # ours\n")
        done = made("connect", "demo")
        assert done.code == 0, done.said
        assert done.stdout == "ssh root@192.0.2.10\n"
        text = config.read_text()
        assert "# mine" in text and "# ours" in text
        assert "ssh://root@192.0.2.10" in text and "/mnt/training/seatrial" in text
        assert made("connect", "demo").code == 0
        (made.cwd / "x.py").touch()
        shown = subprocess.run(
            [sys.executable, "-m", "seatrial", "run", "--on", "demo", "--dry-run", "--", "x.py"], cwd=made.cwd, env=made.environment(),
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "root@192.0.2.10" in shown.stderr, shown.stderr


def test_how_long_a_preflight_takes(clusters: Clusters) -> None:
    clusters.write()
    began = time.monotonic()
    done = clusters("preflight", "--offline")
    assert done.code == 0, done.said
    assert time.monotonic() - began < 10
    assert "the cloud was not asked" in done.stdout
