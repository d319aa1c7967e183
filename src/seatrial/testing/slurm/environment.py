"""The variables that Slurm gives to a batch script and to the tasks of a step. Pure."""

from __future__ import annotations

from seatrial.testing.slurm import text
from seatrial.testing.slurm.model import Config, Job, Step, Task


def of_job(config: Config, job: Job) -> dict[str, str]:
    """What script and tasks have in common."""
    asked, nodes = job.request, job.nodes
    shares = list(job.shares.values())
    tasks = [asked.tasks_of(index) for index in range(len(nodes))]
    found = {
        "SLURM_CLUSTER_NAME": "seatrial",
        "SLURM_JOB_ID": str(job.job_id),
        "SLURM_JOBID": str(job.job_id),
        "SLURM_JOB_NAME": asked.name,
        "SLURM_JOB_USER": config.user,
        "SLURM_JOB_UID": str(config.uid),
        "SLURM_JOB_GID": str(config.gid),
        "SLURM_JOB_PARTITION": job.partition,
        "SLURM_JOB_NODELIST": text.compress(nodes),
        "SLURM_NODELIST": text.compress(nodes),
        "SLURM_JOB_NUM_NODES": str(len(nodes)),
        "SLURM_NNODES": str(len(nodes)),
        "SLURM_JOB_CPUS_PER_NODE": text.repeated([share.cpus for share in shares]),
        "SLURM_TASKS_PER_NODE": text.repeated(tasks),
        "SLURM_SUBMIT_DIR": asked.submit_dir,
        "SLURM_SUBMIT_HOST": config.host,
        "SLURM_NODE_ALIASES": "(null)",
        "SLURM_PRIO_PROCESS": "0",
    }
    if config.accounting:
        found |= {"SLURM_JOB_ACCOUNT": asked.account, "SLURM_JOB_QOS": asked.qos}
    if asked.told_tasks or asked.tasks_per_node:
        found |= {"SLURM_NTASKS": str(asked.tasks), "SLURM_NPROCS": str(asked.tasks)}
    if asked.tasks_per_node:
        found["SLURM_NTASKS_PER_NODE"] = str(asked.tasks_per_node)
    if asked.cpus_per_task:
        found["SLURM_CPUS_PER_TASK"] = str(asked.cpus_per_task)
    if asked.memory_per_node_mib is not None:
        found["SLURM_MEM_PER_NODE"] = str(shares[0].memory_mib)
    else:
        found["SLURM_MEM_PER_CPU"] = str(asked.memory_per_cpu_mib or config.memory_per_cpu_mib)
    if asked.gpus:
        found["SLURM_GPUS"] = asked.gres_words
    elif asked.gpus_per_node:
        found["SLURM_GPUS_PER_NODE"] = asked.gres_words
    if asked.array:
        found |= {
            "SLURM_ARRAY_JOB_ID": str(job.array_id), "SLURM_ARRAY_TASK_ID": str(job.array_index),
            "SLURM_ARRAY_TASK_COUNT": str(len(asked.array)), "SLURM_ARRAY_TASK_MIN": str(min(asked.array)),
            "SLURM_ARRAY_TASK_MAX": str(max(asked.array)), "SLURM_ARRAY_TASK_STEP": "1",
        }  # fmt: skip
    if job.restarts:
        found["SLURM_RESTART_COUNT"] = str(job.restarts)
    return found


def of_node(job: Job, node: str) -> dict[str, str]:
    """What differs between the nodes of a job."""
    share = job.shares[node]
    found = {"SLURMD_NODENAME": node, "SLURM_CPUS_ON_NODE": str(share.cpus), "SLURM_TOPOLOGY_ADDR": node,
             "SLURM_TOPOLOGY_ADDR_PATTERN": "node"}  # fmt: skip
    if share.gpus:
        gpus = ",".join(map(str, share.gpus))
        found |= {"SLURM_JOB_GPUS": gpus, "SLURM_GPUS_ON_NODE": str(len(share.gpus)), "CUDA_VISIBLE_DEVICES": gpus,
                  "GPU_DEVICE_ORDINAL": gpus, "ROCR_VISIBLE_DEVICES": gpus}  # fmt: skip
    return found


def of_batch(config: Config, job: Job) -> dict[str, str]:
    """The whole environment of a job's script."""
    node = job.nodes[0]
    # The submitter's own are those of the job that it runs in, if any.
    kept = {name: value for name, value in job.request.env.items() if not name.startswith("SLURM_")}
    if "SLURM_CONF" in job.request.env:
        kept["SLURM_CONF"] = job.request.env["SLURM_CONF"]
    own = {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0", "ENVIRONMENT": "BATCH",
           "HOSTNAME": config.host}  # fmt: skip
    return kept | of_job(config, job) | of_node(job, node) | own


def of_task(
    config: Config, job: Job, step: Step, task: Task, base: dict[str, str], tasks: list[Task]
) -> dict[str, str]:
    """The whole environment of a task.

    Args:
        config: the cluster's.
        job: whose allocation it is.
        step: which it is part of.
        task: itself.
        base: the environment of srun.
        tasks: all of the step, in the order of their ranks.
    """
    here = [other for other in tasks if other.node == task.node]
    counts = text.repeated([sum(other.node == node for other in tasks) for node in step.nodes])
    own = {
        "SLURM_STEP_ID": step.step_id,
        "SLURM_STEPID": step.step_id,
        "SLURM_STEP_NODELIST": text.compress(step.nodes),
        "SLURM_STEP_NUM_NODES": str(len(step.nodes)),
        "SLURM_STEP_NUM_TASKS": str(len(tasks)),
        "SLURM_STEP_TASKS_PER_NODE": counts,
        "SLURM_TASKS_PER_NODE": counts,
        "SLURM_NNODES": str(len(step.nodes)),
        "SLURM_NTASKS": str(len(tasks)),
        "SLURM_NPROCS": str(len(tasks)),
        "SLURM_PROCID": str(task.rank),
        "SLURM_LOCALID": str(here.index(task)),
        "SLURM_NODEID": str(step.nodes.index(task.node)),
        "SLURM_GTIDS": ",".join(str(other.rank) for other in here),
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "SLURM_UMASK": "0022",
    }
    gpus = of_node(job, task.node).get("SLURM_JOB_GPUS")
    if gpus:
        own["SLURM_STEP_GPUS"] = gpus
    return (
        {name: value for name, value in base.items() if name != "ENVIRONMENT"} | of_node(job, task.node) | own
    )
