"""Starts batch scripts and steps, and writes what slurmstepd writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.testing.slurm import environment, text
from seatrial.testing.slurm.model import NOT_STARTED, Config, Job, Step, Task


def spool(config: Config, job: Job) -> Path:
    """The directory of what a job's nodes keep of it."""
    return Path(config.directory) / "spool" / f"job{job.job_id:05d}"


def output_of(job: Job) -> str:
    """The path of the job's output."""
    node = job.nodes[0] if job.nodes else ""
    name = text.file_name(job.request.output, _replacements(job, node))
    return str(Path(job.request.work_dir) / name)


def _replacements(job: Job, node: str) -> dict[str, str]:
    return {
        "j": str(job.job_id), "A": str(job.array_id or job.job_id),
        "a": "4294967294" if job.array_index is None else str(job.array_index), "x": job.request.name, "u": job.request.user,
        "N": node, "n": "0", "t": "0", "J": str(job.job_id),
    }  # fmt: skip


def batch(config: Config, job: Job, now: float) -> Step:
    """Starts a job's script in its first node; its step, which has ended already where that failed."""
    node = job.nodes[0]
    step = Step("batch", "batch", [node], now)
    task = Task(0, node, None, job.output)
    step.tasks.append(task)
    directory = spool(config, job)
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "slurm_script"
    script.write_text(job.request.script, encoding="utf-8", errors="surrogateescape")
    script.chmod(0o700)
    try:
        mode = os.O_APPEND if job.request.append else os.O_TRUNC
        os.close(os.open(job.output, os.O_WRONLY | os.O_CREAT | mode, 0o644))
    except OSError:
        task.status, step.end = NOT_STARTED, now
        return step
    argv = [str(script), *job.request.arguments]
    try:
        task.process = command.start(
            argv, log=Path(job.output), env=environment.of_batch(config, job), cwd=_entered(job.request.work_dir, job.output),
            new_session=True,
        )  # fmt: skip
    except PlatformError:
        interpreter = job.request.script.partition("\n")[0].removeprefix("#!").strip()
        stepd(job.output, f"execve(): bad interpreter({interpreter}): No such file or directory")
        task.status, step.end = 2 << 8, now
    return step


def tasks(
    config: Config,
    job: Job,
    step: Step,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    output: str | None,
) -> None:
    """Starts the tasks of a step; one that can't be started has ended with exit code 2."""
    for task in step.tasks:
        values = _replacements(job, task.node) | {
            "t": str(task.rank),
            "n": str(step.nodes.index(task.node)),
            "s": step.step_id,
        }
        given = None if output is None else str(Path(cwd) / text.file_name(output, values))
        task.log = given or str(spool(config, job) / f"{step.step_id}.{task.rank}.{job.restarts}.out")
        own = environment.of_task(config, job, step, task, dict(env), step.tasks)
        try:
            where = _entered(cwd, task.log)
            task.process = command.start(argv, log=Path(task.log), env=own, cwd=where, new_session=True)
        except OSError as error:
            task.log = str(spool(config, job) / f"{step.step_id}.{task.rank}.{job.restarts}.out")
            stepd(task.log, f"Could not open stdout file {given}: {error.strerror}")
            task.status = 1 << 8
        except PlatformError as error:
            words = error.evidence.rpartition("] ")[2].partition(":")[0]
            stepd(task.log, f"execve(): {argv[0]}: {words}")
            task.status = 2 << 8


def _entered(directory: str, log: str) -> Path:
    """The directory, or, like slurmstepd, another one where it can't be entered."""
    if os.access(directory, os.X_OK) and Path(directory).is_dir():
        return Path(directory)
    stepd(log, f"couldn't chdir to `{directory}': No such file or directory: going to /tmp instead")
    return Path("/tmp")


def stepd(log: str, words: str) -> None:
    """One line of slurmstepd's; nothing where the file can't be written."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return
    try:
        os.write(descriptor, f"slurmstepd: error: {words}\n".encode())
    finally:
        os.close(descriptor)


def tell_cancelled(job: Job, why: str, now: float, *, steps: bool = True, batch: bool = True) -> None:
    """Writes that job and steps were cancelled, and why, as the nodes that still answer do."""
    at = text.moment(now, {})
    due = f" DUE TO {why}" if why else ""
    for step in job.steps:
        first = step.tasks[0]
        if first.status is not None:
            continue
        if step.step_id != "batch" and steps:
            stepd(
                first.log, f"*** STEP {job.job_id}.{step.step_id} ON {first.node} CANCELLED AT {at}{due} ***"
            )
        elif step.step_id == "batch" and batch:
            stepd(job.output, f"*** JOB {job.job_id} ON {first.node} CANCELLED AT {at}{due} ***")
