"""What sbatch, squeue, scancel, sacct, sacctmgr and sinfo do. scontrol and srun have modules of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from seatrial.testing.slurm import fields, options, sbatch, schedule, text
from seatrial.testing.slurm.controller import Controller, found_by
from seatrial.testing.slurm.model import ENDED, VERSION, Job, Qos
from seatrial.testing.slurm.options import UsageError
from seatrial.testing.slurm.reply import Call, Reply

_UNKNOWN_JOB = "slurm_load_jobs error: Invalid job id specified\n"
JOB_ID = re.compile(r"\d+(_(\d+|\[[\d,%-]+\]))?")
_ACTIVE = {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING"}
_NO_ACCOUNTING = "Slurm accounting storage is disabled\n"
_NO_SACCTMGR = "You are not running a supported accounting_storage plugin\nOnly 'accounting_storage/slurmdbd' is supported.\n"


def run_sbatch(ctl: Controller, call: Call) -> Reply:
    """Submits, or with --test-only says when the job would start."""
    try:
        given, script, rest = sbatch.read(call.words, call.env, call.cwd, call.stdin)
    except sbatch.NeedsInput:
        return Reply(needs_input=True)
    if "version" in given:
        return version()
    asked = sbatch.request(ctl.config, given, script, rest, call.env, call.cwd)
    try:
        asked = sbatch.check(ctl.config, given, asked)
    except sbatch.Refused as error:
        trial = "test-only" in given
        if error.leaves_job and not trial:
            ctl.refuse(asked)
        # A trial tells what sbatch itself finds, and not what the controller adds to its refusal.
        tells = error.before and not (error.leaves_job and trial)
        before = f"sbatch: error: {error.before}\n" if tells else ""
        start = "allocation failure" if trial else "sbatch: error: Batch job submission failed"
        return Reply(err=f"{before}{start}: {error.words}\n", code=1)
    if "test-only" in given:
        return _test_only(ctl, call, Job(ctl.take_number(), asked, ctl.clock(), 0))
    held = "hold" in given
    number = ctl.submit_array(asked, held=held) if asked.array else ctl.submit(asked, held=held).job_id
    return Reply(f"{number}\n" if "parsable" in given else f"Submitted batch job {number}\n")


def _test_only(ctl: Controller, call: Call, job: Job) -> Reply:
    """By the time limits of the jobs that run; what waits is not looked at."""
    names = [node.name for node in ctl.nodes if not node.is_away]
    running = sorted((other for other in ctl.jobs.values() if other.holds_nodes), key=_ends_at)
    at = ctl.clock()
    while (
        found := schedule.place(ctl.config, job, names, schedule.free_now(ctl.config, ctl.nodes, running))
    ) is None and running:
        at = max(at, _ends_at(running.pop(0)))
    if found is None:
        return Reply(err="allocation failure: Requested nodes are not available\n", code=1)
    cpus = sum(share.cpus for share in found.values())
    start = text.moment(at, call.env)
    where = f"nodes {text.compress(found)} in partition {job.request.partitions[0]}"
    return Reply(err=f"sbatch: Job {job.job_id} to start at {start} using {cpus} processors on {where}\n")


def _ends_at(job: Job) -> float:
    return fields.end_of(job) or float(2**31)


def version() -> Reply:
    """Of every client."""
    return Reply(f"slurm-wlm {VERSION}\n")


def run_squeue(ctl: Controller, call: Call) -> Reply:
    """Lists jobs."""
    given, _ = options.parse("squeue", options.SQUEUE, call.words)
    if "version" in given:
        return version()
    jobs = sorted(ctl.jobs.values(), key=lambda job: (job.state != "PENDING", -job.priority, job.job_id))
    if given.get("jobs"):
        ids = given["jobs"].split(",")
        for word in ids:
            if not JOB_ID.fullmatch(word):
                return Reply(err=f"squeue: error: Invalid job id: {word}\n", code=1)
        found = [id(job) for word in ids for job in ctl.find(word)]
        jobs = [job for job in jobs if id(job) in found]
        if "steps" in given:
            return _running_steps(given, jobs)
        if not jobs:
            return Reply(err=_UNKNOWN_JOB, code=1)
    if "steps" in given:
        return _running_steps(given, jobs)
    states = given.get("states", "").upper()
    if states != "ALL":
        wanted = {_full_state(word) for word in states.split(",")} if states else _ACTIVE
        jobs = [job for job in jobs if job.shown_state in wanted]
    if "me" in given or given.get("user"):
        users = given.get("user", ctl.config.user).split(",")
        jobs = [job for job in jobs if job.request.user in users]
    if given.get("name"):
        jobs = [job for job in jobs if job.request.name in given["name"].split(",")]
    if given.get("partition"):
        wanted_partitions = set(given["partition"].split(","))
        jobs = [job for job in jobs if wanted_partitions & set(job.partition.split(","))]
    rows = [fields.of_job(ctl, job, call.env) for job in jobs]
    header = "noheader" not in given
    if "Format" in given:
        out, unknown = fields.columns(given["Format"], rows, header=header)
        return Reply(out, "".join(f"squeue: error: Invalid job format specification: {x}\n" for x in unknown))
    form = given.get("format") or "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
    return Reply(fields.table(form, fields.SQUEUE_CODES, rows, header=header))


def _running_steps(given: Mapping[str, str], jobs: Sequence[Job]) -> Reply:
    """``squeue -s``."""
    rows = [
        {"id": f"{job.shown_id}.{step.step_id}", "name": step.name, "nodes": text.compress(step.nodes)}
        for job in jobs
        if job.state == "RUNNING"
        for step in sorted(job.steps, key=lambda step: step.step_id)
        if step.is_running
    ]
    codes = {"i": ("STEPID", "id"), "j": ("NAME", "name"), "N": ("NODELIST", "nodes")}
    form = given.get("format") or "%.15i %.8j %N"
    return Reply(fields.table(form, codes, rows, header="noheader" not in given))


def _full_state(word: str) -> str:
    return next((full for full, short in fields.SHORT_STATES.items() if word == short), word)


def run_scancel(ctl: Controller, call: Call) -> Reply:
    """Ends or signals jobs and steps; one that is not known, or has ended, is passed over in silence."""
    given, words = options.parse("scancel", options.SCANCEL, call.words)
    if "version" in given:
        return version()
    filtered = {"user", "name", "partition", "state", "account", "qos"} & set(given)
    if not words and not filtered:
        return Reply(err="scancel: error: No job identification provided\n", code=1)
    number = None
    if "signal" in given:
        try:
            number = text.signal_number(given["signal"])
        except ValueError:
            return Reply(err=f"Unknown job signal: {given['signal']}\n", code=1)
    for word in words:
        if not JOB_ID.fullmatch(word.partition(".")[0]):
            return Reply(err=f"scancel: error: Invalid job id {word}\n", code=1)
    errors = ""
    chosen = words or [str(job.job_id) for job in ctl.jobs.values()]
    for word in chosen:
        head, _, step_id = word.partition(".")
        found = ctl.find(head) if words else [ctl.jobs[int(head)]]
        for job in found:
            if job.state not in ENDED and _fits(job, given):
                errors += _cancel(ctl, job, step_id, given, number, alone="_" in head)
    # What errno ESLURM_TRANSITION_STATE_NO_UPDATE leaves of itself in an exit code.
    return Reply(err=errors, code=228 if errors else 0)


def _fits(job: Job, given: Mapping[str, str]) -> bool:
    have = {
        "user": job.request.user, "name": job.request.name, "partition": job.partition, "account": job.request.account,
        "qos": job.request.qos, "state": job.shown_state,
    }  # fmt: skip
    return all(
        have[key] in given[key].upper().split(",") if key == "state" else have[key] in given[key].split(",")
        for key in have
        if key in given
    )


def _cancel(
    ctl: Controller, job: Job, step_id: str, given: Mapping[str, str], number: int | None, *, alone: bool
) -> str:
    if step_id:
        for step in job.steps:
            if step.step_id == step_id:
                ctl.end_step(step, number or 9)
        return ""
    batch, full = "batch" in given, "full" in given
    if number is None or (number == 9 and not batch):
        ctl.cancel(job, ctl.config.uid, alone=alone)
    elif job.state == "PENDING":
        return (
            f"scancel: error: Kill job error on job id {job.job_id}: "
            "Job can not be altered now, try again later\n"
        )
    else:
        ctl.signal(job, number, steps=not batch or full, batch=batch or full)
    return ""


def run_sacct(ctl: Controller, call: Call) -> Reply:
    """Lists the starts of jobs and their steps; the accounting here never trails behind."""
    if not ctl.config.accounting:
        return Reply(err=_NO_ACCOUNTING, code=1)
    given, _ = options.parse("sacct", options.SACCT, call.words)
    if "version" in given:
        return version()
    jobs = list(ctl.accounted.values())
    if "jobs" in given:
        ids = given["jobs"].split(",")
        jobs = [job for word in ids for job in found_by(word, ctl.accounted.values())]
    if "name" in given:
        jobs = [job for job in jobs if job.request.name in given["name"].split(",")]
    rows: list[dict[str, str]] = []
    for job in jobs:
        for start in [*(job.earlier if "duplicates" in given else []), job]:
            rows.append(fields.of_start(ctl, start, call.env))
            if "allocations" not in given:
                rows += [fields.of_step(ctl, start, step, call.env) for step in start.steps]
    wanted = given.get("format", "JobID,JobName,Partition,Account,AllocCPUS,State,ExitCode").split(",")
    names = [name.partition("%")[0] for name in wanted]
    known = fields.of_start(ctl, Job(0, sbatch.NOTHING, 0, 0), {})
    if unknown := [name for name in names if name.lower() not in known]:
        return Reply(err=f'sacct: error: Invalid field requested: "{unknown[0]}"\n', code=1)
    header = "noheader" not in given
    if "parsable" in given or "parsable2" in given:
        sep = given.get("delimiter", "|")
        after = sep if "parsable" in given else ""
        lines = [names] if header else []
        lines += [[row.get(name.lower(), "") for name in names] for row in rows]
        return Reply("".join(sep.join(line) + after + "\n" for line in lines))
    lines = [names, ["-" * 10 for _ in names]] if header else []
    lines += [[row.get(name.lower(), "") for name in names] for row in rows]
    return Reply("".join(" ".join(f"{value[:10]:>10}" for value in line) + " \n" for line in lines))


def run_sacctmgr(ctl: Controller, call: Call) -> Reply:
    """Shows associations and QOS."""
    if not ctl.config.accounting:
        return Reply(err=_NO_SACCTMGR, code=1)
    given, words = options.parse("sacctmgr", options.SACCTMGR, call.words)
    if "version" in given:
        return version()
    pairs = dict(word.lower().split("=", 1) for word in words if "=" in word)
    entity = next((word for word in words[1:] if "=" not in word and word != "where"), "")
    if words[:1] not in (["show"], ["list"]) or not entity.startswith(("assoc", "qos")):
        return Reply(err=f"sacctmgr: error: this pretend Slurm knows no {' '.join(words)}\n", code=1)
    names = pairs.get("format", "name").split(",")
    config = ctl.config
    if entity.startswith("qos"):
        rows = [_qos_row(qos) for qos in config.qos]
    elif pairs.get("user", config.user) != config.user:
        rows = []
    else:
        rows = [
            {
                "account": config.account, "user": config.user, "qos": ",".join(sorted(qos.name for qos in config.qos)),
                "defaultqos": config.qos[0].name, "cluster": "seatrial",
            }
        ]  # fmt: skip
    after = "" if "parsable2" in given else "|"
    lines = [[row.get(name, "") for name in names] for row in rows]
    if "noheader" not in given:
        lines.insert(0, names)
    return Reply("".join("|".join(line) + after + "\n" for line in lines))


def _qos_row(qos: Qos) -> dict[str, str]:
    return {
        "name": qos.name, "priority": str(qos.priority), "preempt": ",".join(qos.preempts),
        "preemptmode": qos.preempt_mode.lower(), "gracetime": text.length(qos.grace_s),
    }  # fmt: skip


def run_sinfo(ctl: Controller, call: Call) -> Reply:
    """Lists partitions with their nodes, or with -N each node, or with -R why nodes are away."""
    given, _ = options.parse("sinfo", options.SINFO, call.words)
    if "version" in given:
        return version()
    wanted = given["partition"].split(",") if given.get("partition") else None
    partitions = [p for p in ctl.config.partitions if wanted is None or p.name in wanted]
    if "list-reasons" in given:
        default = "%20E %9u %19H %N"
        pairs = [("", [node]) for node in ctl.nodes if node.reason]
    elif "Node" in given:
        default = "%N %.6D %.9P %6t"
        pairs = [(p.name, [node]) for node in ctl.nodes for p in partitions]
    else:
        default = "%9P %.5a %.10l %.6D %.6t %N"
        words = list(dict.fromkeys(fields.node_word(ctl, node) for node in ctl.nodes))
        pairs = [
            (p.name, [n for n in ctl.nodes if fields.node_word(ctl, n) == word])
            for p in partitions
            for word in words
        ]
    rows = [_sinfo_row(ctl, call, name, nodes) for name, nodes in pairs]
    form = given.get("format") or default
    return Reply(fields.table(form, _SINFO_CODES, rows, header="noheader" not in given))


def _sinfo_row(ctl: Controller, call: Call, partition: str, nodes: Sequence[object]) -> dict[str, str]:
    found = [node for node in ctl.nodes if node in nodes]
    word = fields.node_word(ctl, found[0])
    chosen = ctl.config.partition(partition)
    longest = chosen.max_time_min if chosen else None
    config = ctl.config
    return {
        "nodelist": text.compress(node.name for node in found), "count": str(len(found)), "state": word,
        "short": fields.SHORT_WORDS.get(word.rstrip("*"), word.rstrip("*")) + "*" * word.endswith("*"),
        "partition": partition + "*" * (chosen is not None and chosen.is_default), "available": "up",
        "reason": found[0].reason or "none", "user": found[0].reason_user or "Unknown",
        "at": text.moment(found[0].reason_at or None, call.env), "cpus": str(config.cpus),
        "gres": f"gpu:{config.gpu_type}:{config.gpus}" if config.gpus else "(null)", "memory": str(config.memory_mib),
        "limit": "infinite" if longest is None else text.length(longest * 60, short=True),
    }  # fmt: skip


_SINFO_CODES = {
    "N": ("NODELIST", "nodelist"), "D": ("NODES", "count"), "T": ("STATE", "state"), "t": ("STATE", "short"),
    "P": ("PARTITION", "partition"), "R": ("PARTITION", "partition"), "a": ("AVAIL", "available"), "l": ("TIMELIMIT", "limit"),
    "E": ("REASON", "reason"), "u": ("USER", "user"), "H": ("TIMESTAMP", "at"), "c": ("CPUS", "cpus"), "G": ("GRES", "gres"),
    "m": ("MEMORY", "memory"), "n": ("HOSTNAMES", "nodelist"),
}  # fmt: skip


def usage(error: UsageError) -> Reply:
    """What a client says that refuses its command line."""
    return Reply(err=error.text, code=error.code)
