"""``--on ssh://HOST``: the platform of a login node. Seatrial there plans, submits and settles; here is a copy of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seatrial.backends.base import JobHandle, JobRequest, JobState, Why
from seatrial.backends.machine import Machine
from seatrial.backends.ssh.connection import open_login
from seatrial.backends.ssh.failures import Login
from seatrial.backends.ssh.mirror import Mirror
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.manifest import Manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.kinds import AnySpec

SCHEME = "ssh://"


class SshBackend:
    """All clusters that are reached over ssh. A handle is ``ssh://<host>/<the handle there>``."""

    name = "ssh"
    keeps_jobs = True

    def __init__(self) -> None:
        self._mirrors: dict[str, Mirror] = {}

    def look(self, paths: RunPaths) -> Manifest:
        """Brings the copy of a run up to date."""
        return self.mirror(paths).look()

    def mirror(self, paths: RunPaths) -> Mirror:
        """The copy of a run; from now on its handles are known."""
        known = self._mirrors.get(paths.run_id)
        if known is None or known.paths != paths:
            known = self._mirrors[paths.run_id] = Mirror(paths)
        return known

    def probe(self, spec: AnySpec) -> Machine:
        """What the login node's platform has for the spec."""
        answer, _ = open_login(login_of(spec)).ask("probe", values=values_of(spec))
        return Machine(**{**answer, "gpus": tuple(answer["gpus"])})

    def render(self, plan: LaunchPlan) -> JobRequest:
        """The plan as data: what is submitted, the login node renders from its own."""
        return JobRequest("json", json.dumps(plan.to_dict(), indent=2) + "\n", plan)

    def submit(self, request: JobRequest) -> JobHandle:
        """Has the login node start a run that has a copy here; the request's text is an order of `launch/outside.py`."""
        return self.start(RunPaths(request.plan.run_dir), json.loads(request.text))

    def start(self, paths: RunPaths, order: dict[str, Any]) -> JobHandle:
        """Has the login node start what is ordered."""
        mirror = self.mirror(paths)
        answer, _ = mirror.connection.ask("start", order=order)
        return JobHandle(self.name, f"{mirror.remote.host}/{answer}")

    def state(self, handle: JobHandle) -> JobState:
        """As the login node has settled it; the copy is brought up to date on the way."""
        manifest = self._of(handle).look()
        return JobState(manifest.state, manifest.reason)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Asks Seatrial there to do it."""
        mirror = self._of(handle)
        mirror.connection.ask("cancel", run_id=mirror.paths.run_id, force=force)

    def why(self, handle: JobHandle) -> Why:
        """What the login node's platform says."""
        mirror = self._of(handle)
        answer, _ = mirror.connection.ask("why", run_id=mirror.paths.run_id)
        return Why(**answer)

    def logs(self, handle: JobHandle, run_dir: Path) -> Iterator[Path]:
        """The copies of the job's output and of the agents'."""
        yield from sorted(run_dir.glob("slurm-*.out"))
        yield from sorted(run_dir.glob("attempt-*/logs/agent.log"))

    def _of(self, handle: JobHandle) -> Mirror:
        # ssh://HOST/slurm://JOB/RUN/CLUSTER
        for word in handle.native.split("/"):
            if word in self._mirrors:
                return self._mirrors[word]
        raise PlatformError(
            "where the copy of this run is has not been said",
            evidence=str(handle),
            remedy="seatrial runs show RUN",
        )


def login_of(spec: AnySpec) -> Login:
    """The login node that a spec names.

    Raises:
        SpecError: it doesn't say where Seatrial is there.
    """
    remote = spec.slurm.remote
    missing = [name for name in ("python", "directory") if getattr(remote, name) is None]
    if missing:
        raise SpecError(
            f"slurm.remote.{missing[0]} is not set",
            evidence=f"resources.on is {spec.resources.on}: Seatrial has to be installed there, and be told where",
            remedy="slurm: {remote: {python: /shared/me/venv/bin/python, directory: /shared/me/seatrial}}    "
            "(in the recipe, or under defaults: in ~/.config/seatrial/config.yaml)",
        )
    assert remote.python is not None and remote.directory is not None
    return Login(spec.resources.on.removeprefix(SCHEME), remote.python, remote.directory)


def values_of(spec: AnySpec) -> dict[str, Any]:
    """What a person has said: all that is set, to lie over what the cluster's own config.yaml sets."""
    values = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    values["resources"] = {**values.get("resources", {}), "on": "slurm"}
    slurm = {key: value for key, value in values.pop("slurm", {}).items() if key != "remote"}
    return values | ({"slurm": slurm} if slurm else {})
