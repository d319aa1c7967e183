"""A plan as the batch script that Slurm gets: directives, then the supervisor in the shell's place. Pure.

How sbatch reads a directive was tried on 22.05: quotes group, a backslash takes the next character as it is, ``#`` ends
the line outside quotes. In ``--output``, ``%`` starts a replacement and ``%%`` is the sign itself; a backslash turns
replacements off and is dropped, so that a path with one can't be written there.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from seatrial.errors import SpecError
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.slurm import SlurmSpec

COMMENT = "seatrial"
"""Comment of every job of ours: what to find them by in the queue."""
SAVING_S = 60
"""Slurm's warning comes so long before the ranks would stop by themselves, and up to a minute earlier (``sbatch --signal``)."""
_LONGEST_WARNING_S = 65535
_UNQUOTED = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_STALE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
          "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "SEATRIAL_DEADLINE")  # fmt: skip
_START_MODULES = ("/etc/profile.d/modules.sh", "/etc/profile.d/lmod.sh", "/etc/profile.d/z00_lmod.sh")


def render(plan: LaunchPlan, slurm: SlurmSpec, *, pythonpath: str | None = None, gres: bool = False) -> str:
    """The batch script of an attempt; equal arguments give equal text.

    Args:
        plan: the attempt's.
        slurm: the recipe's section.
        pythonpath: ``PYTHONPATH`` of who submits, where it is set.
        gres: ask for GPUs by ``--gres``, for clusters that don't know ``--gpus-per-node``.

    Raises:
        SpecError: a path that a directive can't have, or a time limit shorter than the warning before its end.
    """
    directives = _directives(
        plan, slurm, gres, name=plan.run_id, output=_output(plan.run_dir, "slurm-%j.out")
    )
    title = f"Run {plan.run_id}, attempt {plan.attempt}: seatrial runs show {plan.run_id}"
    return _script(plan, slurm, title, directives, [], shlex.quote(str(plan.run_dir)), pythonpath)


def render_array(
    plans: Sequence[LaunchPlan],
    slurm: SlurmSpec,
    *,
    name: str,
    directory: Path,
    pythonpath: str | None = None,
    gres: bool = False,
) -> str:
    """The batch script of several first attempts, one element of an array each; equal arguments give equal text.

    Args:
        plans: of the runs, in the order of the elements.
        slurm: the recipes' section.
        name: of the array, which is the name of each of its jobs.
        directory: where their outputs go: an element has no run's directory before it starts.
        pythonpath: as for `render`.
        gres: as for `render`.

    Raises:
        SpecError: as for `render`; or the plans are not alike.
    """
    first = plans[0]
    _check_alike(plans)
    throttle = f"%{slurm.max_running}" if slurm.max_running else ""
    given = _directives(first, slurm, gres, name=name, output=_output(directory, "slurm-%A_%a.out"))
    directives = [f"--array=0-{len(plans) - 1}{throttle}", *given]
    title = f"{name}, {len(plans)} runs: seatrial runs compare --tag {name}"
    runs = [
        "# One element of the array a run, in this order.",
        "runs=(",
        *(f"    {shlex.quote(_plain(str(plan.run_dir), 'the path of a run directory'))}" for plan in plans),
        ")",
    ]
    return _script(first, slurm, title, directives, runs, '"${runs[$SLURM_ARRAY_TASK_ID]}"', pythonpath)


def _check_alike(plans: Sequence[LaunchPlan]) -> None:
    """One request is for all jobs of an array, so what they ask for has to be the same."""
    own = {"run_id", "run_dir", "stages", "afterwards"}
    first = plans[0].to_dict()
    differ = {key for plan in plans for key, value in plan.to_dict().items() if value != first[key]} - own
    if differ:
        raise SpecError(
            "these runs can't be jobs of one array",
            evidence=f"they differ in {', '.join(sorted(differ))}, which one request has to say for all",
            remedy="sweep over it in several commands",
        )


