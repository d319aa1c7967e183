"""Why a job waits: the evidence, and what would help. Nothing is guessed: no evidence is said to be none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from seatrial.backends.base import Why
from seatrial.backends.kubernetes import why_room
from seatrial.backends.kubernetes.answers import ForbiddenError, NotFoundError
from seatrial.backends.kubernetes.api import Api, Object
from seatrial.backends.kubernetes.nodes import Node, read_nodes, read_pods, used
from seatrial.backends.kubernetes.observe import index_of
from seatrial.backends.kubernetes.states import is_suspended, pods_wanted
from seatrial.backends.kubernetes.targets import Groups
from seatrial.runs.state import RunState

_QUEUE = "kueue.x-k8s.io/queue-name"
_QUOTA = re.compile(r"exceeded quota: (\S+), requested: (.+?), used: (.+?), limited: (.+)")
_PSA = re.compile(r'violates PodSecurity "([^"]+)": (.+)')
_NO_PRIORITY = re.compile(r"no PriorityClass with name (\S+) was found")
_NO_ACCOUNT = re.compile(r'serviceaccount "?([^"\s]+)"? not found')
_MISSING = re.compile(r'(secret|configmap|persistentvolumeclaim|serviceaccount) "([^"]+)" not found')
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_SLOW = {"ContainerCreating", "PodInitializing"}
_OF_VOLUMES = {
    "FailedMount",
    "FailedAttachVolume",
    "FailedCreatePodSandBox",
    "NetworkNotReady",
    "FailedMapVolume",
}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """What was asked of the cluster for an explanation; what may not be seen is None."""

    job: Object
    pods: list[Object]
    events: list[Object] = field(default_factory=list)
    workload: Object | None = None
    has_kueue: bool = False
    nodes: list[Node] | None = None
    taken: Mapping[str, Mapping[str, Decimal]] = field(default_factory=dict)
    sees_all_pods: bool = True

    @property
    def name(self) -> str:
        """Of the job."""
        return str(self.job["metadata"]["name"])

    def events_of(self, kind: str, name: str) -> list[Object]:
        """The newest last. Events of the scheduler have no count and no time but eventTime."""
        its = [
            e
            for e in self.events
            if e["involvedObject"].get("kind") == kind and e["involvedObject"].get("name") == name
        ]
        return sorted(its, key=when)

    def last(self, kind: str, name: str, reasons: Iterable[str]) -> Object | None:
        """The newest event for one of these reasons."""
        wanted = set(reasons)
        return next((e for e in reversed(self.events_of(kind, name)) if e["reason"] in wanted), None)


def when(event: Object) -> str:
    """When an event was last seen."""
    times = (event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return next((str(time) for time in times if time), "")


def explain(api: Api, job: Object | None, pods: list[Object]) -> Why:
    """Asks the cluster why a job waits."""
    if job is None:
        return Why(RunState.INTERRUPTED, "the job was deleted")
    events, _ = api.list(api.path("v1", "events"))
    version = Groups.read(api).version("kueue.x-k8s.io")
    workload = (
        _workload(api, version, job) if version and _QUEUE in (job["metadata"].get("labels") or {}) else None
    )
    waits = any(
        pod.get("status", {}).get("phase") == "Pending" and not pod["spec"].get("nodeName") for pod in pods
    )
    nodes = read_nodes(api) if waits else None
    others, sees_all = read_pods(api) if nodes is not None else ([], True)
    return explain_waiting(
        Seen(job, pods, events, workload, version is not None, nodes, used(others), sees_all)
    )


def _workload(api: Api, version: str, job: Object) -> Object | None:
    uid = job["metadata"]["uid"]
    try:
        items, _ = api.list(api.path(version, "workloads"), selector=f"kueue.x-k8s.io/job-uid={uid}")
    except (ForbiddenError, NotFoundError):
        return None
    return items[0] if items else None


def explain_waiting(seen: Seen) -> Why:
    """Why a job does not run yet. Pure."""
    for look in (_suspended, _no_pods, _unplaced, _not_started):
        found = look(seen)
        if found is not None:
            return _with_gang(found, seen)
    return Why(
        RunState.PENDING, "it waits, and the cluster does not say for what",
        [f"job {seen.name}: {len(seen.pods)} pods, no event that explains it"],
        [f"kubectl describe job {seen.name}"],
    )  # fmt: skip


def _why(sentence: str, evidence: list[str], helps: list[str]) -> Why:
    return Why(RunState.PENDING, sentence, evidence, helps)


def _suspended(seen: Seen) -> Why | None:
    if not is_suspended(seen.job):
        return None
    queue = (seen.job["metadata"].get("labels") or {}).get(_QUEUE)
    if queue is None:
        return _why(
            "it is suspended, and nobody is to lift that: whoever submitted it was cut off",
            [f"job {seen.name}: suspend is true, and it has no queue"],
            ["seatrial runs cancel RUN, and start it again"],
        )
    if seen.workload is None:
        said = (
            "Kueue has made no Workload for it" if seen.has_kueue else "the cluster has no Kueue (any more)"
        )
        return _why(
            f"it waits for Kueue, which has not taken it up: queue {queue}", [said],
            ["kubectl get workloads    (may you list them? is the controller up, and does it manage this kind of job?)"],
        )  # fmt: skip
    conditions = {c["type"]: c for c in seen.workload.get("status", {}).get("conditions") or []}
    evicted, reserved = conditions.get("Evicted", {}), conditions.get("QuotaReserved", {})
    name = seen.workload["metadata"]["name"]
    if reserved.get("status") == "True":
        checks = [
            f"admission check {c['name']}: {c.get('state')}: {c.get('message', '')}".rstrip(": ")
            for c in seen.workload["status"].get("admissionChecks") or [] if c.get("state") != "Ready"
        ]  # fmt: skip
        if checks:
            return _why(
                "Kueue has room for it, and waits for an admission check",
                checks,
                ["kubectl describe workload " + name],
            )
        return _why("Kueue has just admitted it", [f"workload {name}: {reserved.get('message', '')}"], [])
    if not reserved:
        return _why(
            f"it stands in Kueue's queue {queue}, and was not looked at yet",
            [f"workload {name} has no condition: in a StrictFIFO queue the ones before it come first"],
            [f"kubectl get workloads --sort-by=.metadata.creationTimestamp | grep {queue}"],
        )
    return _queued(seen, name, str(reserved.get("reason")), str(reserved.get("message")), evicted)


def _queued(seen: Seen, name: str, reason: str, message: str, evicted: Mapping[str, str]) -> Why:
    evidence = [f"workload {name}: {reason}: {message}"]
    if evicted.get("status") == "True":
        evidence.append(f"it was taken back: {evicted.get('reason')}: {evicted.get('message')}")
    if reason == "ExceedsMaxQuota" or "maximum capacity" in message:
        return _why(
            "it never fits into Kueue's quota", evidence,
            ["fewer resources.nodes or resources.gpus_per_node, or another kubernetes.queue"],
        )  # fmt: skip
    if "LocalQueue" in message or "ClusterQueue" in message or reason in {"Misconfigured", "Inadmissible"}:
        return _why("Kueue can't take it", evidence, ["kubectl get localqueues    (kubernetes.queue=NAME)"])
    missing = re.search(r"insufficient unused quota for (\S+) in flavor (\S+?), (\S+) more needed", message)
    if missing:
        return _why(
            f"Kueue waits for quota: {missing[3]} more of {missing[1]} in flavor {missing[2]}", evidence,
            ["others' jobs must end first, or ask for less"],
        )  # fmt: skip
    return _why("Kueue waits for quota", evidence, ["kubectl describe workload " + name])


def _no_pods(seen: Seen) -> Why | None:
    """Of pods that were never made only the job's own events tell."""
    there = {index_of(pod) for pod in seen.pods}
    if len(there) >= pods_wanted(seen.job):
        return None
    failed = seen.last(seen.job.get("kind", "Job"), seen.name, ["FailedCreate"])
    if failed is None and seen.job.get("kind", "Job") != "Job":
        failed = next((e for e in sorted(seen.events, key=when, reverse=True) if e["reason"] == "FailedCreate"
                       and str(e["involvedObject"].get("name", "")).startswith(seen.name)), None)  # fmt: skip
    if failed is None:
        return (
            None
            if seen.pods
            else _why("its pods are not made yet", [f"job {seen.name} has no pod and no event"], [])
        )
    message = str(failed["message"])
    evidence = [f"event FailedCreate of {when(failed)}: {message}"]
    quota = _QUOTA.search(message)
    if quota is not None:
        return _over_quota(quota, evidence)
    security = _PSA.search(message)
    if security is not None:
        return _why(
            f"the namespace's Pod Security ({security[1]}) admits no such pods",
            evidence,
            [
                "leave out what it refuses (kubernetes.ipc_lock), or a namespace with another pod-security.kubernetes.io/enforce"
            ],
        )
    priority = _NO_PRIORITY.search(message)
    if priority is not None:
        return _why(
            f"there is no priority class {priority[1]}",
            evidence,
            ["kubectl get priorityclass    (kubernetes.priority_class=NAME)"],
        )
    account = _NO_ACCOUNT.search(message)
    if account is not None:
        return _why(
            f"there is no service account {account[1]}",
            evidence,
            ["kubectl get serviceaccounts    (kubernetes.service_account=NAME)"],
        )
    if "admission webhook" in message:
        return _why(
            "an admission webhook refuses its pods",
            evidence,
            ["whoever runs the webhook can tell what it wants"],
        )
    return _why("the cluster makes no pods for it", evidence, [f"kubectl describe job {seen.name}"])


