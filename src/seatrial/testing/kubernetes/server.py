"""The pretend cluster's REST API, on a port of the loopback."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from seatrial.testing.kubernetes.faults import Faults
from seatrial.testing.kubernetes.kinds import NAMESPACES, PODS, REVIEWS
from seatrial.testing.kubernetes.store import Object, Resource, StatusError, Store

_TRUE = {"1", "t", "T", "true", "True", "TRUE"}
"""As Go reads a boolean: clients send both ``true`` and ``True``."""


class Api:
    """What the requests are answered from.

    Args:
        store: the objects.
        resources: the kinds that are served.
        faults: what goes wrong.
        delete: deletes an object as the controllers would have it.
        create: makes one.
        logs: the lines of a pod's log, each with its time.
        version: of the pretended release.
        token: that requests must bring.
    """

    def __init__(
        self, store: Store, resources: tuple[Resource, ...], faults: Faults, delete: Callable[..., Object],
        create: Callable[..., Object], logs: Callable[..., Iterator[bytes]], version: str, token: str,
    ) -> None:  # fmt: skip
        self.store, self.resources, self.faults = store, resources, faults
        self.delete, self.create, self.logs = delete, create, logs
        self.version, self.token = version, token
        self.requests: list[str] = []
        """Method and path of each request, in order."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024
    context: ssl.SSLContext

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection whose handshake is its own thread's business."""
        connection, address = super().get_request()
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are nobody's concern."""


