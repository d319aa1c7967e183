"""Runs in pods: the real command, a pretend cluster over HTTP, and real ranks in pods that are processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seatrial.runs.files import read_json
from seatrial.runs.manifest import find_run
from seatrial.testing import FakeKubernetes
from seatrial.testing.kubernetes import kinds

from .conftest import Done, Seatrial

pytest.importorskip("torch", reason="real ranks need the extra 'train'")
pytest.importorskip("kubernetes", reason="the extra 'k8s' is not installed")
TWO = ("--on", "k8s", "--nodes", "2", "--nproc", "2")


def until(condition: Callable[[], Any], timeout_s: float = 240) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


class InPods:
    """The command, with a site's defaults for a pretend cluster."""

    def __init__(self, cluster: FakeKubernetes, seatrial: Seatrial, claim: bool = True) -> None:
        self.cluster, self.seatrial = cluster, seatrial
        self.volume = seatrial.cwd / "volume"
        self.site: dict[str, Any] = {"image": "here", "path": str(self.volume), "python": sys.executable}
        if claim:
            cluster.add_claim("runs")
            self.site["claim"] = "runs"
        self.started: list[subprocess.Popen[str]] = []
        (seatrial.cwd / "work").mkdir()
        self.work = Seatrial(seatrial.cwd / "work")

    def env(self, **more: Any) -> dict[str, str]:
        config = self.seatrial.cwd / "config.yaml"
        config.write_text(json.dumps({"defaults": {"kubernetes": {**self.site, **more}}}))
        return {"KUBECONFIG": str(self.cluster.kubeconfig), "SEATRIAL_CONFIG": str(config)}

    def __call__(self, *words: str, **more: Any) -> Done:
        return self.work(*words, **self.env(**more))

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        self.started.append(
            subprocess.Popen(
                self.work.argv(*words), cwd=self.work.cwd, env=self.work.environment(**self.env(**more)), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            )
        )  # fmt: skip
        return self.started[-1]

    def end(self) -> None:
        """A test that failed leaves nothing that goes on asking."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def script(self, body: str) -> str:
        path = self.work.cwd / "script.py"
        path.write_text(
            "import os, sys, time\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], flush=True)\n"
            + body
        )
        return path.name

    @property
    def there(self) -> Path:
        """The run's directory on the volume."""
        [found] = (self.cluster.directory / "claims" / "ml" / "runs" / "runs").iterdir()
        return found

    @property
    def log(self) -> str:
        if not list(self.work.runs_dir.glob("*/manifest.json")):
            return ""
        run = find_run("last", self.work.runs_dir)
        return "".join(path.read_text() for path in sorted(run.root.glob("attempt-*/logs/merged.log")))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path / "kubernetes") as found:
        yield found


@pytest.fixture
def pods(cluster: FakeKubernetes, seatrial: Seatrial) -> Iterator[InPods]:
    found = InPods(cluster, seatrial)
    yield found
    found.end()


def refused(done: Done, what: str, *evidence: str, code: int = 2) -> None:
    assert done.code == code, done.stderr
    assert what in done.stderr
    for text in evidence:
        assert text in done.stderr
    assert not list(done.runs_dir.glob("*")) or all(
        read_json(path / "manifest.json")["state"] == "failed" for path in done.runs_dir.iterdir()
    )


