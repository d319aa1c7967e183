"""The only place that runs Slurm's clients: each with a time limit, and out of reach of an outer job's variables."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seatrial import command
from seatrial.backends.slurm import cluster, jobs
from seatrial.backends.slurm.room import Snapshot
from seatrial.backends.slurm.script import COMMENT
from seatrial.backends.slurm.text import FIELD_END, blocks
from seatrial.errors import PlatformError, SpecError

TIME_LIMIT_S = 10
"""For a client that asks something. They wait 9 to 20 s by themselves when the controller is away."""
SUBMIT_LIMIT_S = 60
"""For sbatch: killing it early would leave open whether the job was taken."""
_PREFIXES = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SALLOC_", "SRUN_", "SINFO_", "SACCT_", "SCONTROL_")
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
# What slurmctld's absence looks like (slurm_errno.c); anything else is an answer.
_AWAY = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (?:refused|timed out|reset)|zero bytes were|"
    r"no route to host|broken pipe|in standby mode|unexpected message received|transport endpoint is not connected|connect failure",
    re.IGNORECASE,
)
# … and of these, what shows that it was not reached at all.
_NOT_REACHED = re.compile(
    r"unable to contact|connect failure|connection refused|no route|can't be started", re.IGNORECASE
)
_UNKNOWN_JOB = re.compile(r"invalid job id|not found|invalid job array", re.IGNORECASE)
_PING = "scontrol ping"
# ESLURM_ALREADY_DONE (slurm_errno.h), of which an exit status keeps eight bits: scancel ends so, without a word, when a
# job has ended before a signal for it came.
_ALREADY_DONE = 2021 & 0xFF


@dataclass(frozen=True, slots=True)
class Accounted:
    """What the accounting holds of a job id: one record for each start, the last one last."""

    jobs: tuple[jobs.Job, ...]
    status: Literal["found", "unknown", "off", "away"]
    """``off``: the site keeps no accounting; ``away``: it does, and gave no answer."""
    words: str = ""
    """What it said when it has none."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What ``sbatch --test-only`` answers."""

    accepted: bool
    text: str
    """Slurm's own words."""
    start: int | None = None
    """When it would start (seconds since the epoch), by the queue of now."""


class UnansweredError(PlatformError):
    """No answer came, and what was asked may have been done all the same."""


