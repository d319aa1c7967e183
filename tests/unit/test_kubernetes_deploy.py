"""What is installed in a cluster fits what runs in it, and lets whoever submits do what is done."""

from __future__ import annotations

import os
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from seatrial.backends.kubernetes.nodes import requests_of
from seatrial.backends.kubernetes.objects import job_of, objects_of
from seatrial.backends.kubernetes.preflight import problems
from seatrial.backends.kubernetes.quantity import amount
from seatrial.backends.kubernetes.targets import KINDS, rights
from seatrial.spec.kubernetes import KubernetesSpec

from .kubernetes_samples import order, target

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "kubernetes" / "overlays").iterdir())
OLDEST, NEWEST = "1.29", "1.37"


def documents(path: Path) -> list[dict[str, Any]]:
    return [dict(body) for body in YAML(typ="safe").load_all(path.read_text()) if body]


@pytest.fixture(scope="module")
def base() -> list[dict[str, Any]]:
    kustomization = documents(DEPLOY / "kubernetes" / "base" / "kustomization.yaml")[0]
    found = [
        body
        for name in kustomization["resources"]
        for body in documents(DEPLOY / "kubernetes" / "base" / name)
    ]
    assert {path.name for path in (DEPLOY / "kubernetes" / "base").iterdir()} == {
        "kustomization.yaml",
        *kustomization["resources"],
    }
    return found