class TestAScript:
    def test_from_start_to_end(self, pods: InPods) -> None:
        """Its code goes along; what its ranks print is here; nothing of it stays once the job is deleted."""
        (pods.work.cwd / "mine.py").write_text("GREETING = 'of my own'\n")
        done = pods("run", *TWO, "--", pods.script("import mine; print(mine.GREETING)"))
        assert done.code == 0, done.stderr
        for rank in range(4):
            assert f"[rank {rank}] rank {rank} of 4" in done.stderr
            assert done.run.attempt(0).rank_log(rank).read_text() == f"rank {rank} of 4\nof my own\n"
        assert "as asked for" in done.stderr
        lines = [line.split(" ", 2) for line in pods.log.splitlines()]
        assert {who for _, who, text in lines if text.startswith("rank ")} == {"0/0", "0/1", "1/2", "1/3"}
        times = [when for when, _, text in lines]
        assert times == sorted(times)
        manifest = done.manifest
        assert manifest.code is not None and manifest.code.files == 2
        kept = pods.cluster.store.every(kinds.CONFIG_MAPS, "ml")
        owners = {ref["name"] for body in kept for ref in body["metadata"]["ownerReferences"]}
        [job] = pods.cluster.store.every(kinds.JOBS, "ml")
        assert owners == {job["metadata"]["name"]}
        pods.cluster.delete_job(job["metadata"]["name"])
        until(lambda: not pods.cluster.pods())
        for resource in (kinds.CONFIG_MAPS, kinds.SECRETS, kinds.SERVICES):
            assert pods.cluster.store.every(resource, "ml") == []

    def test_equal_code_is_sent_once(self, pods: InPods) -> None:
        script = pods.script("time.sleep(0.1)")
        for _ in range(2):
            assert pods("run", "--on", "k8s", "--detach", "--", script).code == 0
        codes = [
            b
            for b in pods.cluster.store.every(kinds.CONFIG_MAPS, "ml")
            if b["metadata"]["name"].startswith("seatrial-code-")
        ]
        assert len(codes) == 1
        assert len(codes[0]["metadata"]["ownerReferences"]) == 2
        for run in sorted(pods.work.runs_dir.iterdir()):
            until(lambda run=run: "completed" in pods("runs", "show", run.name).stdout)

    def test_a_rank_that_fails(self, pods: InPods) -> None:
        done = pods("run", *TWO, "--", pods.script("sys.exit(7 if os.environ['RANK'] == '3' else 0)"))
        assert done.code == 4
        assert "exit code 7" in done.stderr
        assert "first failing rank: 3" in done.stderr

    def test_a_container_that_is_killed_for_memory(self, pods: InPods) -> None:
        process = pods.start("run", *TWO, "--", pods.script("time.sleep(600)"))
        until(
            lambda: (
                len(pods.cluster.kubelet.running) == 2 and "rank 3" in pods.log
                if pods.work.runs_dir.exists()
                else False
            )
        )
        [victim] = [p for p in pods.cluster.pods() if "-a0-1-" in p["metadata"]["name"]]
        pods.cluster.kill_container(victim["metadata"]["name"], oom=True)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 4
        assert "OOMKilled" in stderr + pods("runs", "show", "last").stdout
        why = pods("runs", "why", "last").stdout
        assert "OOMKilled" in why

    def test_cancelled_with_proof_that_nothing_is_left(self, pods: InPods) -> None:
        run_id = pods("run", *TWO, "--detach", "--", pods.script("time.sleep(600)")).stdout.strip()
        until(lambda: len(pods.cluster.kubelet.running) == 2)
        pods("runs", "show", run_id)
        done = pods("runs", "cancel", run_id)
        assert done.code == 0
        assert "interrupted" in done.stderr
        assert pods.cluster.pods() == []
        assert pods.cluster.kubelet.running == {}
        assert pods.cluster.store.every(kinds.JOBS, "ml") == []

    def test_ctrl_c_leaves_it_running(self, pods: InPods) -> None:
        process = pods.start("run", "--on", "k8s", "--", pods.script("time.sleep(3); print('done')"))
        until(lambda: pods.cluster.kubelet.running)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 130
        assert "it goes on" in stderr
        done = pods("runs", "logs", "-f", "last")
        assert done.code == 0
        assert "[0/0] done" in done.stdout


STEPS = ("train.epochs=40", "train.max_steps=240", "train.checkpoint_every=20", "train.learning_rate=1e-3")


