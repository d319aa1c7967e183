"""The cluster's API by its paths: plain dictionaries in and out, through the official client's DynamicClient.

Its typed methods refuse objects that the server takes; its `request` knows kubeconfigs, proxies, and tokens that expire.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from seatrial.backends.kubernetes.answers import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    told,
    unreachable,
)
from seatrial.errors import PlatformError, SpecError, UnreachableError
from seatrial.spec.kubernetes import KubernetesSpec

IN_CLUSTER = "in-cluster"
"""The context of a pod's own account."""
_CONNECT_S = 5.0
_ANSWER_S = 60.0
_PATIENCE_S = 30.0
_PAGE = 500
Object = dict[str, Any]


class Api:
    """One cluster, and the namespace in it.

    Args:
        dynamic: the official client's.
        context: what it is called.
        namespace: of all that is made.
    """

    def __init__(self, dynamic: Any, context: str, namespace: str) -> None:
        self._dynamic = dynamic
        self.context = context
        self.namespace = namespace
        self.requests = 0
        """How many there were."""

    @classmethod
    def connect(cls, spec: KubernetesSpec) -> Api:
        """The cluster of a recipe: a context of the user's kubeconfig, or the pod's own account.

        Raises:
            SpecError: there is no kubeconfig, or no such context.
            PlatformError: the client's package is not installed.
        """
        try:
            import kubernetes
            from kubernetes.dynamic import DynamicClient
        except ModuleNotFoundError as error:
            raise PlatformError(
                "the client for Kubernetes is not installed",
                evidence=str(error),
                remedy="pip install 'seatrial[k8s]'",
            ) from error
        client, context, namespace = _configured(kubernetes, spec.context)
        client.configuration.retries = False  # what is tried again, and when, is decided here
        # Without discovery: each kind that is used is asked for by its path.
        dynamic = DynamicClient(client, discoverer=lambda *_: None)
        return cls(dynamic, context, spec.namespace or namespace)

    @property
    def host(self) -> str:
        """The server's address."""
        return str(self._dynamic.configuration.host)

    def path(self, api_version: str, plural: str, name: str = "", *, namespaced: bool = True) -> str:
        """Of one kind of object in the namespace, or of one object."""
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        middle = f"/namespaces/{self.namespace}" if namespaced else ""
        return f"{root}{middle}/{plural}" + (f"/{name}" if name else "")

    def get(self, path: str, **query: Any) -> Object:
        """One object, or a list as the server has it. Raises `NotFoundError`, `ForbiddenError`, `PlatformError`."""
        return self._ask("get", path, **query)

    def list(
        self,
        path: str,
        *,
        selector: str = "",
        field_selector: str = "",
        keep: Callable[[Object], Object] | None = None,
    ) -> tuple[list[Object], str]:
        """All objects there, asked for in pages, and the version that a watch goes on from.

        Args:
            path: of the kind.
            selector: of labels.
            field_selector: of fields.
            keep: what of each object is kept, where there may be very many.
        """
        items: list[Object] = []
        more: str | None = None
        while True:
            query = {
                "limit": _PAGE,
                "_continue": more,
                "label_selector": selector or None,
                "field_selector": field_selector or None,
            }
            try:
                page = self._ask("get", path, **query)
            except GoneError:
                if more is None:
                    raise
                items, more = [], None  # the list is too old to go on with
                continue
            found = page.get("items") or []
            items += found if keep is None else [keep(item) for item in found]
            more = page["metadata"].get("continue")
            if not more:
                return items, str(page["metadata"].get("resourceVersion", ""))

    def create(self, path: str, body: Object, *, dry_run: bool = False) -> Object:
        """Makes an object, or has the server check it.

        Raises:
            SpecError: the server refuses it.
            ConflictError: there is another one of that name.
        """
        query: dict[str, Any] = {"query_params": [("fieldValidation", "Strict")]}
        if dry_run:
            query["dry_run"] = "All"
        before = self.requests
        try:
            return self._ask("post", path, body=body, **query)
        except ConflictError:
            if dry_run or self.requests - before == 1:
                raise
            # It was asked again, so an answer was lost: then what is there is what was sent.
            try:
                there = self.get(f"{path}/{body['metadata']['name']}")
            except ForbiddenError:
                there = body  # a Secret, which may be made and not looked at
            mine = body["metadata"].get("annotations", {}).get(SUBMISSION)
            if mine and there.get("metadata", {}).get("annotations", {}).get(SUBMISSION) == mine:
                return there
            raise

    def patch(self, path: str, body: Object) -> Object:
        """Merges into an object (RFC 7386)."""
        return self._ask("patch", path, body=body, content_type="application/merge-patch+json")

    def delete(self, path: str, *, propagation: str = "Foreground", grace_s: int | None = None) -> bool:
        """Deletes an object and what it owns; whether there was one. Without a propagation a Job's pods stay, and keep their GPUs."""
        try:
            self._ask("delete", path, propagation_policy=propagation, grace_period_seconds=grace_s)
        except NotFoundError:
            return False
        return True

    def watch(
        self, path: str, version: str, *, selector: str = "", field_selector: str = "", timeout_s: int = 300
    ) -> Iterator[Object]:
        """What happens to the objects there from `version` on: ``{type, object}``, to the end of the stream.

        Raises:
            GoneError: list them again.
            UnreachableError: the stream was cut, or nothing came for too long.
        """
        lines = self._stream(
            path, (_CONNECT_S, timeout_s + _CONNECT_S), watch="true", allow_watch_bookmarks="true", resource_version=version,
            timeout_seconds=timeout_s, label_selector=selector or None, field_selector=field_selector or None,
        )  # fmt: skip
        for line in lines:
            event = json.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                kind = GoneError if status.get("code") == 410 else UnreachableError
                raise kind("the watch ended", evidence=str(status.get("message")))
            yield event

    def log(
        self, pod: str, *, follow: bool = False, since: str | None = None, quiet_s: float = 300
    ) -> Iterator[bytes]:
        """Lines of a pod's log, each with the time at which it was written.

        Args:
            pod: its name.
            follow: also those that come.
            since: not those before that second (RFC 3339).
            quiet_s: after so long without a line the stream counts as cut.

        Raises:
            UnreachableError: the stream was cut, or there is none yet.
        """
        asked = [
            ("timestamps", "true"),
            *([("follow", "true")] if follow else []),
            *([("sinceTime", since)] if since else []),
        ]
        return self._stream(
            f"{self.path('v1', 'pods', pod)}/log", (_CONNECT_S, quiet_s if follow else _ANSWER_S), query_params=asked,
            header_params={"Accept": "*/*"},
        )  # fmt: skip

    def _stream(self, path: str, timeout: tuple[float, float], **query: Any) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        self.requests += 1
        try:
            answer = self._request("get", path, serialize=False, _request_timeout=timeout, **query)
        except BusyError as error:
            raise error.told from None  # whoever follows asks again
        except (HTTPError, OSError) as error:
            raise unreachable(error, self.context) from error
        rest = b""
        try:
            for block in answer.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
        except (HTTPError, OSError) as error:
            raise unreachable(error, self.context) from error
        finally:
            answer.release_conn()
            answer.close()
        if rest:
            yield rest

    def _ask(self, method: str, path: str, **query: Any) -> Object:
        from urllib3.exceptions import HTTPError

        until, wait_s = time.monotonic() + _PATIENCE_S, 0.2
        while True:
            self.requests += 1
            try:
                answer = self._request(
                    method, path, serialize=False, _request_timeout=(_CONNECT_S, _ANSWER_S), **_copied(query)
                )
                return cast(Object, json.loads(answer.data))
            except BusyError as error:
                if time.monotonic() > until:
                    raise error.told from None
                time.sleep(max(wait_s, error.retry_after_s))
            except (HTTPError, OSError, ValueError) as error:
                if time.monotonic() > until or isinstance(error, ValueError):
                    raise unreachable(error, self.context) from error
                time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)

    def _request(self, method: str, path: str, **query: Any) -> Any:
        from kubernetes.client.rest import ApiException

        try:
            return self._dynamic.request(method, path, **query)
        except ApiException as error:
            raise told(error.status, error.body, dict(error.headers or {}), self.context) from None