def _over_quota(found: re.Match[str], evidence: list[str]) -> Why:
    name, requested, taken, hard = found.groups()
    asked, limit = _pairs(requested), _pairs(hard)
    never = [
        f"{key}: a pod asks {value}, the quota is {limit[key]}"
        for key, value in asked.items()
        if why_room.more(value, limit.get(key))
    ]
    if never:
        return _why(
            f"it never fits into the namespace's quota {name}",
            [*never, *evidence],
            ["ask for less, or have the quota raised"],
        )
    return _why(
        f"the namespace's quota {name} is used up: {requested} asked, {taken} of {hard} used", evidence,
        ["others' pods in the namespace must end first; pods that wait count as used"],
    )  # fmt: skip


def _pairs(text: str) -> dict[str, str]:
    return dict(part.strip().partition("=")[::2] for part in text.split(","))


def _unplaced(seen: Seen) -> Why | None:
    waiting = [
        pod
        for pod in seen.pods
        if pod.get("status", {}).get("phase") == "Pending" and not pod["spec"].get("nodeName")
    ]
    if not waiting:
        return None
    pod = min(waiting, key=index_of)
    name = pod["metadata"]["name"]
    scheduled = next((c for c in pod["status"].get("conditions") or [] if c["type"] == "PodScheduled"), None)
    if scheduled is None:
        claim = seen.last("Pod", name, ["FailedResourceClaimCreation"])
        if claim is not None:
            return _why(
                "a resource claim of its pods can't be made",
                [f"event {claim['reason']}: {claim['message']}"],
                ["kubectl get resourceclaimtemplates"],
            )
        return _why(
            "the scheduler has not looked at its pods yet",
            [f"pod {name} has no condition PodScheduled"],
            ["kubectl get pods -n kube-system    (is the scheduler up?)"],
        )
    if scheduled.get("reason") == "SchedulingGated":
        gates = ", ".join(gate["name"] for gate in pod["spec"].get("schedulingGates") or [])
        return _why(
            f"its pods are held back by a scheduling gate: {gates or 'unnamed'}",
            [f"pod {name}: {scheduled.get('message')}"],
            ["whoever set the gate lifts it"],
        )
    event = seen.last("Pod", name, ["FailedScheduling"])
    said = str((event or {}).get("message") or scheduled.get("message") or "")
    found = why_room.explain(pod, said, seen.nodes, seen.taken, sees_all=seen.sees_all_pods)
    scaling = seen.last("Pod", name, ["NotTriggerScaleUp", "TriggeredScaleUp", "FailedScaleUp"])
    if scaling is not None:
        found.evidence.append(f"cluster autoscaler: {scaling['reason']}: {scaling['message']}")
    return found


