"""A job that is followed: what the cluster says of it, and the copy of its run that its pods' logs make."""

from __future__ import annotations

import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

from seatrial.backends.base import JobState
from seatrial.backends.kubernetes.answers import NotFoundError
from seatrial.backends.kubernetes.api import Api, Object
from seatrial.backends.kubernetes.delivery import Delivery, PodLog, PodState
from seatrial.backends.kubernetes.names import MANAGED, Handle
from seatrial.backends.kubernetes.observe import Observer, index_of
from seatrial.backends.kubernetes.states import job_state
from seatrial.errors import PlatformError, SeatrialError, SpecError, UnreachableError
from seatrial.runs import lock
from seatrial.runs.paths import RunPaths

_LAST_LINES_S = 20.0
_AT_ONCE = 16
_TELL_S = 300.0
_BEGIN_S = 60.0
"""For a node to take the pod, and to start it."""
_POLL_S = 0.3
_DRAIN_S = 0.02
_TELL_EVERY_S = 60.0
_LARGE = 64 << 10
_ENDED = {"Succeeded", "Failed"}


class Followed:
    """One job.

    Args:
        api: the cluster.
        handle: the job's.
        observer: tells of it.
        paths: of the run's copy; None for a job of which only the state is asked for.
    """

    def __init__(self, api: Api, handle: Handle, observer: Observer, paths: RunPaths | None) -> None:
        self.api, self.handle, self.observer = api, handle, observer
        self.delivery = Delivery(paths) if paths is not None else None
        self._looks = 0
        self._asked_at = float("-inf")
        self._over = False
        self.notes: list[str] = []
        """For people: what did not come, and why."""

    def look(self, *, anew: bool = False) -> JobState:
        """Where the run is, with the copy as it is by then: an end is told once all is here that will come."""
        self.observer.look(anew=anew)
        found = job_state(self.observer.job, self.observer.pods.values())
        if self.delivery is not None and not self._over:
            self._looks += 1
            # Of an end, no command may tell before the copy is whole: whoever completes it is waited for.
            with lock.copying(self.delivery.paths.root, wait=found.state.is_terminal) as alone:
                if alone:
                    self._bring(found.state.is_terminal)
        if self.notes:
            return JobState(found.state, "; ".join(filter(None, (found.reason, *self.notes))))
        return found

    def _bring(self, is_last: bool) -> None:
        assert self.delivery is not None
        pods = dict(self.observer.pods)
        nodes = {name: index_of(pod) for name, pod in pods.items()}
        begun = [
            name for name, pod in pods.items() if pod.get("status", {}).get("phase") not in {None, "Pending"}
        ]
        logs = [self.delivery.log_of(self.api, name) for name in begun]
        idle = [log for log in logs if not log.started]
        if self._looks == 1 or is_last:
            self._read(idle, nodes)
        if self._looks > 1 and not is_last:
            for log in idle:
                log.start()
        for name, log in self.delivery.logs.items():
            log.ended = name not in pods or pods[name].get("status", {}).get("phase") in _ENDED
        self.delivery.write(nodes)
        if is_last:
            self._await([log for log in logs if log.started], nodes)
            self._complete(nodes)
            self.delivery.release()
            self._over = True
        elif self.delivery.gaps and time.monotonic() - self._asked_at > _TELL_EVERY_S:
            self._complete(nodes)

    def _read(self, logs: list[PodLog], nodes: dict[str, int]) -> None:
        """What the pods have written so far; it is taken while it comes, since no more than so much of it is held."""
        assert self.delivery is not None
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            reading = [pool.submit(_read, log) for log in logs]
            while not all(future.done() for future in reading):
                if not self.delivery.write(nodes):
                    time.sleep(_DRAIN_S)
        self.delivery.write(nodes)

    def _await(self, logs: list[PodLog], nodes: dict[str, int]) -> None:
        assert self.delivery is not None
        until = time.monotonic() + _LAST_LINES_S
        while not all(log.over for log in logs) and time.monotonic() < until:
            time.sleep(_POLL_S / 3)
            self.delivery.write(nodes)
        self.delivery.write(nodes)

    def _complete(self, nodes: dict[str, int]) -> None:
        """Asks the volume for what the logs no longer have, in a pod of its own."""
        assert self.delivery is not None
        lacks = self.delivery.missing()
        if not self.delivery.pods or (not lacks and self.delivery.ended):
            return  # nothing has run yet, or all is here
        self._asked_at = time.monotonic()
        try:
            self.tell()
        except (SeatrialError, LookupError) as error:
            told = error.what if isinstance(error, SeatrialError) else str(error)
            some = ", ".join(lacks[:3]) if lacks else "the end of the run"
            self.notes = [f"not all came here ({some}): {told}"]

    def tell(self) -> None:
        """Has a pod print the run's files once more, from where the copy is.

        Raises:
            LookupError: no volume keeps them, or how the job looked is not known any more.
            PlatformError: the pod can't be made, or does not end.
        """
        assert self.delivery is not None
        template = _template(self.observer, self.delivery.paths)
        if template is None:
            raise LookupError("no volume keeps the run")
        name = f"{self.handle.name[:50]}-t{secrets.token_hex(3)}"
        path = self.api.path("v1", "pods")
        # What comes twice is dropped here, so only what is large is worth a word.
        known = {file: size for file, size in self.delivery.sizes().items() if size > _LARGE}
        self.api.create(path, teller(name, template, known))
        try:
            log = PodLog(self.api, name, self.delivery.pods.setdefault(name, PodState()), self.delivery.lines)
            self.delivery.gaps.clear()
            self._listen(log, f"{path}/{name}", name)
        finally:
            self.delivery.pods.pop(name, None)
            self.api.delete(f"{path}/{name}", propagation="Background")

    def _listen(self, log: PodLog, path: str, name: str) -> None:
        """Takes what a pod prints while it does, to its end: a log that is long is not kept whole."""
        assert self.delivery is not None
        until, begun_by = time.monotonic() + _TELL_S, time.monotonic() + _BEGIN_S
        while not log.over:
            phase = self.api.get(path).get("status", {}).get("phase")
            if phase not in {None, "Pending"} and not log.started:
                log.start()
            log.ended = phase in _ENDED
            if time.monotonic() > (until if log.started else begun_by):
                raise PlatformError(
                    "the pod that reads the volume does not end", evidence=f"{name} is {phase}"
                )
            self.delivery.write({})
            time.sleep(_POLL_S)
        self.delivery.write({})


