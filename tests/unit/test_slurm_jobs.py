"""What squeue, scontrol and sacct print, in three releases, and what it means for a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.backends.slurm import jobs, text
from seatrial.backends.slurm.find import _is_accounted_as
from seatrial.backends.slurm.jobs import Job, Step
from seatrial.backends.slurm.states import STATES, end_sentence, run_state, span
from seatrial.backends.slurm.step import EarlyEnds, early_ends
from seatrial.errors import PlatformError
from seatrial.job.gang import free_port
from seatrial.job.link import Lead, Meeting
from seatrial.runs.state import RunState
from tests.unit.slurm_fixtures import FIXTURES, RELEASES, named, recorded

ODD = "odd | name, with=eq  UserId=root(0) \"q\" 's' \\ %j"
ODD_NAMES = [ODD, "ünï ☃ 漢字", "new\nline", "unit\x1fsep\x01", "tab\tand\u2028separator\x85\x1e"]

# Base states and flags of slurm.h, 22.05 to 26.05: names that the clients print, or did in one of these releases.
BASE = [
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
]
FLAGS = [
    "LAUNCH_FAILED",
    "UPDATE_DB",
    "REQUEUED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESIZING",
    "CONFIGURING",
    "COMPLETING",
    "STOPPED",
    "RECONFIG_FAIL",
    "POWER_UP_NODE",
    "REVOKED",
    "REQUEUE_FED",
    "RESV_DEL_HOLD",
    "SIGNALING",
    "STAGE_OUT",
    "EXPEDITING",
]


def test_every_state_has_a_meaning() -> None:
    assert set(STATES) == {*BASE, *FLAGS}
    assert all(clause for _, clause in STATES.values())


def test_fixtures_come_from_three_generations() -> None:
    assert RELEASES == ["22.05", "24.11", "26.05"]


@pytest.mark.parametrize("release", RELEASES)
def test_all_recorded_jobs_are_read(release: str) -> None:
    """Nothing is lost or torn apart, whatever is in the names."""
    squeue = jobs.parse_squeue(recorded(release, "squeue.txt"))
    scontrol = jobs.parse_scontrol_jobs(recorded(release, "scontrol.txt"))
    assert len(squeue) == len(scontrol) == 40
    assert {job.name for job in squeue} >= {*ODD_NAMES, "ok", "full", "resources"}
    assert {job.state for job in squeue} <= set(STATES)
    for job in squeue:
        twin = next(other for other in scontrol if other.raw_id == job.raw_id)
        assert (job.state, job.partition, job.user, job.qos) == (
            twin.state,
            twin.partition,
            twin.user,
            twin.qos,
        )
        assert (job.num_nodes, job.num_cpus, job.gpus) == (twin.num_nodes, twin.num_cpus, twin.gpus)
        assert (job.time_limit_s, job.submit, job.restarts) == (twin.time_limit_s, twin.submit, twin.restarts)
        assert job.job_id == twin.job_id
        assert job.name == twin.name


@pytest.mark.parametrize("release", RELEASES)
def test_what_was_asked_is_read(release: str) -> None:
    found = jobs.parse_squeue(recorded(release, "squeue.txt"))
    priority = named(found, "priority")
    assert (priority.gpus, priority.gpu_type, priority.time_limit_s) == (4, "h100", 2 * 86400)
    assert priority.memory_mib == 2048
    assert priority.required_nodes == "node0"
    total = named(found, "total-gpus")
    assert (total.gpus, total.num_nodes, total.gpus_per_node) == (12, 2, 6)
    assert named(found, "per-task").gpus == 6
    array = named(found, "array")
    assert array.job_id == f"{array.raw_id}_[0-5%2]"
    assert named(found, ODD).comment == "a|b=c, UserId=x ü"
    running = named(found, "full")
    assert (running.state, running.nodelist, running.gpus) == ("RUNNING", "node[0-1]", 12)
    assert running.start and running.end == running.start + 3600
    assert named(found, "reserved").reservation == "course"
    assert named(found, "inactive-partition").time_limit_s is None


@pytest.mark.parametrize("release", RELEASES)
def test_other_peoples_jobs_come_without_their_texts(release: str) -> None:
    found = jobs.parse_squeue(recorded(release, "queue.txt"))
    assert {job.name for job in found} == {job.raw_id for job in found}
    assert {job.state for job in found} == {"PENDING", "RUNNING"}


# Name, what the run's state is, and words of the reason. Slurm 24.11 and later make the directory of an output file.
ENDS = [
    ("ok", RunState.COMPLETED, "exit code 0"),
    ("exit-3", RunState.FAILED, "exit code 3"),
    ("exit-75", RunState.PREEMPTED, "exit code 75"),
    ("killed", RunState.FAILED, "SIGKILL"),
    ("not-found", RunState.FAILED, "a command was not found there (127)"),
    (
        "hidden-step",
        RunState.FAILED,
        "Slurm says COMPLETED of job 10, but the last, step 0 (false) failed on node0",
    ),
    ("good-last-step", RunState.COMPLETED, "exit code 0"),
    ("step-exit-9", RunState.FAILED, "failed on node[0-1]: exit code 9"),
    ("oom-batch", RunState.FAILED, "ran out of memory"),
    ("oom-step", RunState.FAILED, "step 0 (tail) ran out of memory on node0"),
    (
        "oom-hidden",
        RunState.FAILED,
        "Slurm says COMPLETED of job 15, but the last, step 0 (tail) ran out of memory",
    ),
]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("name", "state", "words"), ENDS, ids=[end[0] for end in ENDS])
def test_how_jobs_ended(release: str, name: str, state: RunState, words: str) -> None:
    job = named(jobs.parse_sacct(recorded(release, "sacct_ended.txt")), name)
    found = run_state(job)
    assert found.state is state
    assert words in found.reason


def test_a_directory_that_the_node_does_not_see_is_named() -> None:
    job = named(jobs.parse_sacct(recorded("22.05", "sacct_ended.txt")), "no-output")
    assert (job.state, job.exit_code, job.signal) == ("FAILED", 0, 53)
    assert "output file could not be opened" in run_state(job).reason


@pytest.mark.parametrize("release", RELEASES)
def test_squeue_keeps_exit_codes_that_others_cut(release: str) -> None:
    """scontrol and sacct turn 130 into 2 and 143 into 15 before 25.11; squeue prints the raw status."""
    squeue = jobs.parse_squeue(recorded(release, "squeue.txt"))
    assert run_state(named(squeue, "exit-130")).state is RunState.INTERRUPTED
    assert "SIGTERM (exit code 143)" in run_state(named(squeue, "exit-143")).reason
    sacct = named(jobs.parse_sacct(recorded(release, "sacct_ended.txt")), "exit-130")
    assert sacct.exit_code == (130 if release == "26.05" else 2)


@pytest.mark.parametrize("release", RELEASES)
def test_stopped_jobs_say_who_stopped_them(release: str) -> None:
    accounted = jobs.parse_sacct(recorded(release, "sacct_stopped.txt"))
    states = {name: [j.state for j in accounted if j.name == name] for name in {j.name for j in accounted}}
    assert states["preempted"] == ["PREEMPTED", "PENDING"]
    assert states["requeued"] == ["REQUEUED", "PENDING"]
    assert states["lost-node"] == ["NODE_FAIL"]
    assert states["lost-node-requeued"] == ["NODE_FAIL", "PENDING"]
    first, last = (job for job in accounted if job.name == "preempted")
    assert (first.restarts, last.restarts) == (0, 1)
    assert run_state(first).state is RunState.PREEMPTED
    assert run_state(last).state is RunState.PENDING
    assert run_state(named(accounted, "full")).state is RunState.INTERRUPTED
    assert run_state(named(accounted, "cancelled-waiting")).state is RunState.INTERRUPTED
    assert run_state(named(accounted, "lost-node")).reason.endswith("lost a node; it ran on node0")
    squeue = jobs.parse_squeue(recorded(release, "squeue_stopped.txt"))
    assert named(squeue, "preempted").restarts == 1
    assert named(squeue, "lost-node").state == "NODE_FAIL"


@pytest.mark.parametrize("release", RELEASES)
def test_steps_belong_to_their_start(release: str) -> None:
    accounted = jobs.parse_sacct(recorded(release, "sacct_stopped.txt"))
    first, last = (job for job in accounted if job.name == "requeued")
    assert [step.step_id for step in first.steps] == ["batch", "0"]
    assert last.steps == ()


@pytest.mark.parametrize("release", RELEASES)
def test_a_rejected_job_that_slurm_keeps_never_started(release: str) -> None:
    """sbatch refuses it with exit code 1, and the controller still lists it as FAILED with a status of 1."""
    rejected = [
        j for j in jobs.parse_squeue(recorded(release, "squeue_stopped.txt")) if j.reason == "BadConstraints"
    ]
    assert rejected
    assert "never started: no node has what it asks for" in run_state(rejected[0]).reason


def test_a_timeout_can_be_resumed() -> None:
    job = Job(job_id="7", name="r", state="TIMEOUT", time_limit_s=4 * 3600, nodelist="node0", signal=15)
    assert run_state(job).state is RunState.PREEMPTED
    assert run_state(job).reason == "job 7 reached its time limit of 4 h on node0"


def test_a_pending_job_says_for_how_long_and_why() -> None:
    job = Job(job_id="7", name="r", state="PENDING", reason="Resources", submit=1000)
    assert run_state(job, 1240).reason == "job 7 waits in the queue for 4 min: not enough is free"
    again = Job(job_id="7", name="r", state="PENDING", reason="BeginTime", submit=1000, restarts=2)
    assert "after 2 earlier starts" in run_state(again, 1240).reason


def test_an_unknown_state_is_not_guessed() -> None:
    found = run_state(Job(job_id="7", name="r", state="DREAMING"))
    assert found.state is RunState.LOST
    assert "'DREAMING'" in found.reason


def test_an_earlier_steps_memory_is_told_of_a_good_end() -> None:
    steps = (
        Step(step_id="0", name="srun", state="OUT_OF_MEMORY", signal=125),
        Step(step_id="1", name="srun", state="COMPLETED"),
    )
    found = run_state(Job(job_id="7", name="r", state="COMPLETED", steps=steps))
    assert found.state is RunState.COMPLETED
    assert "step 0 had run out of memory" in found.reason


def test_texts_of_ends_and_spans() -> None:
    assert end_sentence(0, 15) == "it was ended by SIGTERM"
    assert end_sentence(0, 99) == "it was ended by signal 99"
    assert end_sentence(137, 0) == "a process was ended by SIGKILL (exit code 137)"
    assert [span(s) for s in (0, 59, 60, 3600, 5400, 47 * 3600, 76 * 3600)] == [
        "0 s", "59 s", "1 min", "1 h", "1 h 30 min", "47 h", "3 d 4 h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1:00:00", 3600),
        ("30:00", 1800),
        ("2-00:00:00", 172800),
        ("01:00:30", 3630),
        ("UNLIMITED", None),
        ("NOT_SET", None),
    ],
)
def test_durations(value: str, seconds: int | None) -> None:
    assert text.duration_s(value) == seconds


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("gres:gpu:8", (8, "")),
        ("gres/gpu:h100:2", (2, "h100")),
        ("gres:gpu:h100:2,gres:nvme:1", (2, "h100")),
        ("cpu=2,mem=1000M,gres/gpu=4,gres/gpu:h100=4", (4, "h100")),
        ("gpu:h100:8(IDX:0-7)", (8, "h100")),
        ("gpu", (1, "")),
        ("gres/gpu:1g.10gb:3", (3, "1g.10gb")),
        ("gres/shard=4", (0, "")),
        ("N/A", (0, "")),
    ],
)
def test_gpus_are_counted_in_every_spelling(value: str, found: tuple[int, str]) -> None:
    assert text.gpus(value) == found


@pytest.mark.parametrize(
    ("value", "pair"), [("768", (3, 0)), ("9", (0, 9)), ("4021", (0, 53)), ("0:53", (0, 53)), ("3:0", (3, 0))]
)
def test_exit_codes_in_both_spellings(value: str, pair: tuple[int, int]) -> None:
    assert text.exit_pair(value) == pair


def test_host_lists() -> None:
    """As ``scontrol show hostnames`` expands them."""
    assert text.hosts("node[0-2,07],login1") == ["node0", "node1", "node2", "node07", "login1"]
    assert text.hosts("rack[1-2]n[08-10]") == [f"rack{r}n{n}" for r in (1, 2) for n in ("08", "09", "10")]
    assert text.hosts("") == []


def test_another_clusters_heading_is_no_job() -> None:
    output = "CLUSTER: other\n" + recorded("22.05", "squeue.txt")
    assert jobs.parse_squeue(output) == jobs.parse_squeue(recorded("22.05", "squeue.txt"))


def test_the_accounting_spells_names_its_own_way() -> None:
    accounted = [job.name for job in jobs.parse_sacct(recorded("22.05", "sacct_ended.txt"))]
    assert "ünï ? ??" in accounted, "its database does not keep these letters"
    for name in ODD_NAMES:
        assert any(_is_accounted_as(name, theirs) for theirs in accounted)
    assert not _is_accounted_as("exit-3", "exit-4")
    assert not _is_accounted_as("exit-3", "exit-33")


def test_refusals_are_recorded() -> None:
    """The words by which the client tells refusals from an absent controller."""
    for release in RELEASES:
        answers = json.loads((FIXTURES / release / "answers.json").read_text())
        refused = [a for a in answers if a["argv"][:2] == ["sbatch", "--parsable"]]
        assert len(refused) == 9
        assert all(a["returncode"] in {1, 255} and a["stderr"].startswith("sbatch: error: ") for a in refused)


# Whatever may be in a name; Slurm itself ends every text at a zero byte.
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40
) | st.text("\n\x1f\x1e ,=|x", min_size=1, max_size=8)
ONE_RECORD = NAMES.filter(lambda name: text.RECORD_END not in name + "x" and text.TEXT_END not in name)


def squeue_record(number: int, name: str, comment: str = "(null)") -> str:
    cells = dict.fromkeys(jobs.SQUEUE_FIELDS, "1") | {"State": "PENDING", "JobArrayID": str(number)}
    fields = "".join(cells[field] + text.FIELD_END for field in jobs.SQUEUE_FIELDS)
    return fields + comment + text.TEXT_END + name + text.RECORD_END


@given(st.lists(ONE_RECORD, min_size=1, max_size=4), ONE_RECORD)
def test_squeue_survives_any_name_and_comment(names: list[str], comment: str) -> None:
    found = jobs.parse_squeue("".join(squeue_record(n, name, comment) for n, name in enumerate(names)))
    assert [(job.job_id, job.name) for job in found] == [(str(n), name) for n, name in enumerate(names)]
    assert {job.comment for job in found} == {text.text_or_none(comment)}


@given(NAMES, NAMES)
def test_a_name_that_looks_like_the_end_of_a_record_harms_no_other_job(start: str, rest: str) -> None:
    hostile = start + text.RECORD_END + rest
    found = jobs.parse_squeue(squeue_record(7, hostile) + squeue_record(8, "good"))
    assert [job.job_id for job in found] == ["7", "8"]
    assert found[-1].name == "good"


@given(st.lists(ONE_RECORD, min_size=1, max_size=4))
def test_sacct_survives_any_name(names: list[str]) -> None:
    rows = []
    for number, name in enumerate(names):
        cells = dict.fromkeys(jobs.SACCT_FIELDS, "1") | {
            "JobID": str(number),
            "JobName": name,
            "State": "FAILED",
        }
        rows.append("".join(cells[field] + text.FIELD_END for field in jobs.SACCT_FIELDS) + "\n")
    assert [job.name for job in jobs.parse_sacct("".join(rows))] == names


@given(st.lists(NAMES.filter(lambda n: "\n" not in n and n == n.rstrip(" ")), min_size=1, max_size=4))
def test_scontrol_survives_any_name_of_one_line(names: list[str]) -> None:
    record = "JobId={} JobName={}\n   UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A\n   JobState=RUNNING Reason=None Dependency=(null)\n\n"
    found = jobs.parse_scontrol_jobs("".join(record.format(n + 1, name) for n, name in enumerate(names)))
    assert [(job.name, job.user, job.state) for job in found] == [(name, "ann", "RUNNING") for name in names]


def test_every_task_whose_end_srun_reports_is_found() -> None:
    text = (
        "0: waiting for 3 more nodes\n"
        "srun: error: node1: task 1: Exited with exit code 2\n"
        "1: slurmstepd-node1: error: execve(): /private/python: No such file or directory\n"
        "srun: error: node[2-4]: tasks 2-3,5: Killed\n"
    )
    assert early_ends(text) == [
        (1, "Exited with exit code 2"), (2, "Killed"), (3, "Killed"), (5, "Killed"),
    ]  # fmt: skip


def test_the_leading_agent_is_told_of_one_that_ended_early(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_text(
        "srun: error: b: task 1: Exited with exit code 2\n1: execve(): No such file or directory\n"
    )
    meeting = Meeting("127.0.0.1", free_port(), "secret", ("a", "b"), patience_s=20)
    early = EarlyEnds(
        log, ["a", "b"], {"SEATRIAL_LEAD": f"127.0.0.1:{meeting.port}", "SEATRIAL_LINK_TOKEN": "secret"}
    )
    early.tell()  # nobody listens yet
    lead = Lead(meeting)
    early.tell()
    early.tell()
    with pytest.raises(
        PlatformError, match=r"node 1 \(b\).*ended before it had checked in: Exited with exit code 2"
    ):
        lead.check_in(2, {})
    lead.close()
