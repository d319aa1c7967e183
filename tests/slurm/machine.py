"""What this machine has and permits: programs, namespaces, cgroups, free ports and networks."""

from __future__ import annotations

import functools
import os
import random
import shutil
import socket
import subprocess
from pathlib import Path

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmstepd": "slurmd",
    "scontrol": "slurm-client",
}
ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}
NAMESPACE_PACKAGES = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
TABLES = ("/usr/share/mariadb/mariadb_system_tables.sql", "/usr/share/mysql/mysql_system_tables.sql")


def program(name: str) -> str:
    """The path of a program.

    An emulator package may have taken Slurm's names over; what it replaced is then called NAME-wlm.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = shutil.which(f"{name}-wlm", path=PATH) or shutil.which(name, path=PATH)
    if found is None:
        raise FileNotFoundError(name)
    return found


def missing(*, accounting: bool) -> list[str]:
    """The packages that a cluster needs and this machine lacks, by their names on Debian."""
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if accounting else {})
    lacking = {package for name, package in wanted.items() if not _installed(name)}
    if accounting and not system_tables():
        lacking.add("mariadb-server-core")
    return sorted(lacking)


def _installed(name: str) -> bool:
    try:
        return bool(program(name))
    except FileNotFoundError:
        return False


def system_tables() -> Path | None:
    """The SQL that makes MariaDB's own tables."""
    return next((Path(path) for path in TABLES if Path(path).exists()), None)


@functools.cache
def may_unshare() -> str:
    """Why nodes can't have namespaces here; "" when they can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    for name, package in NAMESPACE_PACKAGES.items():
        if not _installed(name):
            return f"{name} is missing (package {package})"
    # A cable is part of the question: a container may allow the first and not the second.
    argv = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
    cable = ["ip", "link", "add", "veth-probe", "type", "veth", "peer", "name", "veth-probe2"]
    done = subprocess.run(
        [*argv, *cable], capture_output=True, text=True, env={"PATH": PATH}, timeout=10, check=False
    )
    return done.stderr.strip() if done.returncode else ""


def memory_cgroups() -> bool:
    """Whether memory cgroups of version 1 can be made; Slurm needs systemd for those of version 2."""
    root = Path("/sys/fs/cgroup/memory")
    return os.geteuid() == 0 and (root / "memory.limit_in_bytes").exists() and os.access(root, os.W_OK)


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens at, below those that the kernel hands out."""
    for _ in range(200):
        first = random.randrange(17_000, 32_000 - count)
        if all(_free(first + i) for i in range(count)):
            return first
    raise OSError(f"no {count} neighbouring ports are free between 17000 and 32000")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def free_network() -> str:
    """Three numbers that begin no address of this machine, for a bridge of its own."""
    shown = subprocess.run(
        ["ip", "-4", "-o", "addr"], capture_output=True, text=True, env={"PATH": PATH}, timeout=10, check=True
    ).stdout
    free = [n for n in range(256) if f" 10.213.{n}." not in shown]
    return f"10.213.{random.choice(free)}"
