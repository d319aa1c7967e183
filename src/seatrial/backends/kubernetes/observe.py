"""A job and its pods as the cluster tells of them: read once, then watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from seatrial.backends.kubernetes.answers import GoneError, NotFoundError
from seatrial.backends.kubernetes.api import Api, Object
from seatrial.backends.kubernetes.names import Handle
from seatrial.backends.kubernetes.targets import KINDS
from seatrial.errors import PlatformError, SeatrialError

_WATCH_S = 120
"""After so long everything is read again: what a stream has lost is lost for no longer."""
_WAIT_S = 1.0
"""Between two rounds at the least: a server that ends its streams at once is not to be asked without a pause."""
_SILENT_S = 60.0
_FORGOTTEN_S = 300.0
"""Nobody has looked for so long: the watches end, and begin again with the next look."""


class Observer:
    """One job.

    Args:
        api: the cluster.
        handle: the job's.
        api_version: of its kind.
        selector: of its pods.
    """

    def __init__(self, api: Api, handle: Handle, api_version: str, selector: str) -> None:
        self._api = api
        self._plural = KINDS[handle.kind][2]
        self._jobs = api.path(api_version, self._plural)
        self._name, self._selector = handle.name, selector
        self.job: Object | None = None
        """None where there is none (any more)."""
        self.pods: dict[str, Object] = {}
        """By name."""
        self._looks = 0
        self._heard_at = self._looked_at = 0.0
        self._error: PlatformError | None = None

    def look(self, *, anew: bool = False) -> None:
        """Brings `job` and `pods` up to date: asks the first time, and from the second on leaves it to a watch.

        Args:
            anew: ask in any case.

        Raises:
            PlatformError: the cluster has not answered for some time.
        """
        self._looked_at = time.monotonic()
        self._looks += 1
        if anew or self._looks == 1:
            self._read_job()
            self._read_pods()
        elif self._looks == 2:
            for watch in (self._watch_job, self._watch_pods):
                threading.Thread(target=self._for_ever, args=(watch,), daemon=True).start()
        elif self._error is not None and time.monotonic() - self._heard_at > _SILENT_S:
            raise self._error

    def _read_job(self) -> str:
        try:
            self.job = self._api.get(f"{self._jobs}/{self._name}")
        except NotFoundError:
            self.job = None
        self._heard_at = time.monotonic()
        return str((self.job or {}).get("metadata", {}).get("resourceVersion", ""))

    def _read_pods(self) -> str:
        items, version = self._api.list(self._api.path("v1", "pods"), selector=self._selector)
        self.pods = {pod["metadata"]["name"]: pod for pod in items}
        self._heard_at = time.monotonic()
        return version

    def _watch_job(self) -> None:
        version = self._read_job()
        if self.job is None:
            return
        events = self._api.watch(
            self._jobs, version, field_selector=f"metadata.name={self._name}", timeout_s=_WATCH_S
        )
        for event in events:
            self._heard_at = time.monotonic()
            if event["type"] in {"ADDED", "MODIFIED"}:
                self.job = event["object"]
            elif event["type"] == "DELETED":
                self.job = None
                return

    def _watch_pods(self) -> None:
        version = self._read_pods()
        for event in self._api.watch(
            self._api.path("v1", "pods"), version, selector=self._selector, timeout_s=_WATCH_S
        ):
            self._heard_at = time.monotonic()
            pod = event["object"]
            if event["type"] in {"ADDED", "MODIFIED"}:
                self.pods = {**self.pods, pod["metadata"]["name"]: pod}
            elif event["type"] == "DELETED":
                self.pods = {
                    name: other for name, other in self.pods.items() if name != pod["metadata"]["name"]
                }

    def _for_ever(self, watch: Callable[[], None]) -> None:
        while time.monotonic() - self._looked_at < _FORGOTTEN_S:
            began = time.monotonic()
            try:
                watch()
                self._error = None
            except GoneError:
                pass
            except SeatrialError as error:
                self._error = (
                    error
                    if isinstance(error, PlatformError)
                    else PlatformError(error.what, evidence=error.evidence)
                )
            time.sleep(max(_WAIT_S - (time.monotonic() - began), 0))
        self._looks = 0


def index_of(pod: Object) -> int:
    """The node rank of a pod: its completion index, or its place among an operator's replicas."""
    metadata = pod["metadata"]
    for where in (metadata.get("labels") or {}, metadata.get("annotations") or {}):
        found = where.get("batch.kubernetes.io/job-completion-index")
        if found is not None:
            return int(found)
    its = metadata.get("labels") or {}
    index = int(its.get("training.kubeflow.org/replica-index", 0))
    return index + 1 if its.get("training.kubeflow.org/replica-type", "").lower() == "worker" else index
