"""Takes nodes that failed out of Slurm's hands: only when asked, only those at fault themselves, and only so many."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from seatrial import command
from seatrial.backends.slurm.client import TIME_LIMIT_S, Client, cleaned
from seatrial.check.reports.model import ordered, printable
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.acceptance import Acceptance
from seatrial.runs.evidence import Verdict

_REASON_CHARACTERS = 200
"""Tools show reasons in one line of a table."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What was done with a node."""

    node: str
    argv: tuple[str, ...]
    done: bool
    """Whether it is drained for this reason now."""
    message: str
    """The reason that was given to Slurm, or why nothing was done."""


def at_fault(acceptance: Acceptance) -> dict[str, str]:
    """The nodes that failed by themselves, each with its worst finding: not those whose link, setting or user did."""
    failed = {node.name for node in acceptance.nodes if node.verdict is Verdict.FAIL}
    found: dict[str, str] = {}
    for f in ordered(acceptance.findings, Verdict.FAIL):
        if f.node in failed and f.blame == "node":
            found.setdefault(f.node, f.message)
    return found


def drain(
    acceptance: Acceptance,
    runner: command.CommandRunner = command.run,
    max_share: float = 0.1,
    *,
    dry_run: bool = False,
) -> list[Drained]:
    """Drains the nodes at fault, with the finding as the reason. Jobs that run on them go on to their end.

    A node that is drained already keeps the reason that it has.

    Args:
        acceptance: the verdict, just made.
        runner: runs scontrol.
        max_share: of the nodes that were tested, at most; one node may always be drained.
        dry_run: says what would be run, and runs nothing.

    Raises:
        SpecError: not on Slurm; more nodes at fault than may be drained, which are named, and none is; or a name that
            Slurm would take for several nodes.
        PlatformError: Slurm does not answer. A node that it refuses is in the result.
    """
    if acceptance.platform != "slurm" or acceptance.profile == "rehearsal":
        raise SpecError(
            "there is nothing to drain here", evidence=f"the platform is {acceptance.platform!r} ({acceptance.profile})",
            remedy="--drain is for Slurm; launches on Kubernetes leave such nodes out by themselves, kubectl cordon does it for all",
        )  # fmt: skip
    nodes = at_fault(acceptance)
    most = max(1, math.floor(max_share * len(acceptance.nodes)))
    if len(nodes) > most:
        raise SpecError(
            f"{len(nodes)} nodes would be drained, {most} may be",
            evidence=f"at most {max_share:.0%} of {len(acceptance.nodes)}: {', '.join(nodes)}",
            remedy="look for a common cause first; scontrol update NodeName=… State=DRAIN Reason=… does it by hand",
        )
    odd = [name for name in nodes if not re.fullmatch(r"[\w.-]+", name)]
    if odd:
        raise SpecError("a node's name is not one that Slurm could have", evidence=printable(odd[0]))
    already: dict[str, str] = {}
    if nodes and not dry_run:
        told = Client(runner).drained(sorted(nodes))
        already = {name: reason for name, _, reason in (line.partition(": ") for line in told)}
    return [
        Drained(name, _argv(acceptance.run_id, name, why), False, f"is drained already: {already[name]}")
        if name in already
        else _drain(_argv(acceptance.run_id, name, why), name, runner, dry_run=dry_run)
        for name, why in nodes.items()
    ]


def _argv(run_id: str, node: str, finding: str) -> tuple[str, ...]:
    reason = printable(f"seatrial {run_id}: {finding}")[:_REASON_CHARACTERS]
    return "scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}"


def _drain(argv: tuple[str, ...], node: str, runner: command.CommandRunner, *, dry_run: bool) -> Drained:
    if dry_run:
        return Drained(node, argv, False, "dry run")
    try:
        done = runner(argv, timeout_s=TIME_LIMIT_S, env=cleaned(os.environ))
    except PlatformError as error:
        return Drained(node, argv, False, str(error))
    if done.returncode != 0:
        words = printable(done.stderr or done.stdout) or f"scontrol exited with {done.returncode}"
        return Drained(node, argv, False, words)
    return Drained(node, argv, True, argv[-1].removeprefix("Reason="))