def _not_started(seen: Seen) -> Why | None:
    """Pods that have a node and don't run."""
    for pod in sorted(seen.pods, key=index_of):
        if pod.get("status", {}).get("phase") != "Pending" or not pod["spec"].get("nodeName"):
            continue
        statuses = [
            *(pod["status"].get("initContainerStatuses") or []),
            *(pod["status"].get("containerStatuses") or []),
        ]
        for container in statuses:
            waits = (container.get("state") or {}).get("waiting")
            if waits:
                return _container_waits(seen, pod, container, waits)
        return _starting(seen, pod, "it has a node and starts")
    return None


def _container_waits(seen: Seen, pod: Object, container: Object, waits: Mapping[str, str]) -> Why:
    name, node, reason = pod["metadata"]["name"], pod["spec"]["nodeName"], waits.get("reason", "")
    evidence = [f"pod {name} on {node}: {reason}: {waits.get('message', '')}".rstrip(": ")]
    if reason in _IMAGE:
        image = next(
            (c["image"] for c in pod["spec"]["containers"] if c["name"] == container.get("name")), ""
        )
        failed = seen.last("Pod", name, ["Failed", "ErrImageNeverPull", "InspectFailed"])
        evidence += [f"event {failed['reason']}: {failed['message']}"] if failed else []
        return _why(
            f"the image {image} can't be fetched", evidence,
            ["kubernetes.image=NAME:TAG that exists; kubernetes.pull_secrets=[NAME] where the registry wants to know who asks"],
        )  # fmt: skip
    if reason == "CreateContainerConfigError":
        missing = _MISSING.search(waits.get("message", ""))
        what = (
            f"there is no {missing[1]} {missing[2]}"
            if missing
            else "what its container refers to is not there"
        )
        return _why(what, evidence, ["kubernetes.secrets names a Secret and a key of the namespace"])
    if reason in _SLOW:
        return _starting(seen, pod, f"its pods start: {reason}")
    return _why(f"its container does not start: {reason}", evidence, [f"kubectl describe pod {name}"])


