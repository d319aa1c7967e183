"""Why a limit of a QOS or an account holds a job back: the limit, what is used of it, what the job asks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from seatrial.backends.slurm import text as t
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.reasons import limit_of
from seatrial.backends.slurm.room import Snapshot

# sacctmgr's word for each kind of limit, without what it is a limit of.
_SUFFIX = {"PerUser": "PU", "PerAccount": "PA", "PerJob": "", "PerNode": "PerNode", "": ""}
_UNIT = {
    "GRES": "GPUs",
    "Cpu": "cores",
    "CPU": "cores",
    "Node": "nodes",
    "Mem": "MiB of memory",
    "Memory": "MiB of memory",
}
_JOBS = {"Jobs", "SubmitJobs", "SubmitJob"}


def limit_evidence(job: Job, snapshot: Snapshot) -> tuple[list[str], int | None, int | None]:
    """What is known of the limit in a job's reason.

    Returns:
        Sentences; the limit's number, where it is visible; and what the job asks by itself, where it can be counted.
    """
    parts = limit_of(job.reason)
    if parts is None:
        return [], None, None
    evidence, numbers = [], []
    for owner, name, value in _limits(job, parts, snapshot):
        evidence.append(f"{owner} sets {name} {value}")
        number = _number(value, parts["what"])
        numbers += [number] if number is not None else []
    if not evidence:
        evidence.append("the limit itself is not visible to this user (it may be set for a parent account)")
    asked = _amount(job, parts["what"])
    if parts["minutes"] or asked is None:
        return evidence, None, None
    if parts["scope"] not in {"PerJob", "PerNode"} and parts["kind"] != "Min":
        evidence.append(_usage(job, parts, snapshot))
    return evidence, min(numbers, default=None), asked


def _limits(job: Job, parts: Mapping[str, str], snapshot: Snapshot) -> Iterable[tuple[str, str, str]]:
    name = _limit_name(parts)
    if parts["owner"] == "Assoc":
        for association in snapshot.associations:
            if association.account == job.account:
                yield from (
                    (f"account {association.account}", key, value)
                    for key, value in association.limits
                    if key == name and _concerns(value, parts["what"])
                )
        return
    own = {
        found.qos for part in job.partition.split(",") if (found := snapshot.partition(part)) and found.qos
    }
    for qos in snapshot.qos:
        if qos.name == job.qos or qos.name in own:
            yield from (
                (f"QOS {qos.name}", key, value)
                for key, value in qos.limits
                if key == name and _concerns(value, parts["what"])
            )


def _limit_name(parts: Mapping[str, str]) -> str:
    kind, what = parts["kind"], parts["what"]
    if what in _JOBS:
        base = "Jobs" if what == "Jobs" else "Submit"
        of = "" if kind == "Grp" or parts["owner"] == "Assoc" else (_SUFFIX[parts["scope"]] or "PU")
        return f"{kind}{base}{of}"
    if what.startswith("Wall"):
        return f"{kind}Wall"
    return f"{kind}TRES{'RunMins' if parts['minutes'].startswith('Run') else ''}{_SUFFIX[parts['scope']]}"


def _concerns(value: str, what: str) -> bool:
    """Whether a list such as ``gres/gpu=2,cpu=64`` limits this resource; a plain value is the limit itself."""
    return "=" not in value or any(_is_of(key, what) for key in t.tres(value))


def _is_of(key: str, what: str) -> bool:
    short = {"Memory": "mem", "BB": "bb/", "GRES": "gres/", "License": "license/"}.get(what, what.lower())
    return key.startswith(short)


def _number(value: str, what: str) -> int | None:
    for key, amount in t.tres(value).items():
        if _is_of(key, what):
            if what == "GRES" and "gpu" not in key:
                return None
            return t.memory_mib(amount) if what in {"Mem", "Memory"} else t.number(amount)
    return t.number(value) if what in _JOBS else None


def _amount(job: Job, what: str) -> int | None:
    amounts = {
        "GRES": job.gpus,
        "Cpu": job.num_cpus,
        "CPU": job.num_cpus,
        "Node": job.num_nodes,
        "Mem": job.memory_mib,
    }
    amounts["Memory"] = job.memory_mib
    return 1 if what in _JOBS else amounts.get(what)


def _usage(job: Job, parts: Mapping[str, str], snapshot: Snapshot) -> str:
    per_user = parts["scope"] == "PerUser" or (parts["kind"] == "Max" and not parts["scope"])
    by_account = parts["owner"] == "Assoc" or parts["scope"] == "PerAccount"
    counted = [
        other
        for other in snapshot.jobs
        if other.job_id != job.job_id
        and (other.state == "RUNNING" or (parts["what"].startswith("Submit") and other.state == "PENDING"))
        and (other.account == job.account if by_account else other.qos == job.qos)
        and (not per_user or other.user == job.user)
    ]
    whose = f"account {job.account}" if by_account else f"QOS {job.qos}"
    whom = f"{job.user}'s jobs" if per_user else "the jobs"
    doing = "that wait or run" if parts["what"].startswith("Submit") else "that run"
    visible = " (of those that this user may see)" if snapshot.hides_jobs else ""
    if parts["what"] in _JOBS:
        return f"{len(counted)} of {whom} in {whose} {doing[5:]}{visible}"
    held = sum(_amount(other, parts["what"]) or 0 for other in counted)
    unit = _UNIT.get(parts["what"], parts["what"])
    return f"{whom} in {whose} {doing} hold {held} {unit}{visible}; this one asks for {_amount(job, parts['what'])}"


def unit_of(reason: str) -> str:
    """What the limit in a reason counts: ``GPUs``, ``cores``, ``jobs``, …"""
    parts = limit_of(reason) or {"what": ""}
    return "jobs" if parts["what"] in _JOBS else _UNIT.get(parts["what"], parts["what"])
