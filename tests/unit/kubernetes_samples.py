"""Plans for pods, and recordings of a real control plane."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seatrial.backends.kubernetes.targets import Target
from seatrial.backends.kubernetes.template import Order
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.spec.kubernetes import KubernetesSpec

RECORDED = Path(__file__).parents[1] / "fixtures" / "kubernetes"
FIELDS = (
    "affinity", "containers", "imagePullSecrets", "initContainers", "nodeSelector", "schedulingGates", "securityContext",
    "serviceAccountName", "terminationGracePeriodSeconds", "tolerations", "volumes",
)  # fmt: skip
OF_CONTAINER = ("env", "name", "securityContext", "volumeMounts")


def recorded(name: str) -> Any:
    return json.loads((RECORDED / name).read_text())


def target(kind: str = "job", patches: str = "runtimePatches") -> Target:
    match kind:
        case "job":
            return Target("job", "batch/v1", "jobs", "the cluster serves jobs.batch/v1")
        case "jobset":
            return Target("jobset", "jobset.x-k8s.io/v1alpha2", "jobsets", "")
        case "pytorchjob":
            return Target("pytorchjob", "kubeflow.org/v1", "pytorchjobs", "")
    return Target(
        "trainjob", "trainer.kubeflow.org/v1alpha1", "trainjobs", "", runtime=("ClusterTrainingRuntime", "torch-distributed"),
        patches=patches, pod_fields=FIELDS, container_fields=OF_CONTAINER,
    )  # fmt: skip


def order(
    to: Target | None = None, *, nodes: int = 2, gpus: int = 8, rdma: tuple[str, int] | None = None, run_id: str = "sst2-20260101-120000-abcd",
    attempt: int = 0, time_limit_s: int | None = None, parcels: tuple[str, ...] = (), **spec: Any,
) -> Order:  # fmt: skip
    asked = KubernetesSpec(**{"image": "registry.example.org/seatrial:1", "claim": "runs", **spec})
    native = {
        "target": (to or target()).to_dict(), "context": "gpu-cluster", "namespace": "ml", "cpu": "112" if gpus else "2",
        "memory": "1200Gi" if gpus else "4Gi", "shm": "128Gi" if gpus else "1Gi", "rdma": None if rdma is None else list(rdma), "gpus": gpus,
    }  # fmt: skip
    plan = LaunchPlan(
        run_id=run_id, run_dir=Path("/home/ada/runs") / run_id, attempt=attempt, nodes=nodes, nproc=gpus or 2,
        device="cuda" if gpus else "cpu", threads=14, stages=(Stage(name="train", argv=("-m", "seatrial.job.train", "/seatrial")),),
        python="python", cwd=Path("/seatrial/code/x"), time_limit_s=time_limit_s,
        platform={"spec": asked.model_dump(mode="json"), "native": native, "parcels": list(parcels)},
    )  # fmt: skip
    return Order.of(plan)
