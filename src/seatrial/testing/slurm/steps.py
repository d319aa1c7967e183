"""srun's side in the controller: a step is made, followed, and told of when it ends."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial.testing.slurm import commands, launch, options, text
from seatrial.testing.slurm.controller import NODE_FAILURE, Controller
from seatrial.testing.slurm.model import Job, Step, Task
from seatrial.testing.slurm.reply import Call, Reply

KILL_ONLY = "srun: Job step aborted: Waiting up to {} seconds for job step to finish.\n"


@dataclass
class Followed:
    """A step that an srun waits for."""

    job: Job
    step: Step
    told: set[str] = field(default_factory=set)

    def news(self, ctl: Controller) -> str:
        """What srun prints now, once each."""
        found = []
        if self.step.is_cancelled and self.step.is_running:
            found.append(KILL_ONLY.format(int(ctl.config.kill_wait_s) + 2))
        ending = self.job.ending
        if ending is not None and ending.why == NODE_FAILURE:
            gone = [node.name for node in ctl.nodes if node.name in self.step.nodes and node.is_down]
            found += [f"srun: error: Node failure on {name}\n" for name in gone]
        new = [line for line in found if line not in self.told]
        self.told.update(new)
        return "".join(new)

    def summary(self) -> str:
        """What srun says of tasks that went wrong, by node."""
        by_end: dict[tuple[str, int], list[int]] = {}
        for task in self.step.tasks:
            if task.status:
                by_end.setdefault((task.node, task.status), []).append(task.rank)
        return "".join(
            f"srun: error: {node}: task{'s' if len(ranks) > 1 else ''} {text.ranges(ranks)}: {_how(status)}\n"
            for (node, status), ranks in by_end.items()
        )

    def code(self) -> int:
        """srun's own exit code."""
        ends = [task.status or 0 for task in self.step.tasks]
        return max((128 + (end & 0x7F) if end & 0x7F else end >> 8 for end in ends), default=0)


def _how(status: int) -> str:
    number = status & 0x7F
    return (
        (signal.strsignal(number) or f"signal {number}") if number else f"Exited with exit code {status >> 8}"
    )


def begin(ctl: Controller, call: Call) -> Reply | Followed:
    """Makes the step that an srun asks for, and starts its tasks."""
    given, argv = options.parse("srun", options.SRUN, call.words, stops=True, code=255)
    if "version" in given:
        return commands.version()
    if not argv:
        return _refused("No command given to execute.")
    number = call.env.get("SLURM_JOB_ID", "")
    if not number.isdigit():
        return _refused("this pretend Slurm runs steps of batch jobs only")
    job = ctl.jobs.get(int(number))
    if job is None or job.state != "RUNNING" or job.ending is not None:
        return Reply(
            err=f"srun: error: Slurm job {number} has expired\n"
            f"srun: Check SLURM_JOB_ID environment variable. Expired or invalid job {number}\n",
            code=1,
        )
    try:
        layout = _layout(ctl, job, given, call.env)
    except ValueError as error:
        return _refused(str(error))
    name = given.get("job-name") or Path(argv[0]).name
    step = Step(str(job.next_step), name, list(dict.fromkeys(layout)), ctl.clock())
    step.tasks = [Task(rank, node, None, "") for rank, node in enumerate(layout)]
    step.label = "label" in given
    bad_exit = given.get("kill-on-bad-exit")
    step.kill_bad_exit = bad_exit is not None and bad_exit != "0"
    step.wait_s = float(given.get("wait") or 0)
    job.next_step += 1
    job.steps.append(step)
    exported = given.get("export", "ALL").split(",")
    env = (
        dict(call.env)
        if "ALL" in exported
        else {k: v for k, v in call.env.items() if k.startswith("SLURM_") or k == "PATH"}
    )
    env |= {key: value for word in exported for key, equals, value in [word.partition("=")] if equals}
    if given.get("cpus-per-task"):
        env["SLURM_CPUS_PER_TASK"] = given["cpus-per-task"]
    cwd = str(Path(call.cwd) / given.get("chdir", ""))
    launch.tasks(ctl.config, job, step, argv, env, cwd, given.get("output"))
    return Followed(job, step)


def _layout(ctl: Controller, job: Job, given: Mapping[str, str], env: Mapping[str, str]) -> list[str]:
    """The node of each task, by rank.

    Raises:
        ValueError: the allocation has no room for it; the text is what srun says.
    """
    named = text.expand(given.get("nodelist", ""))
    excluded = text.expand(given.get("exclude", ""))
    has = [node for node in job.nodes if node not in excluded]
    if not set(named) <= set(job.nodes):
        raise ValueError(
            f"Unable to create step for job {job.job_id}: Requested node configuration is not available"
        )
    tasks = _number(given, "ntasks", env.get("SLURM_NTASKS"))
    told_nodes = _number(given, "nodes", str(len(named)) if named else None)
    nodes = told_nodes or len(has)
    if tasks is not None and nodes > tasks:
        nodes = tasks
    if nodes > len(has):
        raise ValueError(f"Only allocated {len(has)} nodes asked for {nodes}")
    per_node = _number(given, "ntasks-per-node", None)
    if tasks is None:
        tasks = nodes * (per_node or 1)
    chosen = [*named, *(node for node in has if node not in named)][:nodes]
    chosen.sort(key=job.nodes.index)
    counts = [tasks // len(chosen) + (index < tasks % len(chosen)) for index in range(len(chosen))]
    cpus = _number(given, "cpus-per-task", env.get("SRUN_CPUS_PER_TASK")) or 1
    overcommits = "overcommit" in given
    for node, count in zip(chosen, counts, strict=True):
        if count * cpus > job.shares[node].cpus and not overcommits:
            raise ValueError(
                f"Unable to create step for job {job.job_id}: More processors requested than permitted"
            )
    return [node for node, count in zip(chosen, counts, strict=True) for _ in range(count)]


def _number(given: Mapping[str, str], name: str, default: str | None) -> int | None:
    value = given.get(name, default)
    return int(value.partition("-")[0]) if value and value.partition("-")[0].isdigit() else None


def _refused(words: str) -> Reply:
    return Reply(err=f"srun: error: {words}\n", code=1)


def described(followed: Followed) -> dict[str, Any]:
    """What the client needs, so that it can show the tasks' output."""
    step = followed.step
    spooled = [task for task in step.tasks if "/spool/" in task.log]
    return {
        "step": f"{followed.job.job_id}.{step.step_id}",
        "label": step.label,
        "logs": [[task.rank, task.log] for task in spooled],
        "tasks": len(step.tasks),
    }


def order(ctl: Controller, name: str, number: int) -> None:
    """An srun asks for its step to be ended (KILL) or signalled."""
    head, _, step_id = name.partition(".")
    job = ctl.jobs.get(int(head))
    for step in [] if job is None else job.steps:
        if step.step_id == step_id:
            if number == signal.SIGKILL:
                if job is not None and step.is_running:
                    at = text.moment(ctl.clock(), {})
                    launch.stepd(
                        step.tasks[0].log, f"*** STEP {name} ON {step.nodes[0]} CANCELLED AT {at} ***"
                    )
                ctl.end_step(step, number)
            else:
                ctl.signal_step(step, number)