class TestTraining:
    @pytest.fixture
    def words(self, encoder: Path, reviews: Path) -> tuple[str, ...]:
        return ("train", *TWO, "--model", str(encoder), "--data", str(reviews), *STEPS)

    def test_whole_story_with_a_drain_and_a_resume(self, pods: InPods, words: tuple[str, ...]) -> None:
        """Drained: saved, and gone on by the cluster itself. Cancelled: resumed by its user. At the end: better, with a page."""
        process = pods.start(*words)
        until(
            lambda: (
                pods.volume.exists() and list(pods.volume.glob("runs/*/checkpoints/step_*/COMMITTED.json"))
            )
        )
        pods.cluster.drain("node-1")
        time.sleep(0.5)
        pods.cluster.uncordon("node-1")
        until(lambda: (pods.there / "attempt-1" / "nodes.json").exists())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=240)
        cancelled = pods("runs", "cancel", "last")
        assert "interrupted" in cancelled.stderr
        assert pods.cluster.pods() == []
        done = pods("runs", "resume", "last")
        assert done.code == 0, done.stderr
        assert "verdict  better" in done.stdout
        manifest = done.manifest
        assert [a.outcome for a in manifest.attempts] == ["preempted", "preempted", "completed"]
        assert manifest.attempts[1].handle == manifest.attempts[0].handle, "the cluster went on by itself"
        assert manifest.attempts[2].handle != manifest.attempts[0].handle
        steps = [
            row["step"]
            for row in map(json.loads, done.run.metrics.read_text().splitlines())
            if row["kind"] == "train"
        ]
        assert steps[-1] == 240
        assert done.run.comparison.exists()
        assert done.run.report.exists()
        assert not done.run.checkpoints.exists(), "weights stay on the volume"
        assert (pods.there / "models" / "trained" / "COMMITTED.json").exists()

    def test_a_mirror_in_the_place_of_a_volume(
        self, cluster: FakeKubernetes, seatrial: Seatrial, encoder: Path, reviews: Path, tmp_path: Path
    ) -> None:
        """Evicted, and gone on from what the mirror has: the pod's own directory is gone with it."""
        pods = InPods(cluster, seatrial, claim=False)
        mirror = tmp_path / "mirror"
        mirror.mkdir()
        process = pods.start(
            "train",
            "--on",
            "k8s",
            "--model",
            str(encoder),
            "--data",
            str(reviews),
            *STEPS,
            f"artifacts={mirror}",
            "train.epochs=400",
            "train.max_steps=2500",
        )
        until(lambda: "step_000040" in str(list(pods.volume.glob("runs/*/checkpoints/*"))))
        cluster.evict(cluster.pods()[0]["metadata"]["name"])
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        manifest = find_run("last", pods.work.runs_dir)
        data = read_json(manifest.manifest)
        assert [a["outcome"] for a in data["attempts"]] == ["preempted", "completed"]
        assert list(mirror.glob("*/models/trained/COMMITTED.json"))