SUBMISSION = "seatrial/submission"
"""Annotation by which an object is known to be of one submission."""


def _configured(kubernetes: Any, context: str | None) -> tuple[Any, str, str]:
    """A client, the context's name, and its namespace."""
    config = kubernetes.config
    # The client reads the variable once, when it is imported.
    file = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    try:
        contexts, active = config.list_kube_config_contexts(config_file=file)
    except (config.ConfigException, OSError) as error:
        return _own_account(kubernetes, context, error)
    found = active if context is None else next((c for c in contexts if c["name"] == context), None)
    if found is None:
        names = ", ".join(c["name"] for c in contexts) or "none"
        raise SpecError(
            f"there is no context {context}",
            evidence=f"the kubeconfig has: {names}",
            remedy="kubernetes.context=NAME",
        )
    try:
        client = config.new_client_from_config(config_file=file, context=found["name"])
    except (config.ConfigException, OSError, KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"the context {found['name']} can't be used",
            evidence=str(error)[:400],
            remedy="kubectl --context … auth whoami",
        ) from error
    return client, found["name"], found["context"].get("namespace") or "default"


def _own_account(kubernetes: Any, context: str | None, error: Exception) -> tuple[Any, str, str]:
    config = kubernetes.config
    configuration = kubernetes.client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
        namespace = (
            Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
            .read_text(encoding="utf-8")
            .strip()
        )
    except (config.ConfigException, OSError):
        raise SpecError(
            "there is no cluster to talk to", evidence=f"no usable kubeconfig: {error}",
            remedy="KUBECONFIG=FILE, or the file ~/.kube/config that your cluster's command line tool writes",
        ) from error  # fmt: skip
    if context not in {None, IN_CLUSTER}:
        raise SpecError(f"there is no context {context}", evidence="this is a pod, and it has no kubeconfig")
    return kubernetes.client.ApiClient(configuration), IN_CLUSTER, namespace


def _copied(query: dict[str, Any]) -> dict[str, Any]:
    """The client adds to the lists that it is given."""
    return {key: list(value) if isinstance(value, list) else value for key, value in query.items()}
