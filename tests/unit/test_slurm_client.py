"""How Slurm's clients are run, what an absent controller looks like, and how a job is found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from seatrial.backends.slurm import jobs
from seatrial.backends.slurm.client import Client, UnansweredError, cleaned
from seatrial.backends.slurm.find import find
from seatrial.command import Completed
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.state import RunState
from seatrial.testing import FakeRunner
from tests.unit.slurm_fixtures import FIXTURES, RELEASES, named, recorded

# Recorded from 22.05 with the controller stopped, and with it gone.
STUCK = "slurm_load_jobs error: Socket timed out on send/recv operation\n"
GONE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
NO_ACCOUNTING = "Slurm accounting storage is disabled\n"
UNKNOWN = (1, "", "slurm_load_jobs error: Invalid job id specified\n")


@dataclass
class Watching:
    """Remembers the environment and the time limit of each call, and the script that sbatch would read."""

    answer: str = ""
    calls: list[tuple[tuple[str, ...], float, dict[str, str]]] = field(default_factory=list)
    script: str = ""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Completed:
        assert env is not None, "a client is never run with the whole environment"
        self.calls.append((tuple(argv), timeout_s, dict(env)))
        if argv[0] == "sbatch":
            self.script = Path(argv[-1]).read_text(encoding="utf-8")
        return Completed(tuple(argv), 0, self.answer, "")


OUTER_JOB = {
    "PATH": "/usr/bin",
    "HOME": "/home/ann",
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_JWT": "token",
    "SLURM_JOB_ID": "12",
    "SLURM_NTASKS": "8",
    "SBATCH_PARTITION": "debug",
    "SQUEUE_FORMAT": "%i",
    "SCANCEL_INTERACTIVE": "1",
    "SRUN_CPUS_PER_TASK": "4",
    "SALLOC_ACCOUNT": "x",
}


def test_an_outer_jobs_variables_do_not_reach_the_clients() -> None:
    assert set(cleaned(OUTER_JOB)) == {"PATH", "HOME", "SLURM_CONF", "SLURM_JWT"}
    runner = Watching()
    client = Client(runner, environ=OUTER_JOB)
    client.my_jobs()
    (argv, timeout_s, env), *_ = runner.calls
    assert argv[:6] == ("squeue", "-h", "--me", "-r", "-t", "all")
    assert timeout_s == 10
    assert env["SLURM_TIME_FORMAT"] == "%s"
    assert env["LC_ALL"].startswith("C")
    assert "SQUEUE_FORMAT" not in env


def test_the_job_gets_the_users_environment_and_not_the_clients() -> None:
    """Slurm hands sbatch's environment to the job."""
    runner = Watching("123\n")
    assert Client(runner, environ=OUTER_JOB).submit("#!/bin/bash\necho ü\n", ["--nodes=2"]) == ("123", "")
    (argv, timeout_s, env), *_ = runner.calls
    assert argv[:3] == ("sbatch", "--parsable", "--nodes=2")
    assert runner.script == "#!/bin/bash\necho ü\n"
    assert not Path(argv[-1]).exists()
    assert timeout_s == 60, "killing sbatch early would leave open whether the job was taken"
    assert env == cleaned(OUTER_JOB)


def test_another_cluster_is_asked_by_name() -> None:
    runner = Watching("123;north\n")
    client = Client(runner, cluster_name="north", environ=OUTER_JOB)
    assert client.submit("#!/bin/sh\n") == ("123", "north")
    client.my_jobs()
    assert [env["SLURM_CLUSTERS"] for _, _, env in runner.calls] == ["north", "north"]


@pytest.mark.parametrize("words", [STUCK, GONE])
def test_an_absent_controller_is_told_with_its_words(words: str) -> None:
    client = Client(FakeRunner({"squeue": (1, "", words), "scontrol": (1, "", words)}))
    for ask in (
        client.my_jobs,
        client.nodes,
        client.config,
        lambda: client.job("1"),
        lambda: client.requeue("1"),
    ):
        with pytest.raises(PlatformError) as caught:
            ask()
        assert caught.value.what == "Slurm's controller does not answer"
        assert words.strip().partition(": ")[2] in caught.value.evidence
        assert caught.value.remedy == "scontrol ping"


