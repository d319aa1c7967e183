"""What is to be said of a job or node, by the names that the clients' formats have for it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from seatrial.testing.slurm import schedule, text
from seatrial.testing.slurm.controller import Controller
from seatrial.testing.slurm.model import ENDED, Config, Job, Node, Step

SHORT_STATES = {
    "PENDING": "PD", "RUNNING": "R", "COMPLETING": "CG", "COMPLETED": "CD", "CANCELLED": "CA", "FAILED": "F", "TIMEOUT": "TO",
    "NODE_FAIL": "NF", "PREEMPTED": "PR", "OUT_OF_MEMORY": "OOM", "SUSPENDED": "S", "BOOT_FAIL": "BF", "DEADLINE": "DL",
}  # fmt: skip


def tres(config: Config, job: Job, *, asked: bool = False, sep: str = ",") -> str:
    """``cpu=8,mem=24000M,node=2,billing=8,gres/gpu=4``; what was asked for where nothing is given yet.

    Slurm counts GPUs only with accounting.
    """
    cpus, mib, gpus, nodes = counts(config, job)
    parts = [f"cpu={cpus}", f"mem={text.memory(mib)}", f"node={nodes}", f"billing={cpus}"]
    if gpus and config.accounting:
        parts.append(f"gres/gpu={gpus}")
    return sep.join(sorted(parts) if asked else parts)


def counts(config: Config, job: Job) -> tuple[int, int, int, int]:
    """CPUs, MiB, GPUs and nodes, on all nodes together."""
    if job.shares:
        shares = list(job.shares.values())
        return (
            sum(share.cpus for share in shares),
            sum(share.memory_mib for share in shares),
            sum(len(share.gpus) for share in shares),
            len(shares),
        )
    asked = job.request
    wanted = [schedule.demand(config, job, index) for index in range(asked.nodes)]
    gpus = asked.gpus or asked.gpus_per_node * asked.nodes
    return sum(cpus for cpus, _ in wanted), sum(mib for _, mib in wanted), gpus, asked.nodes


def end_of(job: Job) -> float | None:
    """When a job ended, or, while it runs, when its time is up."""
    if job.state == "RUNNING" and job.ending is None:
        return job.grace_until or job.limit_at
    return job.end


def limit(config: Config, job: Job) -> str:
    """As squeue writes it."""
    return "UNLIMITED" if job.limit_min is None else text.length(job.limit_min * 60, short=True)


def start_of(job: Job) -> float | None:
    """When it started, or, while it waits for a time, when it may."""
    return job.eligible if job.state == "PENDING" and job.reason == "BeginTime" else job.start


def ran_s(job: Job, now: float) -> float:
    """How long it runs or ran, in seconds."""
    if job.start is None:
        return 0
    return (job.end or now) - job.start


def dependency(ctl: Controller, job: Job) -> str:
    """What is left of it, each with its state."""
    states = schedule.dependencies(job, ctl.jobs) if job.state not in ENDED or not job.shares else []
    left = [
        f"{kind}({state})" if kind == "singleton" else f"{kind}:{number}({state})"
        for kind, number, state in states
        if state != "met"
    ]
    return ("?" if job.request.any_dependency else ",").join(left)


def of_job(ctl: Controller, job: Job, env: Mapping[str, str]) -> dict[str, str]:
    """For ``squeue -O``, by names in small letters."""
    config, asked = ctl.config, job.request
    cpus, _, _, nodes = counts(config, job)
    now = ctl.clock()
    state = job.shown_state
    left = "" if (end := end_of(job)) is None or state != "RUNNING" else text.length(end - now, short=True)
    per_node = f"gres:gpu:{asked.gres_words}" if asked.gpus_per_node else "N/A"
    return {
        "jobarrayid": job.shown_id, "jobid": str(job.job_id), "arrayjobid": str(job.array_id or job.job_id),
        "arraytaskid": "N/A" if job.array_index is None else str(job.array_index),
        "state": state, "statecompact": SHORT_STATES.get(state, state[:2]), "reason": job.reason,
        "exit_code": str(job.status), "restartcnt": str(job.restarts), "partition": job.partition,
        "qos": asked.qos or "(null)", "account": asked.account or "(null)", "username": asked.user,
        "prioritylong": str(0 if job.is_held else job.priority), "priority": f"{job.priority / 2**32:.14f}",
        "submittime": text.moment(job.submit, env), "starttime": text.moment(start_of(job), env, "N/A"),
        "endtime": text.moment(end_of(job), env, "N/A"), "timeused": text.length(ran_s(job, now), short=True),
        "timelimit": limit(config, job), "timeleft": left or "INVALID", "numnodes": str(nodes), "numcpus": str(cpus),
        "numtasks": str(asked.tasks), "tres-alloc": tres(config, job), "tres-per-node": per_node,
        "tres-per-job": f"gres:gpu:{asked.gres_words}" if asked.gpus else "N/A", "tres-per-task": "N/A",
        "feature": "(null)", "reservation": "(null)", "dependency": dependency(ctl, job) or "(null)",
        "nodelist": text.compress(job.nodes), "reqnodes": text.compress(asked.required_nodes), "schednodes": "(null)",
        "excnodes": "", "name": asked.name, "comment": job.comment or "(null)", "command": asked.command,
        "workdir": asked.work_dir, "stdout": job.output, "stderr": job.output, "batchhost": (job.nodes or ["n/a"])[0],
        "userid": str(config.uid), "groupname": config.group, "nice": str(asked.nice),
        "cpus-per-task": str(asked.cpus_per_task or "N/A"),
        "reasonlist": text.compress(job.nodes) if job.shares and state != "PENDING" else f"({job.reason})",
    }  # fmt: skip


SQUEUE_CODES = {
    "i": ("JOBID", "jobarrayid"), "A": ("JOBID", "jobid"), "F": ("ARRAY_JOB_ID", "arrayjobid"), "P": ("PARTITION", "partition"),
    "j": ("NAME", "name"), "u": ("USER", "username"), "t": ("ST", "statecompact"), "T": ("STATE", "state"),
    "M": ("TIME", "timeused"), "l": ("TIME_LIMIT", "timelimit"), "L": ("TIME_LEFT", "timeleft"), "D": ("NODES", "numnodes"),
    "R": ("NODELIST(REASON)", "reasonlist"), "N": ("NODELIST", "nodelist"), "r": ("REASON", "reason"), "Q": ("PRIORITY", "prioritylong"),
    "p": ("PRIORITY", "priority"), "E": ("DEPENDENCY", "dependency"), "C": ("CPUS", "numcpus"), "b": ("TRES_PER_NODE", "tres-per-node"),
    "a": ("ACCOUNT", "account"), "q": ("QOS", "qos"), "S": ("START_TIME", "starttime"), "e": ("END_TIME", "endtime"),
    "V": ("SUBMIT_TIME", "submittime"), "B": ("EXEC_HOST", "batchhost"), "o": ("COMMAND", "command"), "Z": ("WORK_DIR", "workdir"),
    "k": ("COMMENT", "comment"), "n": ("REQ_NODES", "reqnodes"), "x": ("EXC_NODES", "excnodes"), "v": ("RESERVATION", "reservation"),
    "f": ("FEATURES", "feature"), "y": ("NICE", "nice"), "U": ("UID", "userid"), "K": ("ARRAY_TASK_ID", "arraytaskid"),
}  # fmt: skip
"""What ``squeue -o`` calls the same."""


def of_start(ctl: Controller, job: Job, env: Mapping[str, str]) -> dict[str, str]:
    """One start of a job, for sacct."""
    config, asked = ctl.config, job.request
    cpus, mib, _, nodes = counts(config, job)
    by = f" by {job.cancelled_by}" if job.state == "CANCELLED" and job.cancelled_by is not None else ""
    ended_otherwise = job.state in {
        "CANCELLED",
        "TIMEOUT",
        "PREEMPTED",
        "NODE_FAIL",
        "REQUEUED",
        "PENDING",
        "RUNNING",
    }
    steps = [step.status for step in job.steps if step.step_id != "batch"]
    return {
        "jobid": job.shown_id, "jobidraw": str(job.job_id), "jobname": asked.name.replace('"', "`"), "state": job.state + by,
        "exitcode": "0:0" if ended_otherwise else accounted_pair(job.status),
        "derivedexitcode": accounted_pair(max(steps, key=lambda status: (status & 0x7F, status), default=0)),
        "partition": job.partition, "qos": asked.qos, "account": asked.account, "user": asked.user,
        "priority": str(0 if job.is_held else job.priority), "submit": text.moment(job.submit, env),
        "eligible": text.moment(job.eligible, env), "start": text.moment(job.start, env),
        "end": text.moment(None if job.state == "RUNNING" else job.end, env), "nnodes": str(nodes), "ncpus": str(cpus),
        "alloccpus": str(cpus), "reqtres": tres(config, job, asked=True), "reqmem": text.memory(mib),
        "alloctres": tres(config, job, asked=True) if job.shares else "",
        "timelimitraw": "" if job.limit_min is None else str(job.limit_min), "timelimit": limit(config, job),
        "constraints": "", "reservation": "", "nodelist": text.compress(job.nodes) or "None assigned",
        "reason": job.reason if job.state in {"PENDING", "CANCELLED"} else "None", "comment": job.comment,
        "elapsed": text.length(ran_s(job, ctl.clock())), "elapsedraw": str(int(ran_s(job, ctl.clock()))),
        "workdir": asked.work_dir, "cluster": "seatrial",
    }  # fmt: skip


def of_step(ctl: Controller, job: Job, step: Step, env: Mapping[str, str]) -> dict[str, str]:
    """One step, for sacct; what a step does not have is empty."""
    shares = [job.shares[node] for node in step.nodes]
    cpus = sum(share.cpus for share in shares)
    gpus = sum(len(share.gpus) for share in shares)
    parts = [f"cpu={cpus}", f"mem={text.memory(sum(s.memory_mib for s in shares))}", f"node={len(shares)}"]
    end = ctl.clock() if step.end is None else step.end
    return {
        "jobid": f"{job.shown_id}.{step.step_id}", "jobidraw": f"{job.job_id}.{step.step_id}", "jobname": step.name, "state": step.state, "account": job.request.account,
        "exitcode": accounted_pair(step.status), "start": text.moment(step.start, env), "end": text.moment(step.end, env),
        "nnodes": str(len(shares)), "ncpus": str(cpus), "alloccpus": str(cpus), "nodelist": text.compress(step.nodes),
        "alloctres": ",".join(sorted([*parts, *([f"gres/gpu={gpus}"] if gpus else [])])),
        "elapsed": text.length(end - step.start), "elapsedraw": str(int(end - step.start)), "cluster": "seatrial",
    }  # fmt: skip


def accounted_pair(status: int) -> str:
    """As the accounting of 22.05 writes an exit status: it takes codes over 128 for signals (143 is ``15:0``)."""
    code, number = status >> 8 & 0xFF, status & 0x7F
    return f"{code - 128 if code > 128 else code}:{number}"


def node_state(ctl: Controller, node: Node) -> str:
    """Base state with flags, as scontrol writes them: ``MIXED+DRAIN``."""
    free = schedule.free_now(ctl.config, [node], ctl.jobs.values())[node.name]
    config = ctl.config
    used = free.cpus < config.cpus or len(free.gpus) < config.gpus
    base = "DOWN" if node.is_down else ("MIXED" if free.cpus else "ALLOCATED") if used else "IDLE"
    return base + "+DRAIN" * node.is_drained + "+NOT_RESPONDING" * (not node.responds)


def node_word(ctl: Controller, node: Node) -> str:
    """The one word that sinfo has for it: ``draining``, ``down*``."""
    base, *flags = node_state(ctl, node).split("+")
    word = base.lower()
    if "DRAIN" in flags:
        word = "drained" if base in {"IDLE", "DOWN"} else "draining"
    return word + "*" * ("NOT_RESPONDING" in flags)


SHORT_WORDS = {"draining": "drng", "drained": "drain", "mixed": "mix", "allocated": "alloc"}
"""What ``sinfo -o %t`` makes of a word."""


def table(
    form: str, codes: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, str]], *, header: bool
) -> str:
    """Lines by a format of ``%8i`` (filled up and cut) and ``%.8i`` (to the right)."""

    def line(values: Mapping[str, str] | None) -> str:
        def one(match: re.Match[str]) -> str:
            right, width, code = match.groups()
            if code not in codes:
                return match[0]
            title, name = codes[code]
            return _fit(title if values is None else values[name], int(width or 0), bool(right))

        return re.sub(r"%(\.?)(\d*)([A-Za-z])", one, form)

    lines = [line(None)] if header else []
    return "".join(f"{row}\n" for row in [*lines, *map(line, rows)])


def columns(form: str, rows: Sequence[Mapping[str, str]], *, header: bool) -> tuple[str, list[str]]:
    """Lines by a format of ``name:20`` or ``name:<end>``, and the names that are not known."""
    parsed = []
    unknown = []
    for part in form.split(","):
        name, colon, rest = part.partition(":")
        match = re.match(r"(\.?)(\d*)", rest)
        assert match is not None
        end = rest[match.end() :]
        width = int(match[2]) if match[2] else 0 if colon and end else 20
        if rows and name.lower() not in rows[0]:
            unknown.append(name)
        parsed.append((name, width, bool(match[1]), end))
    lines: list[Mapping[str, str]] = [{}] if header else []
    out = ""
    for row in [*lines, *rows]:
        for name, width, right, end in parsed:
            value = row.get(name.lower(), "") if row else name.upper()
            out += _fit(value, width, right) + end
        out += "\n"
    return out, unknown


def _fit(value: str, width: int, right: bool) -> str:
    if not width:
        return value
    return value[:width].rjust(width) if right else value[:width].ljust(width)
