"""The pretend scheduler: the first node that takes a pod, and where there is none, the words of 1.36 for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from seatrial.backends.kubernetes.nodes import Node, requests_of, tolerates, used
from seatrial.testing.kubernetes.kinds import CLAIMS, NODES, PODS
from seatrial.testing.kubernetes.store import Object, Store, stamp


class Scheduler:
    """Places pods.

    Args:
        store: the objects.
        event: tells of a pod.
    """

    def __init__(self, store: Store, event: Callable[..., None]) -> None:
        self._store, self._event = store, event
        self._said: dict[str, str] = {}

    def sync(self) -> None:
        """Places what can be placed."""
        for pod in self._store.every(PODS):
            if (
                pod["spec"].get("nodeName")
                or pod.get("status", {}).get("phase") != "Pending"
                or pod["metadata"].get("deletionTimestamp")
            ):
                continue
            if pod["spec"].get("schedulingGates"):
                self._condition(
                    pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"
                )
                continue
            self._place(pod)

    def _place(self, pod: Object) -> None:
        nodes = [Node.of(item) for item in self._store.every(NODES)]
        pods = self._store.every(PODS)
        taken = used(pods)
        claim = self._missing_claim(pod)
        if claim is not None:
            self._fails(
                pod,
                f'0/{len(nodes)} nodes are available: persistentvolumeclaim "{claim}" not found. not found',
            )
            return
        why: Counter[str] = Counter()
        never = 0
        for node in nodes:
            reason, hopeless = self._why_not(pod, node, taken.get(node.name, {}), pods)
            if reason is None:
                self._bind(pod, node.name)
                return
            why[reason] += 1
            never += hopeless
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(why.items()))
        hope = len(nodes) - never
        preemption = [f"{never} Preemption is not helpful for scheduling"] if never else []
        preemption += [f"{hope} No preemption victims found for incoming pod"] if hope else []
        self._fails(
            pod,
            f"0/{len(nodes)} nodes are available: {counts}. no new claims to deallocate, preemption: 0/{len(nodes)} nodes are "
            f"available: {', '.join(preemption)}.",
        )

    def _why_not(self, pod: Object, node: Node, taken: Any, pods: list[Object]) -> tuple[str | None, bool]:
        spec = pod["spec"]
        if node.unschedulable:
            return "node(s) were unschedulable", True
        bad = [
            t
            for t in node.taints
            if t.get("effect") in {"NoSchedule", "NoExecute"}
            and not tolerates(spec.get("tolerations") or [], t)
        ]
        if bad:
            return "node(s) had untolerated taint(s)", True
        if any(
            node.labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()
        ) or self._excluded(spec, node):
            return "node(s) didn't match Pod's node affinity/selector", True
        for term in (spec.get("affinity") or {}).get("podAntiAffinity", {}).get(
            "requiredDuringSchedulingIgnoredDuringExecution"
        ) or []:
            wanted = term["labelSelector"]["matchLabels"].items()
            for other in pods:
                labels = other["metadata"].get("labels") or {}
                here = other["spec"].get("nodeName") == node.name and other.get("status", {}).get(
                    "phase"
                ) not in {"Succeeded", "Failed"}
                if here and all(labels.get(key) == value for key, value in wanted):
                    return "node(s) didn't match pod anti-affinity rules", False
        for name, value in requests_of(spec).items():
            if value > node.has(name) - taken.get(name, Decimal(0)):
                return f"Insufficient {name}", value > node.has(name)
        return None, False

    def _excluded(self, spec: Object, node: Node) -> bool:
        required = (spec.get("affinity") or {}).get("nodeAffinity", {}).get(
            "requiredDuringSchedulingIgnoredDuringExecution"
        ) or {}
        for term in required.get("nodeSelectorTerms") or []:
            for rule in term.get("matchExpressions") or []:
                value = node.labels.get(rule["key"])
                if rule["operator"] == "NotIn" and value in rule["values"]:
                    return True
                if rule["operator"] == "In" and value not in rule["values"]:
                    return True
        return False

    def _missing_claim(self, pod: Object) -> str | None:
        for volume in pod["spec"].get("volumes") or []:
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if claim and self._store.find(CLAIMS, pod["metadata"]["namespace"], claim) is None:
                return str(claim)
        return None

    def _bind(self, pod: Object, node: str) -> None:
        def change(item: Object) -> None:
            item["spec"]["nodeName"] = node
            item["status"]["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "True",
                    "lastProbeTime": None,
                    "lastTransitionTime": stamp(),
                }
            ]

        self._store.update(PODS, pod, change)
        name = pod["metadata"]["name"]
        self._event(
            pod,
            "Normal",
            "Scheduled",
            f"Successfully assigned {pod['metadata']['namespace']}/{name} to {node}",
            scheduler=True,
        )

    def _fails(self, pod: Object, message: str) -> None:
        self._condition(pod, "Unschedulable", message)
        name = pod["metadata"]["name"]
        if self._said.get(name) != message:
            self._said[name] = message
            self._event(pod, "Warning", "FailedScheduling", message, scheduler=True)

    def _condition(self, pod: Object, reason: str, message: str) -> None:
        def change(item: Object) -> None:
            before: Object = next(
                (c for c in item["status"].get("conditions", []) if c["type"] == "PodScheduled"), {}
            )
            if (before.get("reason"), before.get("message")) != (reason, message):
                item["status"]["conditions"] = [
                    {"type": "PodScheduled", "status": "False", "lastProbeTime": None, "lastTransitionTime": stamp(),
                     "reason": reason, "message": message}
                ]  # fmt: skip

        self._store.update(PODS, pod, change)
