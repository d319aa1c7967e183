"""The pretend Job controller, for Indexed Jobs, with the order of conditions that 1.36 has."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Callable

from seatrial.testing.kubernetes.kinds import JOBS, PODS
from seatrial.testing.kubernetes.store import Object, StatusError, Store, stamp

_AGAIN_S = 0.5
_INDEX = "batch.kubernetes.io/job-completion-index"
_COUNTED = "fake/counted"


class Jobs:
    """Looks after all Jobs.

    Args:
        store: the objects.
        create_pod: makes a pod, if it is admitted.
        delete_pod: asks one to end.
        event: tells of a job.
    """

    def __init__(
        self,
        store: Store,
        create_pod: Callable[[Object], Object],
        delete_pod: Callable[[Object], None],
        event: Callable[..., None],
    ) -> None:
        self._store, self._create_pod, self._delete_pod, self._event = store, create_pod, delete_pod, event
        self._wait: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def sync(self) -> None:
        """One look at each job."""
        for job in self._store.every(JOBS):
            if not job["metadata"].get("deletionTimestamp"):
                self._sync(copy.deepcopy(job))

    def _sync(self, job: Object) -> None:
        spec, status = job["spec"], job.setdefault("status", {})
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        if {"Complete", "Failed"} & conditions.keys():
            return
        pods = [pod for pod in self._store.every(PODS, job["metadata"]["namespace"]) if _owned(pod, job)]
        self._count(job, pods)
        active = [
            p
            for p in pods
            if p["status"]["phase"] in {"Pending", "Running"} and not p["metadata"].get("deletionTimestamp")
        ]
        ending = [
            p
            for p in pods
            if p["status"]["phase"] in {"Pending", "Running"} and p["metadata"].get("deletionTimestamp")
        ]
        if spec.get("suspend"):
            self._suspend(job, active)
        elif "FailureTarget" in conditions:
            for pod in active:
                self._end(job, pod)
        else:
            self._resume(job)
            self._fill(job, pods, active, ending)
        self._write(job, conditions)

    def _count(self, job: Object, pods: list[Object]) -> None:
        """Takes note of pods that have ended, each once; a pod that was deleted goes once it is counted."""
        status = job["status"]
        for pod in pods:
            metadata = pod["metadata"]
            if pod["status"]["phase"] in {"Succeeded", "Failed"} and not (
                metadata.get("annotations") or {}
            ).get(_COUNTED):
                if pod["status"]["phase"] == "Succeeded":
                    done = {int(i) for i in status.get("completedIndexes", "").split(",") if i} | {
                        _index(pod)
                    }
                    status["completedIndexes"] = ",".join(map(str, sorted(done)))
                    status["succeeded"] = len(done)
                elif not self._is_ignored(job, pod):
                    status["failed"] = status.get("failed", 0) + 1
                self._store.update(
                    PODS,
                    pod,
                    lambda item: item["metadata"].setdefault("annotations", {}).update({_COUNTED: "true"}),
                )
            if metadata.get("deletionTimestamp") and pod["status"]["phase"] in {"Succeeded", "Failed"}:
                self._store.remove(PODS, pod)

    def _is_ignored(self, job: Object, pod: Object) -> bool:
        ended = ((pod["status"].get("containerStatuses") or [{}])[0].get("state") or {}).get(
            "terminated"
        ) or {}
        if _conditions(job).get("FailureTarget") or job["spec"].get("suspend"):
            return False
        for rule in (job["spec"].get("podFailurePolicy") or {}).get("rules") or []:
            codes = rule.get("onExitCodes")
            if codes is not None:
                inside = ended.get("exitCode") in codes["values"]
                if ended.get("exitCode") and inside == (codes["operator"] == "In"):
                    return bool(rule["action"] == "Ignore")
                continue
            for wanted in rule.get("onPodConditions") or []:
                if any(
                    c["type"] == wanted["type"] and c["status"] == wanted["status"]
                    for c in pod["status"].get("conditions", [])
                ):
                    return bool(rule["action"] == "Ignore")
        return False

    def _fill(self, job: Object, pods: list[Object], active: list[Object], ending: list[Object]) -> None:
        spec, status = job["spec"], job["status"]
        if status.get("failed", 0) > spec.get("backoffLimit", 6):
            self._condition(
                job, "FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
            )
            for pod in active:
                self._end(job, pod)
            return
        done = {int(i) for i in status.get("completedIndexes", "").split(",") if i}
        if len(done) >= spec["completions"]:
            if not active and not ending:
                self._condition(
                    job,
                    "SuccessCriteriaMet",
                    "CompletionsReached",
                    "Reached expected number of succeeded pods",
                )
            return
        there = {_index(pod) for pod in (*active, *ending)}
        uid = job["metadata"]["uid"]
        if time.monotonic() < self._wait.get(uid, 0):
            return
        for index in range(spec["completions"]):
            if index not in done and index not in there:
                try:
                    made = self._create_pod(self._pod(job, index))
                except StatusError as error:
                    self._wait[uid] = time.monotonic() + _AGAIN_S
                    self._event(job, "Warning", "FailedCreate", f"Error creating: {error}")
                    return
                self._event(job, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")

    def _pod(self, job: Object, index: int) -> Object:
        template = copy.deepcopy(job["spec"]["template"])
        metadata, spec = template.setdefault("metadata", {}), template["spec"]
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        metadata["name"] = f"{name}-{index}-{secrets.token_hex(3)[:5]}"
        metadata["namespace"] = job["metadata"]["namespace"]
        metadata["labels"] = {
            **(metadata.get("labels") or {}), "batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name,
            _INDEX: str(index), "controller-uid": uid, "job-name": name,
        }  # fmt: skip
        metadata["annotations"] = {**(metadata.get("annotations") or {}), _INDEX: str(index)}
        metadata["ownerReferences"] = [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": name,
                "uid": uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
        spec["hostname"] = f"{name}-{index}"
        field = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{_INDEX}']"}}
        for container in spec["containers"]:
            container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "valueFrom": field})
        return {"apiVersion": "v1", "kind": "Pod", **template}

    def _suspend(self, job: Object, active: list[Object]) -> None:
        for pod in active:
            self._end(job, pod)
        if _conditions(job).get("Suspended", {}).get("status") != "True":
            self._condition(job, "Suspended", "JobSuspended", "Job suspended")
            job["status"].pop("startTime", None)
            self._event(job, "Normal", "Suspended", "Job suspended")

    def _resume(self, job: Object) -> None:
        if _conditions(job).get("Suspended", {}).get("status") == "True":
            self._condition(job, "Suspended", "JobResumed", "Job resumed", status="False")
            self._event(job, "Normal", "Resumed", "Job resumed")
        job["status"].setdefault("startTime", stamp())

    def _end(self, job: Object, pod: Object) -> None:
        self._delete_pod(pod)
        self._event(job, "Normal", "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")

    def _write(self, job: Object, before: dict[str, Object]) -> None:
        """Puts the status back. What a job comes to is told twice, and the end only with the next look: as a server does."""
        status = job["status"]
        left = [
            p for p in self._store.every(PODS, job["metadata"]["namespace"])
            if _owned(p, job) and p["status"]["phase"] in {"Pending", "Running"}
        ]  # fmt: skip
        alive = [p for p in left if not p["metadata"].get("deletionTimestamp")]
        status["terminating"] = len(left) - len(alive)
        status["ready"] = sum(1 for p in alive if p["status"]["phase"] == "Running")
        status["uncountedTerminatedPods"] = {}
        if alive:
            status["active"] = len(alive)
        else:
            status.pop("active", None)
        for first, last in (("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")):
            if first in before and not left:
                its = before[first]
                self._condition(job, last, its["reason"], its["message"])
                if last == "Complete":
                    status["completionTime"] = stamp()
                told = (
                    ("Normal", "Completed", "Job completed")
                    if last == "Complete"
                    else ("Warning", its["reason"], its["message"])
                )
                self._event(job, *told)
        self._store.update(JOBS, job, lambda item: item.update(status=copy.deepcopy(status)))

    def _condition(self, job: Object, kind: str, reason: str, message: str, status: str = "True") -> None:
        now = stamp()
        found = {
            "type": kind, "status": status, "lastProbeTime": now, "lastTransitionTime": now, "reason": reason, "message": message,
        }  # fmt: skip
        kept = [c for c in job["status"].get("conditions", []) if c["type"] != kind]
        job["status"]["conditions"] = [*kept, found]


def _conditions(job: Object) -> dict[str, Object]:
    return {c["type"]: c for c in job.get("status", {}).get("conditions", [])}


def _index(pod: Object) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(_INDEX, 0))


def _owned(pod: Object, job: Object) -> bool:
    return any(
        owner["uid"] == job["metadata"]["uid"] for owner in pod["metadata"].get("ownerReferences") or []
    )
