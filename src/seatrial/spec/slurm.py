"""The recipe's ``slurm:`` section: what Slurm is asked for beyond nodes, GPUs, ranks and time."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from seatrial.spec.section import Section

_GPUS = "resources.gpus_per_node and slurm.gpu_type"
_TASKS = "resources.nproc: Slurm starts one task a node, and Seatrial starts the ranks"
_OURS = "nothing: Seatrial sets it itself"
_CONTAINER = "slurm.container_image and slurm.container_mounts"
_SUBMITS = "nothing: Seatrial submits each attempt as one job and reads what sbatch prints"
INSTEAD = {
    "nodes": "resources.nodes", "time": "resources.time", "ntasks": _TASKS, "ntasks-per-node": _TASKS,
    "ntasks-per-core": _TASKS, "ntasks-per-socket": _TASKS, "ntasks-per-gpu": _TASKS,
    "gpus": _GPUS, "gpus-per-node": _GPUS, "gpus-per-task": _GPUS, "gpus-per-socket": _GPUS, "gres": _GPUS,
    "tres-per-task": _GPUS, "cpus-per-task": "slurm.cpus_per_task", "cpus-per-gpu": "slurm.cpus_per_task",
    "mem": "slurm.mem", "partition": "slurm.partition", "account": "slurm.account", "qos": "slurm.qos",
    "constraint": "slurm.constraint", "exclusive": "slurm.exclusive", "reservation": "slurm.reservation",
    "nodelist": "slurm.nodelist", "nodefile": "slurm.nodelist", "exclude": "slurm.exclude",
    "requeue": "slurm.requeue", "no-requeue": "slurm.requeue: false", "job-name": "name",
    "container": _CONTAINER, "container-image": _CONTAINER, "container-mounts": _CONTAINER,
    "output": _OURS, "error": _OURS, "input": _OURS, "open-mode": _OURS, "comment": _OURS, "chdir": _OURS,
    "signal": "train.stop_before_s: the ranks are told so long, and a minute, before the end",
    "export": _OURS, "export-file": _OURS, "get-user-env": _OURS, "parsable": _SUBMITS, "wrap": _SUBMITS,
    "array": "seatrial train … --sweep, and slurm.max_running", "dependency": _SUBMITS, "wait": _SUBMITS, "test-only": "seatrial train … --dry-run",
    "quiet": _SUBMITS, "verbose": _SUBMITS, "help": _SUBMITS, "usage": _SUBMITS, "version": _SUBMITS,
    "clusters": "a login node of that cluster",
}  # fmt: skip
"""Options of sbatch that ``slurm.options`` may not have, and what to use."""
_MEMORY = ("mem-per-cpu", "mem-per-gpu")


class RemoteSpec(Section):
    """Seatrial on a login node, for ``--on ssh://HOST``."""

    python: str | None = None
    """Interpreter on the cluster that has Seatrial: /shared/me/venv/bin/python; ~/ is the home directory there."""
    directory: str | None = None
    """Directory on the cluster, seen by all nodes, for code, data and runs that are sent there: /shared/me/seatrial."""
    max_code_mib: Annotated[float, Field(gt=0)] = 100
    """Largest size of the code that is sent along."""
    max_data_gib: Annotated[float, Field(gt=0)] = 1
    """Largest size of data, or of a model, that is sent along."""

    @field_validator("python", "directory")
    @classmethod
    def _paths_are_whole(cls, value: str | None) -> str | None:
        if value is not None and not one_line(value).startswith(("/", "~/")):
            raise ValueError(f"{value!r} starts with neither / nor ~/")
        return value