class TestFaults:
    """What a cluster may do to whoever follows a run: nothing is lost, nothing twice."""

    LINES = 300
    BODY = "for i in range(300): print('line', i, flush=True); time.sleep(0.012)"

    def check(self, pods: InPods, process: subprocess.Popen[str]) -> str:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        run = find_run("last", pods.work.runs_dir)
        for rank in range(4):
            expected = [f"rank {rank} of 4", *(f"line {i}" for i in range(self.LINES))]
            assert run.attempt(0).rank_log(rank).read_text().splitlines() == expected
        merged = [line.split(" ", 2)[1:] for line in pods.log.splitlines()]
        for rank, node in ((0, 0), (1, 0), (2, 1), (3, 1)):
            its = [text for who, text in merged if who == f"{node}/{rank}"]
            assert its == [f"rank {rank} of 4", *(f"line {i}" for i in range(self.LINES))]
        return stderr

    def begun(self, pods: InPods) -> subprocess.Popen[str]:
        process = pods.start("run", *TWO, "--", pods.script(self.BODY))
        until(lambda: pods.work.runs_dir.exists() and "line 20" in pods.log)
        return process

    def test_streams_that_are_cut(self, pods: InPods) -> None:
        process = self.begun(pods)
        for _ in range(5):
            pods.cluster.faults.cut_streams()
            time.sleep(0.4)
        self.check(pods, process)

    def test_two_who_follow_it(self, pods: InPods) -> None:
        """Each line is here once, whoever brought it; the end is told to both."""
        process = self.begun(pods)
        other = pods.start("runs", "logs", "-f", "last")
        self.check(pods, process)
        stdout, stderr = other.communicate(timeout=240)
        assert other.returncode == 0, stderr
        assert "[1/3] line 299" in stdout
        assert "completed" in pods("runs", "show", "last").stdout

    def test_history_that_is_forgotten(self, pods: InPods) -> None:
        process = self.begun(pods)
        pods.cluster.store.compact()
        pods.cluster.faults.cut_streams()
        self.check(pods, process)

    @pytest.mark.parametrize("code", [429, 500, 503])
    def test_answers_that_are_errors(self, pods: InPods, code: int) -> None:
        pods.cluster.faults.answer(code, 2)
        process = self.begun(pods)
        pods.cluster.faults.answer(code, 6)
        pods.cluster.faults.cut_streams()
        self.check(pods, process)

    def test_a_slow_server(self, pods: InPods) -> None:
        pods.cluster.faults.slow_s = 0.15
        self.check(pods, self.begun(pods))

    def test_logs_that_are_rotated_while_nobody_looks(self, pods: InPods) -> None:
        """What the cluster no longer has, the volume has: a pod of its own reads it."""
        pods.cluster.kubelet.log_bytes = 4000
        run_id = pods("run", *TWO, "--detach", "--", pods.script(self.BODY)).stdout.strip()
        until(lambda: {p["status"]["phase"] for p in pods.cluster.pods()} == {"Succeeded"})
        pods.cluster.kubelet.log_bytes = 10 << 20
        shown = pods("runs", "show", run_id)
        assert "completed" in shown.stdout
        for rank in range(4):
            text = shown.run.attempt(0).rank_log(rank).read_text().splitlines()
            assert text == [f"rank {rank} of 4", *(f"line {i}" for i in range(self.LINES))]
        shown_lines = [
            line.split(" ", 2)[2] for line in pods.log.splitlines() if line.split(" ", 2)[1].endswith("/0")
        ]
        assert len(shown_lines) == len(set(shown_lines)), "no line twice"
        assert not [p for p in pods.cluster.pods() if "seatrial/tells" in p["metadata"]["labels"]], (
            "that pod is gone"
        )

    def test_a_pod_that_is_deleted_comes_back(self, pods: InPods) -> None:
        process = pods.start("run", *TWO, "--", pods.script("time.sleep(4)"))
        until(lambda: pods.work.runs_dir.exists() and "rank 3" in pods.log)
        [first] = [p["metadata"]["name"] for p in pods.cluster.pods() if "-a0-0-" in p["metadata"]["name"]]
        pods.cluster.evict(first)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        assert "attempt 1: k8s://" in stderr

    def test_a_pod_that_is_gone_without_a_word(self, pods: InPods) -> None:
        """A node that is lost: the attempt is called so, and the next one goes on."""
        process = pods.start("run", "--on", "k8s", "--", pods.script("time.sleep(4)"))
        until(lambda: "rank 0" in pods.log)
        [pod] = [p["metadata"]["name"] for p in pods.cluster.pods()]
        pods.cluster.evict(pod, "DeletionByTaintManager", "the node is gone")
        pods.cluster.kill_container(pod)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        assert "lost" in pods("runs", "show", "last").stdout

    def test_a_run_elsewhere_does_not_spoil_the_list(self, pods: InPods) -> None:
        run_id = pods("run", "--on", "k8s", "--detach", "--", pods.script("time.sleep(60)")).stdout.strip()
        none = {**pods.env(), "KUBECONFIG": str(pods.work.cwd / "none")}
        listed = pods.work("runs", "list", **none)
        assert listed.code == 0, listed.stderr
        assert run_id in listed.stdout
        assert pods("runs", "cancel", run_id, "--force").code == 0

    def test_a_token_that_expires(self, pods: InPods) -> None:
        pods.cluster.faults.token_expired = True
        refused(pods("run", *TWO, "--", pods.script("")), "does not accept your credentials", "401", code=4)