def _script(
    plan: LaunchPlan,
    slurm: SlurmSpec,
    title: str,
    directives: Iterable[str],
    setting: Sequence[str],
    run_dir: str,
    pythonpath: str | None,
) -> str:
    """The text of a batch script.

    Args:
        plan: what it is for, or the first of those.
        slurm: the recipe's section.
        title: its second line, as a comment.
        directives: what ``sbatch`` is told.
        setting: lines that set what `run_dir` uses.
        run_dir: an expression of the shell.
        pythonpath: as for `render`.
    """
    lines = [
        "#!/bin/bash",
        f"# {title}",
        *(f"#SBATCH {directive}" for directive in directives),
        "",
        *_modules(slurm.modules),
        "set -u",
        "# What an outer job or launcher has left would reach the ranks.",
        f"unset {' '.join(_STALE)} \\",
        "    ${!PET_@} ${!TORCHELASTIC_@}",
        "# srun doesn't take over what sbatch was told: the CPUs, since 22.05; the environment, where sites submit without.",
        "export SLURM_EXPORT_ENV=ALL",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"' if _cpus(plan, slurm) else "unset SRUN_CPUS_PER_TASK",
        *([f"export PYTHONPATH={shlex.quote(_plain(pythonpath, 'PYTHONPATH'))}"] if pythonpath else []),
        "",
        *setting,
        f"python={shlex.quote(_plain(plan.python, 'the path of the interpreter'))}",
        'if [ -f "$python" ] && [ -x "$python" ]; then',
        "    # Signals of Slurm go to this process: exec puts the supervisor in its place.",
        "    shopt -s execfail",
        f'    exec "$python" -m seatrial.backends.slurm.batch {run_dir} --first-attempt {plan.attempt}',
        "fi",
        'echo "seatrial: node ${SLURMD_NODENAME:-$HOSTNAME} can\'t run $python: it has to be there on every node" >&2',
        "exit 4",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def srun_arguments(slurm: SlurmSpec, visible: Sequence[Path] = ()) -> list[str]:
    """What ``srun`` is told of the container, if there is one.

    Args:
        slurm: the recipe's section.
        visible: directories that the container must see under their own names, such as the run's.

    Raises:
        SpecError: a directory whose name can't be mounted.
    """
    if slurm.container_image is None:
        return []
    for path in map(str, visible):
        if ":" in path or "," in path:
            raise SpecError(
                "the container can't see a directory that it needs",
                evidence=f"{path} has a comma or a colon, which separate mounts",
                remedy="use a directory without: --runs-dir DIRECTORY",
            )
    mounts = [*slurm.container_mounts, *(f"{path}:{path}" for path in visible)]
    return [
        f"--container-image={slurm.container_image}",
        *([f"--container-mounts={','.join(dict.fromkeys(mounts))}"] if mounts else []),
    ]


def warning_s(plan: LaunchPlan) -> int:
    """How long before the job's end Slurm signals it, in seconds."""
    return min(math.ceil(plan.stop_before_s) + SAVING_S, _LONGEST_WARNING_S)


def slurm_time(seconds: int) -> str:
    """A length of time as ``--time`` takes it; Slurm counts whole minutes, so it is rounded up to one."""
    minutes = -(-seconds // 60)
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def _directives(plan: LaunchPlan, slurm: SlurmSpec, gres: bool, *, name: str, output: str) -> Iterator[str]:
    # The warning goes to the steps, that is to the agents; the supervisor knows the end of the job by itself.
    given: list[tuple[str, str | int | bool | None]] = [
        ("job-name", name),
        ("comment", COMMENT),
        ("nodes", plan.nodes),
        ("ntasks-per-node", 1),
        ("cpus-per-task", _cpus(plan, slurm)),
        _gpus(plan, slurm, gres),
        ("mem", slurm.mem),
        ("time", _time(plan)),
        ("signal", f"USR2@{warning_s(plan)}"),
        ("requeue" if slurm.requeue else "no-requeue", True),
        ("open-mode", "append"),
        ("output", output),
        ("dependency", _after(plan)),
        ("kill-on-invalid-dep", "yes" if plan.after else None),
        ("partition", slurm.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
        ("constraint", slurm.constraint),
        ("reservation", slurm.reservation),
        ("exclusive", slurm.exclusive),
        ("nodelist", ",".join(slurm.nodelist) or None),
        ("exclude", ",".join(slurm.exclude) or None),
        *slurm.options.items(),
    ]
    for option, value in given:
        if value is True:
            yield f"--{option}"
        elif value is not None and value is not False:
            yield f"--{option}={_quote(str(value))}"


def _cpus(plan: LaunchPlan, slurm: SlurmSpec) -> int | None:
    """CPUs of each node; for GPU ranks a cluster often has a number of its own for each GPU."""
    return slurm.cpus_per_task or plan.cpus_per_node or (plan.nproc if plan.device == "cpu" else None)


def _gpus(plan: LaunchPlan, slurm: SlurmSpec, gres: bool) -> tuple[str, str | None]:
    number = plan.gpus_per_node or plan.nproc
    typed = f"{slurm.gpu_type}:{number}" if slurm.gpu_type else str(number)
    if plan.device != "cuda":
        return "gpus-per-node", None
    return ("gres", f"gpu:{typed}") if gres else ("gpus-per-node", typed)


def _time(plan: LaunchPlan) -> str | None:
    if plan.time_limit_s is None:
        return None
    if plan.time_limit_s <= warning_s(plan):
        raise SpecError(
            "the time limit leaves no time to train",
            evidence=f"resources.time is {plan.time_limit_s} s, and the ranks are asked to save {warning_s(plan)} s before "
            f"its end (train.stop_before_s is {plan.stop_before_s:g}, and {SAVING_S} s to save)",
            remedy="give a longer resources.time, or a shorter train.stop_before_s",
        )
    return slurm_time(plan.time_limit_s)


def _after(plan: LaunchPlan) -> str | None:
    """The job that has to end well before: ``slurm://12/run`` is job 12."""
    if not plan.after:
        return None
    return f"afterok:{plan.after.partition('://')[2].partition('/')[0]}"


def _output(directory: Path, name: str) -> str:
    """The value of ``--output`` for a file, whose name has Slurm's replacements, in a directory, whose has none."""
    path = _plain(str(directory), "the path of the run directory")
    if "\\" in path:
        raise SpecError(
            "Slurm can't write into the run directory",
            evidence=f"{path} has a backslash, which sbatch --output drops",
            remedy="use a directory without: --runs-dir DIRECTORY",
        )
    return f"{path.replace('%', '%%')}/{name}"


def _plain(text: str, what: str) -> str:
    """A text that a script can have, or `SpecError`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SpecError(f"{what} is not UTF-8", evidence=f"{text!r}: {error.reason}") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise SpecError(f"{what} can't stand in a batch script", evidence=f"{text!r} has a control character")
    return text


def _quote(value: str) -> str:
    """A directive's value, as sbatch reads it back."""
    if _UNQUOTED.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _modules(names: Sequence[str]) -> Iterator[str]:
    if not names:
        return
    yield "# Not under set -u, which the shell functions of modules don't survive. A batch job's shell may lack them."
    yield f"for file in {' '.join(_START_MODULES)}; do"
    yield '    if ! type module >/dev/null 2>&1 && [ -r "$file" ]; then . "$file"; fi'
    yield "done"
    yield f"for name in {' '.join(map(shlex.quote, names))}; do"
    yield '    module load "$name" || {'
    yield '        echo "seatrial: module load $name failed on ${SLURMD_NODENAME:-$HOSTNAME}" >&2'
    yield "        exit 4"
    yield "    }"
    yield "done"
