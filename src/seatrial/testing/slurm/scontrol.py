"""What scontrol shows and changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from seatrial.testing.slurm import commands, fields, options, schedule, text
from seatrial.testing.slurm.controller import Controller
from seatrial.testing.slurm.model import VERSION, Job, Node, Partition
from seatrial.testing.slurm.reply import Call, Reply

_VALID_STATES = (
    "Valid states are: NoResp DRAIN FAIL FUTURE RESUME POWER_DOWN POWER_UP UNDRAIN\n"
    "Not all states are valid given a node's prior state\n"
)


def run_scontrol(ctl: Controller, call: Call) -> Reply:
    """One command of scontrol's."""
    given, words = options.parse("scontrol", options.SCONTROL, call.words)
    if "version" in given:
        return commands.version()
    verb, *rest = words or [""]
    if verb == "ping":
        return Reply(f"Slurmctld(primary) at {ctl.config.host} is UP\n")
    if verb == "show" and rest:
        return _show(ctl, call, rest, details="details" in given, one_line="oneliner" in given)
    if verb == "update":
        return _update(ctl, rest)
    if verb in _ON_JOBS and rest:
        ids = [word for part in rest for word in part.split(",")]
        errors = "".join(_on_job(ctl, verb, word) for word in ids)
        return Reply(err=errors, code=int(bool(errors)))
    return Reply(err=f"invalid keyword: {verb}\n", code=1)


# --- show ---------------------------------------------------------------------------------------------------------


def _show(ctl: Controller, call: Call, words: list[str], *, details: bool, one_line: bool) -> Reply:
    entity, which = words[0].rstrip("s"), words[1] if len(words) > 1 else ""
    if entity == "hostname":
        return Reply("".join(f"{name}\n" for name in text.expand(which)))
    if entity == "hostlist":
        return Reply(text.compress(which.split(",")) + "\n")
    if entity == "config":
        return Reply(_config(ctl))
    if entity.startswith("reservation"):
        return Reply("No reservations in the system\n")
    blocks: list[str]
    if entity == "job":
        jobs = list(ctl.jobs.values())
        if which and not commands.JOB_ID.fullmatch(which):
            return Reply(err="scontrol_print_job error: Invalid job id specified\n", code=1)
        if which:
            jobs = ctl.find(which)
        if which and not jobs:
            return Reply(err="slurm_load_jobs error: Invalid job id specified\n", code=1)
        blocks = [_job(ctl, job, call.env) for job in jobs]
        if not blocks:
            return Reply("No jobs in the system\n")
    elif entity == "node":
        names = text.expand(which) if which else [node.name for node in ctl.nodes]
        if unknown := [name for name in names if _node_named(ctl, name) is None]:
            return Reply(err=f"Node {unknown[0]} not found\n", code=1)
        blocks = [_node(ctl, node, call.env, details) for node in ctl.nodes if node.name in names]
    elif entity == "partition":
        partitions = [p for p in ctl.config.partitions if which in {"", p.name}]
        if not partitions:
            return Reply(err=f"Partition {which} not found\n", code=1)
        blocks = [_partition(ctl, partition) for partition in partitions]
    else:
        return Reply(err=f"invalid entity:{words[0]} for keyword:show \n", code=1)
    if one_line:
        return Reply("".join(" ".join(block.split()) + "\n" for block in blocks))
    return Reply("".join(block + "\n\n" for block in blocks))


def _node_named(ctl: Controller, name: str) -> Node | None:
    return next((node for node in ctl.nodes if node.name == name), None)


