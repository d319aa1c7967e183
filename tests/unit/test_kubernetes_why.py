"""Why a job waits: each case that was recorded on a real control plane, and those that can only be made up."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

import pytest

from seatrial.backends.base import Why
from seatrial.backends.kubernetes.nodes import Node, used
from seatrial.backends.kubernetes.why import Seen, explain_waiting
from seatrial.runs.state import RunState

from .kubernetes_samples import recorded

GPU_TAINT = ({"key": "nvidia.com/gpu", "effect": "NoSchedule"},)


def gpu_nodes(count: int = 2, gpus: int = 8, **more: Any) -> list[Node]:
    has = {"nvidia.com/gpu": Decimal(gpus), "cpu": Decimal(128), "memory": Decimal(2**40)}
    return [Node(f"gpu-{i}", has, **{"taints": GPU_TAINT, **more}) for i in range(count)]


def seen(job: str, *, space: str = "", nodes: list[Node] | None = None, busy: int = 0, **more: Any) -> Seen:
    """A job of the recordings, with its pods and events; `busy` GPUs of each node are taken."""
    jobs = {j["metadata"]["name"]: j for j in recorded(f"jobs{space}.json")["items"]}
    body = {"apiVersion": "batch/v1", "kind": "Job", **jobs[job]}
    pods = [
        p for p in (recorded("pods.json")["items"] if not space else [])
        if p["metadata"]["labels"].get("batch.kubernetes.io/job-name") == job
    ]  # fmt: skip
    nodes = gpu_nodes() if nodes is None else nodes
    taken = {node.name: {"nvidia.com/gpu": Decimal(busy)} for node in nodes}
    events = recorded(f"events{space}.json")["items"]
    return Seen(body, pods, events, nodes=nodes, taken=taken, **more)


def explained(*args: Any, **more: Any) -> Why:
    found = explain_waiting(seen(*args, **more))
    assert found.state == RunState.PENDING
    assert found.evidence, "nothing is said without evidence"
    return found


class TestRecorded:
    def test_never_fits(self) -> None:
        found = explained("fx-insufficient")
        assert found.sentence == "it never fits: asks 16 GPUs, largest free 8, largest node 8"
        assert any("2 Insufficient nvidia.com/gpu" in line for line in found.evidence)

    def test_busy(self) -> None:
        """The same words of the scheduler, but the nodes are large enough: it waits."""
        found = explained("fx-insufficient", nodes=gpu_nodes(gpus=16), busy=12)
        assert found.sentence == "it waits for room: asks 16 GPUs, largest free 4, largest node 16"

    def test_without_a_view_of_the_nodes_only_the_scheduler_speaks(self) -> None:
        its = seen("fx-insufficient")
        found = explain_waiting(Seen(its.job, its.pods, its.events, nodes=None))
        assert found.sentence == "no node takes it: 2 Insufficient nvidia.com/gpu"
        assert any("may not see the nodes" in line for line in found.evidence)

    def test_untolerated_taint_is_named_though_the_scheduler_does_not(self) -> None:
        found = explained(
            "fx-untolerated", nodes=gpu_nodes(taints=({"key": "nvidia.com/gpu", "effect": "NoSchedule"},))
        )
        assert "taint nvidia.com/gpu:NoSchedule" in found.sentence
        assert "kubernetes.tolerations" in found.helps[0]

    def test_selector(self) -> None:
        found = explained("fx-selector")
        assert "no label" in found.sentence
        assert "node_selector" in found.helps[0]

    def test_missing_volume_claim(self) -> None:
        assert explained("fx-pvc-missing").sentence == "there is no volume claim nope"

    def test_gate(self) -> None:
        assert (
            explained("fx-gated").sentence == "its pods are held back by a scheduling gate: example.com/wait"
        )

    def test_resource_claim(self) -> None:
        """No condition PodScheduled at all, an event only."""
        found = explained("fx-claim-template-missing")
        assert found.sentence == "a resource claim of its pods can't be made"
        assert 'resource claim template "nope"' in found.evidence[0]

    def test_pod_security(self) -> None:
        """Of pods that were never made only the job's events tell."""
        found = explained("fx-psa", space="-restricted")
        assert found.sentence == "the namespace's Pod Security (restricted:latest) admits no such pods"

    def test_scheduled_and_starting(self) -> None:
        assert explained("hj").sentence == "it has a node and starts"

    @pytest.mark.parametrize(
        ("event", "sentence"),
        [
            (
                "quota",
                "the namespace's quota gpu is used up: requests.nvidia.com/gpu=8 asked, requests.nvidia.com/gpu=32 of requests.nvidia.com/gpu=32 used",
            ),
            ("prio", "there is no priority class missing"),
        ],
    )
    def test_jobs_whose_pods_are_refused(self, event: str, sentence: str) -> None:
        its = seen("hj")
        job = copy.deepcopy(its.job)
        job["metadata"]["name"] = event
        found = explain_waiting(Seen(job, [], its.events))
        assert found.sentence == sentence
        assert "FailedCreate" in found.evidence[-1]

    def test_a_quota_that_is_too_small_for_one_pod(self) -> None:
        its = seen("hj")
        job = copy.deepcopy(its.job)
        job["metadata"]["name"] = "quota"
        events = copy.deepcopy([e for e in its.events if e["involvedObject"]["name"] == "quota"])
        for event in events:
            event["message"] = event["message"].replace(
                "gpu=32, limited: requests.nvidia.com/gpu=32", "gpu=0, limited: requests.nvidia.com/gpu=4"
            )
        found = explain_waiting(Seen(job, [], events))
        assert found.sentence == "it never fits into the namespace's quota gpu"


