"""The objects that are submitted: golden, valid by the servers' own schemas, and refused before a server has to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.backends.kubernetes.names import Handle, job_name, short_name
from seatrial.backends.kubernetes.nodes import requests_of
from seatrial.backends.kubernetes.objects import cargo_of, job_of, objects_of, token_of, yaml_text
from seatrial.backends.kubernetes.preflight import problems
from seatrial.backends.kubernetes.quantity import amount
from seatrial.backends.kubernetes.template import Order
from seatrial.errors import SpecError
from seatrial.spec.kubernetes import Toleration

from .kubernetes_samples import FIELDS, order, target

OLDEST, NEWEST = "1.29", "1.37"
CASES: dict[str, Callable[[], Order]] = {
    "job": lambda: order(parcels=("seatrial-code-0123-0", "seatrial-data-4567-0")),
    "job-cpu": lambda: order(gpus=0, nodes=1),
    "job-everything": lambda: order(
        rdma=("rdma/ib", 8), ipc_lock=True, queue="team-a", priority_class="training", service_account="trainer",
        node_selector={"pool": "gpu"}, exclude=("gpu-7",), env={"NCCL_DEBUG": "WARN"}, secrets={"HF_TOKEN": "hub/token"},
        tolerations=(Toleration(key="reserved", operator="Equal", value="ml", effect="NoSchedule"),),
        pull_secrets=("registry",), mounts={"/data": "datasets"}, time_limit_s=14_400, attempt=3,
    ),
    "jobset": lambda: order(target("jobset")),
    "pytorchjob": lambda: order(target("pytorchjob")),
    "trainjob-2.2": lambda: order(target("trainjob"), rdma=("rdma/ib", 8), ipc_lock=True, time_limit_s=14_400),
    "trainjob-2.1": lambda: order(target("trainjob", "podTemplateOverrides")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, golden: Callable[[str, Path | str], None]) -> None:
    golden(yaml_text(objects_of(CASES[name]())), Path("kubernetes", f"{name}.yaml"))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", CASES)
def test_the_schemas_of_oldest_and_newest_take_them(name: str, version: str) -> None:
    """Of custom kinds, the pods inside of them."""
    validate = pytest.importorskip("kubernetes_validate")
    its = CASES[name]()
    for body in [*objects_of(its), cargo_of(its, {"plan.json": "{}"}), token_of(its, "0" * 32)]:
        if body["kind"] in {"JobSet", "PyTorchJob", "TrainJob"}:
            body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod_of(body)}
        validate.validate(body, version, strict=True)
    assert [problems(body) for body in objects_of(its)] == [[]] * len(objects_of(its))


def pod_of(body: dict[str, Any]) -> dict[str, Any]:
    spec = body["spec"]
    if body["kind"] == "JobSet":
        return dict(spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"])
    if body["kind"] == "PyTorchJob":
        return dict(spec["pytorchReplicaSpecs"]["Master"]["template"]["spec"])
    [patch] = spec.get("runtimePatches") or spec["podTemplateOverrides"]
    if "trainingRuntimeSpec" in patch:
        patch = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
            "template"
        ]
    pod = copy.deepcopy(patch["spec"])
    pod["containers"][0]["image"] = spec["trainer"]["image"]
    return dict(pod)


@pytest.mark.parametrize(
    ("name", "model"), [("trainjob-2.2", "TrainerV1alpha1TrainJob"), ("jobset", "JobsetV1alpha2JobSet")]
)
def test_the_publishers_models_know_every_field(name: str, model: str) -> None:
    """They drop silently what they don't know: what comes back has to be what went in."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    body = job_of(CASES[name]())
    back = getattr(models, model).from_dict(copy.deepcopy(body)).to_dict()
    assert lost(body, back) == []


def lost(given: Any, back: Any, where: str = "") -> list[str]:
    if isinstance(given, dict):
        return [
            w
            for k, v in given.items()
            for w in (
                lost(v, back[k], f"{where}.{k}") if isinstance(back, dict) and k in back else [f"{where}.{k}"]
            )
        ]
    if isinstance(given, list) and isinstance(back, list):
        return [
            w for i, (g, b) in enumerate(zip(given, back, strict=False)) for w in lost(g, b, f"{where}[{i}]")
        ]
    return []


