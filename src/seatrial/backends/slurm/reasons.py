"""Why Slurm lets a job wait, in a sentence each: the codes of squeue(1) and slurm.conf's limits, 22.05 to 26.05."""

from __future__ import annotations

import re

SENTENCES = {
    "": "Slurm has given no reason",
    "AccountNotAllowed": "the partition does not admit its account",
    "AccountingPolicy": "a limit of the accounting is reached",
    "AssociationJobLimit": "its account has as many jobs as it may",
    "AssociationResourceLimit": "its account has reached a limit",
    "AssociationTimeLimit": "its account has used up its time",
    "BadConstraints": "no node has what it asks for (features, GPUs, cores)",
    "BeginTime": "it may not start yet",
    "BurstBufferOperation": "moving data to or from the burst buffer failed",
    "BurstBufferResources": "the burst buffer has no room",
    "BurstBufferStageIn": "its data are being brought to the burst buffer",
    "Cleaning": "its last start is still being cleaned up",
    "DeadLine": "it can't end before its deadline any more",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "it waits for another job in a way that can't come true any more",
    "FedJobLock": "it waits for another cluster of the federation",
    "FrontEndDown": "no front end node is up",
    "InvalidReason": "Slurm has given no valid reason",
    "InactiveLimit": "it was inactive for too long",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "JobArrayTaskLimit": "as many elements of its array run as may",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "its user holds it",
    "JobHoldMaxRequeue": "it was queued again as often as the site allows, and is held",
    "JobLaunchFailure": "it could not be launched",
    "Licenses": "no licence is free",
    "MaxPoweredUpNodes": "as many nodes are powered up as the site allows",
    "MaxMemPerLimit": "it asks for more memory than its partition allows",
    "NodeDown": "a node that it needs is down",
    "NonZeroExitCode": "it ended with an exit code that is not 0",
    "None": "Slurm has given no reason",
    "OutOfMemory": "it ran out of memory",
    "PartitionConfig": "its request does not fit its partition's configuration",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionNodeLimit": "its partition does not allow that number of nodes now",
    "PartitionTimeLimit": "its time limit is over that of its partition",
    "Priority": "jobs of higher priority come first",
    "Prolog": "the site's prolog still runs",
    "QOSJobLimit": "its QOS has as many jobs as it may",
    "QOSNotAllowed": "its partition does not admit its QOS",
    "QOSResourceLimit": "its QOS has reached a limit",
    "QOSTimeLimit": "its QOS has used up its time",
    "QOSUsageThreshold": "its account's share is used up below what its QOS demands",
    "ReqNodeNotAvail": "a node that it needs is not available",
    "RequeueExit": "it ended with an exit code that queues it again",
    "RequeueExitHold": "it ended with an exit code that queues it again, held",
    "Reservation": "its reservation has not begun, or is full",
    "RaisedSignal": "a signal ended it",
    "ReservationDeleted": "its reservation was deleted",
    "ReservationInvalid": "its reservation is not valid",
    "Resources": "not enough is free",
    "SchedDefer": "the scheduler looks at it in its next pass",
    "SystemFailure": "Slurm, a file system or the network failed",
    "TimeLimit": "it reached its time limit",
    "Topology": "its request does not fit the network's topology",
    "WaitingForScheduling": "the scheduler has not looked at it yet",
}
# Texts that are no codes, by their beginning.
_TEXTS = {
    "Nodes required for job are DOWN, DRAINED or reserved": "nodes that it needs are down, drained or kept for jobs of a higher partition",
    "launch failed requeued held": "its launch failed, so Slurm queued it again and holds it",
    "job requeued in held state": "it was queued again and is held",
}
_LIMIT = re.compile(
    r"(?P<owner>QOS|Assoc)?(?P<kind>Grp|Max|Min)(?P<what>SubmitJobs?|Jobs|WallDuration|Wall|[A-Z][A-Za-z]*?)"
    r"(?P<minutes>RunMinutes|Minutes|RunMins|Mins)?(?P<scope>Per(?:Job|User|Node|Account))?(?:Limit|NotSatisfied)?"
)
_WHAT = {
    "GRES": "GPUs or other generic resources", "Cpu": "cores", "CPU": "cores", "Mem": "memory", "Memory": "memory",
    "Node": "nodes", "Jobs": "jobs that run", "SubmitJobs": "jobs that wait or run",
    "SubmitJob": "jobs that wait or run", "WallDuration": "run time", "Wall": "run time", "License": "licences",
    "Billing": "billing units", "BB": "burst buffer", "Energy": "energy", "Unknown": "a resource",
}  # fmt: skip
_SCOPE = {"PerUser": "each user", "PerJob": "each job", "PerNode": "each node", "PerAccount": "each account"}


def code_of(reason: str) -> str:
    """The code within a reason: ``ReqNodeNotAvail`` of ``ReqNodeNotAvail, UnavailableNodes:node0``; else all of it.

    scontrol writes underscores for spaces, squeue does not.
    """
    plain = reason.strip("() ").replace("_", " ")
    first = plain.split(",")[0].partition(":")[0]
    return first if first in SENTENCES or _LIMIT.fullmatch(first) else plain


def limit_of(reason: str) -> dict[str, str] | None:
    """The parts of a limit's code (`owner`, `kind`, `what`, `minutes`, `scope`), or None for any other reason."""
    match = _LIMIT.fullmatch(code_of(reason))
    return {key: value or "" for key, value in match.groupdict().items()} if match else None


def sentence(reason: str) -> str:
    """What a reason means, without a full stop. A reason that is not known stands in Slurm's own words."""
    code = code_of(reason)
    if code in SENTENCES:
        return SENTENCES[code]
    for beginning, meaning in _TEXTS.items():
        if code.startswith(beginning):
            return meaning
    parts = limit_of(reason)
    return _limit_sentence(parts) if parts else f"Slurm says: {code}"


def _limit_sentence(parts: dict[str, str]) -> str:
    owner = "its account" if parts["owner"] == "Assoc" else "its QOS"
    what = _WHAT.get(parts["what"], parts["what"])
    if parts["minutes"]:
        what = f"minutes of {what}"
    if parts["kind"] == "Min":
        return f"it asks for fewer {what} than {owner} demands"
    if parts["kind"] == "Grp":
        return f"all jobs of {owner} together have reached its limit of {what}"
    # A per-job limit stops a job that is too large by itself; Slurm writes none where a user's jobs are counted.
    whom = _SCOPE.get(parts["scope"], "each user")
    return f"it would exceed the limit of {what} that {owner} sets for {whom}"