def _starting(seen: Seen, pod: Object, sentence: str) -> Why:
    name = pod["metadata"]["name"]
    failed = seen.last("Pod", name, _OF_VOLUMES)
    if failed is not None:
        missing = _MISSING.search(str(failed["message"]))
        what = (
            f"there is no {missing[1]} {missing[2]}"
            if missing
            else "a volume, or the network, of its pods is not there"
        )
        return _why(
            what,
            [f"event {failed['reason']} of {when(failed)}: {failed['message']}"],
            [f"kubectl describe pod {name}"],
        )
    pulling = seen.last("Pod", name, ["Pulling", "Pulled"])
    evidence = [f"pod {name} is on {pod['spec']['nodeName']}"]
    evidence += [f"event {pulling['reason']} of {when(pulling)}: {pulling['message']}"] if pulling else []
    return _why(sentence, evidence, [])


def _with_gang(found: Why, seen: Seen) -> Why:
    """Who is there already, and waits for the others."""
    wanted = pods_wanted(seen.job)
    running = sorted(index_of(pod) for pod in seen.pods if pod.get("status", {}).get("phase") == "Running")
    if not running or len(running) >= wanted:
        return found
    missing = [i for i in range(wanted) if i not in running]
    shown = ", ".join(map(str, missing[:_SHOWN])) + (" …" if len(missing) > _SHOWN else "")
    line = f"{len(running)} of {wanted} pods run and wait half an hour for the others; missing: index {shown}"
    return Why(found.state, found.sentence, [line, *found.evidence], found.helps)
