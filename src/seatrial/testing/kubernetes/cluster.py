"""A pretend Kubernetes: an API server over HTTP, controllers, a scheduler, and nodes whose pods are processes."""

from __future__ import annotations

import base64
import copy
import json
import secrets
import tempfile
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from seatrial.errors import SpecError
from seatrial.testing.kubernetes import admission, certificate, kinds
from seatrial.testing.kubernetes.faults import Faults
from seatrial.testing.kubernetes.garbage import Garbage
from seatrial.testing.kubernetes.jobs import Jobs
from seatrial.testing.kubernetes.kubelet import Kubelet, remove
from seatrial.testing.kubernetes.operators import Operators
from seatrial.testing.kubernetes.queue import Queue
from seatrial.testing.kubernetes.schedule import Scheduler
from seatrial.testing.kubernetes.server import Api, serve
from seatrial.testing.kubernetes.store import Object, Resource, Store, stamp

_TICK_S = 0.03
_ANYWAY = 10
"""Controllers look when something has changed, and at every so many ticks."""
_GPU = "nvidia.com/gpu"


class FakeKubernetes:
    """A pretend Kubernetes for tests where there is none: kubectl and any client talk to it, its pods are processes.

        with FakeKubernetes(tmp_path / "k8s", nodes=2, gpus=8) as cluster:
            monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
            cluster.add_claim("runs")
            …
            cluster.drain("node-0")

    It answers with the paths, codes, reasons and words of Kubernetes 1.36, and is held to recordings of a real one
    (``tests/contract/test_fake_kubernetes.py`` of Seatrial). Nothing of it is left when the block is left.

    What differs from a real one:

    - Pods share this machine, its Python (whatever image they name), its network and its user. A pod's address is 127.0.0.1,
      and names of pods in a command or a variable are replaced by that. CPUs, memory and GPUs are counted, and nothing holds
      a pod to them; there are no cgroups, no read-only file system, no capabilities.
    - A volume is a directory. A mount is a link, where one can be made at its path, and else another path in the command and
      the variables; /tmp and /dev/shm are this machine's. The first container is run, no init containers.
    - Jobs are Indexed ones, with Seatrial's failure rules. JobSet, TrainJob, PyTorchJob and Kueue do no more than make, hold
      back, and end their pods. Deletion knows Foreground, Background and Orphan.
    - Admission knows the schemas (where ``kubernetes-validate`` is installed), Seatrial's own preflight in the place of the
      server's validation, Pod Security for what pods of jobs have, quota, LimitRange defaults and priority classes; no
      webhooks, no NetworkPolicy.
    - There is one user with one token; what it may do is everything but `faults.denied`.
    - It is quicker: images need no time, and everything is looked at 30 times a second.

    Args:
        directory: for volumes, logs and the kubeconfig; must be empty or absent, and is deleted. None takes a new one.
        nodes: named node-0, node-1, …
        gpus: of each.
        cpus: of each.
        memory: of each.
        installed: of `kinds.ADDED`: jobset, trainer, training-operator, kueue.
        trainer: which field a TrainJob changes its pods by; see `kinds.trainjob_schema`.
        version: of the pretended release.
        namespace: there from the start, and the kubeconfig's.
    """

    def __init__(
        self, directory: Path | None = None, *, nodes: int = 2, gpus: int = 0, cpus: int = 16, memory: str = "64Gi",
        installed: Collection[str] = (), trainer: str = "2.2", version: str = "1.36", namespace: str = "ml",
    ) -> None:  # fmt: skip
        self.directory = (directory or Path(tempfile.mkdtemp(prefix="seatrial-k8s-"))).absolute()
        self.namespace = namespace
        self.store, self.faults = Store(), Faults()
        added = tuple(dict.fromkeys(resource for name in installed for resource in kinds.ADDED[name]))
        self.resources = (*kinds.BUILT_IN, *added)
        self._version, self._token = version, secrets.token_hex(16)
        self._events: dict[tuple[str, str, str], str] = {}
        self._over = threading.Event()
        self._garbage = Garbage(self.store, self.resources)
        self.kubelet = Kubelet(self.store, self.directory, self._event)
        self._jobs = Jobs(self.store, self.create_pod, self._garbage.delete_pod, self._event)
        self._operators = Operators(self.store, self.resources, self.create_pod, self._garbage.delete_pod)
        self._queue = Queue(self.store) if "kueue" in installed else None
        self._scheduler = Scheduler(self.store, self._event)
        self._namespace(namespace)
        self._namespace("kube-system")
        for i in range(nodes):
            self.add_node(f"node-{i}", gpus=gpus, cpus=cpus, memory=memory)
        if "trainer" in installed:
            self._install_trainer(trainer)

    def __enter__(self) -> FakeKubernetes:
        """Starts it."""
        if self.directory.exists() and set(self.directory.iterdir()) - {self.directory / "logs"}:
            raise SpecError("a pretend cluster needs a directory of its own", evidence=str(self.directory))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.api = Api(
            self.store, self.resources, self.faults, self._garbage.delete, self._create, self.kubelet.log, self._version, self._token
        )  # fmt: skip
        context, self.certificate = certificate.make(self.directory)
        self._server = serve(self.api, context)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self.kubeconfig.write_text(json.dumps(self._kubeconfig()))
        self.kubeconfig.chmod(0o600)
        threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, with all of its pods."""
        self._over.set()
        self.faults.closed = True
        with self.store.changed:
            self.kubelet.end_all()
            self.store.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        remove(self.directory)

    @property
    def kubeconfig(self) -> Path:
        """For KUBECONFIG; its context is called ``fake``."""
        return self.directory / "kubeconfig"

    @property
    def requests(self) -> list[str]:
        """Method and path of each request so far."""
        return self.api.requests

    def add_node(
        self, name: str, *, gpus: int = 0, cpus: int = 16, memory: str = "64Gi", labels: dict[str, str] | None = None,
        taints: Iterable[dict[str, str]] = (), more: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """One more node; `more` are other resources."""
        resources = {
            "cpu": str(cpus),
            "memory": memory,
            "pods": "110",
            **({_GPU: str(gpus)} if gpus else {}),
            **(more or {}),
        }
        its = {
            "kubernetes.io/hostname": name,
            **({"nvidia.com/gpu.product": "PRETEND-80GB", "nvidia.com/gpu.present": "true"} if gpus else {}),
        }
        gpu_taint = [{"key": _GPU, "effect": "NoSchedule"}] if gpus else []
        body = {
            "metadata": {"name": name, "labels": {**its, **(labels or {})}},
            "spec": {"taints": [*gpu_taint, *taints]},
            "status": {
                "allocatable": resources,
                "capacity": resources,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        self.store.create(kinds.NODES, "", body)

    def add(self, resource: Resource, body: Object) -> Object:
        """Any object; in the cluster's namespace where it has one."""
        return self.store.create(resource, self.namespace if resource.namespaced else "", copy.deepcopy(body))

    def add_claim(self, name: str, *modes: str) -> Path:
        """A volume claim, by default ReadWriteMany; the directory that it is."""
        spec = {
            "accessModes": list(modes or ("ReadWriteMany",)),
            "resources": {"requests": {"storage": "1Ti"}},
        }
        self.add(kinds.CLAIMS, {"metadata": {"name": name}, "spec": spec, "status": {"phase": "Bound"}})
        return self.kubelet.around.claim(self.namespace, name)

    def add_quota(self, name: str, **hard: str) -> None:
        """A ResourceQuota: ``add_quota("gpu", **{"requests.nvidia.com/gpu": "8"})``."""
        self.add(kinds.QUOTAS, {"metadata": {"name": name}, "spec": {"hard": hard}})

    def enforce(self, level: str) -> None:
        """Pod Security of the namespace: privileged, baseline or restricted."""
        home = self.store.get(kinds.NAMESPACES, "", self.namespace)
        label = {"pod-security.kubernetes.io/enforce": level}
        self.store.update(kinds.NAMESPACES, home, lambda item: item["metadata"].update(labels=label))

    def pods(self, selector: str = "") -> list[Object]:
        """Of the namespace."""
        return list(self.store.list(kinds.PODS, self.namespace, selector)["items"])

    def delete_pod(self, name: str) -> None:
        """As ``kubectl delete pod`` does."""
        self._garbage.delete_pod(self.store.get(kinds.PODS, self.namespace, name))

    def delete_job(self, name: str, propagation: str = "Background") -> None:
        """As ``kubectl delete job`` does."""
        self._garbage.delete(kinds.JOBS, self.namespace, name, propagation, None)

    def drain(self, node: str) -> None:
        """Cordons a node and evicts its pods, which have their grace."""
        found = self.store.get(kinds.NODES, "", node)
        self.store.update(kinds.NODES, found, lambda item: item["spec"].update(unschedulable=True))
        for pod in self.pods():
            if pod["spec"].get("nodeName") == node and pod["status"]["phase"] in {"Pending", "Running"}:
                self.evict(pod["metadata"]["name"])

    def uncordon(self, node: str) -> None:
        """Lets pods onto a node again."""
        found = self.store.get(kinds.NODES, "", node)
        self.store.update(kinds.NODES, found, lambda item: item["spec"].pop("unschedulable", None))

    def evict(
        self, name: str, reason: str = "EvictionByEvictionAPI", message: str = "Eviction API: evicting"
    ) -> None:
        """Ends a pod as a disruption does (a drain, a preemption by the scheduler), after its grace."""
        pod = self.store.get(kinds.PODS, self.namespace, name)
        condition = {
            "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastTransitionTime": stamp(),
        }  # fmt: skip
        self.store.update(
            kinds.PODS, pod, lambda item: item["status"].setdefault("conditions", []).append(condition)
        )
        self._garbage.delete_pod(pod)

    def kill_container(self, name: str, *, oom: bool = False) -> None:
        """Kills a pod's first process, as the kernel does where memory is short."""
        pod = self.store.get(kinds.PODS, self.namespace, name)
        running = self.kubelet.running[pod["metadata"]["uid"]]
        running.oom = oom
        running.process.send_signal(9)

    # --- what the server asks for --------------------------------------------------------------------------------

    def _create(
        self, resource: Resource, namespace: str, body: Object, *, dry_run: bool, query: dict[str, str]
    ) -> Object:
        if query.get("fieldValidation") == "Strict":
            admission.check_schema(resource, body, self._version)
        admission.check_sense(resource, body)
        body = copy.deepcopy(body)
        body.get("metadata", {}).pop("namespace", None)
        if resource == kinds.PODS:
            return self._make_pod(
                {**body, "metadata": {**body["metadata"], "namespace": namespace}}, dry_run=dry_run
            )
        if resource == kinds.SECRETS:
            plain = body.pop("stringData", None) or {}
            body["data"] = {
                **(body.get("data") or {}),
                **{k: base64.b64encode(v.encode()).decode() for k, v in plain.items()},
            }
        if resource == kinds.JOBS:
            body.setdefault("status", {})
            labels = body["spec"]["template"].get("metadata") or {}
            body["spec"]["template"]["metadata"] = labels
        return self.store.create(resource, namespace, body, dry_run=dry_run)

    def create_pod(self, pod: Object) -> Object:
        """A controller's pod."""
        return self._make_pod(copy.deepcopy(pod), dry_run=False)

    def _make_pod(self, pod: Object, *, dry_run: bool) -> Object:
        with self.store.changed:
            admission.admit_pod(self.store, pod)
            namespace = pod["metadata"].pop("namespace")
            gpu_only = all(
                not {"cpu", "memory"} & set((c.get("resources") or {}).get("limits") or {})
                for c in pod["spec"]["containers"]
            )
            pod["status"] = {"phase": "Pending", "qosClass": "BestEffort" if gpu_only else "Guaranteed"}
            return self.store.create(kinds.PODS, namespace, pod, dry_run=dry_run)

    # --- the controllers' loop -----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        seen, ticks = -1, 0
        while not self._over.wait(_TICK_S):
            ticks += 1
            with self.store.changed:
                if self._over.is_set():
                    return
                if self.store.version != seen or ticks % _ANYWAY == 0:
                    seen = self.store.version
                    self._control()
                self.kubelet.sync()

    def _control(self) -> None:
        self._garbage.collect()
        if self._queue is not None:
            self._queue.sync()
        self._operators.sync()
        self._jobs.sync()
        self._scheduler.sync()

    def _event(self, about: Object, kind: str, reason: str, message: str, *, scheduler: bool = False) -> None:
        """Tells what happened to an object. Those of the scheduler have no count and no time but eventTime (seen on 1.36)."""
        metadata = about["metadata"]
        key = (metadata["uid"], reason, message)
        name = self._events.get(key)
        namespace = metadata["namespace"]
        found = self.store.find(kinds.EVENTS, namespace, name) if name else None
        if found is not None:
            if not scheduler:
                self.store.update(
                    kinds.EVENTS,
                    found,
                    lambda item: item.update(count=item["count"] + 1, lastTimestamp=stamp()),
                )
            return
        body: Object = {
            "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}"},
            "involvedObject": {
                "kind": about["kind"], "namespace": namespace, "name": metadata["name"], "uid": metadata["uid"],
                "apiVersion": about["apiVersion"],
            },
            "reason": reason, "message": message, "type": kind,
        }  # fmt: skip
        if scheduler:
            body |= {
                "source": {}, "firstTimestamp": None, "lastTimestamp": None, "eventTime": stamp(micro=True), "action": "Scheduling",
                "reportingComponent": "default-scheduler", "reportingInstance": "default-scheduler-fake",
            }  # fmt: skip
        else:
            source = "job-controller" if about["kind"] == "Job" else "kubelet"
            body |= {
                "source": {"component": source}, "firstTimestamp": stamp(), "lastTimestamp": stamp(), "count": 1, "eventTime": None,
                "reportingComponent": source, "reportingInstance": "",
            }  # fmt: skip
        self._events[key] = body["metadata"]["name"]
        self.store.create(kinds.EVENTS, namespace, body)

    def _namespace(self, name: str) -> None:
        self.store.create(kinds.NAMESPACES, "", {"metadata": {"name": name}, "status": {"phase": "Active"}})

    def _install_trainer(self, trainer: str) -> None:
        name = f"{kinds.TRAIN_JOBS.plural}.{kinds.TRAIN_JOBS.group}"
        served = {
            "name": "v1alpha1",
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": kinds.trainjob_schema(trainer)},
        }
        spec = {
            "group": kinds.TRAIN_JOBS.group,
            "names": {"kind": "TrainJob", "plural": "trainjobs"},
            "versions": [served],
        }
        self.store.create(kinds.CRDS, "", {"metadata": {"name": name}, "spec": spec})
        labels = {"trainer.kubeflow.org/framework": "torch"}
        runtime: Any = {
            "metadata": {"name": "torch-distributed", "labels": labels},
            "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}},
        }
        self.store.create(kinds.CLUSTER_RUNTIMES, "", runtime)

    def _kubeconfig(self) -> Object:
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url, "certificate-authority": str(self.certificate)}}],
            "users": [{"name": "alice", "user": {"token": self._token}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "alice", "namespace": self.namespace}}],
        }  # fmt: skip