class TestWaiting:
    """`runs why`, asked of the pretend cluster."""

    def why(self, pods: InPods, *words: str, **more: Any) -> str:
        run_id = pods("run", "--on", "k8s", "--detach", *words, "--", pods.script(""), **more).stdout.strip()
        assert run_id
        until(
            lambda: (
                pods.cluster.pods()
                or pods.cluster.store.every(kinds.EVENTS, "ml")
                or pods.cluster.store.every(kinds.JOBS, "ml")
            )
        )
        time.sleep(0.6)
        done = pods("runs", "why", run_id)
        assert done.code == 0
        assert "evidence:" in done.stdout
        cancelled = pods("runs", "cancel", run_id)
        assert "interrupted" in cancelled.stderr
        return done.stdout

    def test_image(self, pods: InPods) -> None:
        pods.cluster.kubelet.missing_images.add("registry.example.org/none:1")
        assert "the image registry.example.org/none:1 can't be fetched" in self.why(
            pods, image="registry.example.org/none:1"
        )

    def test_secret(self, pods: InPods) -> None:
        assert "there is no secret hub" in self.why(pods, secrets={"HF_TOKEN": "hub/token"})

    def test_quota(self, pods: InPods) -> None:
        """Used up by somebody else."""
        pods.cluster.add_quota(
            "small",
            **{"requests.cpu": "2", "requests.memory": "64Gi", "limits.cpu": "4", "limits.memory": "64Gi"},
        )
        other = {
            "name": "x",
            "image": "x",
            "command": ["sleep", "600"],
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
        }
        pods.cluster.create_pod(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "other", "namespace": "ml"},
                "spec": {"containers": [other]},
            }
        )
        assert (
            "the namespace's quota small is used up: requests.cpu=1 asked, requests.cpu=2 of requests.cpu=2 used"
            in self.why(pods)
        )

    def test_pod_security(self, pods: InPods) -> None:
        pods.cluster.enforce("baseline")
        assert "Pod Security (baseline:latest)" in self.why(pods, ipc_lock=True)

    def test_room(self, pods: InPods) -> None:
        for node in ("node-0", "node-1"):
            found = pods.cluster.store.get(kinds.NODES, "", node)
            pods.cluster.store.update(
                kinds.NODES, found, lambda item: item["spec"].update(unschedulable=True)
            )
        assert "cordoned" in self.why(pods)

    def test_a_member_of_the_gang_is_missing(self, pods: InPods) -> None:
        found = pods.cluster.store.get(kinds.NODES, "", "node-1")
        pods.cluster.store.update(kinds.NODES, found, lambda item: item["spec"].update(unschedulable=True))
        said = self.why(pods, "--nodes", "2")
        assert "1 of 2 pods run" in said
        assert "missing: index 1" in said


