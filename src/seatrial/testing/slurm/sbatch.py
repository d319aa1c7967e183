"""sbatch: from a command line and a script to a request, or a refusal in Slurm's words. Pure, but for reading the script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from seatrial.testing.slurm import options, text
from seatrial.testing.slurm.model import Config, Partition, Request, Warning_
from seatrial.testing.slurm.options import UsageError

_FROM_ENVIRONMENT = {
    "SBATCH_ACCOUNT": "account", "SBATCH_EXPORT": "export", "SBATCH_GPUS": "gpus", "SBATCH_GPUS_PER_NODE": "gpus-per-node",
    "SBATCH_JOB_NAME": "job-name", "SBATCH_OPEN_MODE": "open-mode", "SBATCH_OUTPUT": "output", "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos", "SBATCH_REQUEUE": "requeue", "SBATCH_NO_REQUEUE": "no-requeue", "SBATCH_SIGNAL": "signal",
    "SBATCH_TIMELIMIT": "time",
}  # fmt: skip
_NOT_HERE = (
    "wait",
    "nodefile",
    "export-file",
    "begin",
    "uid",
    "clusters",
    "gpus-per-task",
    "tres-per-task",
    "batch",
)
_NO_SHEBANG = (
    "This does not look like a batch script.  The first",
    "line must start with #! followed by the path to an interpreter.",
    "For instance: #!/bin/sh",
)
_DEPENDENCIES = {"after", "afterany", "afterok", "afternotok", "singleton"}
_NO_SUCH_NODE = "Requested node configuration is not available"
NOTHING = Request(name="", user="")
"""A request for nothing at all."""


class Refused(Exception):
    """slurmctld refuses the request.

    Args:
        words: what sbatch says after "Batch job submission failed:".
        before: a line that it prints first.
        leaves_job: the refused job stays in the queue as FAILED (BadConstraints).
    """

    def __init__(self, words: str, before: str = "", *, leaves_job: bool = False) -> None:
        super().__init__(words)
        self.words = words
        self.before = before
        self.leaves_job = leaves_job


def read(
    words: Sequence[str], environ: Mapping[str, str], cwd: str, stdin: str | None
) -> tuple[dict[str, str], str, list[str]]:
    """Options (the command line over the environment over the directives), the script, and its path with its arguments.

    Raises:
        UsageError: what sbatch itself refuses.
        NeedsInput: the script comes from standard input, which was not given.
    """
    given, rest = options.parse("sbatch", options.SBATCH, words, stops=True, code=255)
    if "version" in given:
        return given, "", []
    if "wrap" in given:
        if rest:
            raise fatal("Script arguments not permitted with --wrap option")
        script = f"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{given['wrap']}\n"
    elif rest:
        try:
            script = (Path(cwd) / rest[0]).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            raise fatal(f"Unable to open file {rest[0]}") from None
    elif stdin is None:
        raise NeedsInput
    else:
        script = stdin
    if not script:
        raise fatal("Batch script is empty!")
    if not script.startswith("#!"):
        raise fatal(*_NO_SHEBANG)
    directed, _ = options.parse("sbatch", options.SBATCH, options.directives(script), stops=True, code=255)
    from_env = {option: environ[name] for name, option in _FROM_ENVIRONMENT.items() if name in environ}
    return directed | from_env | given, script, rest


class NeedsInput(Exception):
    """The client has to send its standard input as well."""


def request(
    config: Config,
    given: Mapping[str, str],
    script: str,
    rest: Sequence[str],
    environ: Mapping[str, str],
    cwd: str,
) -> Request:
    """The request; what stands in it is well formed, and not yet known to be possible.

    Raises:
        UsageError: a value that sbatch itself refuses.
    """
    for name in _NOT_HERE:
        if name in given:
            raise fatal(f"this pretend Slurm does not know --{name}")
    nodes, told_nodes = _node_count(given.get("nodes"))
    tasks = _number(given, "ntasks")
    per_node = _number(given, "ntasks-per-node")
    required = tuple(text.expand(given.get("nodelist", "")))
    nodes = max(nodes, len(required)) if not told_nodes else nodes
    if tasks and not told_nodes and per_node:
        nodes = -(-tasks // per_node)
    gpus_per_node, kind, gres_words = _gpus(given)
    total, total_kind = _gpu_words(given["gpus"], "gpus") if "gpus" in given else (0, "")
    elements, throttle = _array(given)
    name = given.get("job-name") or ("wrap" if "wrap" in given else Path(rest[0]).name if rest else "sbatch")
    return Request(
        name=name,
        user=config.user,
        script=script,
        arguments=tuple(rest[1:]),
        command=str(Path(cwd) / rest[0]) if rest else "(null)",
        work_dir=str(Path(cwd) / given.get("chdir", cwd)),
        submit_dir=cwd,
        output=given.get("output", "slurm-%A_%a.out" if elements else "slurm-%j.out"),
        append=_open_mode(given),
        env=_environment(config, given.get("export", "ALL"), environ),
        partitions=tuple(given["partition"].split(",")) if given.get("partition") else (_default(config),),
        account=given.get("account", ""),
        qos=given.get("qos", ""),
        nodes=nodes,
        tasks=tasks or nodes * (per_node or 1),
        tasks_per_node=per_node,
        told_tasks=tasks is not None,
        cpus_per_task=_number(given, "cpus-per-task"),
        gpus=total,
        gpus_per_node=gpus_per_node,
        gpu_type=kind or total_kind,
        gres_words=gres_words or given.get("gpus", ""),
        memory_per_node_mib=_memory(given, "mem"),
        memory_per_cpu_mib=_memory(given, "mem-per-cpu"),
        exclusive="exclusive" in given,
        limit_min=_limit(given),
        warning=_warning(given),
        requeue="no-requeue" not in given and ("requeue" in given or config.job_requeue),
        dependency=_dependency(given.get("dependency", "")),
        any_dependency="?" in given.get("dependency", ""),
        kill_on_invalid_dependency=given.get("kill-on-invalid-dep", "").lower() == "yes",
        required_nodes=required,
        excluded_nodes=tuple(text.expand(given.get("exclude", ""))),
        comment=given.get("comment", ""),
        array=tuple(elements),
        throttle=throttle,
        nice=int(given.get("nice") or 0),
        contiguous="contiguous" in given,
    )


def check(config: Config, given: Mapping[str, str], asked: Request) -> Request:
    """The request with what slurmctld fills in.

    Raises:
        Refused: what it can never have.
    """
    partitions = []
    for name in asked.partitions:
        partition = config.partition(name)
        if partition is None:
            raise Refused("Invalid partition name specified", f"invalid partition specified: {name}")
        partitions.append(partition)
    qos, account = asked.qos, asked.account
    if config.accounting:
        qos, account = qos or config.qos[0].name, account or config.account
        if account != config.account:
            raise Refused("Invalid account or account/partition combination specified")
        if config.qos_named(qos) is None:
            raise Refused("Invalid qos specification")
    else:
        qos = ""
    if any(kind not in _DEPENDENCIES for kind, _ in asked.dependency):
        raise Refused("Job dependency problem")
    names = [f"node{index}" for index in range(config.nodes)]
    excluded = set(asked.excluded_nodes)
    if not set(asked.required_nodes) | excluded <= set(names) or excluded & set(asked.required_nodes):
        raise Refused("Invalid node name specified")
    if "reservation" in given:
        raise Refused("Requested reservation is invalid")
    if given.get("constraint"):
        raise Refused("Invalid feature specification")
    limit = asked.limit_min
    if "time" not in given:
        limit = partitions[0].default_time_min
    _check_size(config, asked, partitions, "time" in given, limit)
    return replace(asked, qos=qos, account=account, limit_min=limit)


def _check_size(
    config: Config, asked: Request, partitions: Sequence[Partition], told_limit: bool, limit: int | None
) -> None:
    for partition in partitions:
        longest = partition.max_time_min
        if longest is not None and told_limit and (limit is None or limit > longest):
            raise Refused("Requested time limit is invalid (missing or exceeds some limit)")
    most = min((p.max_nodes for p in partitions if p.max_nodes), default=config.nodes)
    if not 1 <= asked.nodes <= min(most, config.nodes):
        raise Refused("Node count specification invalid")
    if asked.tasks * (asked.cpus_per_task or 1) > config.nodes * config.cpus:
        raise Refused("More processors requested than permitted")
    if asked.tasks_of(0) * asked.cpus_a_task > config.cpus:
        raise Refused(_NO_SUCH_NODE, "CPU count per node can not be satisfied", leaves_job=True)
    if (asked.memory_per_node_mib or 0) > config.memory_mib:
        raise Refused(_NO_SUCH_NODE, "Memory specification can not be satisfied", leaves_job=True)
    gpus = max(asked.gpus_per_node, -(-asked.gpus // asked.nodes))
    if gpus > config.gpus or (gpus and asked.gpu_type not in {"", config.gpu_type}):
        raise Refused(_NO_SUCH_NODE, leaves_job=True)


def fatal(*lines: str, code: int = 1) -> UsageError:
    """What sbatch says of itself."""
    return UsageError("".join(f"sbatch: error: {line}\n" for line in lines), code)


def _default(config: Config) -> str:
    return next(partition.name for partition in config.partitions if partition.is_default)


def _node_count(value: str | None) -> tuple[int, bool]:
    if value is None:
        return 1, False
    first = value.partition("-")[0]
    if not first.isdigit():
        raise fatal(f'"{value}" is not a valid node count', code=255)
    return int(first), True


def _number(given: Mapping[str, str], name: str) -> int | None:
    if name not in given:
        return None
    if not given[name].isdigit() or int(given[name]) < 1:
        raise fatal(f'Invalid numeric value "{given[name]}" for --{name}.')
    return int(given[name])


def _memory(given: Mapping[str, str], name: str) -> int | None:
    if name not in given:
        return None
    try:
        return text.mebibytes(given[name])
    except ValueError:
        raise fatal(f"Invalid --{name} specification", code=255) from None


def _limit(given: Mapping[str, str]) -> int | None:
    if "time" not in given:
        return None
    try:
        return text.minutes(given["time"])
    except ValueError:
        raise fatal("Invalid --time specification", code=255) from None


def _array(given: Mapping[str, str]) -> tuple[list[int], int]:
    """The elements of an array, and how many of them may run at once (0: all)."""
    if "array" not in given:
        return [], 0
    words, _, throttle = given["array"].partition("%")
    found: set[int] = set()
    for part in words.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if not match or (throttle and not throttle.isdigit()):
            raise fatal("Batch job submission failed: Invalid job array specification")
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1)))
    return sorted(found), int(throttle or 0)


def _open_mode(given: Mapping[str, str]) -> bool:
    mode = given.get("open-mode", "truncate")
    if mode[:1] not in {"a", "t"}:
        raise fatal("Invalid --open-mode specification", code=255)
    return mode.startswith("a")


def _warning(given: Mapping[str, str]) -> Warning_ | None:
    if "signal" not in given:
        return None
    match = re.fullmatch(r"((?:[BR]+:)?)(\w+)(?:@(\d+))?", given["signal"])
    try:
        if not match:
            raise ValueError
        return Warning_(
            number=text.signal_number(match[2]),
            before_s=float(match[3] or 60),
            to_batch="B" in match[1],
        )
    except ValueError:
        raise fatal("Invalid --signal specification", code=255) from None


def _dependency(value: str) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for part in filter(None, re.split("[,?]", value)):
        kind, *ids = part.split(":")
        if kind not in _DEPENDENCIES or not all(re.fullmatch(r"\d+(\+\d+)?", word) for word in ids):
            return (("?", 0),)
        found += [(kind, int(word.partition("+")[0])) for word in ids] or [(kind, 0)]
    return tuple(found)


def _gpus(given: Mapping[str, str]) -> tuple[int, str, str]:
    """GPUs a node by --gpus-per-node or --gres, their type, and the words."""
    if "gpus-per-node" in given:
        number, kind = _gpu_words(given["gpus-per-node"], "gpus-per-node")
        return number, kind, given["gpus-per-node"]
    value = given.get("gres", "").removeprefix("gres:").removeprefix("gres/")
    if not value or value.lower() == "none":
        return 0, "", ""
    name, _, words = value.partition(":")
    if name != "gpu":
        raise fatal("Invalid generic resource (gres) specification")
    number, kind = _gpu_words(words or "1", "gres")
    return number, kind, words


def _gpu_words(value: str, option: str) -> tuple[int, str]:
    match = re.fullmatch(r"(?:([A-Za-z][\w-]*)(?::(\d+))?|(\d+))", value)
    if not match:
        raise fatal("Invalid generic resource (gres) specification")
    return int(match[2] or match[3] or 1), match[1] or ""


def _environment(config: Config, export: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the job gets of the submitter's environment."""
    words = export.split(",")
    if "ALL" in words:
        base = dict(environ)
    else:
        # What a login would give, and no more.
        kept = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "SLURM_CONF")
        base = {name: environ[name] for name in kept if name in environ}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            base[name] = value
        elif word not in {"ALL", "NONE", "NIL"} and word in environ:
            base[word] = environ[word]
    return base