def serve(api: Api, context: ssl.SSLContext) -> ThreadingHTTPServer:
    """Starts to answer on a free port of 127.0.0.1."""

    class Bound(_Handler):
        served = api

    server = _Server(("127.0.0.1", 0), Bound)
    server.context = context
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    served: Api
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """One object, a list, a watch, a log, or discovery."""
        self._answer("get")

    def do_POST(self) -> None:
        """Makes an object."""
        self._answer("create")

    def do_PATCH(self) -> None:
        """Merges into one."""
        self._answer("patch")

    def do_PUT(self) -> None:
        """Replaces one."""
        self._answer("update")

    def do_DELETE(self) -> None:
        """Deletes one."""
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        api = self.served
        if api.faults.closed:  # a connection that outlived its server gets no answer
            self.close_connection = True
            return
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        api.requests.append(f"{self.command} {self.path}")
        try:
            fault = api.faults.next(self.command, url.path)
            if fault is not None:
                self._send(fault.code, fault.body, {"Retry-After": "1"} if fault.code == 429 else {})
                return
            if self.headers.get("Authorization") != f"Bearer {api.token}" or api.faults.token_expired:
                raise StatusError(401, "Unauthorized", "Unauthorized")
            body = json.loads(raw) if raw else {}
            self._route(verb, [unquote(part) for part in url.path.strip("/").split("/")], query, body)
        except StatusError as error:
            self._send(error.code, error.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, verb: str, parts: list[str], query: dict[str, str], body: Object) -> None:
        api = self.served
        if verb == "get" and (found := self._discovery(parts)) is not None:
            self._send(200, found)
            return
        found_group = _group(parts)
        if found_group is None:
            self._text(404, "404 page not found\n")
            return
        group, version, rest = found_group
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        known = [r for r in api.resources if (r.group, r.version) == (group, version)]
        if not known:
            self._text(404, "404 page not found\n")
            return
        resource = next((r for r in known if rest and r.plural == rest[0]), None)
        if resource is None:
            raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
        name, sub = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
        watching = verb == "get" and not name and query.get("watch") in _TRUE
        asked = "watch" if watching else "list" if verb == "get" and not name else verb
        self._allow(asked, resource, namespace, name, sub)
        if namespace and api.store.find(NAMESPACES, "", namespace) is None and verb == "create":
            raise StatusError(
                404,
                "NotFound",
                f'namespaces "{namespace}" not found',
                {"name": namespace, "kind": "namespaces"},
            )
        if watching:
            self._watch(resource, namespace, query)
        elif sub == "log" and verb == "get":
            self._log(namespace, name, query)
        else:
            self._send(*self._object(verb, resource, namespace, name, query, body))

    def _object(
        self, verb: str, resource: Resource, namespace: str, name: str, query: dict[str, str], body: Object
    ) -> tuple[int, Object]:
        api = self.served
        if verb == "get" and not name:
            fields, labels = query.get("fieldSelector", ""), query.get("labelSelector", "")
            limit, more = int(query.get("limit") or 0), query.get("continue", "")
            return 200, api.store.list(resource, namespace, labels, fields, limit, more)
        if verb == "get":
            return 200, api.store.get(resource, namespace, name)
        if verb == "create":
            if resource == REVIEWS:
                return 201, self._review(body)
            return 201, api.create(
                resource, namespace, body, dry_run=query.get("dryRun") == "All", query=query
            )
        if verb == "patch":
            kept = api.store.get(resource, namespace, name)
            return 200, api.store.update(resource, kept, lambda item: _merge(item, body))
        if verb == "update":
            return 200, api.store.update(resource, body)
        propagation = query.get("propagationPolicy") or body.get("propagationPolicy")
        grace = query.get("gracePeriodSeconds") or body.get("gracePeriodSeconds")
        return 200, api.delete(resource, namespace, name, propagation, None if grace is None else int(grace))

    def _allow(self, verb: str, resource: Resource, namespace: str, name: str, sub: str) -> None:
        full = f"{resource.plural}/{sub}" if sub else resource.plural
        if resource == REVIEWS or self.served.faults.allows(verb, full, namespace):
            return
        where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        named = f' "{name}"' if name else ""
        raise StatusError(
            403, "Forbidden",
            f'{resource.qualified}{named} is forbidden: User "{self.served.faults.user}" cannot {verb} resource "{full}" '
            f'in API group "{resource.group}" {where}',
            {**({"name": name} if name else {}), **({"group": resource.group} if resource.group else {}), "kind": resource.plural},
        )  # fmt: skip

    def _review(self, body: Object) -> Object:
        asked = body["spec"]["resourceAttributes"]
        full = (
            f"{asked['resource']}/{asked['subresource']}" if asked.get("subresource") else asked["resource"]
        )
        allowed = self.served.faults.allows(asked["verb"], full, asked.get("namespace", ""))
        return {
            **body,
            "status": {"allowed": allowed, **({} if allowed else {"reason": "no rule allows it"})},
        }

    def _discovery(self, parts: list[str]) -> Object | None:
        api = self.served
        groups: dict[str, list[str]] = {}
        for resource in api.resources:
            if resource.group:
                groups.setdefault(resource.group, [])
                if resource.version not in groups[resource.group]:
                    groups[resource.group].append(resource.version)
        match parts:
            case ["version"]:
                major, _, minor = api.version.partition(".")
                return {
                    "major": major,
                    "minor": minor,
                    "gitVersion": f"v{api.version}.0",
                    "platform": "linux/amd64",
                }
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
            case ["apis"]:
                return {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [_group_entry(n, v) for n, v in groups.items()],
                }
            case ["apis", group] if group in groups:
                return {"kind": "APIGroup", "apiVersion": "v1", **_group_entry(group, groups[group])}
            case ["api", "v1"]:
                return _resources("v1", [r for r in api.resources if not r.group])
            case ["apis", group, version] if version in groups.get(group, []):
                its = [r for r in api.resources if (r.group, r.version) == (group, version)]
                return _resources(f"{group}/{version}", its)
        return None

    def _watch(self, resource: Resource, namespace: str, query: dict[str, str]) -> None:
        api = self.served
        until = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        since = int(query.get("resourceVersion") or 0) or api.store.version
        mark = api.faults.cuts
        self._begin("application/json")
        try:
            for event in api.store.watch(
                resource, namespace, since, until, query.get("labelSelector", ""), query.get("fieldSelector", ""),
                lambda: api.faults.cuts != mark or api.faults.closed,
            ):  # fmt: skip
                if event is not None:
                    self._line({"type": event.type, "object": event.object})
        except StatusError as error:
            self._line({"type": "ERROR", "object": error.body})
        if api.faults.cuts != mark:
            self._cut()
            return
        if query.get("allowWatchBookmarks") in _TRUE:
            metadata = {"resourceVersion": str(api.store.version), "creationTimestamp": None}
            self._line(
                {
                    "type": "BOOKMARK",
                    "object": {
                        "kind": resource.kind,
                        "apiVersion": resource.api_version,
                        "metadata": metadata,
                    },
                }
            )
        self._end()

    def _log(self, namespace: str, name: str, query: dict[str, str]) -> None:
        api = self.served
        pod = api.store.get(PODS, namespace, name)
        if not pod["spec"].get("nodeName"):
            self.send_response(204)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        mark = api.faults.cuts
        lines = api.logs(
            pod, follow=query.get("follow") in _TRUE, timestamps=query.get("timestamps") in _TRUE, since=query.get("sinceTime", ""),
            closed=lambda: api.faults.cuts != mark or api.faults.closed,
        )  # fmt: skip
        first = next(lines, None)  # an error comes before the headers
        self._begin("text/plain")
        if first is not None:
            self._chunk(first)
        for line in lines:
            self._chunk(line)
        if api.faults.cuts != mark:
            self._cut()
        else:
            self._end()

    def _send(self, code: int, body: Object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _text(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _line(self, event: Object) -> None:
        self._chunk(json.dumps(event).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

    def _end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _cut(self) -> None:
        """As when a load balancer loses patience: the stream ends in the middle."""
        self.close_connection = True


def _group(parts: list[str]) -> tuple[str, str, list[str]] | None:
    match parts:
        case ["api", version, *rest]:
            return "", version, rest
        case ["apis", group, version, *rest]:
            return group, version, rest
    return None


def _group_entry(name: str, versions: list[str]) -> Object:
    every = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": every, "preferredVersion": every[0]}


def _resources(group_version: str, resources: list[Resource]) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    rows = [
        {
            "name": r.plural,
            "singularName": r.kind.lower(),
            "namespaced": r.namespaced,
            "kind": r.kind,
            "verbs": verbs,
        }
        for r in resources
    ]
    if group_version == "v1":
        rows.append(
            {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]}
        )
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": rows}


def _merge(item: Object, patch: Object) -> None:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            item.pop(key, None)
        elif isinstance(value, dict) and isinstance(item.get(key), dict):
            _merge(cast(Object, item[key]), value)
        else:
            item[key] = value
