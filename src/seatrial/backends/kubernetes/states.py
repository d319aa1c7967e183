"""What a job and its pods say of where a run is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from seatrial.backends.base import JobState
from seatrial.backends.kubernetes.api import Object
from seatrial.backends.kubernetes.observe import index_of
from seatrial.runs.state import RunState

_DONE = ("Complete", "Completed", "Succeeded")
_FAILED = ("Failed",)
_ENDED = {"Succeeded", "Failed"}
_WAITS_LONG = {"ContainerCreating", "PodInitializing"}


def condition(body: Object, *names: str) -> Mapping[str, Any] | None:
    """The first of these conditions that an object is in."""
    for found in body.get("status", {}).get("conditions") or []:
        if found["type"] in names and found.get("status") == "True":
            return dict(found)
    return None


def is_suspended(job: Object) -> bool:
    """Whether a job is held back: by whoever made it, or by Kueue."""
    spec = job.get("spec", {})
    return bool(spec.get("suspend") or (spec.get("runPolicy") or {}).get("suspend"))


def pods_wanted(job: Object) -> int:
    """How many pods a job is to have."""
    spec = job.get("spec", {})
    if "trainer" in spec:
        return int((spec["trainer"] or {}).get("numNodes") or 1)
    if "replicatedJobs" in spec:
        return sum(
            int(j["template"]["spec"].get("completions") or 1) * int(j.get("replicas") or 1)
            for j in spec["replicatedJobs"]
        )
    if "pytorchReplicaSpecs" in spec:
        return sum(int(replica.get("replicas") or 1) for replica in spec["pytorchReplicaSpecs"].values())
    return int(spec.get("completions") or 1)


def job_state(job: Object | None, pods: Iterable[Object]) -> JobState:
    """Where the run is, in one clause.

    A job that fails says so twice: FailureTarget while pods still end, and Failed when none is left. Only the latter is the
    end. (Kubernetes 1.31 and later; recorded on 1.36.)
    """
    if job is None:
        return JobState(RunState.INTERRUPTED, "the job was deleted")
    there = sorted(pods, key=index_of)
    done, failed = condition(job, *_DONE), condition(job, *_FAILED)
    if failed is not None:
        return JobState(RunState.FAILED, how_it_failed(failed, there))
    if done is not None:
        return JobState(RunState.COMPLETED)
    if job["metadata"].get("deletionTimestamp"):
        return JobState(RunState.RUNNING, "the job is being deleted, its pods save and stop")
    if condition(job, "FailureTarget") is not None:
        return JobState(RunState.RUNNING, "it has failed, and its last pods end")
    if is_suspended(job):
        left = [pod for pod in there if pod.get("status", {}).get("phase") not in _ENDED]
        return JobState(RunState.PENDING, f"suspended{'; its pods save and stop' if left else ''}")
    wanted = pods_wanted(job)
    phases = [pod.get("status", {}).get("phase") for pod in there]
    running = phases.count("Running")
    if running + phases.count("Succeeded") >= wanted:
        return JobState(RunState.RUNNING)
    waiting = [pod for pod in there if pod.get("status", {}).get("phase") == "Pending"]
    if not there:
        return JobState(RunState.PENDING, "no pod yet")
    some = f"{running} of {wanted} pods run" if running else f"{wanted} pod{'s' if wanted > 1 else ''}"
    return JobState(RunState.PENDING, f"{some}; {pod_waits(waiting[0])}" if waiting else some)


def pod_waits(pod: Object) -> str:
    """What a pod that does not run yet waits for, in a clause."""
    status = pod.get("status", {})
    for found in status.get("conditions") or []:
        if found["type"] == "PodScheduled" and found["status"] == "False":
            said = str(found.get("message") or found.get("reason"))
            return said.partition(". ")[0].rstrip(".")
    for container in status.get("containerStatuses") or []:
        waits = (container.get("state") or {}).get("waiting")
        if waits:
            return (
                f"{waits.get('reason')}: {waits['message']}"
                if waits.get("message")
                else str(waits.get("reason"))
            )
    return "it has a node, and starts" if pod["spec"].get("nodeName") else "not yet scheduled"


def how_it_failed(failed: Mapping[str, Any], pods: Iterable[Object]) -> str:
    """The first pod's word on it, or the job's own."""
    told = [text for pod in pods if (text := pod_failed(pod))]
    own = f"{failed.get('reason')}: {failed.get('message')}"
    return f"{told[0]} ({own})" if told else own


def pod_failed(pod: Object) -> str:
    """How a pod failed; empty where it did not."""
    status = pod.get("status", {})
    name = pod["metadata"]["name"]
    if status.get("reason") in {
        "Evicted",
        "DeadlineExceeded",
        "NodeLost",
        "Preempting",
        "UnexpectedAdmissionError",
    }:
        return f"pod {name}: {status['reason']}: {status.get('message', '')}".rstrip(": ")
    for found in status.get("conditions") or []:
        if found["type"] == "DisruptionTarget" and found["status"] == "True":
            return f"pod {name}: {found.get('reason')}: {found.get('message', '')}".rstrip(": ")
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            reason = "" if ended.get("reason") in {None, "Error"} else f", {ended['reason']}"
            reason += f": {ended['message']}" if ended.get("message") else ""
            return f"pod {name}: exit code {ended['exitCode']}{reason}"
    return ""