def test_a_client_that_hangs_is_an_absent_controller() -> None:
    def hanging(argv: Sequence[str], *, timeout_s: float = 60, **_: object) -> Completed:
        raise PlatformError(f"{argv[0]} did not end within {timeout_s:g} s", evidence=" ".join(argv))

    with pytest.raises(PlatformError) as caught:
        Client(hanging).my_jobs()
    assert caught.value.evidence == "squeue: no answer within 10 s"


def test_a_machine_without_slurm_is_told_apart_from_a_controller_that_is_away() -> None:
    with pytest.raises(PlatformError) as caught:
        Client(FakeRunner()).my_jobs()
    assert "can't be started here" in caught.value.what
    assert "login node" in caught.value.remedy


def test_a_submission_without_an_answer_is_no_refusal() -> None:
    """A controller that was only slow took the job (seen in 22.05): submitting again would run it twice."""
    failure = "sbatch: error: Batch job submission failed: "
    slow = Client(FakeRunner({"sbatch": (1, "", failure + "Socket timed out on send/recv operation\n")}))
    with pytest.raises(UnansweredError, match="may have taken the job"):
        slow.submit("#!/bin/sh\n")
    gone = Client(
        FakeRunner({"sbatch": (1, "", failure + "Unable to contact slurm controller (connect failure)\n")})
    )
    for client in (gone, Client(FakeRunner())):
        with pytest.raises(PlatformError) as caught:
            client.submit("#!/bin/sh\n")
        assert not isinstance(caught.value, UnansweredError)


@pytest.mark.parametrize("release", RELEASES)
def test_refusals_carry_slurms_words(release: str) -> None:
    for answer in json.loads((FIXTURES / release / "answers.json").read_text()):
        if answer["argv"][:2] == ["sbatch", "--parsable"]:
            client = Client(
                FakeRunner({"sbatch": (answer["returncode"], answer["stdout"], answer["stderr"])}), environ={}
            )
            with pytest.raises(SpecError) as caught:
                client.submit("#!/bin/sh\n")
            assert caught.value.evidence in answer["stderr"].replace("sbatch: error: ", "")


def test_a_refusal_names_the_shells_defaults_that_were_not_used() -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n"
    client = Client(FakeRunner({"sbatch": (1, "", words)}), environ={"SBATCH_ACCOUNT": "lab"})
    with pytest.raises(SpecError) as caught:
        client.submit("#!/bin/sh\n")
    assert "SBATCH_ACCOUNT" in caught.value.evidence


def test_a_trial_gives_the_start_in_seconds_or_slurms_words() -> None:
    line = "sbatch: Job 35 to start at 1795648137 using 2 processors on nodes node[0-1] in partition main\n"
    trial = Client(FakeRunner({"sbatch --test-only": (0, "", line)})).test_only("#!/bin/sh\n")
    assert (trial.accepted, trial.start) == (True, 1795648137)
    refusal = "allocation failure: Node count specification invalid\n"
    trial = Client(FakeRunner({"sbatch --test-only": (1, "", refusal)})).test_only("#!/bin/sh\n")
    assert (trial.accepted, trial.start, trial.text) == (False, None, refusal.strip())


def test_cancelling_says_what_reaches_whom() -> None:
    runner = FakeRunner({"scancel": ""})
    client = Client(runner)
    client.cancel("7")
    client.cancel("7", "USR2", full=True)
    client.cancel("7", "INT", batch=True)
    assert runner.calls == [
        ("scancel", "7"),
        ("scancel", "--signal=USR2", "--full", "--state=RUNNING", "7"),
        ("scancel", "--signal=INT", "--batch", "--state=RUNNING", "7"),
    ]