class TestKueue:
    def of(self, name: str | None, **conditions: str) -> Why:
        workloads = {w["metadata"]["name"]: w for w in recorded("workloads.json")["items"]}
        job = {
            "apiVersion": "batch/v1", "kind": "Job", "spec": {"suspend": True, "completions": 1},
            "metadata": {"name": "k", "uid": "u", "labels": {"kueue.x-k8s.io/queue-name": "uq"}},
        }  # fmt: skip
        found = explain_waiting(Seen(job, [], workload=workloads.get(name or ""), has_kueue=True))
        assert found.evidence
        return found

    def test_busy(self) -> None:
        assert (
            self.of("job-k-b-9766a").sentence
            == "Kueue waits for quota: 8 more of nvidia.com/gpu in flavor h100"
        )

    def test_impossible(self) -> None:
        found = self.of("job-k-c-551ce")
        assert found.sentence == "it never fits into Kueue's quota"
        assert "maximum capacity (16)" in found.evidence[0]

    def test_admitted(self) -> None:
        assert self.of("job-k-a-b5d1f").sentence == "Kueue has just admitted it"

    def test_bad_queue(self) -> None:
        [bad] = [
            w for w in recorded("workloads.json")["items"] if "doesn't exist" in str(w.get("status"))
        ] or [None]
        if bad is None:
            pytest.skip("the recording has no such workload")
        assert self.of(bad["metadata"]["name"]).sentence == "Kueue can't take it"

    def test_not_taken_up(self) -> None:
        assert self.of(None).sentence == "it waits for Kueue, which has not taken it up: queue uq"

    def test_suspended_by_nobody(self) -> None:
        job = {"kind": "Job", "metadata": {"name": "k", "uid": "u"}, "spec": {"suspend": True}}
        assert "nobody is to lift that" in explain_waiting(Seen(job, [])).sentence


class TestMadeUp:
    """What the recordings, whose kubelet is a stand-in, have not got."""

    def pod(self, waiting: dict[str, str] | None, **more: Any) -> dict[str, Any]:
        pod = copy.deepcopy(recorded("pods.json")["items"][-1])
        pod["spec"] |= {"nodeName": "gpu-0", "containers": [{"name": "t", "image": "example.org/x:1"}]}
        states = [{"name": "t", "state": {"waiting": waiting}}] if waiting else []
        pod["status"] = {"phase": "Pending", "containerStatuses": states}
        return {**pod, **more}

    def explain(
        self, pods: list[dict[str, Any]], events: list[dict[str, Any]] | None = None, completions: int = 1
    ) -> Why:
        job = {"kind": "Job", "metadata": {"name": "hj", "uid": "u"}, "spec": {"completions": completions}}
        return explain_waiting(Seen(job, pods, events or []))

    def event(self, pod: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
        return {
            "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"]}, "reason": reason, "message": message,
            "lastTimestamp": "2026-11-22T04:20:06Z",
        }  # fmt: skip

    def test_image(self) -> None:
        found = self.explain(
            [self.pod({"reason": "ImagePullBackOff", "message": 'Back-off pulling image "example.org/x:1"'})]
        )
        assert found.sentence == "the image example.org/x:1 can't be fetched"
        assert "pull_secrets" in found.helps[0]

    def test_secret(self) -> None:
        found = self.explain(
            [self.pod({"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'})]
        )
        assert found.sentence == "there is no secret hub"

    def test_volume(self) -> None:
        pod = self.pod({"reason": "ContainerCreating"})
        found = self.explain(
            [pod], [self.event(pod, "FailedMount", 'MountVolume.SetUp failed : configmap "cargo" not found')]
        )
        assert found.sentence == "there is no configmap cargo"

    def test_gang(self) -> None:
        running = self.pod(None)
        running["status"] = {"phase": "Running"}
        running["metadata"] = {
            "name": "hj-0-x",
            "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
        }
        waits = self.pod({"reason": "ImagePullBackOff"})
        waits["metadata"] = {
            "name": "hj-1-x",
            "annotations": {"batch.kubernetes.io/job-completion-index": "1"},
        }
        found = self.explain([running, waits], completions=3)
        assert found.evidence[0].startswith("1 of 3 pods run")
        assert "missing: index 1, 2" in found.evidence[0]

    def test_cordoned(self) -> None:
        found = explained("fx-insufficient", nodes=gpu_nodes(gpus=16, unschedulable=True))
        assert "cordoned" in found.sentence

    def test_nothing_known(self) -> None:
        found = self.explain([])
        assert found.sentence == "its pods are not made yet"


def test_what_pods_ask_for_is_counted_once() -> None:
    pods = [
        {
            "spec": {
                "nodeName": "n",
                "containers": [
                    {"resources": {"requests": {"cpu": "500m"}, "limits": {"nvidia.com/gpu": "2"}}}
                ],
            },
            "status": {"phase": p},
        }
        for p in ("Running", "Pending", "Succeeded")
    ]
    assert used(pods)["n"] == {"cpu": Decimal(1), "nvidia.com/gpu": Decimal(4)}
