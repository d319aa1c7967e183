"""The pretend Kubernetes against what a real control plane (1.36.2) was recorded to say."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from seatrial.errors import SpecError
from seatrial.testing import FakeKubernetes
from seatrial.testing.kubernetes import kinds

pytestmark = pytest.mark.integration
RECORDED = Path(__file__).parents[1] / "fixtures" / "kubernetes"
JOBS, PODS = "/apis/batch/v1/namespaces/ml/jobs", "/api/v1/namespaces/ml/pods"


def recorded(name: str) -> Any:
    return json.loads((RECORDED / name).read_text())


class Asks:
    """Speaks HTTP to it, as any client does."""

    def __init__(self, cluster: FakeKubernetes) -> None:
        self.url = cluster.url
        self.trust = ssl.create_default_context(cafile=cluster.certificate)
        config = json.loads(cluster.kubeconfig.read_text())
        self.token = config["users"][0]["user"]["token"]

    def __call__(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"Bearer {self.token if token is None else token}")
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=20, context=self.trust) as answer:
                text, code = answer.read().decode(), answer.status
        except urllib.error.HTTPError as error:
            text, code = error.read().decode(), error.code
        try:
            return code, json.loads(text)
        except ValueError:
            return code, {"message": f"NONJSON {text}"}

    def stream(self, path: str) -> Iterator[Any]:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30, context=self.trust) as answer:
            for line in answer:
                yield json.loads(line)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path / "kubernetes") as found:
        yield found


@pytest.fixture
def ask(cluster: FakeKubernetes) -> Asks:
    return Asks(cluster)


def job(
    name: str, script: str = "sleep 600", *, count: int = 1, grace_s: int = 5, **spec: Any
) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": grace_s,
        "containers": [{"name": "t", "image": "x", "command": ["sh", "-c", script]}],
    }  # fmt: skip
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed", "completions": count, "parallelism": count, "backoffLimit": 0,
            "template": {"spec": pod}, **spec,
        },
    }  # fmt: skip


def until(condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def conditions(ask: Asks, name: str) -> dict[str, str]:
    return {
        c["type"]: c["reason"]
        for c in ask("GET", f"{JOBS}/{name}")[1].get("status", {}).get("conditions", [])
        if c["status"] == "True"
    }


class TestErrors:
    """The same code, reason, message and details."""

    @pytest.fixture
    def errors(self) -> dict[str, tuple[int, Any]]:
        return {name: (code, body) for name, (code, body) in recorded("errors.json").items()}

    def test_missing(self, ask: Asks, errors: Any) -> None:
        assert ask("GET", f"{JOBS}/nope") == errors["get-missing"]

    def test_unknown_group(self, ask: Asks, errors: Any) -> None:
        assert ask("GET", "/apis/nope.example.org/v1/nopes") == errors["unknown-group"]

    def test_forbidden(self, cluster: FakeKubernetes, ask: Asks, errors: Any) -> None:
        cluster.faults.denied = {("list", "nodes")}
        assert ask("GET", "/api/v1/nodes") == errors["forbidden"]

    def test_unauthorized(self, ask: Asks, errors: Any) -> None:
        assert ask("GET", "/api/v1/nodes", token="expired") == errors["unauthorized"]

    def test_conflict(self, ask: Asks, errors: Any) -> None:
        ask("POST", JOBS, job("fx-insufficient"))
        assert ask("POST", JOBS, job("fx-insufficient")) == errors["conflict"]

    def test_typo(self, ask: Asks, errors: Any) -> None:
        pytest.importorskip("kubernetes_validate")
        wrong = job("typo")
        wrong["spec"]["parralelism"] = 1
        assert ask("POST", f"{JOBS}?fieldValidation=Strict", wrong) == errors["typo"]

    def test_senseless(self, ask: Asks) -> None:
        wrong = job("half")
        wrong["spec"]["template"]["spec"]["containers"][0]["resources"] = {
            "limits": {"nvidia.com/gpu": "0.5"}
        }
        code, body = ask("POST", JOBS, wrong)
        assert (code, body["reason"]) == (422, "Invalid")


class TestAJobsLife:
    def watched(
        self, cluster: FakeKubernetes, ask: Asks, do: Callable[[], None], over: Callable[[], Any]
    ) -> list[tuple[str, str, Any]]:
        seen: list[tuple[str, str, Any]] = []

        def follow(stream: str, path: str) -> None:
            for event in ask.stream(f"{path}?watch=1&resourceVersion={version}&timeoutSeconds=20"):
                seen.append((stream, event["type"], event["object"]))

        version = cluster.store.version
        for stream, path in (("jobs", JOBS), ("pods", PODS)):
            threading.Thread(target=follow, args=(stream, path), daemon=True).start()
        do()
        until(over)
        time.sleep(0.3)
        return seen

    def ends(self, events: list[tuple[str, str, Any]]) -> list[tuple[str, ...]]:
        """What a job was told to be in, without repetition."""
        told: list[tuple[str, ...]] = []
        for stream, _, item in events:
            if stream == "jobs":
                now = tuple(
                    sorted(
                        c["type"]
                        for c in item.get("status", {}).get("conditions") or []
                        if c["status"] == "True"
                    )
                )
                if not told or told[-1] != now:
                    told.append(now)
        return told

    def real(self, name: str) -> list[tuple[str, str, Any]]:
        found = []
        for line in (RECORDED / "watch.jsonl").read_text().splitlines():
            event = json.loads(line)
            labels = event["object"]["metadata"].get("labels") or {}
            its = event["object"]["metadata"].get("name") == name or labels.get("job-name") == name
            if event["stream"] in {"jobs", "pods"} and its:
                found.append((event["stream"], event["type"], event["object"]))
        return found

    def test_good(self, cluster: FakeKubernetes, ask: Asks) -> None:
        seen = self.watched(
            cluster, ask, lambda: ask("POST", JOBS, job("good", "sleep 0.2", count=2)) and None, lambda: "Complete" in conditions(ask, "good")
        )  # fmt: skip
        assert (
            self.ends(seen)
            == self.ends(self.real("good"))
            == [(), ("SuccessCriteriaMet",), ("Complete", "SuccessCriteriaMet")]
        )
        assert conditions(ask, "good") == {
            "SuccessCriteriaMet": "CompletionsReached",
            "Complete": "CompletionsReached",
        }

    def test_bad(self, cluster: FakeKubernetes, ask: Asks) -> None:
        """FailureTarget while the last pods end, Failed when none is left; the other workers are deleted."""
        body = job(
            "bad",
            'test "$JOB_COMPLETION_INDEX" = 0 && exit 3; trap "sleep 0.5; exit 143" TERM; while :; do sleep 0.05; done',
            count=2,
        )
        seen = self.watched(
            cluster, ask, lambda: ask("POST", JOBS, body) and None, lambda: "Failed" in conditions(ask, "bad")
        )
        assert (
            self.ends(seen)
            == self.ends(self.real("bad"))
            == [(), ("FailureTarget",), ("Failed", "FailureTarget")]
        )
        for events in (seen, self.real("bad")):
            first = next(
                item
                for stream, _, item in events
                if stream == "jobs" and item.get("status", {}).get("conditions")
            )
            assert first["status"]["terminating"] == 1
            assert [kind for stream, kind, _ in events if stream == "pods"].count("DELETED") == 1
        assert conditions(ask, "bad")["Failed"] == "BackoffLimitExceeded"

    def test_cancelled_in_the_foreground(self, cluster: FakeKubernetes, ask: Asks) -> None:
        def do() -> None:
            ask(
                "POST",
                JOBS,
                job("cancel", 'trap "sleep 0.3; exit 143" TERM; while :; do sleep 0.05; done', count=2),
            )
            until(lambda: [p["status"]["phase"] for p in cluster.pods()] == ["Running"] * 2)
            time.sleep(0.2)
            ask("DELETE", f"{JOBS}/cancel?propagationPolicy=Foreground")

        seen = self.watched(cluster, ask, do, lambda: ask("GET", f"{JOBS}/cancel")[0] == 404)
        for events in (seen, self.real("cancel")):
            gone = [(stream, kind) for stream, kind, _ in events if kind == "DELETED"]
            assert gone == [("pods", "DELETED"), ("pods", "DELETED"), ("jobs", "DELETED")], (
                "the job goes last"
            )
            marked = [
                item
                for stream, kind, item in events
                if stream == "jobs" and item["metadata"].get("deletionTimestamp")
            ]
            assert marked[0]["metadata"]["finalizers"] == ["foregroundDeletion"]

    def test_deleted_without_a_policy_its_pods_stay(self, cluster: FakeKubernetes, ask: Asks) -> None:
        """And keep their GPUs: the API's default for Jobs."""
        real = recorded("delete-job-default.json")
        ask("POST", JOBS, job("fx-gated"))
        until(lambda: [p["status"]["phase"] for p in cluster.pods()] == ["Running"])
        code, body = ask("DELETE", f"{JOBS}/fx-gated")
        assert (code, body["metadata"]["finalizers"]) == (
            real["status"],
            real["body"]["metadata"]["finalizers"],
        )
        until(lambda: ask("GET", f"{JOBS}/fx-gated")[0] == 404)
        time.sleep(0.3)
        [pod] = cluster.pods()
        assert pod["status"]["phase"] == "Running"
        assert pod["metadata"]["ownerReferences"] == []

    def test_pods_look_as_recorded(self, cluster: FakeKubernetes, ask: Asks) -> None:
        ask("POST", JOBS, job("hj", count=2))
        ours = until(lambda: [p for p in cluster.pods() if p["status"]["phase"] == "Running"])[0]
        theirs = next(
            item
            for stream, _, item in self.real("good")
            if stream == "pods" and item["status"].get("phase") == "Running"
        )
        for where in ("labels", "annotations"):
            assert set(ours["metadata"][where]) == set(theirs["metadata"][where])
        assert set(ours["metadata"]["ownerReferences"][0]) == set(theirs["metadata"]["ownerReferences"][0])
        assert ours["metadata"]["name"].startswith("hj-0-")
        assert ours["spec"]["containers"][0]["env"] == theirs["spec"]["containers"][0]["env"]


