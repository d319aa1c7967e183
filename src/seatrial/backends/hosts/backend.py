"""The machines of ``nodes.yaml`` as one platform: a supervisor here keeps a connection to an anchor on each of them.

The run's directory, the code and the data must lie under the same paths on all of them, and here: on a shared file system.
"""

from __future__ import annotations

import json
import sys

import psutil

from seatrial.backends.base import JobHandle, JobRequest
from seatrial.backends.hosts.supervise import KILL
from seatrial.backends.local import LocalBackend
from seatrial.backends.machine import Machine
from seatrial.command import CommandRunner, run
from seatrial.errors import SpecError
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.fleet import fleet_path, read_fleet
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec

_KILLED_S = 20.0


class HostsBackend(LocalBackend):
    """Runs an agent on each of some machines. The job here is the supervisor: it is followed and ended as a local one is."""

    name = "hosts"

    def probe(self, spec: AnySpec) -> Machine:
        """What each machine of the fleet has at least; ones with fewer GPUs than are asked for are left out.

        Raises:
            SpecError: there is no fleet, or its machines don't have Seatrial at one place.
        """
        path = fleet_path()
        fleet = read_fleet(path)
        asked = spec.resources.gpus_per_node
        most = max((node.gpus for node in fleet.nodes), default=0)
        least = most if asked == "auto" else asked
        nodes = [node for node in fleet.nodes if node.gpus >= least]
        pythons = sorted({node.python for node in nodes})
        if len(pythons) > 1:
            raise SpecError(
                "the machines have Seatrial at different places", evidence=f"{path}: {', '.join(pythons)}",
                remedy="seatrial node bootstrap puts it at the same one everywhere",
            )  # fmt: skip
        gpus = min((node.gpus for node in nodes), default=0)
        return Machine(
            hostname="each machine",
            cpus=min((node.cpus or 1 for node in nodes), default=1),
            gpus=tuple((nodes[0].gpu or "GPU") for _ in range(gpus)) if nodes else (),
            evidence=f"{path} has {len(fleet.nodes)} machines, {len(nodes)} of them with {least} GPUs or more",
            nodes=max(len(nodes), 1),
            platform=self.name,
            native={
                "nodes": [{"host": n.host, "address": n.address or _bare(n.host)} for n in nodes],
                "python": pythons[0] if pythons else "",
            },
        )

    def cluster(self) -> str:
        """The fleet's file names it."""
        return str(fleet_path().absolute())

    def prepare(self, plan: LaunchPlan, spec: RunSpec) -> CommandRunner:
        """Nothing is started ahead: it would be on this machine, not on those."""
        return run

    def render(self, plan: LaunchPlan) -> JobRequest:
        """The supervisor's argv, as JSON."""
        argv = [
            sys.executable,
            "-m",
            "seatrial.backends.hosts.supervise",
            str(plan.run_dir),
            "--attempt",
            str(plan.attempt),
        ]
        text = json.dumps({"schema": 1, "cwd": str(plan.cwd), "argv": argv}, indent=2) + "\n"
        return JobRequest("json", text, plan)

    def submit(self, request: JobRequest) -> JobHandle:
        """Starts the supervisor here, out of reach of the terminal."""
        return JobHandle(self.name, super().submit(request).native)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """As of a local job; `force` kills on all machines, and waits until that is done."""
        process = self._process(handle)
        if process is not None and force:
            process.send_signal(KILL)
            psutil.wait_procs([process], _KILLED_S)
        super().cancel(handle, force=force)


def _bare(host: str) -> str:
    return host.rpartition("@")[2]
