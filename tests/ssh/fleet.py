"""Several pretend machines on this one: an sshd for each, one client config for all, and a ``nodes.yaml``."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.ssh.sshd import Sshd


class PretendFleet:
    """Machines called ``node-0``, ``node-1``, …

    Args:
        directory: for the config and the fleet's file.
        machines: their servers.
    """

    def __init__(self, directory: Path, machines: list[Sshd]) -> None:
        self.directory, self.machines = directory, machines
        self.file = directory / "nodes.yaml"
        rows = [{"host": f"node-{i}", "address": "127.0.0.1", "python": sys.executable, "cpus": 2} for i in range(len(machines))]  # fmt: skip
        self.file.write_text(json.dumps({"nodes": rows}))
        config = directory / "ssh_config"
        config.write_text("\n".join(m.config.read_text().replace("Host login", f"Host node-{i}") for i, m in enumerate(machines)))  # fmt: skip
        (directory / "bin").mkdir()
        program = directory / "bin" / "ssh"
        program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh", path=os.defpath)} -F {config} "$@"\n')
        program.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        """What makes a process a user of it."""
        return {
            "PATH": f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "SEATRIAL_NODES": str(self.file),
        }

    def lock(self, index: int) -> Path:
        """What holds a machine."""
        return self.machines[index].directory / "node.lock"


@contextmanager
def pretend_fleet(
    directory: Path, count: int = 2, env: Mapping[str, str] | None = None
) -> Iterator[PretendFleet]:
    """Starts it."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        machines = []
        for _ in range(count):
            machine = Sshd({**(env or {}), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
            machine.session_env["SEATRIAL_NODE_LOCK"] = str(machine.directory / "node.lock")
            machines.append(stack.enter_context(machine))
        yield PretendFleet(directory, machines)
