"""Why the scheduler finds no node for a pod: its own words, and the arithmetic that it keeps to itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from seatrial.backends.base import Why
from seatrial.backends.kubernetes.api import Object
from seatrial.backends.kubernetes.nodes import Node, requests_of, why_not
from seatrial.backends.kubernetes.quantity import amount, people
from seatrial.runs.state import RunState

_NODES_SHOWN = 8
_HEAD = re.compile(r"\d+/\d+ nodes are available: ")
_PREEMPTION = re.compile(r"\.? (?:no new claims to deallocate, )?preemption: ")
_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_UNBOUND = re.compile(
    r"unbound immediate PersistentVolumeClaims|didn't find available persistent volumes|volume node affinity conflict"
)
_NOTHING: dict[str, Decimal] = {}


def explain(
    pod: Object,
    said: str,
    nodes: list[Node] | None,
    taken: Mapping[str, Mapping[str, Decimal]],
    *,
    sees_all: bool = True,
) -> Why:
    """Why a pod has no node.

    Args:
        pod: it.
        said: the scheduler's message; wording differs between versions, so little of it is relied upon.
        nodes: all of them; None where they may not be seen.
        taken: by node and resource, what pods ask for there.
        sees_all: whether these are the pods of all namespaces.
    """
    evidence = [f"scheduler: {said}"] if said else []
    claim = _CLAIM.search(said)
    if claim is not None:
        return _why(
            f"there is no volume claim {claim[1]}", evidence, ["kubectl get pvc    (kubernetes.claim=NAME)"]
        )
    if _UNBOUND.search(said):
        return _why("its volume is not to be had where it could run", evidence, ["kubectl describe pvc"])
    requests = requests_of(pod["spec"])
    if nodes is None:
        return _why(
            _words(said), [*evidence, "you may not see the nodes: what is free there can't be told"], []
        )
    if not nodes:
        return _why("the cluster has no nodes", evidence, ["kubectl get nodes"])
    found = {
        node.name: why_not(node, pod["spec"], taken.get(node.name, _NOTHING), requests) for node in nodes
    }
    lines = [f"{name}: {'; '.join(reasons) or 'would take it'}" for name, (reasons, _) in found.items()]
    if len(lines) > _NODES_SHOWN:
        lines = [*lines[:_NODES_SHOWN], f"and {len(lines) - _NODES_SHOWN} more nodes"]
    if not sees_all:
        lines.append("only the pods of this namespace may be seen: what others use is not in these numbers")
    never = [name for name, value in requests.items() if all(value > node.has(name) for node in nodes)]
    if never:
        return _why(
            f"it never fits: {'; '.join(_arithmetic(n, requests[n], nodes, taken) for n in never)}",
            [*lines, *evidence],
            _ask_less(never[0]),
        )
    return _judged(found, requests, nodes, taken, [*lines, *evidence], said)


def _judged(
    found: Mapping[str, tuple[list[str], bool]], requests: Mapping[str, Decimal], nodes: list[Node],
    taken: Mapping[str, Mapping[str, Decimal]], evidence: list[str], said: str,
) -> Why:  # fmt: skip
    able = [node for node in nodes if not found[node.name][1]]
    barred = {
        node.name: [r for r in found[node.name][0] if not r.startswith(tuple(f"{n}:" for n in requests))]
        for node in able
    }
    open_nodes = [node for node in able if not barred[node.name]]
    if not open_nodes:
        reasons = [reason for node in able for reason in barred[node.name]]
        worst = max(dict.fromkeys(reasons), key=reasons.count)
        return _why(f"no node that is large enough may be used: {worst}", evidence, _lift(worst))
    short = [
        name
        for name, value in requests.items()
        if all(
            value > node.has(name) - taken.get(node.name, _NOTHING).get(name, Decimal(0))
            for node in open_nodes
        )
    ]
    if short:
        told = "; ".join(_arithmetic(name, requests[name], open_nodes, taken) for name in short)
        return _why(f"it waits for room: {told}", evidence, ["others' pods must end first, or ask for less"])
    return _why(
        _words(said),
        evidence,
        [
            "kubectl describe pod    (by these numbers there is a node: the scheduler may try again any moment)"
        ],
    )


def _arithmetic(
    name: str, asked: Decimal, nodes: list[Node], taken: Mapping[str, Mapping[str, Decimal]]
) -> str:
    free = max(
        (node.has(name) - taken.get(node.name, _NOTHING).get(name, Decimal(0)) for node in nodes),
        default=Decimal(0),
    )
    largest = max((node.has(name) for node in nodes), default=Decimal(0))
    what = "GPUs" if name.endswith("/gpu") else name
    return f"asks {people(name, asked)} {what}, largest free {people(name, max(free, Decimal(0)))}, largest node {people(name, largest)}"


def _words(said: str) -> str:
    """The scheduler's own words, without what every message of it has."""
    text = _PREEMPTION.split(_HEAD.sub("", said, count=1))[0].rstrip(". ")
    return f"no node takes it: {text}" if text else "no node takes it"


def _ask_less(resource: str) -> list[str]:
    key = {"cpu": "kubernetes.cpu", "memory": "kubernetes.memory"}.get(resource, "resources.gpus_per_node")
    return [f"a smaller {key}, or larger nodes"]


def _lift(reason: str) -> list[str]:
    if reason.startswith("taint"):
        key = reason.removeprefix("taint ").partition(":")[0].partition("=")[0]
        return [f"kubernetes.tolerations=[{{key: {key}}}], if it is meant for such jobs"]
    if reason.startswith("no label"):
        return ["kubernetes.node_selector with labels that nodes have    (kubectl get nodes --show-labels)"]
    if reason == "cordoned":
        return ["kubectl uncordon NODE, once it is sound"]
    if reason.startswith("left out"):
        return ["kubernetes.exclude leaves out nodes that it needs    (or --verdict none)"]
    return ["kubectl get nodes"]


def more(asked: str, limit: str | None) -> bool:
    """Whether an amount is more than another; not where one is unknown."""
    try:
        return limit is not None and amount(asked) > amount(limit)
    except ValueError:
        return False


def _why(sentence: str, evidence: list[str], helps: list[str]) -> Why:
    return Why(RunState.PENDING, sentence, evidence, helps)