def test_ending_a_job_that_has_ended_is_no_error() -> None:
    words = "scancel: error: Kill job error on job id 2: Invalid job id specified\n"
    Client(FakeRunner({"scancel": (1, "", words)})).cancel("2", "USR2")


def test_cancelling_needs_the_controller() -> None:
    words = (
        "scancel: error: Kill job error on job id 1: Unable to contact slurm controller (connect failure)\n"
    )
    with pytest.raises(PlatformError, match="does not answer"):
        Client(FakeRunner({"scancel": (8, "", words)})).cancel("1")


def test_versions_and_host_names_ask_no_controller() -> None:
    client = Client(
        FakeRunner({"sinfo --version": "slurm-wlm 22.05.8\n", "scontrol show hostnames": "node0\nnode1\n"})
    )
    assert client.version() == "22.05.8"
    assert client.hostnames("node[0-1]") == ["node0", "node1"]


def test_without_accounting_there_are_no_associations() -> None:
    client = Client(
        FakeRunner({"sacctmgr": (1, "", "You are not running a supported accounting_storage plugin\n")})
    )
    assert client.associations() == []
    assert client.qos() == []


# Finding a job.

SQUEUE, SCONTROL, SACCT = "squeue -h --me", "scontrol show job", "sacct"


def one_of(release: str, output: str, name: str) -> str:
    """The rows of one job, with those of its steps."""
    keep, rows = False, []
    for row in recorded(release, output).split(text_end := "\x1f\n"):
        if "." not in row.partition("\x1f")[0]:
            keep = row.endswith("\x1f" + name)
        rows += [row + text_end] if keep else []
    return "".join(rows)


def row_of(name: str) -> str:
    return (
        next(r for r in recorded("22.05", "squeue.txt").split("\x1f\n") if r.endswith("\x1f\x1e" + name))
        + "\x1f\n"
    )


def no_sleep(seconds: float) -> None:
    assert seconds == 1


def test_a_waiting_job_takes_one_question() -> None:
    runner = FakeRunner({SQUEUE: recorded("22.05", "squeue.txt")})
    wanted = named(jobs.parse_squeue(recorded("22.05", "squeue.txt")), "resources")
    found = find(Client(runner), wanted.job_id, "resources", sleep=no_sleep)
    assert (found.state.state, found.source) == (RunState.PENDING, "squeue")
    assert len(runner.calls) == 1


def test_an_ended_jobs_steps_come_from_the_accounting() -> None:
    """squeue says COMPLETED of a job whose only step ran out of memory."""
    runner = FakeRunner(
        {SQUEUE: row_of("oom-hidden"), SACCT: one_of("22.05", "sacct_ended.txt", "oom-hidden")}
    )
    found = find(Client(runner), "15", "oom-hidden", sleep=no_sleep)
    assert found.job is not None and found.job.state == "COMPLETED"
    assert (found.state.state, found.source) == (RunState.FAILED, "squeue")
    assert "ran out of memory" in found.state.reason


def test_without_accounting_the_controllers_word_stands() -> None:
    runner = FakeRunner({SQUEUE: row_of("exit-3"), SACCT: (1, "", NO_ACCOUNTING)})
    found = find(Client(runner), "2", "exit-3", sleep=no_sleep)
    assert found.state.reason == "job 2 failed on node0: exit code 3"
    assert [call[0] for call in runner.calls] == ["squeue", "sacct"], (
        "a site without accounting is not asked twice"
    )


def test_the_accounting_is_asked_again_until_it_knows_the_end() -> None:
    """It trails the controller by a second or two."""
    ended = one_of("22.05", "sacct_ended.txt", "ok")
    late = [ended.replace("COMPLETED", "RUNNING"), "", ended]
    naps: list[float] = []

    def runner(argv: Sequence[str], **_: object) -> Completed:
        if argv[0] == "sacct":
            return Completed(tuple(argv), 0, late.pop(0), "")
        code, out, err = UNKNOWN if argv[0] == "scontrol" else (0, "", "")
        return Completed(tuple(argv), code, out, err)

    found = find(Client(runner), "1", "ok", sleep=naps.append)
    assert (found.state.state, found.source) == (RunState.COMPLETED, "sacct")
    assert len(naps) == 2