def one(base: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    [found] = [body for body in base if body["kind"] == kind and name in {"", body["metadata"]["name"]}]
    return found


def kustomize(overlay: str) -> list[dict[str, Any]]:
    path = str(DEPLOY / "kubernetes" / "overlays" / overlay)
    tool = [["kubectl", "kustomize"], ["kustomize", "build"]]
    argv = next((words for words in tool if shutil.which(words[0])), None)
    if argv is None:
        pytest.skip("neither kubectl nor kustomize is on PATH")
    done = subprocess.run([*argv, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [dict(body) for body in YAML(typ="safe").load_all(done.stdout) if body]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_builds_and_is_valid(overlay: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for body in kustomize(overlay):
        assert problems(body) == []
        if body["apiVersion"].startswith("kueue"):
            continue  # no schema of it is published where this could be checked
        for version in (OLDEST, NEWEST):
            validate.validate(body, version, strict=True)


def test_locked_memory_is_for_a_namespace_of_its_own() -> None:
    level = "pod-security.kubernetes.io/enforce"
    levels = {
        overlay: one(kustomize(overlay), "Namespace")["metadata"]["labels"][level] for overlay in OVERLAYS
    }
    assert levels == {
        "restricted": "restricted",
        "kueue": "restricted",
        "rdma": "privileged",
        "device-plugin": "privileged",
    }


class TestTheRole:
    def allowed(self, base: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
        return {
            (verb, resource, group)
            for rule in one(base, "Role")["rules"]
            for verb in rule["verbs"] for resource in rule["resources"] for group in rule["apiGroups"]
        }  # fmt: skip

    @pytest.mark.parametrize("kind", KINDS)
    def test_lets_runs_be_submitted_and_followed(self, base: list[dict[str, Any]], kind: str) -> None:
        wanted = set(rights(target(kind), KubernetesSpec(image="x", claim="runs")))
        assert wanted - self.allowed(base) == set()

    def test_reads_no_secrets(self, base: list[dict[str, Any]]) -> None:
        assert {verb for verb, resource, _ in self.allowed(base) if resource == "secrets"} == {"create"}

    def test_has_no_wildcards_and_nothing_of_the_whole_cluster(self, base: list[dict[str, Any]]) -> None:
        assert not any("*" in right for rights in self.allowed(base) for right in rights)
        assert not [body for body in base if body["kind"].startswith("ClusterRole")]


class TestTheQuota:
    def test_two_nodes_of_eight_gpus_fit_with_a_pod_beside_them(self, base: list[dict[str, Any]]) -> None:
        hard = {key: amount(value) for key, value in one(base, "ResourceQuota")["spec"]["hard"].items()}
        pod = requests_of(job_of(order())["spec"]["template"]["spec"])
        for name, value in pod.items():
            beside = {"cpu": Decimal(1), "memory": amount("2Gi")}.get(name, Decimal(0))
            assert 2 * value + beside <= hard[f"requests.{name}"], name

    def test_only_names_that_count_are_used(self, base: list[dict[str, Any]]) -> None:
        hard = one(base, "ResourceQuota")["spec"]["hard"]
        assert "limits.nvidia.com/gpu" not in hard
        assert "nvidia.com/gpu" not in hard

    def test_no_pod_is_refused_for_saying_nothing(self, base: list[dict[str, Any]]) -> None:
        """A quota of CPUs and memory makes them mandatory: the LimitRange says them for whoever doesn't."""
        [limits] = one(base, "LimitRange")["spec"]["limits"]
        assert set(limits["default"]) == set(limits["defaultRequest"]) == {"cpu", "memory"}
        pod = requests_of(job_of(order())["spec"]["template"]["spec"])
        for name in ("cpu", "memory"):
            assert pod[name] <= amount(limits["max"][name])


class TestTheNetwork:
    def test_everything_is_refused_that_is_not_named(self, base: list[dict[str, Any]]) -> None:
        policy = one(base, "NetworkPolicy", "default-deny")["spec"]
        assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def test_pods_of_runs_reach_each_other_on_every_port(self, base: list[dict[str, Any]]) -> None:
        policy = one(base, "NetworkPolicy", "between-pods-of-runs")["spec"]
        [rule] = policy["podSelector"]["matchExpressions"]
        labels = job_of(order())["spec"]["template"]["metadata"]["labels"]
        assert rule == {"key": "seatrial/run", "operator": "Exists"}
        assert rule["key"] in labels
        assert all("ports" not in way for way in (*policy["ingress"], *policy["egress"]))

    def test_the_clouds_credentials_are_out_of_reach(self, base: list[dict[str, Any]]) -> None:
        [rule] = one(base, "NetworkPolicy", "storage")["spec"]["egress"]
        assert "169.254.0.0/16" in rule["to"][0]["ipBlock"]["except"]


def test_priorities_are_users_and_push_nobody_out(base: list[dict[str, Any]]) -> None:
    for body in (b for b in base if b["kind"] == "PriorityClass"):
        assert body["value"] <= 10**9
        assert body["preemptionPolicy"] == "Never"
        assert not body["metadata"]["name"].startswith("system-")


def test_a_rendered_run_is_admitted_by_what_is_installed(base: list[dict[str, Any]]) -> None:
    """All of it together: Pod Security, quota and limits of the base, and the pods that a job makes."""
    from seatrial.testing.kubernetes import admission, kinds
    from seatrial.testing.kubernetes.store import Store

    store = Store()
    for resource in (kinds.NAMESPACES, kinds.QUOTAS, kinds.LIMIT_RANGES, kinds.PRIORITIES):
        for body in base:
            if body["kind"] == resource.kind:
                store.create(
                    resource,
                    "ml" if resource.namespaced else "",
                    {**body, "metadata": dict(body["metadata"])},
                )
    store.create(kinds.NAMESPACES, "", {"metadata": {**one(base, "Namespace")["metadata"], "name": "ml"}})
    job = objects_of(order(priority_class="seatrial-training"))[0]
    for i in range(3):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"p{i}", "namespace": "ml"},
            "spec": job["spec"]["template"]["spec"],
        }
        if i == 2:
            with pytest.raises(Exception, match="exceeded quota"):
                admission.admit_pod(store, pod)
            break
        admission.admit_pod(store, pod)
        store.create(kinds.PODS, "ml", {**pod, "status": {"phase": "Pending"}})


class TestTheImage:
    def test_the_linter_has_nothing_to_say(self) -> None:
        from sysconfig import get_path

        hadolint = shutil.which("hadolint", path=os.pathsep.join([get_path("scripts"), os.environ["PATH"]]))
        if hadolint is None:
            pytest.skip("hadolint is not installed")
        done = subprocess.run(
            [hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (0, "")

    def test_bases_are_pinned_and_nobody_is_root(self) -> None:
        lines = (DEPLOY / "Dockerfile").read_text().splitlines()
        foreign = [line for line in lines if line.startswith("FROM") and "${VARIANT}" not in line]
        assert len(foreign) == 2
        assert all("@sha256:" in line for line in foreign)
        assert [line for line in lines if line.startswith("USER")] == ["USER 1001:1001"]
        assert KubernetesSpec().user == 1001

    def test_what_is_copied_is_let_through(self) -> None:
        let = [
            line[1:]
            for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        ]
        for line in (DEPLOY / "Dockerfile").read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                for source in line.split()[1:-1]:
                    assert (DEPLOY.parent / source).exists(), source
                    assert source.removeprefix("./").split("/")[0] in let

    def test_the_device_is_proved_by_a_computation(self) -> None:
        pytest.importorskip("torch")
        from seatrial.job.device_proof import proof

        assert "computes" in proof("cpu")
        assert "seatrial.job.device_proof" in (DEPLOY / "Dockerfile").read_text()

    def test_compose_asks_for_the_gpus(self) -> None:
        [compose] = documents(DEPLOY / "compose.yaml")
        gpu = compose["services"]["seatrial"]["deploy"]["resources"]["reservations"]["devices"][0]
        assert (gpu["driver"], gpu["count"], gpu["capabilities"]) == ("nvidia", "all", ["gpu"])
        for service in compose["services"].values():
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
            assert service["build"]["args"]["VARIANT"] in {"cuda", "cpu"}
