"""A job as squeue, scontrol and sacct tell of it. Pure: texts in, dataclasses out.

Only text with named fields is read: it is alike from Slurm 22.05 to 26.05, while the JSON differs between releases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from seatrial.backends.slurm import text as t

SQUEUE_FIELDS = (
    "JobArrayID", "JobID", "State", "Reason", "exit_code", "RestartCnt", "Partition", "QOS", "Account", "UserName",
    "PriorityLong", "SubmitTime", "StartTime", "EndTime", "NumNodes", "NumCPUs", "NumTasks", "tres-alloc",
    "tres-per-node", "tres-per-job", "tres-per-task", "TimeLimit", "Feature", "Reservation", "Dependency", "NodeList",
    "ReqNodes", "ExcNodes", "SchedNodes",
)  # fmt: skip
_COUNTED = ",".join(f"{field}:{t.FIELD_END}" for field in SQUEUE_FIELDS)
SQUEUE_FORMAT = f"{_COUNTED},Comment:{t.TEXT_END},Name:{t.FIELD_END}"
"""For ``squeue -O``. A field that has an end of its own, and no width, is neither filled up nor cut."""
ANONYMOUS_FORMAT = f"{_COUNTED},JobID:{t.TEXT_END},JobID:{t.FIELD_END}"
"""The same with numbers in the place of what other people wrote."""

SACCT_FIELDS = (
    "JobID", "JobIDRaw", "State", "ExitCode", "Partition", "QOS", "Account", "User", "Priority", "Submit", "Start",
    "End", "NNodes", "NCPUS", "ReqTRES", "AllocTRES", "TimelimitRaw", "Constraints", "Reservation", "NodeList",
    "Reason", "JobName",
)  # fmt: skip
SACCT_FORMAT = ",".join(SACCT_FIELDS)
"""For ``sacct -p --delimiter=`` the end of a field: ``-p`` writes one after the last field too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a job: ``batch`` (the script), ``extern``, or the number of an srun."""

    step_id: str
    name: str
    state: str
    exit_code: int = 0
    signal: int = 0
    start: int | None = None
    """Seconds since the epoch, like `end`."""
    end: int | None = None
    nodelist: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, or the part of an array that still waits. What a client did not tell is empty or None."""

    job_id: str
    """As Slurm prints it: ``12``, ``8_3`` (an element of an array), ``8_[2-5%2]`` (elements that wait)."""
    name: str
    state: str
    """Slurm's word in full: ``RUNNING``, ``CANCELLED``, …"""
    raw_id: str = ""
    """The number that Slurm gave it; differs from `job_id` in arrays."""
    reason: str = ""
    """Slurm's own words: a code, or a sentence."""
    exit_code: int = 0
    signal: int = 0
    restarts: int | None = None
    """How often it was queued again."""
    nodelist: str = ""
    """Nodes it has or had, compressed: ``node[0-3,7]``."""
    planned_nodes: str = ""
    """Nodes that the scheduler means to use for it."""
    required_nodes: str = ""
    excluded_nodes: str = ""
    partition: str = ""
    """One name, or several with commas while it waits for the first that is free."""
    qos: str = ""
    account: str = ""
    user: str = ""
    priority: int | None = None
    submit: int | None = None
    """Seconds since the epoch, like `start` and `end`."""
    start: int | None = None
    """When it started; of a job that waits, when it may."""
    end: int | None = None
    """When it ended; of a job that runs, when its time is up."""
    dependency: str = ""
    comment: str = ""
    num_nodes: int = 0
    num_cpus: int = 0
    memory_mib: int | None = None
    """On all nodes together, like `num_cpus`."""
    gpus: int = 0
    """On all nodes together; 0 also where the site does not count them and the job named none."""
    gpu_type: str = ""
    time_limit_s: int | None = None
    """None: unlimited, or not told."""
    features: str = ""
    reservation: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def gpus_per_node(self) -> int:
        """Rounded up: with ``--gpus`` nodes may get different numbers."""
        return -(-self.gpus // max(self.num_nodes, 1))


def parse_squeue(text: str) -> list[Job]:
    """The jobs that ``squeue -h -O`` `SQUEUE_FORMAT` printed; also for `ANONYMOUS_FORMAT`, whose names are numbers."""
    return [_from_squeue(row) for row in t.rows(text, (*SQUEUE_FIELDS, "texts"))]


def _from_squeue(row: dict[str, str]) -> Job:
    nodes = t.number(row["NumNodes"]) or 0
    code, signal = t.exit_pair(row["exit_code"])
    tres = t.tres(row["tres-alloc"])
    comment, _, name = row["texts"].partition(t.TEXT_END)
    gpus, gpu_type = _gpus(
        row["tres-alloc"],
        ((row["tres-per-node"], nodes), (row["tres-per-job"], 1), (row["tres-per-task"], t.number(row["NumTasks"]) or 1)),
    )  # fmt: skip
    return Job(
        job_id=row["JobArrayID"].strip(" "),
        raw_id=row["JobID"].strip(" "),
        name=name,
        state=row["State"].strip(" "),
        reason=t.text_or_none(row["Reason"]),
        exit_code=code,
        signal=signal,
        restarts=t.number(row["RestartCnt"]),
        nodelist=t.text_or_none(row["NodeList"]),
        planned_nodes=t.text_or_none(row["SchedNodes"]),
        required_nodes=t.text_or_none(row["ReqNodes"]),
        excluded_nodes=t.text_or_none(row["ExcNodes"]),
        partition=row["Partition"].strip(" "),
        qos=t.text_or_none(row["QOS"]),
        account=t.text_or_none(row["Account"]),
        user=row["UserName"].strip(" "),
        priority=t.number(row["PriorityLong"]),
        submit=t.epoch_s(row["SubmitTime"]),
        start=t.epoch_s(row["StartTime"]),
        end=t.epoch_s(row["EndTime"]),
        dependency=t.text_or_none(row["Dependency"]),
        comment=t.text_or_none(comment),
        num_nodes=nodes,
        num_cpus=t.number(row["NumCPUs"]) or 0,
        memory_mib=t.memory_mib(tres.get("mem", "")),
        gpus=gpus,
        gpu_type=gpu_type,
        time_limit_s=t.duration_s(row["TimeLimit"]),
        features=t.text_or_none(row["Feature"]),
        reservation=t.text_or_none(row["Reservation"]),
    )


def parse_scontrol_jobs(text: str) -> list[Job]:
    """The jobs that ``scontrol show job`` printed, in its form of several lines."""
    return [_from_scontrol(block) for block in t.blocks(text, "JobId")]


def _from_scontrol(block: dict[str, str]) -> Job:
    def get(key: str) -> str:
        return t.text_or_none(block.get(key, ""))

    nodes = t.number(get("NumNodes")) or 0
    code, signal = t.exit_pair(get("ExitCode"))
    # 23.11 and later tell what was asked and what was given apart.
    counted = get("AllocTRES") or get("ReqTRES") or get("TRES")
    gpus, gpu_type = _gpus(
        counted,
        ((get("TresPerNode"), nodes), (get("TresPerJob"), 1), (get("TresPerTask"), t.number(get("NumTasks")) or 1)),
    )  # fmt: skip
    return Job(
        job_id=_array_id(block),
        raw_id=block["JobId"],
        name=block.get("JobName", ""),
        state=get("JobState"),
        reason=get("Reason"),
        exit_code=code,
        signal=signal,
        restarts=t.number(get("Restarts")),
        nodelist=get("NodeList"),
        planned_nodes=get("SchedNodeList"),
        required_nodes=get("ReqNodeList"),
        excluded_nodes=get("ExcNodeList"),
        partition=get("Partition"),
        qos=get("QOS"),
        account=get("Account"),
        user=get("UserId").partition("(")[0],
        priority=t.number(get("Priority")),
        submit=t.epoch_s(get("SubmitTime")),
        start=t.epoch_s(get("StartTime")),
        end=t.epoch_s(get("EndTime")),
        dependency=get("Dependency"),
        comment=get("Comment"),
        num_nodes=nodes,
        num_cpus=t.number(get("NumCPUs")) or 0,
        memory_mib=t.memory_mib(t.tres(counted).get("mem", "")),
        gpus=gpus,
        gpu_type=gpu_type,
        time_limit_s=t.duration_s(get("TimeLimit")),
        features=get("Features"),
        reservation=get("Reservation"),
    )


def _array_id(block: dict[str, str]) -> str:
    """The id that squeue prints. An element that no longer belongs to a task has the largest number as its index."""
    task = block.get("ArrayTaskId", "")
    if not task or task == "4294967294":
        return block["JobId"]
    base, throttle = block["ArrayJobId"], block.get("ArrayTaskThrottle", "")
    if task.isdigit():
        return f"{base}_{task}"
    return f"{base}_[{task}]" if "%" in task or not throttle else f"{base}_[{task}%{throttle}]"


def holds(several: str, element: str) -> bool:
    """Whether the id of elements that wait, such as ``8_[0,2-5%2]``, has one of them: ``8_3``."""
    array, _, index = element.partition("_")
    found = re.fullmatch(rf"{re.escape(array)}_\[([\d,-]+)(?:%\d+)?\]", several)
    if found is None or not index.isdigit():
        return False
    spans = [part.split("-") for part in found[1].split(",")]
    return any(int(span[0]) <= int(index) <= int(span[-1]) for span in spans)


def parse_sacct(text: str) -> list[Job]:
    """The jobs that ``sacct -D`` printed with `SACCT_FORMAT`, each with its steps.

    With ``-D`` a job that was queued again has a row (state REQUEUED) for each earlier start, in order of time. The
    steps of a row follow it.
    """
    jobs: list[Job] = []
    for row in t.rows(text, SACCT_FIELDS):
        _, dot, step_id = row["JobID"].partition(".")
        if not dot:
            job = _from_sacct(row)
            earlier = sum(other.raw_id == job.raw_id for other in jobs)
            jobs.append(replace(job, restarts=earlier))
        elif jobs:
            jobs[-1] = replace(jobs[-1], steps=(*jobs[-1].steps, _step(step_id, row)))
    return jobs


def _from_sacct(row: dict[str, str]) -> Job:
    code, signal = t.exit_pair(row["ExitCode"])
    counted = t.text_or_none(row["AllocTRES"]) or row["ReqTRES"]
    gpus, gpu_type = t.gpus(counted)
    minutes = t.number(row["TimelimitRaw"])
    return Job(
        job_id=row["JobID"],
        raw_id=row["JobIDRaw"],
        name=row["JobName"],
        state=row["State"].partition(" ")[0],
        reason=t.text_or_none(row["Reason"]),
        exit_code=code,
        signal=signal,
        nodelist=t.text_or_none(row["NodeList"]),
        partition=row["Partition"],
        qos=row["QOS"],
        account=row["Account"],
        user=row["User"],
        priority=t.number(row["Priority"]),
        submit=t.epoch_s(row["Submit"]),
        start=t.epoch_s(row["Start"]),
        end=t.epoch_s(row["End"]),
        num_nodes=t.number(row["NNodes"]) or 0,
        num_cpus=t.number(row["NCPUS"]) or 0,
        memory_mib=t.memory_mib(t.tres(counted).get("mem", "")),
        gpus=gpus,
        gpu_type=gpu_type,
        time_limit_s=None if minutes is None else minutes * 60,
        features=row["Constraints"],
        reservation=row["Reservation"],
    )


def _step(step_id: str, row: dict[str, str]) -> Step:
    code, signal = t.exit_pair(row["ExitCode"])
    return Step(
        step_id=step_id,
        name=row["JobName"],
        state=row["State"].partition(" ")[0],
        exit_code=code,
        signal=signal,
        start=t.epoch_s(row["Start"]),
        end=t.epoch_s(row["End"]),
        nodelist=t.text_or_none(row["NodeList"]),
    )


def _gpus(counted: str, asked: tuple[tuple[str, int], ...]) -> tuple[int, str]:
    """GPUs in all, from what Slurm counted, or else from what was asked and how many times; and their type.

    Slurm counts GPUs only where ``AccountingStorageTRES`` names them.
    """
    total, gpu_type = t.gpus(counted)
    for value, times in asked:
        if "gpu" in value:
            count, kind = t.gpus(value)
            gpu_type = gpu_type or kind
            total = total or count * times
    return total, gpu_type