class Client:
    """Asks one Slurm cluster.

    Args:
        runner: runs the clients.
        cluster_name: another cluster of the same accounting than the one that slurm.conf names.
        environ: what the clients' environment is made from; None is this process's.

    Every method raises `PlatformError` when the clients are not installed, or no answer came: with Slurm's own words.
    """

    def __init__(
        self,
        runner: command.CommandRunner = command.run,
        *,
        cluster_name: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._runner = runner
        self._home: str | None = None
        self._environ = dict(os.environ if environ is None else environ)
        if cluster_name:
            self._environ["SLURM_CLUSTERS"] = cluster_name

    def my_jobs(self) -> list[jobs.Job]:
        """All jobs of this user that the controller remembers, ended ones too, in one query; of arrays, each element."""
        return jobs.parse_squeue(
            self._ask("squeue", "-h", "--me", "-r", "-t", "all", "-O", jobs.SQUEUE_FORMAT)
        )

    def queue(self, partitions: Sequence[str] = ()) -> list[jobs.Job]:
        """Everybody's jobs that wait or run, without their names and comments; of some partitions, or of all."""
        where = ["-p", ",".join(partitions)] if partitions else []
        return jobs.parse_squeue(self._ask("squeue", "-h", *where, "-O", jobs.ANONYMOUS_FORMAT))

    def job(self, job_id: str) -> jobs.Job | None:
        """One job, anybody's; None when the controller does not know it (any more: it forgets after MinJobAge)."""
        done = self._run("scontrol", "show", "job", job_id, timeout_s=2 * TIME_LIMIT_S)
        if done.returncode != 0 and _UNKNOWN_JOB.search(done.stdout + done.stderr):
            return None
        found = jobs.parse_scontrol_jobs(self._checked(done))
        return next((job for job in found if job_id in {job.job_id, job.raw_id}), found[0] if found else None)

    def accounted(self, job_id: str) -> Accounted:
        """What the accounting says of a job and its steps, for each of its starts.

        Elements that were cancelled with their whole array, while they waited, are in one record of the array.
        """
        found = self._accounted(job_id)
        if found.status != "unknown" or "_" not in job_id:
            return found
        array = self._accounted(job_id.partition("_")[0])
        together = tuple(job for job in array.jobs if jobs.holds(job.job_id, job_id))
        return Accounted(together, "found") if together else found

    def _accounted(self, job_id: str) -> Accounted:
        try:
            done = self._run(
                "sacct", "-n", "-D", "-p", f"--delimiter={FIELD_END}", "-j", job_id, "-o", jobs.SACCT_FORMAT
            )
        except PlatformError as error:
            return Accounted((), "away", error.evidence)
        if done.returncode != 0:
            words = _words(done)
            off = "accounting storage is disabled" in words
            return Accounted((), "off" if off else "away", f"sacct: {words}")
        found = tuple(jobs.parse_sacct(done.stdout))
        if not found:
            return Accounted((), "unknown", f"sacct: no job {job_id}")
        return Accounted(found, "found")

    def nodes(self) -> list[cluster.Node]:
        """All nodes that this user may see."""
        return cluster.parse_nodes(self._ask("scontrol", "-d", "show", "node"))

    def partitions(self) -> list[cluster.Partition]:
        """All partitions that this user may see."""
        return cluster.parse_partitions(self._ask("scontrol", "show", "partition"))

    def reservations(self) -> list[cluster.Reservation]:
        """All reservations that this user may see."""
        return cluster.parse_reservations(self._ask("scontrol", "show", "reservation"))

    def config(self) -> dict[str, str]:
        """The controller's configuration, as it runs."""
        return cluster.parse_config(self._ask("scontrol", "show", "config"))

    def home(self) -> str:
        """The name of the cluster that it asks; found out once."""
        if self._home is None:
            self._home = self.config().get("ClusterName", "")
        return self._home

    def version(self) -> str:
        """The clients' release, such as ``22.05.8``; asks no controller."""
        return self._ask("sinfo", "--version").split()[-1]

    def associations(self) -> list[cluster.Association]:
        """Accounts and QOS that this user may name; [] where there is no accounting."""
        user = self._environ.get("USER") or self._environ.get("LOGNAME") or getpass.getuser()
        fields = ",".join(cluster.ASSOCIATION_FIELDS)
        done = self._run("sacctmgr", "-n", "-P", "show", "assoc", "where", f"user={user}", f"format={fields}")
        return cluster.parse_associations(done.stdout) if done.returncode == 0 else []

    def qos(self) -> list[cluster.Qos]:
        """All QOS with the limits set in them; [] where there is no accounting."""
        done = self._run("sacctmgr", "-n", "-P", "show", "qos", f"format={','.join(cluster.QOS_FIELDS)}")
        return cluster.parse_qos(done.stdout) if done.returncode == 0 else []

    def hostnames(self, nodelist: str) -> list[str]:
        """``node[0-1]`` as names; asks no controller."""
        return self._ask("scontrol", "show", "hostnames", nodelist).split()

    def address(self, node: str) -> str:
        """Where a node is reached: its NodeAddr, which need not be its name."""
        found = blocks(self._ask("scontrol", "show", "node", node), "NodeName")
        return found[0].get("NodeAddr") or node if found else node

    def steps(self, job_id: str) -> list[tuple[str, str]]:
        """Id and name of the steps of a job that run now."""
        lines = self._ask("squeue", "-h", "-s", "-j", job_id, "-o", "%i|%j").splitlines()
        return [(step, name) for step, _, name in (line.partition("|") for line in lines)]

    def slurmd(self, node: str) -> tuple[str, int]:
        """Address and port of a node's slurmd."""
        found = blocks(self._ask("scontrol", "show", "node", node), "NodeName")
        here = found[0] if found else {}
        port = here.get("Port") or self.config().get("SlurmdPort", "")
        return here.get("NodeAddr") or node, int(port.partition("-")[0] or 6818)

    def drained(self, names: Sequence[str]) -> list[str]:
        """Those of some nodes that are drained, each with the reason that was given."""
        found = cluster.parse_nodes(self._ask("scontrol", "show", "node", ",".join(names)))
        return [f"{node.name}: {node.reason}" for node in found if "DRAIN" in node.states]

    def snapshot(self) -> Snapshot:
        """The whole cluster as far as this user may see it: eight questions, so not for a loop."""
        mine = self.my_jobs()
        own = {job.job_id for job in mine}
        return Snapshot(
            now=time.time(),
            jobs=[*mine, *(job for job in self.queue() if job.job_id not in own)],
            nodes=self.nodes(),
            partitions=self.partitions(),
            reservations=self.reservations(),
            associations=self.associations(),
            qos=self.qos(),
            config=self.config(),
        )

    def submit(self, script: str, arguments: Sequence[str] = ()) -> tuple[str, str]:
        """Submits a batch script; gives the job's id, and the cluster's name if sbatch told it.

        The job gets this process's environment without an outer job's variables.

        Raises:
            SpecError: Slurm refused the request, with its words.
            UnansweredError: the controller may have taken the job (one that was only slow does): look for its name in
                `my_jobs` before submitting again.
            PlatformError: it was not reached.
        """
        try:
            done = self._sbatch(script, ["--parsable", *arguments])
        except PlatformError as error:
            if _NOT_REACHED.search(error.what + error.evidence):
                raise
            raise UnansweredError(
                "Slurm gave no answer to the submission, and may have taken the job",
                evidence=error.evidence,
                remedy="squeue --me",
            ) from error
        if done.returncode != 0:
            raise self._refused(done)
        job_id, _, name = done.stdout.strip().rpartition("\n")[2].partition(";")
        if not job_id.isdigit():
            raise PlatformError("sbatch printed no job id", evidence=(done.stdout + done.stderr)[:300])
        return job_id, name

    def test_only(self, script: str, arguments: Sequence[str] = ()) -> Trial:
        """Asks whether a script would be accepted, and when it would start; submits nothing."""
        done = self._sbatch(script, ["--test-only", *arguments], {"SLURM_TIME_FORMAT": "%s"})
        start = re.search(r"to start at (\d{9,}) ", done.stdout + done.stderr)
        return Trial(done.returncode == 0, _words(done), int(start.group(1)) if start else None)

    def cancel(
        self, job_id: str, signal: str | None = None, *, full: bool = False, batch: bool = False
    ) -> None:
        """Ends a job, or sends it a signal. No error when it has ended.

        Args:
            job_id: the job.
            signal: ``USR2``, …: reaches a job that runs, and does nothing to one that waits. None ends either: TERM, and
                KILL after the site's KillWait.
            full: the signal reaches the batch script and all steps; by default, the steps only.
            batch: it reaches the batch script only.
        """
        how = [f"--signal={signal}"] if signal else []
        how += ["--full"] * full + ["--batch"] * batch
        if signal not in {None, "KILL"}:
            # Of a job that waits scancel would try again for a minute, and not deliver it either.
            how.append("--state=RUNNING")
        done = self._run("scancel", *how, job_id)
        ended = done.returncode == _ALREADY_DONE and not done.stderr.strip()
        if not ended and not re.search(r"already complet|invalid job id", done.stderr, re.IGNORECASE):
            self._checked(done)

    def split_off(self, element: str) -> None:
        """Gives an element of an array that waits a record of its own, so that its end will be known.

        Of one that is cancelled while it is in the array's record, Slurm keeps no trace (tried on 22.05).
        """
        self._ask("scontrol", "update", f"JobId={element}", f"Comment={COMMENT}")

    def requeue(self, job_id: str) -> None:
        """Queues a job again, whether it runs or has ended; one that waits in the queue already stays there."""
        done = self._run("scontrol", "requeue", job_id)
        if "is pending execution" not in done.stdout + done.stderr:
            self._checked(done)

    def _sbatch(
        self, script: str, arguments: Sequence[str], more: Mapping[str, str] | None = None
    ) -> command.Completed:
        with tempfile.TemporaryDirectory(prefix="seatrial-") as directory:
            path = Path(directory) / "seatrial.sh"
            path.write_text(script, encoding="utf-8")
            # A job inherits this environment: no C locale and no time format in it.
            env = cleaned(self._environ) | dict(more or {})
            done = self._run("sbatch", *arguments, str(path), timeout_s=SUBMIT_LIMIT_S, env=env)
        if done.returncode != 0 and _AWAY.search(done.stderr):
            self._checked(done)
        return done

    def _refused(self, done: command.Completed) -> SpecError:
        unused = sorted(name for name in self._environ if name.startswith("SBATCH_") and "BIND" not in name)
        told = (
            f"\n{', '.join(unused)} is set in this shell, and not used: the recipe decides" if unused else ""
        )
        return SpecError(
            "Slurm refused the job",
            evidence=_words(done) + told,
            remedy="edit the recipe's slurm section; sinfo lists partitions, sacctmgr show assoc accounts",
        )

    def _ask(self, *argv: str) -> str:
        return self._checked(self._run(*argv))

    def _run(
        self, *argv: str, timeout_s: float = TIME_LIMIT_S, env: Mapping[str, str] | None = None
    ) -> command.Completed:
        if env is None:
            env = cleaned(self._environ) | {"SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}
        try:
            return self._runner(argv, timeout_s=timeout_s, env=env)
        except PlatformError as error:
            if "did not end within" in error.what:
                raise PlatformError(
                    "Slurm's controller does not answer",
                    evidence=f"{argv[0]}: no answer within {timeout_s:g} s",
                    remedy=_PING,
                ) from error
            raise PlatformError(
                f"Slurm's {argv[0]} can't be started here",
                evidence=error.evidence,
                remedy="run this on a login node of the cluster, with Slurm's clients on PATH",
            ) from error

    def _checked(self, done: command.Completed) -> str:
        if done.returncode == 0:
            return done.stdout
        words = _words(done)
        if _AWAY.search(words):
            raise PlatformError(
                "Slurm's controller does not answer", evidence=f"{done.argv[0]}: {words}", remedy=_PING
            )
        raise PlatformError(
            f"Slurm's {done.argv[0]} failed", evidence=f"exit code {done.returncode}: {words}", remedy=_PING
        )


def cleaned(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a job, or a user's shell, tells Slurm's clients: it would override a request.

    What finds and opens the cluster stays: SLURM_CONF, SLURM_CLUSTERS, SLURM_JWT.
    """
    return {name: value for name, value in environ.items() if name in _KEPT or not name.startswith(_PREFIXES)}


def _words(done: command.Completed) -> str:
    """What a client said, without its own name before it."""
    text = (done.stderr.strip() or done.stdout.strip())[:600]
    lines = [
        re.sub(r"^(?:sbatch|scontrol|squeue|scancel|sacct|sinfo|sacctmgr): (?:error: |fatal: )?", "", x)
        for x in text.split("\n")
    ]
    return "\n".join(lines) or f"exit code {done.returncode}, and not a word"