class TestWaiting:
    """The words for what a pod waits for."""

    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Iterator[FakeKubernetes]:
        with FakeKubernetes(tmp_path / "kubernetes", gpus=8) as found:
            yield found

    def condition(self, cluster: FakeKubernetes, ask: Asks, **spec: Any) -> dict[str, Any]:
        body = job("waits")
        body["spec"]["template"]["spec"] |= spec.pop("pod", {})
        body["spec"]["template"]["spec"]["containers"][0]["resources"] = {
            "limits": spec.pop("limits", {"nvidia.com/gpu": "1"})
        }
        ask("POST", JOBS, body)
        [pod] = until(cluster.pods)
        return dict(
            until(lambda: ask("GET", f"{PODS}/{pod['metadata']['name']}")[1]["status"].get("conditions"))[0]
        )

    def real(self, job_name: str) -> dict[str, Any]:
        [pod] = [p for p in recorded("pods.json")["items"] if p["metadata"]["labels"]["job-name"] == job_name]
        return dict(pod["status"]["conditions"][0])

    def test_too_many_gpus(self, cluster: FakeKubernetes, ask: Asks) -> None:
        tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        found = self.condition(
            cluster, ask, limits={"nvidia.com/gpu": "16"}, pod={"tolerations": tolerations}
        )
        assert (found["reason"], found["message"]) == (
            self.real("fx-insufficient")["reason"],
            self.real("fx-insufficient")["message"],
        )

    def test_taint(self, cluster: FakeKubernetes, ask: Asks) -> None:
        assert self.condition(cluster, ask)["message"] == self.real("fx-untolerated")["message"]

    def test_selector(self, cluster: FakeKubernetes, ask: Asks) -> None:
        tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        found = self.condition(cluster, ask, pod={"nodeSelector": {"no": "such"}, "tolerations": tolerations})
        assert found["message"] == self.real("fx-selector")["message"]

    def test_volume_claim(self, cluster: FakeKubernetes, ask: Asks) -> None:
        volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "nope"}}]
        assert (
            self.condition(cluster, ask, pod={"volumes": volumes})["message"]
            == self.real("fx-pvc-missing")["message"]
        )

    def test_gate(self, cluster: FakeKubernetes, ask: Asks) -> None:
        found = self.condition(cluster, ask, pod={"schedulingGates": [{"name": "example.com/wait"}]})
        assert (found["reason"], found["message"]) == (
            self.real("fx-gated")["reason"],
            self.real("fx-gated")["message"],
        )

    @pytest.mark.parametrize("why", ["quota", "security", "priority"])
    def test_pods_that_are_refused_leave_an_event_of_the_job(
        self, cluster: FakeKubernetes, ask: Asks, why: str
    ) -> None:
        body = job("refused")
        spec = body["spec"]["template"]["spec"]
        if why == "quota":
            cluster.add_quota("gpu", **{"requests.nvidia.com/gpu": "4"})
            spec["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "8"}}
            theirs = "exceeded quota: gpu, requested: requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=0, limited: requests.nvidia.com/gpu=4"
        elif why == "security":
            cluster.enforce("restricted")
            real = next(
                e
                for e in recorded("events-restricted.json")["items"]
                if e["involvedObject"]["name"] == "fx-psa"
            )
            theirs = real["message"].partition("is forbidden: ")[2]
        else:
            spec["priorityClassName"] = "missing"
            theirs = "no PriorityClass with name missing was found"
        ask("POST", JOBS, body)
        [event] = until(
            lambda: [e for e in cluster.store.every(kinds.EVENTS, "ml") if e["reason"] == "FailedCreate"]
        )
        assert event["message"].partition("is forbidden: ")[2] == theirs
        assert event["involvedObject"]["kind"] == "Job"
        assert cluster.pods() == []

    def test_events_of_the_scheduler_have_no_count(self, cluster: FakeKubernetes, ask: Asks) -> None:
        self.condition(cluster, ask)
        [ours] = until(
            lambda: [e for e in cluster.store.every(kinds.EVENTS, "ml") if e["reason"] == "FailedScheduling"]
        )
        theirs = next(e for e in recorded("events.json")["items"] if e["reason"] == "FailedScheduling")
        assert {key for key in theirs if key != "metadata"} <= set(ours) | {"metadata"}
        for key in ("firstTimestamp", "lastTimestamp", "source", "action", "reportingComponent"):
            assert ours[key] == theirs[key]
        assert "count" not in ours
        assert ours["eventTime"]


class TestStreams:
    def test_a_bookmark_ends_a_watch(self, ask: Asks) -> None:
        events = list(
            ask.stream(f"{JOBS}?watch=True&allowWatchBookmarks=True&resourceVersion=1&timeoutSeconds=1")
        )
        assert events[-1]["type"] == "BOOKMARK"

    def test_history_is_forgotten(self, cluster: FakeKubernetes, ask: Asks) -> None:
        cluster.store.compact()
        [event] = list(ask.stream(f"{JOBS}?watch=1&resourceVersion=1&timeoutSeconds=2"))
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)

    def test_lists_come_in_pages(self, cluster: FakeKubernetes, ask: Asks) -> None:
        for i in range(7):
            cluster.add(kinds.CONFIG_MAPS, {"metadata": {"name": f"c{i}"}})
        path, names, more = "/api/v1/namespaces/ml/configmaps?limit=3", [], ""
        while True:
            _, page = ask("GET", f"{path}&continue={more}" if more else path)
            names += [item["metadata"]["name"] for item in page["items"]]
            more = page["metadata"].get("continue", "")
            if not more:
                break
        assert names == [f"c{i}" for i in range(7)]

    def test_logs(self, cluster: FakeKubernetes, ask: Asks) -> None:
        body = job("logs", "echo one; sleep 0.3; echo two")
        body["spec"]["template"]["spec"]["schedulingGates"] = [{"name": "example.com/wait"}]
        ask("POST", JOBS, body)
        [pod] = until(cluster.pods)
        path = f"{PODS}/{pod['metadata']['name']}/log"
        assert ask("GET", path)[0] == 204, "of a pod without a node: empty"
        cluster.store.update(kinds.PODS, pod, lambda item: item["spec"].pop("schedulingGates"))
        until(lambda: ask("GET", path)[0] == 200)
        request = urllib.request.Request(
            f"{ask.url}{path}?follow=True&timestamps=True", headers={"Authorization": f"Bearer {ask.token}"}
        )
        with urllib.request.urlopen(request, timeout=10, context=ask.trust) as answer:
            lines = answer.read().decode().splitlines()
        assert [line.partition(" ")[2] for line in lines] == ["one", "two"]
        assert all(line[10] == "T" and line.partition(" ")[0].endswith("Z") for line in lines)


