"""What may be installed beside: JobSet, Kubeflow's Trainer and its training operator, each as far as it makes pods."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from seatrial.testing.kubernetes.kinds import JOB_SETS, JOBS, PODS, PYTORCH_JOBS, TRAIN_JOBS
from seatrial.testing.kubernetes.store import Object, Resource, StatusError, Store, stamp

_NAME = "jobset.sigs.k8s.io/jobset-name"
_PATCHES = ("runtimePatches", "podTemplateOverrides", "podSpecOverrides")


class Operators:
    """Looks after the custom kinds that are installed.

    Args:
        store: the objects.
        resources: what is served.
        create_pod: makes a pod, if it is admitted.
        delete_pod: asks one to end.
    """

    def __init__(
        self, store: Store, resources: tuple[Resource, ...], create_pod: Callable[[Object], Object],
        delete_pod: Callable[[Object], None],
    ) -> None:  # fmt: skip
        self._store, self._resources = store, resources
        self._create_pod, self._delete_pod = create_pod, delete_pod

    def sync(self) -> None:
        """One look at each."""
        if JOB_SETS in self._resources:
            self._each(JOB_SETS, self._job_set)
        if TRAIN_JOBS in self._resources:
            self._each(TRAIN_JOBS, self._train_job)
        if PYTORCH_JOBS in self._resources:
            self._each(PYTORCH_JOBS, self._pytorch_job)

    def _each(self, resource: Resource, sync: Callable[[Object], None]) -> None:
        for body in self._store.every(resource):
            if not body["metadata"].get("deletionTimestamp"):
                sync(copy.deepcopy(body))

    def _job_set(self, body: Object) -> None:
        network = body["spec"].get("network") or {}
        for replicated in body["spec"]["replicatedJobs"]:
            for i in range(int(replicated.get("replicas") or 1)):
                job = copy.deepcopy(replicated["template"])
                self._job(
                    JOB_SETS,
                    body,
                    f"{body['metadata']['name']}-{replicated['name']}-{i}",
                    job,
                    network.get("subdomain"),
                )

    def _train_job(self, body: Object) -> None:
        trainer = body["spec"]["trainer"]
        pod: Object = {"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [{"name": "node"}]}}
        for field in _PATCHES:
            for patch in body["spec"].get(field) or []:
                _lay(pod, _pod_of(field, patch))
        nodes = int(trainer.get("numNodes") or 1)
        host = f"{body['metadata']['name']}-node-0-0.{body['metadata']['name']}"
        environment = [
            {"name": "PET_NNODES", "value": str(nodes)}, {"name": "PET_MASTER_ADDR", "value": host},
            {"name": "PET_MASTER_PORT", "value": "29500"},
        ]  # fmt: skip
        [container] = pod["spec"]["containers"]
        container |= {
            "image": trainer["image"], "command": trainer["command"], "args": trainer.get("args") or [],
            "env": [*(trainer.get("env") or []), *environment], "resources": trainer.get("resourcesPerNode") or {},
        }  # fmt: skip
        spec = {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 6,
            "template": pod,
        }
        self._job(TRAIN_JOBS, body, f"{body['metadata']['name']}-node-0", {"spec": spec}, None)

    def _job(self, resource: Resource, owner: Object, name: str, job: Object, subdomain: str | None) -> None:
        """A Job that an operator makes, kept as its owner has it; the owner ends as it does."""
        namespace, its = owner["metadata"]["namespace"], owner["metadata"]["name"]
        suspended = bool(owner["spec"].get("suspend"))
        found = self._store.find(JOBS, namespace, name)
        if found is None:
            pod = job["spec"]["template"]
            pod.setdefault("metadata", {}).setdefault("labels", {})[_NAME] = its
            pod["spec"].setdefault("subdomain", subdomain or its)
            metadata = {
                **(job.get("metadata") or {}), "name": name,
                "ownerReferences": [
                    {"apiVersion": resource.api_version, "kind": resource.kind, "name": its, "uid": owner["metadata"]["uid"], "controller": True}
                ],
            }  # fmt: skip
            self._store.create(
                JOBS,
                namespace,
                {"metadata": metadata, "spec": {**job["spec"], "suspend": suspended}, "status": {}},
            )
            return
        if bool(found["spec"].get("suspend")) != suspended:
            self._store.update(JOBS, found, lambda item: item["spec"].update(suspend=suspended))
        ends = {c["type"]: c for c in found.get("status", {}).get("conditions", []) if c["status"] == "True"}
        done = "Completed" if resource is JOB_SETS else "Complete"
        if "Complete" in ends:
            self._condition(resource, owner, done, "AllJobsCompleted", "jobset completed successfully")
        elif "Failed" in ends:
            self._condition(
                resource,
                owner,
                "Failed",
                "FailedJobs",
                f"jobset failed due to one or more job failures: {ends['Failed']['message']}",
            )
        elif suspended:
            self._condition(resource, owner, "Suspended", "Suspended", "it is suspended")
        else:
            self._condition(resource, owner, "Suspended", "Resumed", "it is resumed", "False")

    def _pytorch_job(self, body: Object) -> None:
        ended = {c["type"] for c in body.get("status", {}).get("conditions", []) if c["status"] == "True"}
        if ended & {"Succeeded", "Failed"}:
            return
        suspended = (body["spec"].get("runPolicy") or {}).get("suspend")
        workers = int((body["spec"]["pytorchReplicaSpecs"].get("Worker") or {}).get("replicas") or 0)
        names = [("Master", 0), *(("Worker", i) for i in range(workers))]
        phases = []
        for rank, (kind, index) in enumerate(names):
            name = f"{body['metadata']['name']}-{kind.lower()}-{index}"
            pod = self._store.find(PODS, body["metadata"]["namespace"], name)
            if pod is not None and pod["metadata"].get("deletionTimestamp"):
                if pod["status"]["phase"] in {"Succeeded", "Failed"}:
                    self._store.remove(PODS, pod)
                continue
            if suspended:
                if pod is not None:
                    self._delete_pod(pod)
            elif pod is None:
                self._replica(body, kind, index, rank, name, len(names))
            elif pod["status"]["phase"] == "Failed" and _exit_code(pod) >= 128:
                self._store.remove(PODS, pod)  # worth another try: it is made anew
            else:
                phases.append(pod["status"]["phase"])
        if suspended:
            self._condition(PYTORCH_JOBS, body, "Suspended", "PyTorchJobSuspended", "it is suspended")
        elif "Failed" in phases:
            self._condition(PYTORCH_JOBS, body, "Failed", "PyTorchJobFailed", "a replica failed")
        elif len(phases) == len(names) and set(phases) == {"Succeeded"}:
            self._condition(
                PYTORCH_JOBS, body, "Succeeded", "PyTorchJobSucceeded", "it is successfully completed"
            )
        else:
            self._condition(PYTORCH_JOBS, body, "Suspended", "PyTorchJobResumed", "it is resumed", "False")

    def _replica(self, body: Object, kind: str, index: int, rank: int, name: str, world: int) -> None:
        template = copy.deepcopy(body["spec"]["pytorchReplicaSpecs"][kind]["template"])
        metadata = template.setdefault("metadata", {})
        its = body["metadata"]
        metadata |= {"name": name, "namespace": its["namespace"]}
        metadata["labels"] = {
            **(metadata.get("labels") or {}), "training.kubeflow.org/job-name": its["name"],
            "training.kubeflow.org/replica-type": kind.lower(), "training.kubeflow.org/replica-index": str(index),
        }  # fmt: skip
        metadata["annotations"] = {
            **(metadata.get("annotations") or {}),
            "fake/lead": f"{its['name']}-master-0",
        }
        metadata["ownerReferences"] = [
            {
                "apiVersion": "kubeflow.org/v1",
                "kind": "PyTorchJob",
                "name": its["name"],
                "uid": its["uid"],
                "controller": True,
            }
        ]
        template["spec"]["restartPolicy"] = "Never"
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": f"{its['name']}-master-0",
            "MASTER_PORT": "23456",
        }
        for container in template["spec"]["containers"]:
            container.setdefault("env", []).extend({"name": k, "value": v} for k, v in environment.items())
        try:
            self._create_pod({"apiVersion": "v1", "kind": "Pod", **template})
        except StatusError:
            return

    def _condition(
        self, resource: Resource, body: Object, kind: str, reason: str, message: str, status: str = "True"
    ) -> None:
        def change(item: Object) -> None:
            kept = item.setdefault("status", {}).setdefault("conditions", [])
            same = next((c for c in kept if c["type"] == kind), None)
            if same is None and status == "False":
                return
            if same is not None and same["status"] == status:
                return
            found = {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": stamp(),
            }
            item["status"]["conditions"] = [*(c for c in kept if c["type"] != kind), found]

        self._store.update(resource, body, change)


def _pod_of(field: str, patch: Object) -> Object:
    if field == "runtimePatches":
        jobs = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        return dict(jobs[0]["template"]["spec"]["template"])
    if field == "podTemplateOverrides":
        return {"metadata": patch.get("metadata") or {}, "spec": patch["spec"]}
    return {"spec": {key: value for key, value in patch.items() if key not in {"targetJobs", "metadata"}}}


def _lay(below: Any, above: Any) -> None:
    """Lays a patch over an object; of lists with names, each entry over its namesake."""
    for key, value in above.items():
        there = below.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _lay(there, value)
        elif isinstance(value, list) and isinstance(there, list) and all("name" in item for item in value):
            by_name = {item["name"]: item for item in there}
            for item in value:
                if item["name"] in by_name:
                    _lay(by_name[item["name"]], item)
                else:
                    there.append(copy.deepcopy(item))
        else:
            below[key] = copy.deepcopy(value)


def _exit_code(pod: Object) -> int:
    states = pod["status"].get("containerStatuses") or [{}]
    return int(((states[0].get("state") or {}).get("terminated") or {}).get("exitCode") or 0)
