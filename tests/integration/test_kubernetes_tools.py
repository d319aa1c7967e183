"""`render`, `doctor` and `check` for Kubernetes, by the real command against a pretend cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from seatrial.backends.kubernetes.preflight import problems
from seatrial.runs.acceptance import Acceptance
from seatrial.testing import FakeKubernetes
from seatrial.testing.kubernetes import kinds

from .conftest import Seatrial
from .test_kubernetes import InPods, until

pytest.importorskip("torch", reason="real ranks need the extra 'train'")
pytest.importorskip("kubernetes", reason="the extra 'k8s' is not installed")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path / "kubernetes", installed=["kueue"]) as found:
        yield found


@pytest.fixture
def pods(cluster: FakeKubernetes, seatrial: Seatrial) -> InPods:
    return InPods(cluster, seatrial)


class TestRender:
    @pytest.fixture
    def recipe(self, pods: InPods, encoder: Path, reviews: Path) -> str:
        text = f"name: tiny\nmodel: {encoder}\ndata: {{path: {reviews}}}\ntrain: {{max_steps: 6}}\nresources: {{nodes: 1, gpus_per_node: 0}}\n"
        (pods.work.cwd / "tiny.yaml").write_text(text)
        return "tiny.yaml"

    def test_kubectl_alone_runs_it(self, pods: InPods, recipe: str) -> None:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.skip("no kubectl on PATH")
        done = pods("render", "k8s", recipe, "--offline", "kubernetes.namespace=ml")
        assert done.code == 0, done.stderr
        bodies = list(YAML(typ="safe").load_all(done.stdout))
        assert [body["kind"] for body in bodies][-2:] == ["Service", "Job"]
        assert [problems(body) for body in bodies] == [[]] * len(bodies)
        made = subprocess.run(
            [kubectl, "--kubeconfig", str(pods.cluster.kubeconfig), "create", "--validate=false", "-f", "-"], input=done.stdout,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        until(lambda: [p["status"]["phase"] for p in pods.cluster.pods()] == ["Succeeded"], 90)
        assert (pods.there / "comparison.json").exists()
        assert not pods.work.runs_dir.exists(), "nothing is kept here"

    def test_without_a_cluster_the_recipe_says_what_a_node_has(self, pods: InPods, recipe: str) -> None:
        done = pods("render", "k8s", recipe, "--offline", "resources.gpus_per_node=8")
        assert done.code == 2
        assert "kubernetes.memory=1200Gi" in done.stderr
        assert pods("render", "slurm", recipe, "--offline").code == 2


class TestDoctor:
    def findings(self, pods: InPods, **more: object) -> dict[str, tuple[str, str]]:
        done = pods("doctor", "--on", "k8s", "--json", **more)
        rows = json.loads(done.stdout)["checks"]
        found = {row["check"]: (row["verdict"], row["message"]) for row in rows}
        assert done.code == (1 if any(verdict == "FAIL" for verdict, _ in found.values()) else 0)
        return found

    def test_a_cluster_with_gpus(self, pods: InPods) -> None:
        pods.cluster.add_node("gpu-0", gpus=8, more={"rdma/ib": "8"})
        pods.cluster.add_node("gpu-1", gpus=8)
        pods.cluster.add(kinds.STORAGE, {"metadata": {"name": "shared"}, "provisioner": "nfs.csi.k8s.io"})
        pods.cluster.add_quota("gpu", **{"requests.nvidia.com/gpu": "16"})
        pods.cluster.store.create(
            kinds.DAEMON_SETS, "gpu-operator", {"metadata": {"name": "nvidia-device-plugin-daemonset"}}
        )
        pods.cluster.store.create(
            kinds.DAEMON_SETS, "gpu-operator", {"metadata": {"name": "nvidia-dcgm-exporter"}}
        )
        found = self.findings(pods)
        assert found["gpus"] == (
            "PASS",
            "16 of 16 GPUs free: gpu-0: 8 of 8 PRETEND-80GB free; gpu-1: 8 of 8 PRETEND-80GB free",
        )
        assert found["rdma"][1].startswith("rdma/ib on 1 node")
        assert found["device_plugin"] == ("PASS", "gpu-operator/nvidia-device-plugin-daemonset")
        assert "Kueue kueue.x-k8s.io/v1beta2" in found["beside"][1]
        assert (
            "claims for many nodes: runs; storage classes that by their provisioner give such: shared"
            in found["storage"][1]
        )
        assert "16 of 16 requests.nvidia.com/gpu left" in found["quota"][1]
        assert found["metrics"][1] == "gpu-operator/nvidia-dcgm-exporter"
        assert "Kubernetes v1.36" in found["cluster"][1]

    def test_what_would_stop_a_run(self, pods: InPods) -> None:
        pods.cluster.faults.denied = {("create", "jobs")}
        pods.cluster.enforce("restricted")
        pods.cluster.add_node("silent", labels={"nvidia.com/gpu.present": "true"})
        found = self.findings(pods, claim="nope", ipc_lock=True)
        assert {check for check, (verdict, _) in found.items() if verdict == "FAIL"} == {
            "rights",
            "device_plugin",
            "storage",
            "pod_security",
        }
        assert "create jobs" in found["rights"][1]
        assert "silent" in found["device_plugin"][1]

    def test_what_may_not_be_seen_is_not_measured(self, pods: InPods) -> None:
        pods.cluster.faults.denied = {
            ("list", "nodes"),
            ("list", "daemonsets"),
            ("list", "storageclasses"),
            ("get", "namespaces"),
        }
        found = self.findings(pods)
        assert {check for check, (verdict, _) in found.items() if verdict == "UNMEASURED"} == {
            "gpus",
            "pod_security",
            "metrics",
        }
        assert "you may not list storage classes" in found["storage"][1]


def test_an_acceptance_test_in_pods_and_a_launch_that_goes_by_it(pods: InPods) -> None:
    """One pod a node, named by its node; a node that failed is left out by the next run's affinity."""
    words = (
        "--only",
        "report,xid,node_data",
        "--on",
        "k8s",
        "--nodes",
        "all",
        "--gpus",
        "0",
        "--nproc",
        "2",
    )
    done = pods("check", "quick", *words)
    assert done.code == 0, done.stdout + done.stderr
    assert "PASS: 2 of 2 nodes pass" in done.stdout
    verdict = Acceptance.model_validate_json(done.run.verdict.read_bytes())
    assert sorted(node.name for node in verdict.nodes) == ["node-0", "node-1"]
    assert verdict.platform == "k8s"
    failed = pods("check", "quick", *words, "--inject", "xid:node=1")
    assert failed.code == 1, failed.stdout + failed.stderr
    bad = Acceptance.model_validate_json(failed.run.verdict.read_bytes())
    assert {node.name: str(node.verdict) for node in bad.nodes} == {"node-0": "PASS", "node-1": "FAIL"}
    time.sleep(1)  # run ids are by the second
    run = pods("run", "--on", "k8s", "--", pods.script(""))
    assert run.code == 0, run.stderr
    assert "left out: node-1" in run.stderr
    assert {
        p["spec"]["nodeName"] for p in pods.cluster.pods() if p["metadata"]["name"].startswith("script")
    } == {"node-0"}
    both = pods("run", "--on", "k8s", "--nodes", "2", "--", pods.script(""))
    assert both.code == 2
    assert "kubernetes.exclude names it" in both.stderr


def test_sweeps_are_refused(pods: InPods, encoder: Path, reviews: Path) -> None:
    done = pods(
        "train", "--on", "k8s", "--model", str(encoder), "--data", str(reviews), "--sweep", "seed=0..1"
    )
    assert done.code == 2
    assert "sweeps are not started in pods" in done.stderr


def test_only_a_test_may_be_privileged(pods: InPods) -> None:
    done = pods("run", "--on", "k8s", "--", pods.script(""), privileged=True)
    assert done.code == 2
    assert "only an acceptance test may run privileged" in done.stderr


def test_the_client_is_said_to_be_missing(pods: InPods) -> None:
    """Where the extra is not installed."""
    code = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from seatrial.cli.main import main\nsys.argv = ['seatrial', 'run', '--on', 'k8s', '--', 'script.py']\nmain()"
    )
    pods.script("")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pods.work.cwd,
        env=pods.work.environment(**pods.env()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert "pip install 'seatrial[k8s]'" in done.stderr