def _job(ctl: Controller, job: Job, env: Mapping[str, str]) -> str:
    config, asked = ctl.config, job.request
    shown = fields.of_job(ctl, job, env)
    cpus, _, _, nodes = fields.counts(config, job)
    at: Callable[[float | None], str] = lambda when: text.moment(when, env)  # noqa: E731 - a column of times
    waits = job.state == "PENDING"
    limit = "UNLIMITED" if job.limit_min is None else text.length(job.limit_min * 60)
    per_node = asked.memory_per_node_mib is not None
    per_cpu_mib = asked.memory_per_cpu_mib or config.memory_per_cpu_mib
    memory = text.memory(schedule.demand(config, job, 0)[1] if per_node else per_cpu_mib)
    lines = [
        f"JobId={job.job_id} {_array(job)}JobName={asked.name}",
        f"UserId={asked.user}({config.uid}) GroupId={config.group}({config.gid}) MCS_label=N/A",
        f"Priority={shown['prioritylong']} Nice={asked.nice} Account={shown['account']} QOS={shown['qos']}",
        f"JobState={job.shown_state} Reason={job.reason.replace(' ', '_')} Dependency={shown['dependency']}",
        f"Requeue={int(asked.requeue)} Restarts={job.restarts} BatchFlag=1 Reboot=0 ExitCode={text.pair(job.status)}",
        f"RunTime={text.length(fields.ran_s(job, ctl.clock()))} TimeLimit={limit} TimeMin=N/A",
        f"SubmitTime={at(job.submit)} EligibleTime={at(None if job.is_held else job.eligible)}",
        f"AccrueTime={at(None if job.is_held else job.eligible)}",
        f"StartTime={at(fields.start_of(job))} EndTime={at(fields.end_of(job))} Deadline=N/A",
        *([] if waits else [f"PreemptEligibleTime={at(job.start)} PreemptTime={text.moment(job.preempted_at, env, 'None')}"]),
        f"SuspendTime=None SecsPreSuspend=0 LastSchedEval={at(job.start or job.submit)} Scheduler=Main",
        f"Partition={job.partition} AllocNode:Sid={config.host}:1",
        f"ReqNodeList={text.compress(asked.required_nodes) or '(null)'} ExcNodeList={text.compress(asked.excluded_nodes) or '(null)'}",
        f"NodeList={text.compress(job.nodes)}",
        *([f"BatchHost={job.nodes[0]}"] if job.nodes else []),
        f"NumNodes={f'{nodes}-{nodes}' if waits else nodes} NumCPUs={cpus} NumTasks={asked.tasks} "
        f"CPUs/Task={asked.cpus_a_task} ReqB:S:C:T=0:0:*:*",
        f"TRES={fields.tres(config, job)}",
        f"Socks/Node=* NtasksPerN:B:S:C={asked.tasks_per_node or 0}:0:*:* CoreSpec=*",
        f"MinCPUsNode={asked.cpus_a_task} MinMemory{'Node' if per_node else 'CPU'}={memory} MinTmpDiskNode=0",
        "Features=(null) DelayBoot=00:00:00",
        f"OverSubscribe={'NO' if asked.exclusive else 'OK'} Contiguous={int(asked.contiguous)} Licenses=(null) Network=(null)",
        f"Command={asked.command}",
        f"WorkDir={asked.work_dir}",
        *([f"Comment={job.comment} "] if job.comment else []),
        f"StdErr={job.output}",
        "StdIn=/dev/null",
        f"StdOut={job.output}",
        "Power=",
        *([f"TresPerJob={shown['tres-per-job']}"] if asked.gpus else []),
        *([f"TresPerNode={shown['tres-per-node']}"] if asked.gpus_per_node else []),
    ]  # fmt: skip
    return "\n   ".join(lines)


def _array(job: Job) -> str:
    if job.array_id is None:
        return ""
    throttle = f"ArrayTaskThrottle={job.request.throttle} " if job.request.throttle else ""
    return f"ArrayJobId={job.array_id} ArrayTaskId={job.array_index} {throttle}"