class SlurmSpec(Section):
    """What Slurm is asked for. Lists may be written as one text."""

    partition: str | None = None
    """Partition, or several with commas [default: the cluster's]."""
    account: str | None = None
    """Account that pays [default: the user's]."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, in Slurm's own syntax: ib&gen4."""
    gpu_type: str | None = None
    """Type of the GPUs, as Slurm calls it: h100 of gpu:h100:8."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    reservation: str | None = None
    """Reservation to run in."""
    nodelist: tuple[str, ...] = ()
    """Nodes that must be among those of the job: node3, node[5-8]."""
    exclude: tuple[str, ...] = ()
    """Nodes that must not be among them."""
    mem: str | None = None
    """Memory of each node: 64G; 0 asks for all that it has [default: the cluster's]."""
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """CPUs on each node, for all of its ranks together [default: the cluster's; for CPU ranks one each]."""
    container_image: str | None = None
    """Image that the ranks run in (Pyxis: a squashfs file, or USER@HOST#IMAGE:TAG)."""
    container_mounts: tuple[str, ...] = ()
    """What of the host the container sees: SOURCE:TARGET, or SOURCE:TARGET:ro."""
    modules: tuple[str, ...] = ()
    """Environment modules to load on the node first, in this order."""
    requeue: bool = True
    """Let the job start again, and go on from its newest checkpoint, when it is preempted or a node fails."""
    max_requeues: Annotated[int, Field(ge=0)] = 20
    """How often it may before it counts as failed."""
    max_running: Annotated[int, Field(ge=1)] | None = None
    """Of the runs of a sweep, at most so many at a time [default: as many as there is room for]."""
    on_drain: Literal["continue", "requeue"] = "continue"
    """When a node of the job is drained: go on to the end of the job, or save and start again on other nodes."""
    remote: RemoteSpec = RemoteSpec()
    options: dict[str, str | bool | int] = Field(default={})
    """Any other option of sbatch by its long name: mail-type: END; true for one without a value, false for one that a default set."""

    @field_validator("nodelist", "exclude", "container_mounts", "modules", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("partition", "account", "qos", "constraint", "reservation", "container_image")
    @classmethod
    def _texts_fit_a_line(cls, value: str | None) -> str | None:
        return None if value is None else one_line(value)

    @field_validator("container_mounts", "modules")
    @classmethod
    def _items_fit_a_line(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one_line(item) for item in value)

    @field_validator("container_mounts")
    @classmethod
    def _mounts_are_pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if not re.fullmatch(r"[^:,]+:[^:,]+(:[^:,]+)?", item):
                raise ValueError(f"{item!r} is not SOURCE:TARGET (neither may have a comma or a colon)")
        return value

    @field_validator("nodelist", "exclude")
    @classmethod
    def _nodes_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if not re.fullmatch(r"[\w.,\[\]-]+", item):
                raise ValueError(f"{item!r} is not a node's name, or names such as node[1-3,7]")
        return value

    @field_validator("gpu_type")
    @classmethod
    def _gpu_type_is_a_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.-]+", value):
            raise ValueError(f"{value!r} is not a type alone: h100, not gpu:h100:8")
        return value

    @field_validator("mem", mode="before")
    @classmethod
    def _memory_has_a_unit(cls, value: Any) -> Any:
        if value is None or (type(value) is int and value == 0):
            return None if value is None else "0"
        if isinstance(value, int) or (isinstance(value, str) and not re.fullmatch(r"0|\d+[KMGT]", value)):
            raise ValueError(f"{value!r} is not an amount of memory: 64G, 900M, or 0 for all that a node has")
        return value

    @field_validator("options", mode="before")
    @classmethod
    def _options_are_others(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not a mapping of options to values: options: {{mail-type: END}}")
        for name, given in value.items():
            check_option(name, given)
        return value

    @model_validator(mode="after")
    def _memory_is_said_once(self) -> SlurmSpec:
        double = [name for name in _MEMORY if self.options.get(name)]
        if self.mem is not None and double:
            raise ValueError(f"mem and options.{double[0]} exclude each other: give one of them")
        return self


def check_option(name: Any, value: Any) -> None:
    """Whether an option may be passed through to sbatch.

    sbatch takes any beginning of an option's name that is clear (getopt_long(3)), so beginnings of reserved names are
    refused as well.

    Raises:
        ValueError: not a long option's name, one that Seatrial sets, or not a plain value.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]+(-[a-z0-9]+)*", name):
        hint = name.lstrip("-").replace("_", "-").lower() if isinstance(name, str) else ""
        near = f"; {hint!r}?" if len(hint) > 1 and hint != name else ""
        raise ValueError(
            f"{name!r} is not the long name of an option of sbatch, without dashes in front{near}"
        )
    reserved = name if name in INSTEAD else next((long for long in INSTEAD if long.startswith(name)), None)
    if reserved is not None:
        raise ValueError(f"{name} can't be set here; use {INSTEAD[reserved]}")
    if not isinstance(value, str | int):
        raise ValueError(f"{name} = {value!r} is neither a text, a whole number, true nor false")
    if isinstance(value, str):
        one_line(value)


def one_line(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: it is empty, or has characters that a line of a script can't have.
    """
    if not text.strip():
        raise ValueError("is empty; null is for none")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(f"{text!r} has a line break or another control character")
    return text
