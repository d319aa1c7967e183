"""The pretend nodes: a pod's container is a process of this machine, its volumes are directories, its log has times."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.testing.kubernetes.container import Surroundings, swapped
from seatrial.testing.kubernetes.kinds import PODS
from seatrial.testing.kubernetes.store import Object, StatusError, Store, stamp


class Running:
    """A pod that is a process.

    Args:
        pod: as it was when it began.
        process: its container.
        raw: what it prints.
    """

    def __init__(self, pod: Object, process: command.Process, raw: Path) -> None:
        self.name, self.namespace, self.uid = (
            pod["metadata"]["name"],
            pod["metadata"]["namespace"],
            pod["metadata"]["uid"],
        )
        self.process, self.raw = process, raw
        self.grace_s = float(pod["spec"].get("terminationGracePeriodSeconds") or 30)
        self.started = time.monotonic()
        self.limit_s = pod["spec"].get("activeDeadlineSeconds")
        self.asked_at: float | None = None
        self.oom = False


class Kubelet:
    """All nodes' kubelets.

    Args:
        store: the objects.
        directory: for volumes, logs and pods.
        event: tells of a pod: ``(pod, type, reason, message)``.
    """

    def __init__(self, store: Store, directory: Path, event: Callable[[Object, str, str, str], None]) -> None:
        self._store, self._directory, self._event = store, directory, event
        self.running: dict[str, Running] = {}
        """By uid."""
        self.missing_images: set[str] = set()
        self.log_bytes = 10 << 20
        """Of a log, after which it is begun anew: what came before is no longer served (containerLogMaxSize)."""
        self.around = Surroundings(store, directory)
        self._logs = directory / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._offsets: dict[str, int] = {}
        self._rests: dict[str, bytes] = {}
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()

    def sync(self) -> None:
        """Starts, stops and looks after what is on the nodes."""
        for pod in self._store.every(PODS):
            uid, status = pod["metadata"]["uid"], pod.get("status", {})
            if not pod["spec"].get("nodeName") or status.get("phase") in {"Succeeded", "Failed"}:
                continue
            if uid in self.running:
                self._look_after(pod, self.running[uid])
            elif pod["metadata"].get("deletionTimestamp"):
                self._finish(pod, 137, "ContainerStatusUnknown")
            else:
                self._start(pod)

    def log(
        self, pod: Object, *, follow: bool, timestamps: bool, since: str, closed: Callable[[], bool]
    ) -> Iterator[bytes]:
        """The lines of a pod's log."""
        uid = pod["metadata"]["uid"]
        path = self._logs / f"{uid}.log"
        if not path.exists():
            waits = ((pod.get("status", {}).get("containerStatuses") or [{}])[0].get("state") or {}).get(
                "waiting"
            ) or {}
            raise StatusError(
                400, "BadRequest",
                f'container "{pod["spec"]["containers"][0]["name"]}" in pod "{pod["metadata"]["name"]}" is waiting to start: {waits.get("reason", "ContainerCreating")}',
            )  # fmt: skip
        file, rest = path.open("rb"), b""
        try:
            while not closed():
                over = uid not in self.running
                rotated = os.fstat(file.fileno()).st_ino != path.stat().st_ino
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    when, _, text = line.partition(b" ")
                    # Seconds only: what was written within that second comes again.
                    if not since or when[:19] >= since.encode()[:19]:
                        yield (line if timestamps else text) + b"\n"
                if rotated:
                    file.close()
                    file = path.open("rb")  # whoever follows has read the old one to its end
                elif not follow or over:
                    return
                else:
                    time.sleep(0.02)
        finally:
            file.close()

    def end_all(self) -> None:
        """Kills what still runs, and takes the links to volumes away."""
        for running in list(self.running.values()):
            _kill(running.process.pid)
            running.process.wait(10)
        self.running.clear()
        self.around.remove_links()

    def _start(self, pod: Object) -> None:
        name, image = pod["metadata"]["name"], pod["spec"]["containers"][0]["image"]
        if image in self.missing_images:
            pulled = f'Failed to pull image "{image}": failed to resolve reference: not found'
            reason = "ErrImagePull" if self._told.get(name) is None else "ImagePullBackOff"
            self._waits(
                pod,
                reason,
                pulled if reason == "ErrImagePull" else f'Back-off pulling image "{image}"',
                ("Failed", pulled),
            )
            return
        try:
            volumes = self.around.volumes(pod)
        except LookupError as error:
            self._waits(pod, "ContainerCreating", "", ("FailedMount", str(error)))
            return
        try:
            environment = self.around.environment(pod)
        except LookupError as error:
            self._waits(pod, "CreateContainerConfigError", str(error), ("Failed", f"Error: {error}"))
            return
        self._run(pod, volumes, environment)

    def _waits(self, pod: Object, reason: str, message: str, event: tuple[str, str]) -> None:
        name = pod["metadata"]["name"]
        waiting = {"reason": reason, **({"message": message} if message else {})}
        state = {
            "name": pod["spec"]["containers"][0]["name"],
            "ready": False,
            "restartCount": 0,
            "state": {"waiting": waiting},
        }
        self._status(pod, phase="Pending", containerStatuses=[state])
        if self._told.get(name) != event[1]:
            self._told[name] = event[1]
            self._event(pod, "Warning", *event)

    def _run(self, pod: Object, volumes: dict[str, Path], environment: dict[str, str]) -> None:
        container = pod["spec"]["containers"][0]
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        swaps = {"$(HOSTNAME)": name}
        for mount in container.get("volumeMounts") or []:
            self.around.mount(mount["mountPath"], volumes[mount["name"]], swaps)
        for host, address in self.around.hosts(pod).items():
            swaps[host] = address
        argv = [
            swapped(word, swaps)
            for word in (*(container.get("command") or []), *(container.get("args") or []))
        ]
        environment = {key: swapped(value, swaps) for key, value in environment.items()}
        raw = self._directory / "raw" / f"{uid}.out"
        raw.parent.mkdir(parents=True, exist_ok=True)
        self._offsets[uid] = 0
        cwd = container.get("workingDir")
        try:
            process = command.start(
                argv, log=raw, env=environment, cwd=Path(cwd) if cwd else self._directory, new_session=True
            )
        except PlatformError as error:
            raw.write_text(f"{error.evidence}\n")
            self._stamp_lines(uid, raw, final=True)
            self._finish(pod, 127, "StartError", str(error.evidence))
            return
        self.running[uid] = Running(pod, process, raw)
        now = stamp()
        state = {
            "name": container["name"], "image": container["image"], "ready": True, "started": True, "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }  # fmt: skip
        ready = {"type": "Ready", "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
        self._status(
            pod,
            phase="Running",
            podIP="127.0.0.1",
            startTime=now,
            containerStatuses=[state],
            conditions=[ready],
        )
        self._event(pod, "Normal", "Started", f"Started container {container['name']}")

    def _look_after(self, pod: Object, running: Running) -> None:
        self._stamp_lines(running.uid, running.raw)
        code = running.process.poll()
        if code is None:
            self._stop_if_asked(pod, running)
            return
        self._stamp_lines(running.uid, running.raw, final=True)
        code = 128 - code if code < 0 else code
        reason = "OOMKilled" if running.oom else "Completed" if code == 0 else "Error"
        _kill_left(running.process.pid)
        del self.running[running.uid]
        self._finish(pod, code, reason)

    def _stop_if_asked(self, pod: Object, running: Running) -> None:
        now = time.monotonic()
        late = running.limit_s is not None and now - running.started > running.limit_s
        if (pod["metadata"].get("deletionTimestamp") or late) and running.asked_at is None:
            running.asked_at = now
            running.process.send_signal(signal.SIGTERM)
        grace = pod["metadata"].get("deletionGracePeriodSeconds")
        if grace is not None:
            running.grace_s = min(running.grace_s, float(grace))  # a second request may shorten it
        if running.asked_at is not None and now - running.asked_at > running.grace_s:
            _kill(running.process.pid)

    def _finish(self, pod: Object, code: int, reason: str, message: str = "") -> None:
        now = stamp()
        ended = {
            "exitCode": code,
            "reason": reason,
            "finishedAt": now,
            **({"message": message} if message else {}),
        }
        state = {
            "name": pod["spec"]["containers"][0]["name"], "ready": False, "restartCount": 0, "state": {"terminated": ended},
        }  # fmt: skip
        ready = {"type": "Ready", "status": "False", "lastProbeTime": None, "lastTransitionTime": now}
        self._status(
            pod, phase="Succeeded" if code == 0 else "Failed", containerStatuses=[state], conditions=[ready]
        )

    def _status(self, pod: Object, conditions: list[Object] | None = None, **more: Any) -> None:
        def change(item: Object) -> None:
            status = item.setdefault("status", {})
            status |= more
            for condition in conditions or []:
                kept = [c for c in status.get("conditions", []) if c["type"] != condition["type"]]
                status["conditions"] = [*kept, condition]

        with contextlib.suppress(StatusError):  # it is gone meanwhile
            self._store.update(PODS, pod, change)

    def _stamp_lines(self, uid: str, raw: Path, *, final: bool = False) -> None:
        with self._lock:
            try:
                with raw.open("rb") as file:
                    file.seek(self._offsets.get(uid, 0))
                    data = file.read()
            except FileNotFoundError:
                return
            self._offsets[uid] = self._offsets.get(uid, 0) + len(data)
            *lines, rest = (self._rests.pop(uid, b"") + data).split(b"\n")
            if final and rest:
                lines, rest = [*lines, rest], b""
            self._rests[uid] = rest
            path = self._logs / f"{uid}.log"
            if lines and path.exists() and path.stat().st_size > self.log_bytes:
                path.rename(path.with_suffix(".log.1"))
            if lines or not path.exists():
                with path.open("ab") as file:
                    for line in lines:
                        file.write(b"%b %b\n" % (_nanoseconds().encode(), line))


def _nanoseconds() -> str:
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _kill(pid: int) -> None:
    for process in _family(pid):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _kill_left(pid: int) -> None:
    """Processes of a container's session that outlive its first one go with it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if process.pid != pid and os.getsid(process.pid) == pid:
                process.kill()


def remove(directory: Path) -> None:
    """Takes a cluster's directory away."""
    shutil.rmtree(directory, ignore_errors=True)