def _node(ctl: Controller, node: Node, env: Mapping[str, str], details: bool) -> str:
    config = ctl.config
    free = schedule.free_now(config, [node], ctl.jobs.values())[node.name]
    cpus, memory = config.cpus - free.cpus, config.memory_mib - free.memory_mib
    taken = [gpu for gpu in range(config.gpus) if gpu not in free.gpus]
    gres = f"gpu:{config.gpu_type}"
    all_gres = f",gres/gpu={config.gpus}" if config.gpus and config.accounting else ""
    used_gres = f",gres/gpu={len(taken)}" if taken and config.accounting else ""
    by = f" [{node.reason_user}@{text.moment(node.reason_at, env)}]"
    lines = [
        f"NodeName={node.name} Arch=x86_64 CoresPerSocket=1 ",
        f"CPUAlloc={cpus} CPUEfctv={config.cpus} CPUTot={config.cpus} CPULoad=0.00",
        "AvailableFeatures=(null)",
        "ActiveFeatures=(null)",
        f"Gres={f'{gres}:{config.gpus}' if config.gpus else '(null)'}",
        *(["GresDrain=N/A", f"GresUsed={gres}:{len(taken)}(IDX:{text.ranges(taken) or 'N/A'})"] if details and config.gpus else []),
        f"NodeAddr=127.0.0.1 NodeHostName={config.host} Port=6818 Version={VERSION}",
        "OS=Linux ",
        f"RealMemory={config.memory_mib} AllocMem={memory} FreeMem={config.memory_mib} Sockets={config.cpus} Boards=1",
        f"State={fields.node_state(ctl, node)} ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A",
        f"Partitions={','.join(partition.name for partition in config.partitions)} ",
        f"CfgTRES=cpu={config.cpus},mem={text.memory(config.memory_mib)},billing={config.cpus}{all_gres}",
        f"AllocTRES={f'cpu={cpus},mem={text.memory(memory)}{used_gres}' if cpus else ''}",
        *([f"Reason={node.reason}{by}"] if node.reason else []),
    ]  # fmt: skip
    return "\n   ".join(lines)


def _partition(ctl: Controller, partition: Partition) -> str:
    config = ctl.config
    longest = partition.max_time_min
    nodes = text.compress(node.name for node in ctl.nodes)
    cpus, memory = config.cpus * config.nodes, text.memory(config.memory_mib * config.nodes)
    lines = [
        f"PartitionName={partition.name}",
        "AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL",
        f"AllocNodes=ALL Default={'YES' if partition.is_default else 'NO'} QoS=N/A",
        f"DefaultTime={text.length(partition.default_time_min * 60)} DisableRootJobs=NO ExclusiveUser=NO "
        f"GraceTime={int(partition.grace_s)} Hidden=NO",
        f"MaxNodes={partition.max_nodes or 'UNLIMITED'} MaxTime={'UNLIMITED' if longest is None else text.length(longest * 60)} "
        "MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED",
        f"Nodes={nodes}",
        f"PriorityJobFactor=1 PriorityTier={partition.tier} RootOnly=NO ReqResv=NO OverSubscribe=NO",
        f"OverTimeLimit=NONE PreemptMode={partition.preempt_mode}",
        f"State=UP TotalCPUs={cpus} TotalNodes={config.nodes} SelectTypeParameters=NONE",
        "JobDefaults=(null)",
        f"DefMemPerCPU={config.memory_per_cpu_mib} MaxMemPerNode=UNLIMITED",
        f"TRES=cpu={cpus},mem={memory},node={config.nodes},billing={cpus}",
    ]
    return "\n   ".join(lines)


def _config(ctl: Controller) -> str:
    config = ctl.config
    values = {
        "AccountingStorageEnforce": "associations,limits,qos" if config.accounting else "none",
        "AccountingStorageTRES": "cpu,mem,energy,node,billing,fs/disk,vmem,pages"
        + ",gres/gpu" * config.accounting,
        "AccountingStorageType": f"accounting_storage/{'slurmdbd' if config.accounting else 'none'}",
        "ClusterName": "seatrial",
        "DefMemPerCPU": str(config.memory_per_cpu_mib),
        "EnforcePartLimits": "ALL",
        "GresTypes": "gpu" if config.gpus else "(null)",
        "JobRequeue": str(int(config.job_requeue)),
        "KillOnBadExit": "0",
        "KillWait": f"{config.kill_wait_s:g} sec",
        "MinJobAge": f"{config.min_job_age_s:g} sec",
        "PreemptMode": "REQUEUE",
        "PreemptType": "preempt/qos" if config.accounting else "preempt/partition_prio",
        "PriorityType": "priority/multifactor",
        "ProctrackType": "proctrack/cgroup",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_MEMORY",
        "SlurmctldHost[0]": f"{config.host}(127.0.0.1)",
        "SlurmctldParameters": "(null)",
        "SLURM_CONF": f"{config.directory}/slurm.conf",
        "SLURM_VERSION": VERSION,
    }
    lines = [f"{key:<23} = {value}\n" for key, value in values.items()]
    return f"Configuration data as of {int(ctl.clock())}\n" + "".join(lines)


