"""What an API server answers when it does not do what it is asked, as errors of three parts."""

from __future__ import annotations

import json
import re
from typing import Any

from seatrial.errors import PlatformError, SpecError, UnreachableError

_AGAIN = {429, 500, 502, 503, 504}
_DENIED = re.compile(
    r'cannot (\w+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?'
)


class NotFoundError(PlatformError):
    """There is no such object, or no such kind of object."""


class ConflictError(PlatformError):
    """An object of that name exists."""


class GoneError(PlatformError):
    """The history that was asked for is no longer kept (410)."""


class ForbiddenError(PlatformError):
    """The account may not do that."""


class BusyError(Exception):
    """The server has no time, or made a mistake: asked again, it may answer."""

    def __init__(self, told: PlatformError, retry_after_s: float) -> None:
        super().__init__(str(told))
        self.told, self.retry_after_s = told, retry_after_s


def told(status: int | None, body: Any, headers: dict[str, str], context: str) -> Exception:
    """The error that an answer of the server is."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        answer = json.loads(text)
        said, reason = str(answer.get("message", "")), str(answer.get("reason", ""))
    except (ValueError, AttributeError):
        said, reason = text.strip()[:400], ""
    evidence = f"{context}: {status} {reason}: {said}".rstrip(": ")
    if status in _AGAIN:
        after = next((value for name, value in headers.items() if name.lower() == "retry-after"), "0")
        return BusyError(
            UnreachableError("the cluster does not answer as it should", evidence=evidence),
            float(after) if after.isdigit() else 0.0,
        )
    if status == 401:
        return PlatformError(
            "the cluster does not accept your credentials", evidence=evidence,
            remedy="log in again, as you do for kubectl    (kubectl auth whoami)",
        )  # fmt: skip
    if status == 403:
        return _forbidden(said, evidence)
    if status == 404:
        missing = re.search(r'namespaces "([^"]+)" not found', said)
        if missing:
            return SpecError(
                f"there is no namespace {missing[1]}", evidence=evidence,
                remedy=f"kubectl create namespace {missing[1]}    (or kubernetes.namespace=ANOTHER)",
            )  # fmt: skip
        return NotFoundError("the cluster has no such object", evidence=evidence)
    if status == 409:
        return ConflictError("the cluster has another object of that name", evidence=evidence)
    if status == 410:
        return GoneError("the cluster no longer knows that version", evidence=evidence)
    if status in {400, 422}:
        return SpecError("the cluster refuses the object", evidence=evidence)
    return PlatformError("the cluster did not do what it was asked", evidence=evidence)


def rule(verb: str, resource: str, group: str) -> str:
    """The line of a Role that lets an account do something."""
    return f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}}'


def _forbidden(said: str, evidence: str) -> PlatformError | SpecError:
    found = _DENIED.search(said)
    if found is not None:
        verb, resource, group, namespace = found.groups()
        where = f" in namespace {namespace}" if namespace else ""
        kind = "Role" if namespace else "ClusterRole"
        return ForbiddenError(
            f"you may not {verb} {resource}{where}", evidence=evidence,
            remedy=f"a {kind} with the rule {rule(verb, resource, group)}    (deploy/kubernetes/base has one)",
        )  # fmt: skip
    return SpecError("the cluster does not admit the object", evidence=evidence)


def unreachable(error: Exception, context: str) -> UnreachableError:
    """The error for a connection that failed."""
    return UnreachableError(
        "the cluster can't be reached", evidence=f"{context}: {type(error).__name__}: {error}"[:400],
        remedy="kubectl cluster-info    (a VPN, a proxy, an address that has changed?)",
    )  # fmt: skip
