"""Kubernetes: a job a run, by whatever kind of job the cluster has; what its pods write comes here in their logs."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seatrial.backends.base import JobHandle, JobRequest, JobState, Why
from seatrial.backends.kubernetes.answers import ConflictError, ForbiddenError, NotFoundError
from seatrial.backends.kubernetes.api import Api, Object
from seatrial.backends.kubernetes.followed import Followed
from seatrial.backends.kubernetes.names import Handle
from seatrial.backends.kubernetes.objects import (
    cargo_of,
    marked,
    objects_of,
    owned,
    path_suspend,
    reference,
    token_of,
    yaml_text,
)
from seatrial.backends.kubernetes.observe import Observer
from seatrial.backends.kubernetes.parcel import Parcel
from seatrial.backends.kubernetes.preflight import problems
from seatrial.backends.kubernetes.probe import probe
from seatrial.backends.kubernetes.starts import CARGO_FILES
from seatrial.backends.kubernetes.targets import KINDS, Groups
from seatrial.backends.kubernetes.template import Order
from seatrial.backends.kubernetes.why import explain
from seatrial.backends.machine import Machine
from seatrial.errors import PlatformError, SeatrialError, SpecError, UnreachableError
from seatrial.runs.files import write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.state import RunState
from seatrial.spec.kinds import AnySpec
from seatrial.spec.kubernetes import KubernetesSpec

_GONE_S = 120.0
_POLL_S = 0.3
_JOB_VERSIONS = {"job": "batch/v1"}


class KubernetesBackend:
    """All clusters of the user's kubeconfig. A handle is ``k8s://<namespace>/<kind>/<name>/<context>``."""

    name = "k8s"
    keeps_jobs = True

    def __init__(self) -> None:
        self._apis: dict[tuple[str | None, str | None], Api] = {}
        self._followed: dict[str, Followed] = {}
        self._parcels: dict[str, Object] = {}
        self._versions: dict[tuple[str, str], str] = {}
        self._last: Api | None = None

    def api(self, asked: KubernetesSpec) -> Api:
        """The connection to a cluster; one for each context and namespace."""
        key = (asked.context, asked.namespace)
        if key not in self._apis:
            self._apis[key] = Api.connect(asked)
        return self._apis[key]

    def probe(self, spec: AnySpec) -> Machine:
        """What each node has that the spec may be run on; refuses what it never may."""
        api = self.api(spec.kubernetes)
        self._last = api
        return probe(api, spec)

    def cluster(self) -> str:
        """The cluster's identity: that of its kube-system namespace, or, for those who may not see it, its address."""
        api = self._last or self.api(KubernetesSpec())
        try:
            return str(api.get("/api/v1/namespaces/kube-system")["metadata"]["uid"])
        except (ForbiddenError, NotFoundError):
            return api.host

    def pack(self, parcels: list[Parcel]) -> tuple[str, ...]:
        """Remembers what goes along with the next submission; the names of its ConfigMaps."""
        for parcel in parcels:
            self._parcels |= {body["metadata"]["name"]: body for body in parcel.config_maps("")}
        return tuple(name for parcel in parcels for name in parcel.names)

    def render(self, plan: LaunchPlan) -> JobRequest:
        """The job, and the service where it needs one; what is made beside them is named in the job."""
        return JobRequest("yaml", yaml_text(objects_of(Order.of(plan))), plan)

    def complete(self, plan: LaunchPlan, files: dict[str, str]) -> list[Object]:
        """Everything that a submission makes, for ``kubectl apply``: the run's own files, its token, code and data."""
        order = Order.of(plan)
        job, *others = objects_of(order)
        parcels = [self._in_namespace(name, order) for name in order.parcels]
        return [*parcels, cargo_of(order, files), token_of(order, secrets.token_hex(16)), *others, job]

    def submit(self, request: JobRequest) -> JobHandle:
        """Has the server check the job, makes it suspended, then what it needs, and lets it go. Nothing is left of a failure."""
        plan = request.plan
        order = Order.of(plan)
        api = self.api(order.asked)
        job, *others = objects_of(order)
        for body in (job, *others):
            wrong = problems(body)
            if wrong:
                raise SpecError(f"the {body['kind']} would be refused", evidence="\n".join(wrong))
        path = api.path(order.target.api_version, order.target.plural)
        api.create(path, job, dry_run=True)
        made = api.create(path, marked(job, secrets.token_hex(8)))
        # The server leaves these out where it answers.
        made = {"apiVersion": job["apiVersion"], "kind": job["kind"], **made}
        try:
            self._furnish(api, order, made, others)
            if order.asked.queue is None:
                api.patch(f"{path}/{order.name}", _set(path_suspend(order.target.kind), False))
        except (SeatrialError, KeyboardInterrupt):
            api.delete(f"{path}/{order.name}")
            raise
        handle = Handle(api.namespace, order.target.kind, order.name, api.context)
        paths = RunPaths(plan.run_dir)
        write_json(
            paths.remote,
            {"schema": 1, "platform": self.name, "handle": str(handle), "path": str(order.run_dir)},
        )
        self._follow(handle, paths)
        return JobHandle(self.name, str(handle))

    def deliver(self, paths: RunPaths, handle: JobHandle) -> None:
        """Brings what the run's pods have written into its directory here."""
        self._follow(Handle.parse(handle.native), paths).look()

    def tell(self, paths: RunPaths, handle: JobHandle) -> list[str]:
        """Brings all of it, from the volume; what did not come.

        Raises:
            PlatformError: no volume keeps it, or it can't be read.
        """
        followed = self._follow(Handle.parse(handle.native), paths)
        followed.observer.look(anew=True)
        assert followed.delivery is not None
        try:
            followed.tell()
        except LookupError as error:
            raise PlatformError(
                "the run's files can't be read in the cluster", evidence=str(error)
            ) from error
        return followed.delivery.missing()

    def state(self, handle: JobHandle) -> JobState:
        """From a watch; a question the first time. What the pods have written is here by the time that an end is told."""
        return self._of(handle).look()

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Deletes the job, whose pods save and stop first; returns when the last pod is gone, and its GPUs are free."""
        followed = self._of(handle)
        if followed.look(anew=True).state.is_terminal:
            return
        api, native = followed.api, followed.handle
        path = api.path(self._version(api, native.kind), KINDS[native.kind][2], native.name)
        pods = list(followed.observer.pods.values())
        followed.look()  # from now on the pods' logs are followed, to their last line
        api.delete(path, propagation="Foreground")
        grace_s = max(
            (int(pod["spec"].get("terminationGracePeriodSeconds") or 30) for pod in pods), default=0
        )
        if force:
            self._kill(api, pods)
        until = time.monotonic() + grace_s + _GONE_S
        while True:
            left, _ = api.list(api.path("v1", "pods"), selector=_selector(native))
            followed.look()
            if not left and followed.observer.job is None:
                return
            if time.monotonic() > until:
                raise PlatformError(
                    f"{len(left)} pods of {native.name} are still there", evidence=", ".join(p["metadata"]["name"] for p in left[:5]),
                    remedy=f"kubectl -n {native.namespace} get pods -l {_selector(native)}    (a node that is down keeps its pods)",
                )  # fmt: skip
            time.sleep(_POLL_S)

    def why(self, handle: JobHandle) -> Why:
        """What a job waits for, or how it ended."""
        followed = self._of(handle)
        found = followed.look(anew=True)
        if found.state is not RunState.PENDING:
            return Why(found.state, found.reason)
        return explain(followed.api, followed.observer.job, list(followed.observer.pods.values()))

    def logs(self, handle: JobHandle, run_dir: Path) -> Iterator[Path]:
        """What the agents wrote."""
        yield from sorted(run_dir.glob("attempt-*/logs/agent*.log"))

    def _furnish(self, api: Api, order: Order, job: Object, others: list[Object]) -> None:
        """Makes what a job needs; all of it goes when the job does."""
        paths = RunPaths(order.plan.run_dir)
        for body in (
            cargo_of(order, cargo_files(order.plan, paths)),
            token_of(order, secrets.token_hex(16)),
            *others,
        ):
            plural = {"ConfigMap": "configmaps", "Secret": "secrets", "Service": "services"}[body["kind"]]
            api.create(api.path("v1", plural), marked(owned(body, job), job["metadata"]["uid"]))
        for name in order.parcels:
            self._lend(api, self._in_namespace(name, order), job)

    def _lend(self, api: Api, body: Object, job: Object) -> None:
        """A ConfigMap that runs share: it goes with the last of them."""
        path = api.path("v1", "configmaps")
        name = body["metadata"]["name"]
        try:
            api.create(path, owned(body, job))
        except ConflictError:
            owners = api.get(f"{path}/{name}")["metadata"].get("ownerReferences") or []
            api.patch(f"{path}/{name}", {"metadata": {"ownerReferences": [*owners, reference(job)]}})

    def _in_namespace(self, name: str, order: Order) -> Object:
        body = self._parcels[name]
        return {**body, "metadata": {**body["metadata"], "namespace": order.native["namespace"]}}

    def _kill(self, api: Api, pods: list[Object]) -> None:
        for pod in pods:
            try:
                api.delete(
                    api.path("v1", "pods", pod["metadata"]["name"]), propagation="Background", grace_s=0
                )
            except ForbiddenError:
                return  # then they have their grace

    def _of(self, handle: JobHandle) -> Followed:
        found = self._followed.get(handle.native)
        return found if found is not None else self._follow(Handle.parse(handle.native), None)

    def _follow(self, handle: Handle, paths: RunPaths | None) -> Followed:
        key = str(handle)
        known = self._followed.get(key)
        if known is not None and (
            paths is None or (known.delivery is not None and known.delivery.paths == paths)
        ):
            return known
        context = None if handle.context == "in-cluster" else handle.context
        try:
            api = self._last = self.api(KubernetesSpec(context=context, namespace=handle.namespace))
        except SpecError as error:
            # Of a run that is there already: where it is can't be reached from here, now.
            raise UnreachableError(error.what, evidence=error.evidence, remedy=error.remedy) from error
        observer = Observer(api, handle, self._version(api, handle.kind), _selector(handle))
        self._followed[key] = Followed(api, handle, observer, paths)
        return self._followed[key]

    def _version(self, api: Api, kind: str) -> str:
        if kind in _JOB_VERSIONS:
            return _JOB_VERSIONS[kind]
        key = (api.context, kind)
        if key not in self._versions:
            found = Groups.read(api).version(KINDS[kind][0])
            if found is None:
                raise PlatformError(
                    f"the cluster has no {KINDS[kind][1]} any more", evidence=f"no API group {KINDS[kind][0]}"
                )
            self._versions[key] = found
        return self._versions[key]


def cargo_files(plan: LaunchPlan, paths: RunPaths) -> dict[str, str]:
    """What goes along of the run itself, by name."""
    files = {"plan.json": json.dumps(plan.to_dict(), indent=1)}
    for name in CARGO_FILES:
        path = paths.root / name
        if path.exists():
            files[name] = path.read_text(encoding="utf-8")
    return files


def _selector(handle: Handle) -> str:
    """Of a job's pods, by its name alone."""
    if handle.kind == "trainjob":
        return f"jobset.sigs.k8s.io/jobset-name={handle.name}"
    run, _, attempt = handle.name.rpartition("-a")
    return f"seatrial/run={run},seatrial/attempt={attempt}"


def _set(way: tuple[str, ...], value: Any) -> Object:
    body: Any = value
    for part in reversed(way):
        body = {part: body}
    return dict(body)
