"""The pretend Kueue: a Workload for each suspended job with a queue, admitted when the quota has room."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal

from seatrial.backends.kubernetes.nodes import requests_of
from seatrial.backends.kubernetes.quantity import amount
from seatrial.testing.kubernetes.kinds import CLUSTER_QUEUES, JOBS, LOCAL_QUEUES, WORKLOADS
from seatrial.testing.kubernetes.store import Object, Store, stamp

_LABEL = "kueue.x-k8s.io/queue-name"
_FLAVOR = "default"


class Queue:
    """Looks after Jobs with a queue. A ClusterQueue's quota is ``spec.quota``: ``{resource: amount}``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def sync(self) -> None:
        """One look at each."""
        jobs = [job for job in self._store.every(JOBS) if (job["metadata"].get("labels") or {}).get(_LABEL)]
        alive = {job["metadata"]["uid"] for job in jobs if not _is_over(job)}
        for workload in self._store.every(WORKLOADS):
            if workload["metadata"]["ownerReferences"][0]["uid"] not in {
                job["metadata"]["uid"] for job in jobs
            }:
                self._store.remove(WORKLOADS, workload)
        for job in jobs:
            if not _is_over(job) and job["spec"].get("suspend"):
                self._admit(job, self._workload(job), alive)

    def _workload(self, job: Object) -> Object:
        uid, namespace = job["metadata"]["uid"], job["metadata"]["namespace"]
        name = f"job-{job['metadata']['name']}-{uid[:5]}"
        found = self._store.find(WORKLOADS, namespace, name)
        if found is not None:
            return found
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": uid,
            "controller": True,
        }
        body = {
            "metadata": {"name": name, "labels": {"kueue.x-k8s.io/job-uid": uid}, "ownerReferences": [owner]},
            "spec": {"active": True, "priority": 0, "queueName": job["metadata"]["labels"][_LABEL]}, "status": {},
        }  # fmt: skip
        return self._store.create(WORKLOADS, namespace, body)

    def _admit(self, job: Object, workload: Object, alive: set[str]) -> None:
        namespace, queue = job["metadata"]["namespace"], workload["spec"]["queueName"]
        local = self._store.find(LOCAL_QUEUES, namespace, queue)
        if local is None:
            self._say(workload, "False", "Misconfigured", f"LocalQueue {queue} doesn't exist")
            return
        cluster = self._store.find(CLUSTER_QUEUES, "", local["spec"]["clusterQueue"])
        quota = {
            name: amount(value) for name, value in (cluster or {"spec": {}})["spec"].get("quota", {}).items()
        }
        asked = {name: value for name, value in _asked(job).items() if name in quota}
        taken: dict[str, Decimal] = defaultdict(Decimal)
        for other in self._store.every(JOBS):
            labels = other["metadata"].get("labels") or {}
            if other["metadata"]["uid"] in alive and labels.get(_LABEL) and not other["spec"].get("suspend"):
                for name, value in _asked(other).items():
                    taken[name] += value
        for name, value in asked.items():
            if value > quota[name]:
                self._say(
                    workload, "False", "ExceedsMaxQuota",
                    f"couldn't assign flavors to pod set main: insufficient quota for {name} in flavor {_FLAVOR}, previously "
                    f"considered podsets requests (0) + current podset request ({int(value)}) > maximum capacity ({int(quota[name])})",
                )  # fmt: skip
                return
            if taken[name] + value > quota[name]:
                missing = int(taken[name] + value - quota[name])
                self._say(
                    workload, "False", "WaitingForQuota",
                    f"couldn't assign flavors to pod set main: insufficient unused quota for {name} in flavor {_FLAVOR}, {missing} more needed",
                )  # fmt: skip
                return
        self._say(
            workload,
            "True",
            "QuotaReserved",
            f"Quota reserved in ClusterQueue {local['spec']['clusterQueue']}",
        )
        self._store.update(JOBS, job, lambda item: item["spec"].update(suspend=False))

    def _say(self, workload: Object, status: str, reason: str, message: str) -> None:
        def change(item: Object) -> None:
            before: Object = next(
                (c for c in item["status"].get("conditions", []) if c["type"] == "QuotaReserved"), {}
            )
            if (before.get("reason"), before.get("message")) != (reason, message):
                item["status"]["conditions"] = [
                    {
                        "type": "QuotaReserved",
                        "status": status,
                        "reason": reason,
                        "message": message,
                        "lastTransitionTime": stamp(),
                    }
                ]

        self._store.update(WORKLOADS, workload, change)


def _asked(job: Object) -> dict[str, Decimal]:
    count = int(job["spec"].get("parallelism") or 1)
    return {name: value * count for name, value in requests_of(job["spec"]["template"]["spec"]).items()}


def _is_over(job: Object) -> bool:
    return any(c["type"] in {"Complete", "Failed"} for c in job.get("status", {}).get("conditions", []))
