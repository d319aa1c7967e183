"""`FakeSlurm`: the owner's side of the pretend Slurm."""

from __future__ import annotations

import getpass
import grp
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from seatrial import command
from seatrial.errors import PlatformError, SpecError, from_dict
from seatrial.testing.slurm import client, model, processes
from seatrial.testing.slurm.model import Config, Partition, Qos

_PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sacctmgr", "sinfo", "srun")
_FOREIGN = ("SLURM", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "SINFO_", "SACCT_", "SCONTROL_", "SALLOC_")
_START_S = 30.0
_STOP_S = 15.0


class FakeSlurm:
    """A pretend Slurm for tests where there is none: its clients are on PATH, its jobs are processes of this machine.

        with FakeSlurm(tmp_path / "slurm", nodes=2) as slurm:
            for name, value in slurm.env.items():
                monkeypatch.setenv(name, value)                 # now sbatch, squeue, … are the pretend ones
            …
            slurm.preempt(job)

    It answers, signals and ends jobs as Slurm 22.05 does, with its words, states, exit codes and output forms; one test
    suite, ``tests/contract/test_slurm.py`` of Seatrial, runs on both. It starts in half a second, needs no root and
    no ports, and nothing of it is left when the block is left, or when the process that owns it is killed.

    What differs from a real one:

    - Nodes share this machine, its name and its processes; a node's address is 127.0.0.1. GPUs are numbers in variables.
      CPUs and memory are counted, and nothing holds a job to them.
    - Tasks are signalled as on clusters that hold them by cgroups: a signal reaches the script or the task itself, and not
      its children; only the KILL at the end reaches all. Slurm without cgroups also signals the children.
    - It is quicker: jobs start, ends are noticed, a failed node is found out, and grace times and time limits are kept, at
      once and to the second (Slurm: up to a minute late). A job that is queued again waits `requeue_wait_s`. The
      accounting doesn't trail behind. A warning (``--signal``) comes neither early nor at preemption.
    - Scheduling is by tier, priority and number. There is no backfilling, no fair share, no age, and no limits of QOS and
      associations; what `add_job` puts there waits for any reason.
    - Elements of an array that wait are listed one by one, with numbers of their own from the start.
    - Not there: heterogeneous jobs, reservations, features, begin times, ``sbatch --wait``, ``salloc``, ``srun``
      outside of a job, suspension, step resources (steps share what the job has), JSON, and what administrators set up
      (sacctmgr changes nothing). Options that matter to none of this are taken and ignored.
    - Tasks are spread evenly over nodes. ``--error`` is ignored: stdout and stderr of a script or task are one stream;
      tasks get no standard input.

    Args:
        directory: holds all of it, and is deleted with it; must be empty or absent. None takes a new one.
        nodes: named node0, node1, …
        gpus: of each node.
        cpus: of each node.
        gpu_type: what `--gpus-per-node=TYPE:N` may name.
        accounting: sacct, accounts and QOS. With it QOS decide about preemption, without it partitions.
        partitions: the first default one is the default; None: main, low, spot (cancels, 5 s grace), high, short.
        qos: the first is the default; None: normal, low, spot (cancels, 5 s grace), high.
        account: the only one.
        kill_wait_s: from SIGTERM to SIGKILL, KillWait.
        min_job_age_s: how long the controller remembers ended jobs, MinJobAge.
        requeue_wait_s: before a job that was queued again may start.
        minute_s: how long a minute of time limits, and of ``--signal``'s lead, takes in seconds.
        job_requeue: JobRequeue: whether a job that says nothing about it may be queued again.

    Every method raises `SpecError` for a job or node that is not there, and `PlatformError` when it isn't running.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        nodes: int = 2,
        gpus: int = 8,
        cpus: int = 64,
        gpu_type: str = "h100",
        accounting: bool = True,
        partitions: Sequence[Partition] | None = None,
        qos: Sequence[Qos] | None = None,
        account: str = "test",
        kill_wait_s: float = 3,
        min_job_age_s: float = 300,
        requeue_wait_s: float = 1,
        minute_s: float = 60,
        job_requeue: bool = True,
    ) -> None:
        own = Path(tempfile.gettempdir()) / f"fake-slurm-{uuid.uuid4().hex[:12]}"
        self.directory = (directory or own).absolute()
        if nodes < 1 or cpus < 1 or gpus < 0:
            raise SpecError(
                "no such pretend cluster",
                evidence=f"nodes={nodes}, cpus={cpus}, gpus={gpus}",
                remedy="give at least one node with one CPU",
            )
        self._config = Config(
            directory=str(self.directory), nodes=nodes, gpus=gpus, gpu_type=gpu_type, cpus=cpus, memory_per_cpu_mib=3000,
            accounting=accounting, partitions=tuple(partitions or model.PARTITIONS), qos=tuple(qos or model.QOS), account=account,
            kill_wait_s=kill_wait_s, min_job_age_s=min_job_age_s, requeue_wait_s=requeue_wait_s, minute_s=minute_s,
            job_requeue=job_requeue, user=getpass.getuser(), uid=os.getuid(), group=grp.getgrgid(os.getgid()).gr_name,
            gid=os.getgid(), host=socket.gethostname().partition(".")[0],
        )  # fmt: skip
        self.bin = self.directory / "bin"
        self._channel: command.Channel | None = None
        self._server: command.Process | None = None
        self._is_ours = False

    # --- up and down ---------------------------------------------------------------------------------------------

    def __enter__(self) -> FakeSlurm:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Starts it.

        Raises:
            SpecError: the directory has something else in it.
            PlatformError: it does not start; the evidence is what it said.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise SpecError(
                "a pretend Slurm needs a directory of its own",
                evidence=f"{self.directory} is not empty",
                remedy="name one that is empty or absent",
            )
        self._is_ours = True
        (self.directory / "config.json").write_text(self._config.to_json(), encoding="utf-8")
        (self.directory / "slurm.conf").write_text(
            "# A pretend Slurm: nothing reads this.\n", encoding="utf-8"
        )
        self._write_programs()
        here, there = command.Channel.pair()
        log = self.directory / "log"
        environ = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        }
        argv = [
            sys.executable,
            "-m",
            "seatrial.testing.slurm.server",
            str(self.directory),
            str(there.fileno()),
        ]
        self._channel = here
        self._server = command.start(
            argv, log=log, env=environ, cwd=self.directory, new_session=True, channel=there
        )
        try:
            if here.receive(_START_S) is None:
                raise EOFError
        except EOFError:
            said = log.read_text(errors="replace")[-2000:]
            self.down()
            raise PlatformError(
                "the pretend Slurm did not start", evidence=said, remedy="see the evidence"
            ) from None

    def _write_programs(self) -> None:
        self.bin.mkdir()
        program = self.bin / _PROGRAMS[0]
        # -S: the standard library is enough, and site packages take longer to find than the rest.
        words = [sys.executable, "-I", "-S", client.__file__, str(self.directory)]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "${{0##*/}}" "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        for name in _PROGRAMS[1:]:
            (self.bin / name).symlink_to(program.name)

    def down(self) -> None:
        """Ends it with all its jobs, and deletes its directory; nothing happens when that has been done."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._server is not None:
            if self._server.wait(_STOP_S) is None:
                self._server.send_signal(signal.SIGKILL)
                self._server.wait(_STOP_S)
            self._server = None
            # Whatever its server could not end, because it was killed itself.
            processes.kill_users_of(self.directory / "slurm.conf")
        if self._is_ours:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._is_ours = False

    # --- clients -------------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """What makes a process a user of this cluster: PATH, and SLURM_CONF, which names no other cluster then."""
        return {
            "PATH": f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "SLURM_CONF": str(self.directory / "slurm.conf"),
        }

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment as one of a user, without the variables of another Slurm."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return own | self.env | more

    def run(
        self, *argv: str, timeout_s: float = 30, cwd: Path | None = None, **env: str
    ) -> command.Completed:
        """Runs a command as a user of the cluster; a non-zero exit code is returned."""
        path = self.bin / argv[0]
        words = [str(path), *argv[1:]] if path.exists() else list(argv)
        return command.run(words, timeout_s=timeout_s, env=self.environment(**env), cwd=cwd)

    # --- what can happen to a cluster ----------------------------------------------------------------------------

    def preempt(self, job: str | int) -> None:
        """Lets a job that runs make room, in the way of its QOS (without accounting: its partition)."""
        self._order("preempt", job=str(job))

    def fail_node(self, node: str) -> None:
        """The node goes dark with all that runs on it; jobs are queued again where they may be. `resume` brings it back."""
        self._order("fail_node", node=node)

    def drain(self, node: str, reason: str) -> None:
        """The node's jobs go on, and no other starts there."""
        self._order("drain", node=node, reason=reason)

    def resume(self, node: str) -> None:
        """The node takes jobs again."""
        self._order("resume", node=node)

    def controller_away(self, away: bool = True, *, after_s: float = 9) -> None:
        """Clients get no answer any more, or again. Jobs go on meanwhile; what ends is seen when the controller is back.

        Args:
            away: whether it is away.
            after_s: how long clients wait before they say so (``scontrol show job`` twice as long).
        """
        self._order("away", after_s=after_s if away else None)

    def add_job(
        self,
        state: str = "PENDING",
        *,
        name: str = "other",
        user: str = "",
        partition: str = "",
        account: str = "",
        qos: str = "",
        nodes: int = 1,
        gpus_per_node: int = 0,
        reason: str = "None",
        exit_code: int = 0,
        signal: int = 0,
        comment: str = "",
        age_s: float = 0,
    ) -> str:
        """A job without processes, to be looked at; its number.

        Args:
            state: as squeue writes it. ``RUNNING`` takes nodes; ``PENDING`` stays so.
            name: its name.
            user: "" is yourself.
            partition: "" is the default, likewise `account` and `qos`.
            account: its account.
            qos: its QOS.
            nodes: how many it has or wants.
            gpus_per_node: likewise.
            reason: why it waits, in Slurm's words.
            exit_code: how it ended.
            signal: which signal ended it.
            comment: its comment.
            age_s: how long ago it was submitted.

        Raises:
            SpecError: it should run, and does not fit.
        """
        number = self._order(
            "add_job", state=state, name=name, user=user, partition=partition, account=account, qos=qos, nodes=nodes,
            gpus_per_node=gpus_per_node, reason=reason, exit_code=exit_code, signal=signal, comment=comment, age_s=age_s,
        )  # fmt: skip
        return str(number)

    def _order(self, what: str, **arguments: Any) -> Any:
        try:
            connection = client.Connection(self.directory)
            answer: Mapping[str, Any] = connection.ask({"do": what, "with": arguments})
        except (OSError, EOFError) as error:
            raise PlatformError(
                "the pretend Slurm isn't running", evidence=str(error), remedy="use it as a context manager"
            ) from error
        connection.close()
        if "error" in answer:
            raise from_dict(answer["error"])
        return answer["value"]
