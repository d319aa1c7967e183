"""Where a run is, from what a real control plane said of jobs that went well, failed, and were deleted."""

from __future__ import annotations

import json
from typing import Any

from seatrial.backends.kubernetes.states import job_state, pod_failed, pod_waits
from seatrial.runs.state import RunState

from .kubernetes_samples import RECORDED


def transcript(job: str) -> list[tuple[RunState, str]]:
    """The states of a job, one after the other, as its watch told them."""
    body: dict[str, Any] | None = None
    pods: dict[str, Any] = {}
    told: list[tuple[RunState, str]] = []
    for line in (RECORDED / "watch.jsonl").read_text().splitlines():
        event = json.loads(line)
        item, gone = event["object"], event["type"] == "DELETED"
        if event["stream"] == "jobs" and item["metadata"].get("name") == job:
            body = None if gone else item
        elif event["stream"] == "pods" and (item["metadata"].get("labels") or {}).get("job-name") == job:
            pods.pop(item["metadata"]["name"], None) if gone else pods.update(
                {item["metadata"]["name"]: item}
            )
        else:
            continue
        found = job_state(body, pods.values())
        if not told or told[-1] != (found.state, found.reason):
            told.append((found.state, found.reason))
    return told


def test_a_good_job() -> None:
    states = [state for state, _ in transcript("good")]
    assert states[0] is RunState.PENDING
    assert states[-2:] == [RunState.RUNNING, RunState.COMPLETED]


def test_a_failed_job_is_over_once_its_last_pod_is_gone() -> None:
    told = transcript("bad")
    assert (RunState.RUNNING, "it has failed, and its last pods end") in told
    assert told[-1] == (
        RunState.FAILED,
        "pod bad-0-675qv: exit code 137, OOMKilled (BackoffLimitExceeded: Job has reached the specified backoff limit)",
    )


def test_a_deleted_job_runs_until_its_pods_are_gone() -> None:
    told = transcript("cancel")
    assert told[-2:] == [
        (RunState.RUNNING, "the job is being deleted, its pods save and stop"),
        (RunState.INTERRUPTED, "the job was deleted"),
    ]


def test_what_pods_wait_for_in_a_clause() -> None:
    pods = json.loads((RECORDED / "pods.json").read_text())["items"]
    told = {
        pod["metadata"]["name"].rpartition("-0-")[0]: pod_waits(pod)
        for pod in pods
        if "-0-" in pod["metadata"]["name"]
    }
    assert told["fx-insufficient"] == "0/2 nodes are available: 2 Insufficient nvidia.com/gpu"
    assert told["fx-gated"] == "Scheduling is blocked due to non-empty scheduling gates"
    assert told["hj"] == "it has a node, and starts"
    assert told["fx-claim-template-missing"] == "not yet scheduled"


def test_how_pods_fail() -> None:
    evicted = {"metadata": {"name": "p"}, "status": {"reason": "Evicted", "message": "low on memory"}}
    assert pod_failed(evicted) == "pod p: Evicted: low on memory"
    drained = {
        "metadata": {"name": "p"},
        "status": {
            "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
        },
    }
    assert pod_failed(drained) == "pod p: EvictionByEvictionAPI"
    assert pod_failed({"metadata": {"name": "p"}, "status": {}}) == ""
