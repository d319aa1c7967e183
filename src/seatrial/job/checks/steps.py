"""What an acceptance test does in which order: programs, who runs them, how long each may take. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from seatrial.spec.checks import CHECKS, PHASES, CheckSpec, SuiteSpec

Each = Literal["node", "gpu"]
World = Literal["none", "node", "all"]

_OPS = 4
_IMPORT_S = 60.0
"""Python, torch and CUDA from a cold shared file system, on every core at once."""
_FIRST_MESSAGE_S = 60.0
"""Communicators of many nodes are built when they are first used."""


@dataclass(frozen=True, slots=True)
class Step:
    """One program, on every node that still takes part."""

    phase: int
    program: str
    """Of `job.checks`."""
    checks: tuple[str, ...]
    """What it is to measure."""
    each: Each
    """One process a node, or one a GPU."""
    world: World
    """Whose processes are ranks of one process group."""
    timeout_s: float
    repeat: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For people."""
        return f"phase {self.phase} of {len(PHASES) - 1}, {PHASES[self.phase]}: {', '.join(self.checks)}"


def steps(spec: CheckSpec, *, nodes: int, nproc: int) -> Iterator[Step]:
    """The steps of a test.

    Args:
        spec: the test's.
        nodes: how many there are.
        nproc: GPUs, or CPU ranks, of each.
    """
    suite = spec.suite
    wanted = [name for name in suite.checks if nodes >= CHECKS[name].nodes and nproc >= CHECKS[name].ranks]

    def of(*names: str) -> tuple[str, ...]:
        return tuple(name for name in wanted if name in names)

    alone = tuple(name for name in wanted if CHECKS[name].phase == 0)
    probe_s = suite.probe_timeout_s
    if set(alone) - {"clock"}:
        yield Step(0, "host", alone, "node", "none", probe_s)
    if of("report", "gpus", "gpu_idle", "versions"):
        yield Step(0, "gpu", alone, "gpu", "none", probe_s)
    if of("shared_disk"):
        yield Step(0, "shared", of("shared_disk"), "node", "none", probe_s)
    for repeat in range(spec.repeat):
        yield from _measured(suite, of, nodes, nproc, repeat)


def _measured(suite: SuiteSpec, of: Any, nodes: int, nproc: int, repeat: int) -> Iterator[Step]:
    speed = of("gemm", "gemm_result", "throttle", "memory", "host_copy", *(("pcie",) if of("gemm") else ()))
    if speed:
        limit = _IMPORT_S + 2 * suite.gemm_s * len(suite.dtypes) + 60
        yield Step(1, "speed", speed, "gpu", "none", limit, repeat)
    if of("peer_copy"):
        yield Step(1, "peers", of("peer_copy"), "node", "none", _IMPORT_S + nproc * nproc * 2, repeat)
    collectives_s = _IMPORT_S + _FIRST_MESSAGE_S + _OPS * sum(5 + size / 256 for size in suite.sizes_mib)
    inside = of("node_collectives", "node_data", "transport")
    if inside:
        yield Step(2, "links", inside, "gpu", "node", collectives_s, repeat, {"scope": "node"})
    if of("pairs"):
        rounds = nodes if suite.pairs == "full" else 2
        limit = _IMPORT_S + _FIRST_MESSAGE_S + rounds * 5
        yield Step(3, "pairs", of("pairs"), "gpu", "all", limit, repeat)
    between = of("cluster_collectives", "cluster_data", "cluster_transport", "scaling")
    if between:
        yield Step(3, "links", between, "gpu", "all", 2 * collectives_s, repeat, {"scope": "cluster"})
    for name in of("train_resnet18", "train_resnet50", "train_transformer"):
        yield Step(
            4, "work", (name,), "gpu", "all", _IMPORT_S + 2 * _FIRST_MESSAGE_S + 8 * suite.train_s, repeat
        )