class TestOthers:
    def test_kubectl(self, cluster: FakeKubernetes, tmp_path: Path) -> None:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.skip("no kubectl on PATH")

        def run(*words: str) -> str:
            done = subprocess.run(
                [kubectl, "--kubeconfig", str(cluster.kubeconfig), "--cache-dir", str(tmp_path / "cache"), *words],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        body = tmp_path / "job.json"
        body.write_text(json.dumps(job("by-hand", "echo hello")))
        run("create", "--validate=false", "-f", str(body))
        until(lambda: "hello" in run("logs", "-l", "job-name=by-hand"))
        until(
            lambda: "Complete" in run("get", "job", "by-hand", "-o", "jsonpath={.status.conditions[*].type}")
        )
        run("delete", "job", "by-hand")
        until(lambda: not cluster.pods())

    def test_nothing_stays(self, tmp_path: Path) -> None:
        with FakeKubernetes(tmp_path / "own") as cluster:
            Asks(cluster)("POST", JOBS, job("long", "setsid sleep 613 & sleep 613"))
            until(lambda: cluster.kubelet.running)
            time.sleep(0.2)
        assert not (tmp_path / "own").exists()
        left = [
            p
            for p in psutil.process_iter(["cmdline"])
            if "613" in (p.info["cmdline"] or []) and p.status() != psutil.STATUS_ZOMBIE
        ]
        assert left == []

    def test_a_directory_of_somebody_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(SpecError, match="directory of its own"), FakeKubernetes(tmp_path):
            pass
        assert (tmp_path / "thesis.tex").exists()
