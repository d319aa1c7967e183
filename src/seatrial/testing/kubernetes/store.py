"""The objects of a pretend cluster: versions, watches, selectors, and what an API server answers."""

from __future__ import annotations

import copy
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """``batch/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As messages name it: ``jobs.batch``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


class StatusError(Exception):
    """An answer that is no object: ``Status`` of kind Failure."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body: Object = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code,
        }  # fmt: skip
        if details:
            self.body["details"] = details


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an object."""

    version: int
    type: str
    object: Object


class Store:
    """All objects. Everything is done under `changed`, which also wakes those who watch."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._history: deque[tuple[str, Event]] = deque(maxlen=_KEPT)
        self._version = 100
        self._forgotten = 0
        self._pages: dict[str, tuple[list[Object], int]] = {}

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """An object as it is kept; don't change it but by `update`."""
        return self._objects.get((resource.qualified, namespace, name))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """An object; 404 where there is none."""
        with self.changed:
            found = self.find(resource, namespace, name)
            if found is None:
                raise StatusError(
                    404, "NotFound", f'{resource.qualified} "{name}" not found', _details(resource, name)
                )
            return copy.deepcopy(found)

    def every(self, resource: Resource, namespace: str = "") -> list[Object]:
        """All of a kind, by namespace and name."""
        with self.changed:
            its = [
                (key, item) for key, item in self._objects.items()
                if key[0] == resource.qualified and (not namespace or key[1] == namespace)
            ]  # fmt: skip
            return [item for _, item in sorted(its, key=lambda pair: pair[0])]

    def list(
        self,
        resource: Resource,
        namespace: str,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        more: str = "",
    ) -> Object:
        """As a List, in pages where a limit is given."""
        with self.changed:
            if more:
                if more not in self._pages:
                    raise StatusError(
                        410,
                        "Expired",
                        "The provided continue parameter is too old to display a consistent list result.",
                    )
                items, version = self._pages.pop(more)
            else:
                found = self.every(resource, namespace)
                items = [
                    item for item in found if selects(labels, item, _label) and selects(fields, item, _field)
                ]
                version = self._version
            metadata: Object = {"resourceVersion": str(version)}
            if limit and len(items) > limit:
                items, rest = items[:limit], items[limit:]
                token = secrets.token_hex(8)
                self._pages[token] = (rest, version)
                metadata |= {"continue": token, "remainingItemCount": len(rest)}
            return {
                "kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata,
                "items": copy.deepcopy(items),
            }  # fmt: skip

    def create(self, resource: Resource, namespace: str, body: Object, *, dry_run: bool = False) -> Object:
        """Makes an object; 409 where there is one of that name."""
        with self.changed:
            metadata = body.setdefault("metadata", {})
            if "name" not in metadata:
                metadata["name"] = metadata.get("generateName", "") + secrets.token_hex(3)[:5]
            name = metadata["name"]
            if self.find(resource, namespace, name) is not None:
                raise StatusError(
                    409,
                    "AlreadyExists",
                    f'{resource.qualified} "{name}" already exists',
                    _details(resource, name),
                )
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": stamp(), "generation": 1}
            if resource.namespaced:
                metadata["namespace"] = namespace
            made = {"kind": resource.kind, "apiVersion": resource.api_version, **body}
            if dry_run:
                return copy.deepcopy(made)
            self._objects[(resource.qualified, namespace, name)] = made
            self._tell(resource, "ADDED", made)
            return copy.deepcopy(made)

    def update(self, resource: Resource, body: Object, change: Any = None) -> Object:
        """Puts a changed object in the place of what is kept, unless nothing changed.

        Args:
            resource: its kind.
            body: it.
            change: instead, something that changes a copy of what is kept.
        """
        with self.changed:
            metadata = body["metadata"]
            key = (resource.qualified, metadata.get("namespace", ""), metadata["name"])
            before = self._objects.get(key)
            if before is None:
                raise StatusError(404, "NotFound", f'{resource.qualified} "{metadata["name"]}" not found')
            after = copy.deepcopy(before if change is not None else body)
            if change is not None:
                change(after)
            if after == before:
                return before
            if after.get("spec") != before.get("spec"):
                after["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
            self._objects[key] = after
            self._tell(resource, "MODIFIED", after)
            return copy.deepcopy(after)

    def remove(self, resource: Resource, body: Object) -> None:
        """Takes an object out."""
        with self.changed:
            metadata = body["metadata"]
            found = self._objects.pop(
                (resource.qualified, metadata.get("namespace", ""), metadata["name"]), None
            )
            if found is not None:
                self._tell(resource, "DELETED", copy.deepcopy(found))

    def watch(
        self,
        resource: Resource,
        namespace: str,
        since: int,
        until: float,
        labels: str,
        fields: str,
        closed: Any,
    ) -> Iterator[Event | None]:
        """What happens to the objects that are selected from a version on; None now and then, when nothing does.

        An object that is not selected any more is told as deleted; one that is selected from now on, as added.
        """
        seen: set[str] = set()
        with self.changed:
            if since < self._forgotten:
                raise StatusError(410, "Expired", f"too old resource version: {since} ({self._forgotten})")
            seen = {
                item["metadata"]["uid"] for item in self.every(resource, namespace)
                if int(item["metadata"]["resourceVersion"]) <= since
            }  # fmt: skip
        at = since
        while time.monotonic() < until and not closed():
            with self.changed:
                new = [e for name, e in self._history if name == resource.qualified and e.version > at]
                if at < self._forgotten:
                    raise StatusError(410, "Expired", f"too old resource version: {at} ({self._forgotten})")
                if not new:
                    self.changed.wait(min(0.5, max(0.0, until - time.monotonic())))
            for event in new:
                at = event.version
                metadata = event.object["metadata"]
                if namespace and metadata.get("namespace") != namespace:
                    continue
                if selects(labels, event.object, _label) and selects(fields, event.object, _field):
                    kind = event.type
                    if kind == "MODIFIED" and metadata["uid"] not in seen:
                        kind = "ADDED"
                    seen.add(metadata["uid"])
                    yield Event(event.version, kind, event.object)
                elif metadata["uid"] in seen and event.type == "MODIFIED":
                    seen.discard(metadata["uid"])
                    yield Event(event.version, "DELETED", event.object)
            if not new:
                yield None

    @property
    def version(self) -> int:
        """The newest."""
        return self._version

    def compact(self) -> None:
        """Forgets what happened: watches and lists that go on from before are told 410."""
        with self.changed:
            self._history.clear()
            self._version += 1
            self._forgotten = self._version
            self._pages.clear()
            self.changed.notify_all()

    def _tell(self, resource: Resource, kind: str, body: Object) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((resource.qualified, Event(self._version, kind, copy.deepcopy(body))))
        if len(self._history) == _KEPT:
            self._forgotten = max(self._forgotten, self._history[0][1].version - 1)
        self.changed.notify_all()


def stamp(micro: bool = False) -> str:
    """The time as the API writes it."""
    now = datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if micro else now.strftime("%Y-%m-%dT%H:%M:%SZ")


def selects(selector: str, body: Object, value_of: Any) -> bool:
    """Whether a label or field selector takes an object."""
    for part in _parts(selector):
        for operator in ("!=", "==", "="):
            if operator in part:
                name, _, wanted = part.partition(operator)
                if (value_of(body, name.strip()) == wanted.strip()) == (operator == "!="):
                    return False
                break
        else:
            name, _, rest = part.partition(" in ")
            if rest:
                if value_of(body, name.strip()) not in [
                    word.strip() for word in rest.strip(" ()").split(",")
                ]:
                    return False
            elif part.startswith("!") == (value_of(body, part.lstrip("!")) is not None):
                return False
    return True


def _parts(selector: str) -> list[str]:
    parts, depth, word = [], 0, ""
    for sign in selector:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and not depth:
            parts.append(word)
            word = ""
        else:
            word += sign
    return [part for part in [*parts, word] if part.strip()]


def _label(body: Object, name: str) -> str | None:
    found = (body["metadata"].get("labels") or {}).get(name)
    return None if found is None else str(found)


def _field(body: Object, name: str) -> str:
    value: Any = body
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _details(resource: Resource, name: str) -> Object:
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, **group, "kind": resource.plural}