class TestBadInput:
    def test_no_kubeconfig(self, pods: InPods) -> None:
        done = pods.work(
            "run",
            "--on",
            "k8s",
            "--",
            pods.script(""),
            **{**pods.env(), "KUBECONFIG": str(pods.work.cwd / "none")},
        )
        refused(done, "there is no cluster to talk to")

    def test_a_context_that_is_not_there(self, pods: InPods) -> None:
        refused(
            pods("run", "--on", "k8s", "--", pods.script(""), context="prod"),
            "there is no context prod",
            "the kubeconfig has: fake",
        )

    def test_verbs_that_are_forbidden(self, pods: InPods) -> None:
        pods.cluster.faults.denied = {("create", "jobs"), ("get", "pods/log")}
        done = pods("run", "--on", "k8s", "--", pods.script(""))
        refused(
            done,
            "you may not do in namespace ml what a run needs",
            "create jobs, get pods/log",
            'resources: ["pods/log"], verbs: ["get"]',
            code=4,
        )

    def test_a_namespace_that_is_not_there(self, pods: InPods) -> None:
        refused(pods("run", "--on", "k8s", "--", pods.script(""), namespace="nope"), "nope")

    def test_no_image(self, pods: InPods) -> None:
        del pods.site["image"]
        refused(
            pods("run", "--on", "k8s", "--", pods.script("")),
            "there is no image for the pods",
            "kubernetes.image=",
        )

    def test_an_image_without_python(self, pods: InPods) -> None:
        done = pods("run", "--on", "k8s", "--", pods.script(""), python="/no/such/python")
        assert done.code == 4
        assert "/no/such/python" in done.stderr

    def test_too_many_gpus(self, pods: InPods) -> None:
        pods.cluster.add_node("gpu-0", gpus=8)
        done = pods("run", "--on", "k8s", "--gpus", "16", "--", pods.script(""))
        refused(done, "this can never start here", "asks 16 a node, the largest node has 8")

    def test_a_quota_that_is_too_small(self, pods: InPods) -> None:
        """Before anything is submitted."""
        pods.cluster.add_quota("small", **{"requests.cpu": "3"})
        done = pods("run", *TWO, "--", pods.script(""))
        refused(
            done,
            "this never fits into the namespace's quota small",
            "requests.cpu: asks 2 for each of 2 nodes, the quota is 3",
        )

    def test_a_claim_for_one_node(self, pods: InPods) -> None:
        pods.cluster.add_claim("one", "ReadWriteOnce")
        refused(
            pods("run", *TWO, "--", pods.script(""), claim="one"),
            "can be written by one node at a time",
            "ReadWriteOnce",
        )

    def test_no_place_for_the_run(self, cluster: FakeKubernetes, seatrial: Seatrial) -> None:
        pods = InPods(cluster, seatrial, claim=False)
        refused(
            pods("run", "--on", "k8s", "--", pods.script("")),
            "the run would be gone with its pod",
            "artifacts=s3://",
        )
        refused(pods("run", *TWO, "--", pods.script("")), "several nodes need a volume")

    def test_a_queue_without_kueue(self, pods: InPods) -> None:
        refused(pods("run", "--on", "k8s", "--", pods.script(""), queue="team-a"), "the cluster has no Kueue")

    def test_a_kind_that_is_not_there(self, pods: InPods) -> None:
        refused(
            pods("run", "--on", "k8s", "--", pods.script(""), object="trainjob"),
            "the cluster has no TrainJob",
            "one of: job",
        )

    def test_a_misspelt_key(self, pods: InPods) -> None:
        done = pods("run", "--on", "k8s", "--", pods.script(""), clam="x")
        refused(done, "clam", "claim")

    def test_data_that_is_neither_here_nor_there(self, pods: InPods, encoder: Path) -> None:
        done = pods("train", "--on", "k8s", "--model", str(encoder), "--data", "/data/none.csv")
        refused(done, "data.path: there is no /data/none.csv here", "cluster:/data/none.csv")

    def test_a_long_name_is_cut_and_told_apart(self, pods: InPods) -> None:
        done = pods("run", "--on", "k8s", "--name", "n" * 60, "--", pods.script(""))
        assert done.code == 0, done.stderr


