"""Starts and stops the parts of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from seatrial.command import run
from seatrial.errors import PlatformError
from tests.slurm import machine, processes
from tests.slurm.plan import (
    CGROUP_CONF,
    RESOLV_CONF,
    Plan,
    accounts,
    gres_conf,
    hosts,
    slurm_conf,
    slurmdbd_conf,
)

UNSHARE = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


class ClusterError(Exception):
    """The test cluster itself failed: no verdict about what is tested."""


class Daemons:
    """The daemons of one cluster.

    Args:
        plan: what to start; its directory exists.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.directory = plan.directory
        self.log = plan.directory / "log"
        # Nothing of this process's environment reaches the daemons, nor through them the jobs.
        self.env = {
            "PATH": machine.PATH,
            "LC_ALL": "C.UTF-8",
            "SLURM_CONF": str(plan.conf),
            "MYSQL_UNIX_PORT": str(plan.directory / "run" / "mariadb.sock"),
        }
        self._children: list[subprocess.Popen[bytes]] = []

    def start_all(self) -> None:
        """Starts everything; the nodes' namespaces are made while the database gets ready."""
        self.write_files()
        if self.plan.namespaces:
            self._make_bridge()
            for node in self.plan.names:
                self._unshare(node)
        self.start_munge()
        if self.plan.accounting:
            self._start_database()
            self.start_dbd()
            self._tell_accounts()
        self.start_controller()
        if self.plan.namespaces:
            self._connect(self.plan.names)
        self.start_slurmds(self.plan.names)

    def reap(self) -> None:
        """Collects what this process started and what has been killed since."""
        for child in self._children:
            child.wait(10)
        self._children.clear()

    # -- files ---------------------------------------------------------------------------------------------------

    def write_files(self) -> None:
        plan, d = self.plan, self.directory
        d.chmod(0o755)  # munged refuses a socket that not everybody may reach
        for name in ("bin", "dev", "log", "run", "spool", "state"):
            (d / name).mkdir(mode=0o755)
        for node in plan.names:
            (d / "spool" / node).mkdir()
        # Under its plain name: slurmctld and slurmd look at what they are called, and misbehave as NAME-wlm.
        for name in ("slurmctld", "slurmd", "slurmstepd", *(["slurmdbd"] if plan.accounting else [])):
            (d / "bin" / name).symlink_to(machine.program(name))
        # slurmd leaves CUDA_VISIBLE_DEVICES out unless a GPU's file is a device.
        for i in range(plan.gpus):
            (d / "dev" / f"nvidia{i}").symlink_to("/dev/null")
        plan.conf.write_text(slurm_conf(plan))
        (d / "gres.conf").write_text(gres_conf(plan))
        (d / "hosts").write_text(hosts(plan))
        (d / "resolv.conf").write_text(RESOLV_CONF)
        if plan.memory_limits:
            (d / "cgroup.conf").write_text(CGROUP_CONF)
        for name, content in (
            ("slurmdbd.conf", slurmdbd_conf(plan).encode()),
            ("munge.key", os.urandom(1024)),
        ):
            (d / name).touch(mode=0o600)
            (d / name).write_bytes(content)

    # -- the controller's machine --------------------------------------------------------------------------------

    def start_munge(self) -> None:
        d = self.directory
        # --force: it would refuse a TMPDIR that only its owner, or everybody, may write to.
        self._start(
            "munged", "--force", f"--key-file={d}/munge.key", f"--socket={d}/run/munge.sock", "--num-threads=4",
            f"--pid-file={d}/run/munged.pid", f"--log-file={d}/log/munged.log", f"--seed-file={d}/run/munged.seed",
        )  # fmt: skip

    def _start_database(self) -> None:
        tables = machine.system_tables()
        assert tables is not None
        data = self.directory / "db"
        data.mkdir(mode=0o700)
        # No network and no passwords: the socket lies in a directory of the user's own. It need not survive anything.
        argv = [
            machine.program("mariadbd"), "--no-defaults", f"--user={self.plan.user}", f"--datadir={data}",
            f"--lc-messages-dir={tables.parent}", "--skip-networking", "--skip-grant-tables",
            "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-doublewrite=0", "--innodb-flush-method=nosync", "--innodb-lock-wait-timeout=900", "--performance-schema=OFF",
        ]  # fmt: skip
        sql = ["CREATE DATABASE mysql;", "USE mysql;", tables.read_text(), "CREATE DATABASE slurm_acct;", ""]
        with (self.log / "mariadb-bootstrap.log").open("wb") as log:
            done = subprocess.run(
                [*argv, "--bootstrap"], input="\n".join(sql).encode(), stdout=log, stderr=log, check=False,
                timeout=60,
            )  # fmt: skip
        if done.returncode:
            raise self._failed("MariaDB's tables were not made", "mariadb-bootstrap.log")
        log_path = self.log / "mariadb.log"
        self._child(
            [*argv, f"--socket={self.env['MYSQL_UNIX_PORT']}", f"--pid-file={data}/mariadbd.pid"], log_path
        )
        if not processes.until(30, lambda: "ready for connections" in log_path.read_text(errors="replace")):
            raise self._failed("MariaDB did not start", "mariadb.log")

    def start_dbd(self) -> None:
        """Starts slurmdbd and waits until it answers."""
        self._start(self._own("slurmdbd"))
        self._wait_for_answer(["sacctmgr", "-n", "-P", "show", "cluster"], "slurmdbd")

    def _tell_accounts(self) -> None:
        log = self.log / "sacctmgr.log"
        for lines in accounts(self.plan):
            done = subprocess.run(
                ["sacctmgr", "-i"], input="\n".join(lines), env=self.env, capture_output=True, text=True, timeout=60,
                check=False,
            )  # fmt: skip
            with log.open("a") as file:
                file.write(done.stdout + done.stderr)
        shown = run(
            ["sacctmgr", "-n", "-P", "show", "assoc", "format=user,qos"], timeout_s=10, env=self.env
        ).stdout
        if f"{self.plan.user}|high,low,normal,spot" not in shown.splitlines():
            raise self._failed(f"sacctmgr did not do as told: {shown!r}", "sacctmgr.log")

    def start_controller(self) -> None:
        """Starts slurmctld and waits until it answers."""
        self._start(self._own("slurmctld"), "-i")
        self._wait_for_answer(["scontrol", "ping"], "slurmctld")

    # -- nodes ---------------------------------------------------------------------------------------------------

    def start_node(self, node: str) -> None:
        """Starts what a node lacks: its namespaces, its cable, its slurmd."""
        if self.plan.namespaces and processes.node_init(self.plan, node) is None:
            self._unshare(node)
            self._connect([node])
        if processes.slurmd(self.plan, node) is None:
            self.start_slurmds([node])

    def start_slurmds(self, nodes: Sequence[str]) -> None:
        """Starts the slurmd of each node; all are at it at once where nodes have namespaces."""
        started = []
        for node in nodes:
            argv = [self._own("slurmd"), "-d", self._own("slurmstepd"), "-N", node]
            if self.plan.namespaces:
                argv = [*self.entering(node), *argv]
            started.append((node, self._open(argv, self.log / f"start-{node}.log")))
            if not self.plan.namespaces and len(started) % 4 == 0:
                self._await_started(started[-4:])
        self._await_started(started)

    def _await_started(self, started: Sequence[tuple[str, subprocess.Popen[bytes]]]) -> None:
        for node, process in started:
            if process.wait(30):
                raise self._failed(
                    f"slurmd of {node} did not start", f"start-{node}.log", f"slurmd-{node}.log"
                )

    def entering(self, node: str) -> list[str]:
        """What a command line begins with to run on a node in namespaces."""
        init = processes.node_init(self.plan, node)
        if init is None:
            raise ClusterError(f"{node} is down")
        return ["nsenter", "--target", str(init.pid), "--net", "--uts", "--ipc", "--mount", "--pid", "--"]

    def _make_bridge(self) -> None:
        bridge, address = self.plan.bridge, self.plan.controller_address
        self._ip(
            f"link add {bridge} type bridge",
            f"addr add {address}/24 dev {bridge}",
            f"link set {bridge} up",
            # slurmdbd and its clients write each message in two pieces, and the second waits for the first's
            # acknowledgement: 0.09 s a question unless that comes at once.
            f"route change local {address} dev {bridge} table local proto kernel scope host src {address} quickack 1",
        )

    def _unshare(self, node: str) -> None:
        plan, memory = self.plan, ""
        if plan.memory_limits:
            group = plan.memory_root / node
            group.mkdir(parents=True, exist_ok=True)
            memory = str(group)
        (self.directory / "run" / f"{node}.ready").unlink(missing_ok=True)
        words = [str(self.directory), node, plan.address(node), plan.controller_address, memory]
        python = [sys.executable, "-I", "-S", str(processes.NODE_PROGRAM)]
        self._child([*UNSHARE, *python, *words], self.log / f"init-{node}.log")

    def _connect(self, nodes: Sequence[str]) -> None:
        """Lays a cable from each node to the bridge, and waits until the nodes have an address."""
        plan, orders = self.plan, []
        for node in nodes:
            if not processes.until(10, lambda node=node: processes.node_init(plan, node)):  # type: ignore[misc]
                raise self._failed(f"no namespaces for {node}", f"init-{node}.log")
            init = processes.node_init(plan, node)
            assert init is not None
            orders += [
                f"link add {plan.link(node)} type veth peer name eth0 netns {init.pid}",
                f"link set {plan.link(node)} master {plan.bridge} up",
            ]
        self._ip(*orders)
        for node in nodes:
            if not processes.until(10, (self.directory / "run" / f"{node}.ready").exists):
                raise self._failed(f"{node} got no address", f"init-{node}.log")

    def set_link(self, node: str, state: str) -> None:
        """Takes the host's end of a node's cable "down" or "up"."""
        self._ip(f"link set {self.plan.link(node)} {state}")

    def _ip(self, *orders: str) -> None:
        done = subprocess.run(
            ["ip", "-batch", "-"], input="\n".join(orders), env=self.env, capture_output=True, text=True, timeout=30,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise ClusterError(f"ip failed: {done.stderr.strip()}")

    # -- how things are started ----------------------------------------------------------------------------------

    def _own(self, name: str) -> str:
        return str(self.directory / "bin" / name)

    def _start(self, *argv: str) -> None:
        """Starts a daemon that puts itself into the background."""
        name = Path(argv[0]).name
        argv = (machine.program(argv[0]) if "/" not in argv[0] else argv[0], *argv[1:])
        if self._open(argv, self.log / f"start-{name}.log").wait(30):
            raise self._failed(f"{name} did not start", f"start-{name}.log", f"{name}.log")

    def _open(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        # A file and no pipe: a daemon keeps it open.
        with log.open("ab") as out:
            return subprocess.Popen(
                list(argv), env=self.env, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def _child(self, argv: Sequence[str], log: Path) -> None:
        """Starts what stays in the foreground, to be reaped when it has been killed."""
        self._children.append(self._open(argv, log))

    def _wait_for_answer(self, argv: list[str], name: str) -> None:
        """Waits at most 20 s for a daemon that does not die meanwhile."""

        def answers() -> bool:
            try:
                done = run(argv, timeout_s=2, env=self.env)
            except PlatformError:
                return False
            return done.returncode == 0 and "DOWN" not in done.stdout

        # Not seen once says little: a daemon forks while it starts.
        unseen = 0
        end = time.monotonic() + 20
        while not answers():
            unseen = 0 if processes.daemons(self.plan, name) else unseen + 1
            if unseen == 5 or time.monotonic() > end:
                raise self._failed(f"{name} does not answer", f"{name}.log")
            time.sleep(0.05)

    def _failed(self, what: str, *logs: str) -> ClusterError:
        tails = []
        for name in logs:
            path = self.log / name
            text = path.read_text(errors="replace") if path.exists() else ""
            tails += [f"{name}: {line}" for line in text.splitlines()[-8:]]
        return ClusterError("\n".join([what, *tails]))