# --- change -------------------------------------------------------------------------------------------------------


def _on_job(ctl: Controller, verb: str, word: str) -> str:
    found = ctl.find(word)
    if not found:
        return f"Invalid job id specified for job {word}\n"
    return "".join(_ON_JOBS[verb](ctl, job) for job in found)


def _requeue(ctl: Controller, job: Job, *, hold: bool = False) -> str:
    if job.state == "PENDING":
        return f"Job is pending execution for job {job.job_id}\n"
    if not job.request.requeue:
        return f"Requested operation is presently disabled for job {job.job_id}\n"
    ctl.requeue(job, hold=hold)
    return ""


def _requeue_hold(ctl: Controller, job: Job) -> str:
    return _requeue(ctl, job, hold=True)


def _hold(ctl: Controller, job: Job) -> str:
    if job.state == "PENDING":
        job.is_held = job.held_by_admin = True
    return ""


def _release(ctl: Controller, job: Job) -> str:
    if job.state == "PENDING":
        job.is_held = job.held_by_admin = False
        job.reason = "None"
    return ""


_ON_JOBS: Mapping[str, Callable[[Controller, Job], str]] = {
    "requeue": _requeue, "requeuehold": _requeue_hold, "hold": _hold, "uhold": _hold, "release": _release,
}  # fmt: skip


def _update(ctl: Controller, words: Sequence[str]) -> Reply:
    pairs = {key.lower(): value for word in words for key, _, value in [word.partition("=")]}
    if "jobid" in pairs:
        return _update_job(ctl, pairs)
    if "nodename" in pairs:
        return _update_node(ctl, pairs)
    return Reply(err="No valid entity in update command\n", code=1)


def _update_job(ctl: Controller, pairs: Mapping[str, str]) -> Reply:
    found = ctl.find(pairs["jobid"])
    if not found:
        return Reply(err=f"Invalid job id specified for job {pairs['jobid']}\n", code=1)
    errors = "".join(_change(ctl, job, pairs) for job in found)
    return Reply(err=errors, code=int(bool(errors)))


def _change(ctl: Controller, job: Job, pairs: Mapping[str, str]) -> str:
    job.is_apart = True
    for key, value in pairs.items():
        if key == "timelimit":
            try:
                job.limit_min = text.minutes(value)
            except ValueError:
                return "scontrol: error: Invalid TimeLimit value\n"
            if job.start is not None and job.state == "RUNNING":
                minutes = job.limit_min
                job.limit_at = None if minutes is None else job.start + minutes * ctl.config.minute_s
        elif key == "starttime" and value == "now":
            job.eligible = ctl.clock()
        elif key == "comment":
            job.comment = value
        elif key != "jobid":
            return f"Update of this parameter is not supported: {key}={value}\nRequest aborted\n"
    return ""


def _update_node(ctl: Controller, pairs: Mapping[str, str]) -> Reply:
    names = text.expand(pairs["nodename"])
    nodes = [node for node in ctl.nodes if node.name in names]
    if len(nodes) < len(names):
        return Reply(err="slurm_update error: Invalid node name specified\n", code=1)
    state, reason = pairs.get("state", "").upper(), pairs.get("reason", "")
    if state in {"DRAIN", "DOWN", "FAIL"} and not reason:
        return Reply(
            err="You must specify a reason when DOWNING or DRAINING a node. Request denied\n", code=1
        )
    if state not in {"DRAIN", "DOWN", "RESUME", "UNDRAIN"}:
        return Reply(err=f"Invalid input: State={state}\nRequest aborted\n{_VALID_STATES}", code=1)
    for node in nodes:
        if state in {"DRAIN", "DOWN"}:
            ctl.drain(node, reason) if state == "DRAIN" else ctl.down(node, reason)
        elif not node.is_away:
            return Reply(err="slurm_update error: Invalid node state specified\n", code=1)
        else:
            ctl.resume(node)
    return Reply()