@pytest.mark.parametrize(
    ("installed", "kind", "trainer"),
    [
        ("trainer", "trainjob", "2.2"),
        ("trainer", "trainjob", "2.1"),
        ("jobset", "jobset", ""),
        ("training-operator", "pytorchjob", ""),
    ],
)
def test_what_the_cluster_has_is_found_and_used(
    tmp_path: Path, seatrial: Seatrial, installed: str, kind: str, trainer: str
) -> None:
    with FakeKubernetes(tmp_path / "kubernetes", installed=[installed], trainer=trainer) as cluster:
        pods = InPods(cluster, seatrial)
        done = pods("run", *TWO, "--", pods.script(""))
        assert done.code == 0, done.stderr
        assert f"k8s://ml/{kind}/" in done.stderr
        assert "rank 3 of 4" in done.stderr


@pytest.mark.parametrize(
    ("trainer", "says"),
    [("2.0", "can't run pods as they have to be run"), ("9", "one that Seatrial does not know")],
)
def test_a_trainer_that_can_not_be_used(tmp_path: Path, seatrial: Seatrial, trainer: str, says: str) -> None:
    with FakeKubernetes(tmp_path / "kubernetes", installed=["trainer"], trainer=trainer) as cluster:
        pods = InPods(cluster, seatrial)
        refused(
            pods("run", "--on", "k8s", "--", pods.script(""), object="trainjob"),
            says,
            "kubernetes.object=job",
        )
        if trainer == "9":
            assert "k8s://ml/jobset/" in pods("run", "--on", "k8s", "--", pods.script("")).stderr, (
                "the next best, with what was not used"
            )


def test_kueue_holds_a_run_until_there_is_room(tmp_path: Path, seatrial: Seatrial) -> None:
    with FakeKubernetes(tmp_path / "kubernetes", installed=["kueue"]) as cluster:
        pods = InPods(cluster, seatrial)
        cluster.add(kinds.CLUSTER_QUEUES, {"metadata": {"name": "cq"}, "spec": {"quota": {"cpu": "1"}}})
        cluster.add(kinds.LOCAL_QUEUES, {"metadata": {"name": "team-a"}, "spec": {"clusterQueue": "cq"}})
        first = pods.start("run", "--on", "k8s", "--", pods.script("time.sleep(4)"), queue="team-a")
        until(lambda: cluster.kubelet.running)
        second = pods("run", "--on", "k8s", "--detach", "--", pods.script(""), queue="team-a").stdout.strip()
        time.sleep(0.5)
        why = pods("runs", "why", second).stdout
        assert "Kueue waits for quota: 1 more of cpu" in why
        first.communicate(timeout=240)
        done = pods("runs", "logs", "-f", second)
        assert "rank 0 of 1" in done.stdout
        impossible = pods(
            "run", "--on", "k8s", "--nproc", "3", "--detach", "--", pods.script(""), queue="team-a"
        ).stdout.strip()
        time.sleep(0.5)
        assert "never fits into Kueue's quota" in pods("runs", "why", impossible).stdout


@pytest.mark.skipif(
    not os.environ.get("SEATRIAL_TEST_KUBECONFIG"),
    reason="SEATRIAL_TEST_KUBECONFIG names no kubeconfig of a real cluster",
)
def test_on_a_real_cluster(seatrial: Seatrial) -> None:
    """Needs an image with this Seatrial ($SEATRIAL_TEST_IMAGE) and a ReadWriteMany claim ($SEATRIAL_TEST_CLAIM)."""
    config = seatrial.cwd / "config.yaml"
    site = {"image": os.environ["SEATRIAL_TEST_IMAGE"], "claim": os.environ["SEATRIAL_TEST_CLAIM"]}
    config.write_text(json.dumps({"defaults": {"kubernetes": site}}))
    (seatrial.cwd / "script.py").write_text(
        "import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n"
    )
    env = {"KUBECONFIG": os.environ["SEATRIAL_TEST_KUBECONFIG"], "SEATRIAL_CONFIG": str(config)}
    done = seatrial(
        "run",
        "--on",
        "k8s",
        "--nodes",
        "2",
        "--nproc",
        "2",
        "--gpus",
        "0",
        "--",
        "script.py",
        timeout=900,
        **env,
    )
    assert done.code == 0, done.stderr
    assert "rank 3 of 4" in done.stderr