def test_a_job_that_only_the_accounting_thinks_runs_is_lost() -> None:
    running = one_of("22.05", "sacct_ended.txt", "ok").replace("COMPLETED", "RUNNING")
    runner = FakeRunner({SQUEUE: "", SCONTROL: UNKNOWN, SACCT: running})
    found = find(Client(runner), "1", "ok", sleep=no_sleep)
    assert found.state.state is RunState.LOST
    assert "as RUNNING, but the controller does not know it" in found.state.reason


def test_nobody_knows_a_job() -> None:
    runner = FakeRunner({SQUEUE: recorded("22.05", "squeue.txt"), SCONTROL: UNKNOWN, SACCT: ""})
    found = find(Client(runner), "4711", "mine", sleep=no_sleep)
    assert found.state.state is RunState.LOST
    assert found.asked == ("squeue and scontrol: no such job", "sacct: no job 4711")
    assert all(line in found.state.reason for line in found.asked)


def test_a_job_of_that_id_and_another_name_is_not_ours() -> None:
    """A controller that lost its state gives the ids out again; another cluster has them too."""
    shown = recorded("22.05", "scontrol.txt").split("\n\n")[0]
    runner = FakeRunner(
        {SQUEUE: row_of("ok"), SCONTROL: shown, SACCT: one_of("22.05", "sacct_ended.txt", "ok")}
    )
    found = find(Client(runner), "1", "mine", sleep=no_sleep)
    assert (found.state.state, found.job) == (RunState.LOST, None)
    assert "is 'ok' of root now, not 'mine'" in found.state.reason
    assert "sacct: job 1 is 'ok'" in found.state.reason


def test_an_id_given_out_again_does_not_hide_our_jobs_end() -> None:
    """The accounting keeps both, under one id."""
    both = one_of("22.05", "sacct_ended.txt", "exit-3") + one_of("22.05", "sacct_ended.txt", "ok")
    shown = recorded("22.05", "scontrol.txt").split("\n\n")[0]
    runner = FakeRunner({SQUEUE: "", SCONTROL: shown, SACCT: both})
    found = find(Client(runner), "1", "exit-3", sleep=no_sleep)
    assert (found.state.state, found.source) == (RunState.FAILED, "sacct")


def test_an_accounting_that_is_away_makes_no_job_lost() -> None:
    words = "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:localhost:6819: Connection refused\n"
    runner = FakeRunner({SQUEUE: "", SCONTROL: UNKNOWN, SACCT: (1, "", words)})
    with pytest.raises(PlatformError) as caught:
        find(Client(runner), "1", "ok", sleep=no_sleep)
    assert "Connection refused" in caught.value.evidence
    assert caught.value.remedy == "sacct -j 1"


def test_a_job_of_another_user_is_shown_by_scontrol() -> None:
    shown = recorded("26.05", "scontrol.txt").split("\n\n")[1]
    runner = FakeRunner({SQUEUE: "", SCONTROL: shown, SACCT: (1, "", NO_ACCOUNTING)})
    found = find(Client(runner), "2", "exit-3", sleep=no_sleep)
    assert (found.state.state, found.source) == (RunState.FAILED, "scontrol")


def test_what_was_just_asked_is_not_asked_again() -> None:
    known = jobs.parse_squeue(recorded("22.05", "squeue.txt"))
    runner = FakeRunner()
    found = find(Client(runner), named(known, "full").job_id, "full", known=known, sleep=no_sleep)
    assert found.state.state is RunState.RUNNING
    assert runner.calls == []
    assert replace(known[0], name="x").name == "x"
