"""A real Slurm on one machine, for tests: the daemons are the distribution's, only the GPUs are pretended.

    with SlurmCluster(nodes=2, gpus=8) as slurm:
        slurm.run("srun", "-N2", "hostname")
        slurm.crash("node1")

By hand: ``python -m tests.slurm up``, see ``--help``.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import psutil

from seatrial.command import Completed, run
from seatrial.errors import PlatformError
from tests.slurm import machine, processes, teardown
from tests.slurm.daemons import ClusterError, Daemons
from tests.slurm.plan import RECORD, Plan, num_ports

REPOSITORY = Path(__file__).parents[2]
MAX_PATH = 60  # of the directory, since it holds Unix sockets
# What an outer job or a user's shell says to Slurm's clients, and to what runs in jobs.
FOREIGN = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SCANCEL|SPRIO|SSTAT|PMI|PMIX)_.*")


def _own_directory() -> Path:
    base = tempfile.gettempdir()
    return Path(base if len(base) <= MAX_PATH - 20 else "/tmp") / f"slurm-{uuid.uuid4().hex[:8]}"


class SlurmCluster:
    """A cluster that is there while the ``with`` block runs, and leaves nothing.

    It is torn down when `up` fails half-way, when the block is left by an exception or Ctrl-C, and, by a process that
    waits for that, when this process is killed.

    Args:
        nodes: at most 200 in mode "ns".
        gpus: pretend GPUs of each node.
        mode: "ns" gives each node a network, hostname, processes and mounts of its own (root); "plain" none;
            "auto" takes ns where that is permitted.
        accounting: slurmdbd and MariaDB: sacct, QOS. QOS then decide about preemption; else the partitions do.
        port: the first port; None takes free ones.
        settings: of slurm.conf, replacing ours.
        lines: more lines of slurm.conf.
        directory: empty or absent, and deleted at the end; at most 60 characters.
        keep_logs: leaves the directory's log/.
    """

    def __init__(
        self,
        nodes: int = 2,
        gpus: int = 8,
        *,
        mode: str = "auto",
        accounting: bool = True,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        lines: Iterable[str] = (),
        directory: Path | None = None,
        keep_logs: bool = False,
    ) -> None:
        if mode == "auto":
            mode = "plain" if machine.may_unshare() else "ns"
        if mode not in {"ns", "plain"} or not 1 <= nodes <= (200 if mode == "ns" else 2000):
            raise ValueError(f"no cluster of {nodes} nodes in mode {mode!r}")
        network = machine.free_network() if mode == "ns" else ""
        plan = Plan(
            directory=directory or _own_directory(),
            nodes=nodes,
            gpus=gpus,
            mode=mode,
            accounting=accounting,
            memory_limits=mode == "ns" and machine.memory_cgroups(),
            port=machine.free_ports(num_ports(nodes)) if port is None else port,
            network=network,
            bridge=f"slbr{network.rpartition('.')[2]}" if network else "",
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            settings=dict(settings or {}),
            lines=tuple(lines),
        )
        self._begin(plan, keep_logs=keep_logs)

    def _begin(self, plan: Plan, *, keep_logs: bool) -> None:
        self.plan = plan
        self.nodes = plan.names
        self.mode = plan.mode
        self.directory = plan.directory
        self.logs = plan.directory / "log"
        self._keep_logs = keep_logs
        self._daemons = Daemons(plan)
        self._watch: subprocess.Popen[bytes] | None = None

    @classmethod
    def at(cls, directory: Path, *, keep_logs: bool = False) -> SlurmCluster:
        """The cluster that runs in a directory, started by another process; `ClusterError` when none does."""
        self = cls.__new__(cls)
        try:
            plan = Plan.from_json((directory / RECORD).read_text())
        except FileNotFoundError:
            raise ClusterError(f"no cluster in {directory}") from None
        self._begin(plan, keep_logs=keep_logs)
        return self

    @staticmethod
    def unavailable(*, mode: str = "auto", accounting: bool = True) -> str:
        """Why this machine can't have such a cluster; "" when it can."""
        refused = "" if mode == "plain" else machine.may_unshare()
        if mode == "ns" and refused:
            return f"nodes can't have namespaces here: {refused}"
        lacking = machine.missing(accounting=accounting)
        if lacking:
            return f"a real Slurm needs packages: {' '.join(lacking)} (scripts/install-test-tools, as root)"
        return ""

    # -- up and down ---------------------------------------------------------------------------------------------

    def up(self, *, watched: bool = True) -> None:
        """Starts it and waits until all nodes are idle.

        Args:
            watched: it ends with this process, however that ends.

        Raises:
            ClusterError: something did not start; the message has the last lines of its log. Nothing is left.
        """
        if len(str(self.directory)) > MAX_PATH:
            raise ClusterError(
                f"too long a path for Unix sockets, {MAX_PATH} characters at most: {self.directory}"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        if (self.directory / RECORD).exists():
            raise ClusterError(
                f"a cluster is in {self.directory} already; python -m tests.slurm down ends one"
            )
        if any(self.directory.iterdir()):
            raise ClusterError(f"{self.directory} is not empty")
        try:
            (self.directory / RECORD).write_text(self.plan.to_json())
            if watched:
                self._watch = subprocess.Popen(
                    [sys.executable, "-m", "tests.slurm.teardown", str(self.directory), str(os.getpid())],
                    cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            self._daemons.start_all()
            self.wait_idle(30 + self.plan.nodes / 5)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Ends everything and deletes the directory; nothing happens when that has been done."""
        teardown.down(self.directory, keep_logs=self._keep_logs)
        self._daemons.reap()
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
            self._watch = None

    def __enter__(self) -> SlurmCluster:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # -- clients -------------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """What a client needs beside an environment without the variables of another Slurm."""
        return {"SLURM_CONF": str(self.plan.conf)}

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment, made one of a user of this cluster."""
        own = {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}
        return own | {"PATH": machine.PATH} | self.env | more

    def run(
        self, *argv: str, timeout_s: float = 30, check: bool = True, cwd: Path | None = None, **env: str
    ) -> Completed:
        """Runs a command as a user of the cluster.

        Raises:
            ClusterError: it failed, or did not end in time.
        """
        try:
            done = run(argv, timeout_s=timeout_s, env=self.environment(**env), cwd=cwd)
        except PlatformError as error:
            raise ClusterError(str(error)) from error
        if check and done.returncode:
            raise ClusterError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def states(self) -> dict[str, str]:
        """Each node's state as sinfo writes it, for instance "idle", "down*", "drained"."""
        shown = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", timeout_s=10).stdout
        return dict(line.split(maxsplit=1) for line in shown.splitlines() if line)

    def wait_idle(self, timeout_s: float = 30) -> None:
        """Waits until every node is idle; `ClusterError` when that does not come."""
        seen = ""

        def idle() -> bool:
            nonlocal seen
            try:
                seen = self.run("sinfo", "-h", "-p", "main", "-o", "%T %D", timeout_s=5).stdout.strip()
            except ClusterError as error:
                seen = str(error)
            return seen == f"idle {self.plan.nodes}"

        if not processes.until(timeout_s, idle, 0.1):
            raise ClusterError(f"after {timeout_s:g} s not all nodes are idle:\n{seen}\n{self.reasons()}")

    def reasons(self) -> str:
        """Why nodes are not available, as `sinfo -R` tells it."""
        return self.run("sinfo", "-R", "-h", "-o", "%N %T %E", check=False, timeout_s=10).stdout

    def job(self, job_id: str | int) -> dict[str, str]:
        """What the controller knows of a job, by scontrol's names; empty when it has forgotten it."""
        done = self.run("scontrol", "show", "job", "-o", str(job_id), check=False)
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    def wait_job(self, job_id: str | int, *states: str, timeout_s: float = 60) -> dict[str, str]:
        """Waits until a job is in one of the states (scontrol's JobState); what is known of it then."""
        known: dict[str, str] = {}

        def there() -> bool:
            nonlocal known
            known = self.job(job_id)
            return known.get("JobState") in states

        if not processes.until(timeout_s, there, 0.1):
            raise ClusterError(
                f"job {job_id} is {known.get('JobState')} ({known.get('Reason')}), not {states}, after {timeout_s:g} s"
            )
        return known

    def rpc_counts(self) -> dict[str, int]:
        """How often the controller has been asked each kind of question since it was started, by its name for it."""
        text = self.run("sdiag").stdout.partition("by message type")[2].partition("by user")[0]
        return {name: int(count) for name, count in re.findall(r"(\w+)\s+\(\s*\d+\) count:(\d+)", text)}

    def query_count(self) -> int:
        """The sum of `rpc_counts`, without what was asked in order to know it."""
        return sum(count for name, count in self.rpc_counts().items() if name != "REQUEST_STATS_INFO")

    # -- what can go wrong ---------------------------------------------------------------------------------------

    def crash(self, node: str) -> None:
        """A power cut: slurmd, steps and tasks of a node are gone at once, and in "ns" its network, too."""
        killed = self._processes(node)
        if not killed:
            raise ClusterError(f"{node} is down already")
        processes.kill(killed)

    def boot(self, node: str) -> None:
        """Starts what a node lacks, slurmd or everything."""
        self._daemons.start_node(node)

    def kill_slurmd(self, node: str) -> None:
        """Kills a node's slurmd alone; its jobs go on. `boot` starts it again."""
        daemon = processes.slurmd(self.plan, node)
        if daemon is None:
            raise ClusterError(f"{node} has no slurmd")
        processes.kill([daemon])

    def cut(self, node: str) -> None:
        """Pulls a node's network cable; "ns" only."""
        self._need_namespaces("cut")
        self._daemons.set_link(node, "down")

    def heal(self, node: str) -> None:
        """Puts it back."""
        self._need_namespaces("heal")
        self._daemons.set_link(node, "up")

    def on(self, node: str, *argv: str, timeout_s: float = 30) -> Completed:
        """Runs a command on a node, outside any job; "ns" only."""
        self._need_namespaces("on")
        return self.run(*self._daemons.entering(node), *argv, timeout_s=timeout_s, check=False)

    def node_pids(self, node: str) -> list[int]:
        """This machine's numbers of all processes of a node: slurmd, steps, tasks (and in "ns" its first one)."""
        return sorted(process.pid for process in self._processes(node))

    def _processes(self, node: str) -> list[psutil.Process]:
        self.plan.index(node)
        if self.plan.namespaces:
            init = processes.node_init(self.plan, node)
            return [] if init is None else processes.in_namespace_of(init)
        daemon = processes.slurmd(self.plan, node)
        return ([] if daemon is None else [daemon]) + processes.of_jobs(self.plan, node)

    def _need_namespaces(self, what: str) -> None:
        if not self.plan.namespaces:
            raise ClusterError(f"{what} needs nodes in namespaces (mode ns)")

    def stop_controller(self, *, kill: bool = False) -> None:
        """Ends slurmctld, in order or by SIGKILL."""
        self._stop("slurmctld", kill=kill)

    def start_controller(self) -> None:
        """Starts it again and waits until it answers."""
        self._daemons.start_controller()

    def stop_dbd(self, *, kill: bool = False) -> None:
        """Ends slurmdbd, in order or by SIGKILL."""
        self._stop("slurmdbd", kill=kill)

    def start_dbd(self) -> None:
        """Starts it again and waits until it answers."""
        self._daemons.start_dbd()

    def _stop(self, name: str, *, kill: bool) -> None:
        found = processes.daemons(self.plan, name)
        if not found:
            raise ClusterError(f"{name} does not run")
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if kill else process.terminate()
        if not processes.until(20, lambda: not any(processes.alive(process) for process in found)):
            raise ClusterError(f"{name} did not end within 20 s")

    # -- between tests -------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Mends what a test broke: daemons and nodes run, no job is there, every node is idle."""
        plan = self.plan
        if plan.accounting and not processes.daemons(plan, "slurmdbd"):
            self.start_dbd()
        if not processes.daemons(plan, "slurmctld"):
            self.start_controller()
        for node in self.nodes:
            if processes.slurmd(plan, node) is None:
                self.boot(node)
            elif plan.namespaces:
                self.heal(node)
        self._cancel_all()
        for node, state in self.states().items():
            if not state.startswith("idle") or state.endswith("*"):
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.wait_idle(60)

    def _cancel_all(self) -> None:
        def queue() -> list[str]:
            return self.run("squeue", "-h", "-o", "%A").stdout.split()

        if not queue():
            return
        # KILL first: a job that handles TERM, or takes its time, has had its test.
        self.run(
            "scancel", "--signal=KILL", "--full", "--state=RUNNING", f"--user={self.plan.user}", check=False
        )
        self.run("scancel", f"--user={self.plan.user}", check=False)
        if not processes.until(30, lambda: not queue(), 0.1):
            left = self.run("squeue", "-h", "-o", "%A %T %r %N").stdout
            raise ClusterError(f"jobs are still there 30 s after they were cancelled:\n{left}")
