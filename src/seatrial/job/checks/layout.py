"""The processes of a step: program, environment, task and log of each. Pure, but for counting the lines of logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from seatrial.job.checks.orders import Starts
from seatrial.job.checks.steps import Step
from seatrial.job.checks.task import VARIABLE, Task
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.checks import CheckSpec

Master = tuple[str, int]
"""Address and port where the ranks of a world meet."""


class Layout:
    """Who runs what on which node.

    Args:
        plan: the attempt's.
        spec: the test's.
        names: of the nodes, by node rank.
    """

    def __init__(self, plan: LaunchPlan, spec: CheckSpec, names: Mapping[int, str]) -> None:
        self._plan = plan
        self._spec = spec
        self._names = names
        self._attempt = RunPaths(plan.run_dir).attempt(plan.attempt)

    def starts(self, step: Step, members: Sequence[int], masters: Mapping[int, Master]) -> Starts:
        """The processes of a step, by node rank.

        Args:
            step: the step.
            members: node ranks of those that take part, in the order of their ranks.
            masters: by the first node of each world, where its ranks meet; none for processes on their own.
        """
        starts: Starts = {}
        for place, node_rank in enumerate(members):
            world = [node_rank] if step.world == "node" else list(members)
            starts[node_rank] = []
            for gpu in range(self._plan.nproc) if step.each == "gpu" else [None]:
                env = {VARIABLE: self._task(step, node_rank, world, gpu).to_text()}
                if step.world != "none":
                    rank_place = 0 if step.world == "node" else place
                    env |= self._rank(rank_place, gpu or 0, len(world), masters[world[0]])
                starts[node_rank].append(
                    {
                        "program": step.program,
                        "gpu": gpu,
                        "log": str(self.log(step, node_rank, gpu)),
                        "env": env,
                    }
                )
        return starts

    def log(self, step: Step, node_rank: int, gpu: int | None) -> Path:
        """Where a process prints to: a rank's log, or one of the program's on a node."""
        if gpu is None:
            return self._attempt.launcher_log(step.program, node_rank)
        return self._attempt.rank_log(node_rank * self._plan.nproc + gpu)

    def lines(self, step: Step, members: Sequence[int]) -> dict[tuple[int, int | None], int]:
        """How many lines each rank has printed so far: one for each thing that it began."""
        found: dict[tuple[int, int | None], int] = {}
        for node_rank in members:
            for gpu in range(self._plan.nproc):
                path = self.log(step, node_rank, gpu)
                found[node_rank, gpu] = path.read_bytes().count(b"\n") if path.exists() else 0
        return found

    def _task(self, step: Step, node_rank: int, world: Sequence[int], gpu: int | None) -> Task:
        suffix = f"_{gpu}" if gpu is not None else ""
        return Task(
            node=self._names[node_rank], node_rank=node_rank, nodes={m: self._names[m] for m in world},
            nproc=self._plan.nproc, gpu=gpu, device=self._plan.device, checks=step.checks,
            suite=self._spec.suite.model_dump(mode="json"), repeat=step.repeat, inject=self._spec.inject,
            rehearse=self._spec.rehearse, run_dir=self._plan.run_dir, attempt=self._plan.attempt,
            out=self._attempt.samples / f"{step.program}_{node_rank:05d}{suffix}.jsonl", options=step.options,
        )  # fmt: skip

    def _rank(self, place: int, local_rank: int, world: int, master: Master) -> dict[str, str]:
        nproc = self._plan.nproc
        loopback = {"GLOO_SOCKET_IFNAME": "lo"} if master[0] == "127.0.0.1" else {}
        return {
            "RANK": str(place * nproc + local_rank), "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(world * nproc), "LOCAL_WORLD_SIZE": str(nproc), "GROUP_RANK": str(place),
            "MASTER_ADDR": master[0], "MASTER_PORT": str(master[1]), **loopback,
        }  # fmt: skip