def _read(log: PodLog) -> None:
    try:
        log.read()
    except (NotFoundError, SpecError, UnreachableError):
        return  # it is gone, or not begun


def _template(observer: Observer, paths: RunPaths) -> Object | None:
    """The spec of the job's pods, where a claim keeps the run: of a pod that is there, else of the request."""
    for pod in observer.pods.values():
        return _with_claim(pod["spec"])
    text = paths.request("yaml")
    if not text.exists():
        return None
    from ruamel.yaml import YAML

    for body in YAML(typ="safe").load_all(text.read_text(encoding="utf-8")):
        if body.get("kind") == "Job":
            return _with_claim(body["spec"]["template"]["spec"])
    return None


def _with_claim(spec: Object) -> Object | None:
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    return spec if "persistentVolumeClaim" in volumes.get("seatrial", {}) else None


def teller(name: str, spec: Object, known: dict[str, int]) -> Object:
    """A pod that prints a run's files; it asks for next to nothing, and for no GPU."""
    [container] = spec["containers"]
    amounts = {"cpu": "500m", "memory": "512Mi"}
    kept = ("seatrial", "tmp")
    env = [entry for entry in container["env"] if "value" in entry]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {**MANAGED, "seatrial/tells": name}},
        "spec": {
            **{key: spec[key] for key in ("securityContext", "imagePullSecrets", "nodeSelector", "tolerations") if key in spec},
            "restartPolicy": "Never", "automountServiceAccountToken": False, "activeDeadlineSeconds": int(_TELL_S),
            "containers": [
                {
                    "name": "seatrial", "image": container["image"], "command": [*container["command"], "--tell"],
                    "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
                    "env": [*env, {"name": "SEATRIAL_KNOWN", "value": json.dumps(known)}],
                    "resources": {"requests": amounts, "limits": amounts},
                    "volumeMounts": [mount for mount in container["volumeMounts"] if mount["name"] in kept],
                    "securityContext": container["securityContext"],
                }
            ],
            "volumes": [volume for volume in spec["volumes"] if volume["name"] in kept],
        },
    }  # fmt: skip
