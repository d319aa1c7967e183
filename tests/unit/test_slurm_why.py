"""Why jobs wait in a real cluster with full, drained and reserved nodes; and what never fits it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from seatrial.backends.slurm import cluster, reasons
from seatrial.backends.slurm.cluster import Association, Partition, Qos
from seatrial.backends.slurm.fits import Request, never_fits
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.room import Snapshot
from seatrial.backends.slurm.why import explain_pending
from seatrial.backends.slurm.why_room import Explanation
from tests.unit.slurm_fixtures import RELEASES, named, recorded, waiting

# JOB REASON CODES of squeue(1) and the strings of its library, 22.05 and 26.05, that a job can wait with.
CODES = """None Priority Dependency Resources PartitionNodeLimit PartitionTimeLimit PartitionDown PartitionInactive
JobHeldAdmin JobHeldUser BeginTime Licenses AssociationJobLimit AssociationResourceLimit AssociationTimeLimit
Reservation ReqNodeNotAvail FrontEndDown NodeDown BadConstraints SystemFailure QOSUsageThreshold JobHoldMaxRequeue
JobArrayTaskLimit BurstBufferResources BurstBufferStageIn BurstBufferOperation PartitionConfig AccountNotAllowed
QOSNotAllowed AccountingPolicy DependencyNeverSatisfied Prolog InvalidAccount InvalidQOS Cleaning DeadLine
WaitingForScheduling QOSJobLimit QOSResourceLimit QOSTimeLimit ReservationDeleted MaxMemPerLimit FedJobLock
RequeueExit RequeueExitHold MaxPoweredUpNodes Topology ReservationInvalid SchedDefer InvalidReason"""
LIMITS = """AssocGrpGRES AssocGrpCpuLimit AssocGrpGRESRunMinutes AssocGrpJobsLimit AssocGrpSubmitJobsLimit
AssocGrpWallLimit AssocMaxJobsLimit AssocMaxGRESPerJob AssocMaxNodePerJobLimit AssocMaxWallDurationPerJobLimit
AssocMaxCpuMinutesPerJobLimit AssocMaxSubmitJobLimit QOSGrpCpuLimit QOSGrpGRES QOSGrpJobsLimit QOSGrpMemLimit
QOSGrpNodeLimit QOSGrpSubmitJobsLimit QOSGrpWallLimit QOSGrpMemoryRunMinutes QOSMaxCpuPerUserLimit
QOSMaxGRESPerUser QOSMaxGRESPerJob QOSMaxGRESPerNode QOSMaxJobsPerUserLimit QOSMaxMemoryPerUser
QOSMaxNodePerUserLimit QOSMaxSubmitJobPerUserLimit QOSMaxWallDurationPerJobLimit QOSMaxGRESMinutesPerJob
QOSMinGRES QOSMinCpuNotSatisfied QOSMinMemory MaxGRESPerAccount MaxJobsPerAccount MaxSubmitJobsPerAccount
MaxCpuPerAccount MaxNodePerAccount MaxGRESRunMinsPerUser MaxMemoryRunMinsPerAccount"""


def explained(release: str, name: str) -> Explanation:
    snapshot = waiting(release)
    return explain_pending(named(list(snapshot.jobs), name), snapshot)


@pytest.mark.parametrize("code", CODES.split())
def test_every_code_has_a_sentence(code: str) -> None:
    assert "Slurm says" not in reasons.sentence(code)
    assert code not in reasons.sentence(code)


@pytest.mark.parametrize("code", LIMITS.split())
def test_every_limit_is_taken_apart(code: str) -> None:
    sentence = reasons.sentence(code)
    assert re.search(r"limit|demands", sentence), sentence
    assert not re.search(r"[A-Z][a-z]+[A-Z]|GRES|Cpu", sentence), sentence


def test_an_unknown_reason_stands_in_slurms_words() -> None:
    assert reasons.sentence("FullMoon") == "Slurm says: FullMoon"
    found = explain_pending(Job(job_id="7", name="r", state="PENDING", reason="FullMoon"), Snapshot(now=0))
    assert found.evidence == ("Slurm says 'FullMoon', and no more",)


def test_scontrols_spelling_is_squeues() -> None:
    assert reasons.code_of("ReqNodeNotAvail,_UnavailableNodes:node0") == "ReqNodeNotAvail"
    assert reasons.code_of("(launch_failed_requeued_held)") == "launch failed requeued held"


@pytest.mark.parametrize("release", RELEASES)
def test_a_full_cluster_is_told_with_who_holds_it(release: str) -> None:
    found = explained(release, "resources")
    assert found.sentence.endswith(
        "waits for room: it needs 1 node with 8 GPUs each, and no node can hold that now"
    )
    evidence = "\n".join(found.evidence)
    assert (
        "1 node of partition main may be used, with 0 of 8 GPUs free: 1 could hold it, 0 can now" in evidence
    )
    assert re.search(r"job 21 of root holds node\[0-1\] \(12 GPUs\) for 59 min at most", evidence)
    assert re.search(r"Slurm means to start it in \d+ min on node0", evidence)


@pytest.mark.parametrize("release", RELEASES)
def test_jobs_that_come_first_are_counted(release: str) -> None:
    found = explained(release, "many-gpus")
    assert "waits for room, and 4 jobs come first: it needs 1 node with 4 GPUs each" in found.sentence
    assert "job 25 of root comes first (priority 1000): 1 node with 8 GPUs each" in found.evidence
    assert "1 more job comes first" in found.evidence
    assert any("backfill" in line for line in found.helps)


@pytest.mark.parametrize("release", RELEASES)
def test_a_drained_node_comes_with_its_reason(release: str) -> None:
    """An administrator may type anything into a reason, equals signs and bars too."""
    found = explained(release, "both-nodes")
    assert "can't start before nodes come back" in found.sentence
    assert "1 of 2 nodes that could hold it is away" in found.sentence
    assert any(
        line.startswith("node1 is MIXED+DRAIN: xid 79 | GPU=3, State=bad [root@") for line in found.evidence
    )
    assert "resources.nodes=1 does without the nodes that are away" in found.helps


def test_a_node_asked_for_by_name_is_pointed_at() -> None:
    found = explained("22.05", "drained-node")
    assert "it asks for node1 by name" in found.evidence
    assert "Slurm names node1 as not available" in found.evidence
    assert "without slurm.nodelist: 1 node of partition main can hold it now" in found.helps


@pytest.mark.parametrize("release", RELEASES)
def test_a_reservation_ahead_is_seen(release: str) -> None:
    """A job of two days would still run when the nodes are kept for a course in two hours."""
    found = explained(release, "priority")
    assert "reservation course keeps node0 in 1 h 59 min" in found.evidence
    assert "resources.time under 1 h 59 min ends before the reservation begins" in found.helps


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("name", "sentence", "evidence", "help_"),
    [
        ("begin-time", "may not start for 1 h 59 min yet", "", "StartTime=now"),
        ("held", "is held by its user", "priority 0", "scontrol release 30"),
        ("array", "is held by its user", "priority 0", "scontrol release 31"),
        ("held-again", "is held: it was queued again", "it was queued again 1 time", "scontrol release 24"),
        (
            "depends",
            "waits for another job",
            "afterok:21 (unfulfilled): job 21 runs on node[0-1]",
            "Dependency=",
        ),
        (
            "never",
            "can never start",
            "afterok:23 (failed): job 23 failed on node0: exit code 1",
            "scancel 40",
        ),
        ("inactive-partition", "its partition is inactive", "partition asleep is INACTIVE", "Partition=main"),
        ("down-partition", "its partition is down", "partition broken is DOWN", "Partition=main"),
        ("long", "its time limit is over", "partition short is UP, allows 10 min and", "TimeLimit=10"),
        ("reserved", "waits for reservation course, which begins in 1 h 59 min", "has node0", ""),
    ],
)
def test_other_reasons(release: str, name: str, sentence: str, evidence: str, help_: str) -> None:
    found = explained(release, name)
    assert sentence in found.sentence
    assert any(evidence in line for line in found.evidence) or not evidence
    assert any(help_ in line for line in found.helps) or not help_


# Limits, on the recorded cluster with the reason that its scheduler gives a pass later.


def limited(**changes: object) -> Explanation:
    snapshot = waiting("22.05")
    job = named(list(snapshot.jobs), "many-gpus")
    return explain_pending(replace(job, **{"reason": "QOSMaxGRESPerUser", **changes}), snapshot)  # type: ignore[arg-type]


def test_a_limit_that_the_job_breaks_by_itself_is_for_ever() -> None:
    found = limited()
    assert found.sentence.endswith("can never start: it asks for 4 GPUs, and the limit is 2")
    assert "QOS tight sets MaxTRESPU gres/gpu=2" in found.evidence
    assert found.helps[0] == "ask for 2 GPUs at most"
    assert "another QOS that root may use: high, low, normal" in found.helps


def test_a_limit_that_others_use_up_is_counted() -> None:
    snapshot = waiting("22.05")
    job = replace(named(list(snapshot.jobs), "many-gpus"), reason="QOSMaxGRESPerUser", gpus=2)
    mine = Job(job_id="90", name="r", state="RUNNING", qos="tight", user="root", gpus=1, nodelist="node0")
    theirs = replace(mine, job_id="91", user="ann", gpus=8)
    found = explain_pending(job, replace(snapshot, jobs=[*snapshot.jobs, mine, theirs]))
    assert "would exceed the limit of GPUs" in found.sentence
    assert "root's jobs in QOS tight that run hold 1 GPUs; this one asks for 2" in found.evidence


def test_a_limit_of_jobs_counts_jobs() -> None:
    snapshot = replace(waiting("22.05"), qos=[Qos(name="normal", limits=(("MaxJobsPU", "2"),))])
    job = replace(named(list(snapshot.jobs), "resources"), reason="QOSMaxJobsPerUserLimit")
    found = explain_pending(job, snapshot)
    assert "QOS normal sets MaxJobsPU 2" in found.evidence
    assert any("2 of root's jobs in QOS normal run" in line for line in found.evidence)


def test_a_limit_that_is_not_visible_is_not_guessed() -> None:
    found = limited(reason="AssocGrpGRES")
    assert any("is not visible" in line for line in found.evidence)
    assert "can never" not in found.sentence


def test_the_partitions_own_qos_counts() -> None:
    snapshot = waiting("22.05")
    partitions = [replace(p, qos="part") if p.name == "main" else p for p in snapshot.partitions]
    snapshot = replace(
        snapshot, partitions=partitions, qos=[Qos(name="part", limits=(("GrpTRES", "node=1"),))]
    )
    job = replace(named(list(snapshot.jobs), "both-nodes"), reason="QOSGrpNodeLimit")
    assert "it asks for 2 nodes, and the limit is 1" in explain_pending(job, snapshot).sentence


def test_hidden_jobs_are_admitted() -> None:
    snapshot = replace(waiting("22.05"), config={"PrivateData": "accounts,jobs"})
    found = explain_pending(named(list(snapshot.jobs), "resources"), snapshot)
    assert any("there may be more" in line for line in found.evidence)


def test_without_evidence_nothing_is_claimed() -> None:
    job = Job(job_id="7", name="r", state="PENDING", reason="Resources", num_nodes=2, partition="main")
    found = explain_pending(job, Snapshot(now=0))
    assert found == Explanation("Job 7 waits: not enough is free")


def test_a_free_partition_is_offered_only_when_it_admits_the_job() -> None:
    snapshot = waiting("22.05")
    spare = replace(
        snapshot.nodes[0], name="spare0", partitions=("spare",), gpus_used=0, cpus_used=0, memory_used_mib=0
    )
    offered = Partition(name="spare", state="UP", total_nodes=1)
    job = named(list(snapshot.jobs), "resources")
    for partition, expected in (
        (offered, True),
        (replace(offered, max_time_s=60), False),
        (replace(offered, allowed_accounts=("other",)), False),
        (replace(offered, state="DOWN"), False),
    ):
        more = replace(snapshot, nodes=[*snapshot.nodes, spare], partitions=[*snapshot.partitions, partition])
        helps = explain_pending(job, more).helps
        assert any("slurm.partition=spare" in line for line in helps) is expected


def test_nodes_that_are_down_are_away_and_sleeping_ones_are_not() -> None:
    for release in RELEASES:
        down, idle = cluster.parse_nodes(recorded(release, "nodes_down.txt"))
        assert (down.is_away, idle.is_away) == (True, False)
        assert down.reason.startswith("power [root@")
    text = recorded("22.05", "nodes_down.txt")
    for state, away in (
        ("IDLE+POWERED_DOWN", False),
        ("IDLE*", True),
        ("IDLE+DRAIN+POWERED_DOWN", True),
        ("MIXED+PLANNED", False),
    ):
        assert cluster.parse_nodes(text.replace("State=DOWN", f"State={state}"))[0].is_away is away, state


# Before a submission.

GOOD = Request(
    nodes=2,
    gpus_per_node=8,
    cpus_per_node=64,
    memory="60G",
    time_limit_s=3600,
    partition="main",
    gpu_type="h100",
)


@pytest.mark.parametrize("release", RELEASES)
def test_what_fits_is_let_through_though_the_nodes_are_busy(release: str) -> None:
    assert never_fits(GOOD, waiting(release)) == []
    assert never_fits(Request(), waiting(release)) == [], "the default partition"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"partition": "mian"}, "there is no partition mian; there are main, low, high"),
        ({"partition": "asleep", "nodes": 1}, "partition asleep is INACTIVE: it takes no jobs"),
        ({"partition": "short"}, "partition short allows 10 min, and 1 h is asked"),
        ({"nodes": 3}, "partition main has 2 nodes, and 3 are asked"),
        ({"exclude": "node1"}, "partition main has 2 nodes, 1 of them excluded, and 2 are asked"),
        ({"gpus_per_node": 9}, "no node of partition main has more than 8 GPUs, and 9 are asked on each"),
        ({"cpus_per_node": 65}, "no node of partition main has more than 64 cores, and 65 are asked on each"),
        (
            {"memory": "65G"},
            "no node of partition main has more than 64000 MiB memory, and 66560 MiB are asked",
        ),
        ({"gpu_type": "a100"}, "partition main has no GPUs of type a100; it has h100"),
        ({"constraint": "nvlink"}, "no node of partition main has the feature nvlink; there are none"),
        ({"account": "lab"}, "account lab is not one of yours: root"),
        ({"qos": "urgent"}, "QOS urgent is not one of yours: high, low, normal, tight"),
        ({"qos": "tight"}, "QOS tight allows gres/gpu=2 (MaxTRESPU), and 16 are asked"),
        ({"nodelist": "node[1-2]"}, "nodelist names node2, which the cluster does not have"),
        ({"reservation": "curse"}, "there is no reservation curse; there are course"),
    ],
)
def test_what_never_fits_is_said_before_it_is_submitted(change: dict[str, object], words: str) -> None:
    (line,) = never_fits(replace(GOOD, **change), waiting("24.11"))  # type: ignore[arg-type]
    assert words in line


def test_all_that_is_wrong_is_said_at_once() -> None:
    lines = never_fits(Request(nodes=3, gpus_per_node=9, gpu_type="a100", partition="main"), waiting("22.05"))
    assert len(lines) == 3


def test_one_of_several_partitions_is_enough() -> None:
    assert never_fits(replace(GOOD, partition="short,main"), waiting("22.05")) == []


def test_a_partitions_doors_are_checked() -> None:
    snapshot = waiting("22.05")
    closed = [
        replace(p, allowed_accounts=("lab",), denied_qos=("low",), min_nodes=2, max_nodes=4)
        for p in snapshot.partitions
    ]
    snapshot = replace(snapshot, partitions=closed, associations=[Association(account="root", qos=("low",))])
    lines = never_fits(Request(partition="main", account="root", qos="low"), snapshot)
    assert lines == [
        "partition main wants at least 2 nodes a job, and 1 is asked",
        "partition main does not admit account root; it admits lab",
        "partition main does not admit QOS low; it admits all but it",
    ]


def test_a_cluster_that_shows_nothing_forbids_nothing() -> None:
    assert never_fits(GOOD, Snapshot(now=0)) == []


def test_features_of_a_constraint() -> None:
    node = replace(waiting("22.05").nodes[0], features=("h100", "ib"))
    assert all(node.has(expression) for expression in ("", "ib", "h100&ib", "a100|ib", "[rack1|rack2]"))
    assert not any(node.has(expression) for expression in ("a100", "h100&a100"))