class TestWhatTrainingNeeds:
    def test_all_gpus_as_limits_and_as_many_ranks(self) -> None:
        its = order()
        [container] = job_of(its)["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert its.plan.nproc == 8

    def test_shared_memory_counts_as_memory(self) -> None:
        pod = job_of(order())["spec"]["template"]["spec"]
        [shm] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shm["medium"] == "Memory"
        assert amount(shm["sizeLimit"]) < requests_of(pod)["memory"]

    def test_pods_are_restricted_unless_memory_is_to_be_locked(self) -> None:
        from seatrial.testing.kubernetes.admission import _violations

        assert _violations(job_of(order())["spec"]["template"]["spec"], "restricted") == []
        assert "IPC_LOCK" in str(
            _violations(job_of(order(ipc_lock=True))["spec"]["template"]["spec"], "baseline")
        )

    def test_the_grace_is_longer_than_what_the_ranks_may_take(self) -> None:
        its = order()
        assert job_of(its)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > its.plan.grace_s

    def test_no_secret_is_in_the_request(self) -> None:
        text = yaml_text(objects_of(order(secrets={"HF_TOKEN": "hub/token"})))
        assert "secretKeyRef" in text
        assert token_of(order(), "s3cr3t")["stringData"] == {"token": "s3cr3t"}
        assert "s3cr3t" not in text

    def test_an_old_trainer_that_can_not_secure_its_pods_is_refused(self) -> None:
        old = target("trainjob", "podSpecOverrides")
        kept = tuple(
            name for name in FIELDS if name not in {"securityContext", "terminationGracePeriodSeconds"}
        )
        from dataclasses import replace

        with pytest.raises(SpecError, match="can't run pods as they have to be run") as caught:
            job_of(order(replace(old, pod_fields=kept)))
        assert "securityContext" in caught.value.evidence
        assert "kubernetes.object=job" in caught.value.remedy


# --- what a schema does not see -------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "always": (lambda job: pod(job).update(restartPolicy="Always"), "is not for jobs"),
    "name": (lambda job: job["metadata"].update(name="My_Job"), "small letters"),
    "long name": (lambda job: job["metadata"].update(name="a" * 70), "more than 63"),
    "label": (lambda job: job["metadata"]["labels"].update(team="a b"), "not a label's value"),
    "amount": (lambda job: limits(job).update(memory="12 GB"), "not an amount"),
    "half a GPU": (lambda job: (limits(job).update({"nvidia.com/gpu": "0.5"}), requests(job).update({"nvidia.com/gpu": "0.5"})), "can't be shared"),
    "request and limit": (lambda job: requests(job).update({"nvidia.com/gpu": "4"}), "is not what is asked for"),
    "no limit": (lambda job: limits(job).pop("nvidia.com/gpu"), "has to be said"),
    "mount": (lambda job: box(job)["volumeMounts"].append({"name": "nope", "mountPath": "/x"}), "no volume 'nope'"),
    "protocol": (lambda job: box(job).update(ports=[{"containerPort": 1, "protocol": "tcp"}]), "'tcp' is not"),
    "success": (lambda job: job["spec"].update(completionMode="NonIndexed", successPolicy={"rules": []}), "only with completionMode Indexed"),
    "too many": (lambda job: job["spec"].update(parallelism=200_000), "100000 at most"),
    "failure policy": (lambda job: pod(job).update(restartPolicy="OnFailure"), "only with restartPolicy Never"),
    "ttl": (lambda job: job["spec"].update(ttlSecondsAfterFinished=-1), "is negative"),
    "twice": (lambda job: box(job)["env"].append({"name": "HOME", "value": "/"}), "HOME is set twice"),
    "shm": (lambda job: pod(job)["volumes"].append({"name": "m", "emptyDir": {"medium": "Memory"}}), "without a limit"),
    "request over limit": (lambda job: requests(job).update(cpu="500"), "asks for more cpu"),
    "no image": (lambda job: box(job).update(image=""), "image: there is none"),
}  # fmt: skip


def pod(job: dict[str, Any]) -> dict[str, Any]:
    return dict.__getitem__(job["spec"]["template"], "spec")


def box(job: dict[str, Any]) -> dict[str, Any]:
    return pod(job)["containers"][0]


def limits(job: dict[str, Any]) -> dict[str, Any]:
    return box(job)["resources"]["limits"]


def requests(job: dict[str, Any]) -> dict[str, Any]:
    return box(job)["resources"]["requests"]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_jobs_are_refused_before_a_server_is_asked(name: str) -> None:
    job = copy.deepcopy(job_of(order()))
    BROKEN[name][0](job)
    found = problems(job)
    assert any(BROKEN[name][1] in line for line in found), found


# --- names -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=90), st.integers(0, 999))
def test_any_runs_name_is_one_in_the_cluster(run_id: str, attempt: int) -> None:
    name = job_name(run_id, attempt)
    body = {"kind": "ConfigMap", "metadata": {"name": name, "labels": {"x": short_name(run_id)}}}
    assert problems(body) == []
    assert len(f"{name}-node-0-12345-abcde") <= 63
    assert name[0].isalpha()


def test_runs_that_differ_have_names_that_differ() -> None:
    long = "a" * 60
    assert short_name(f"{long}-20260101-120000-abcd") != short_name(f"{long}-20260101-120000-abce")


@given(st.sampled_from(["gke_p_eu_c", "arn:aws:eks:eu:1:cluster/big", "in-cluster"]))
def test_handles_come_back(context: str) -> None:
    handle = Handle("ml", "job", "x-a0", context)
    assert Handle.parse(str(handle)) == handle
    with pytest.raises(SpecError, match="not a job's handle"):
        Handle.parse("ml/job")
