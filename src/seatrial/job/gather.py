"""Bringing the nodes of an attempt together before a rank is started: all of them, on the same plan and directories."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seatrial.errors import ExitCode, PlatformError, SeatrialError
from seatrial.job.environment import Place
from seatrial.job.fingerprint import node_facts
from seatrial.job.follower import Follower
from seatrial.job.gang import WarmProcess
from seatrial.job.link import Lead, Meeting, connect, interface_of, is_local, own_address
from seatrial.job.node import Node
from seatrial.job.nodes import Nodes
from seatrial.runs.files import write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan


class GivenUpError(Exception):
    """Nobody waits for the nodes any more."""


def alone(plan: LaunchPlan, warm: WarmProcess | None = None) -> Nodes:
    """This node, of a plan for one.

    Args:
        plan: the attempt's.
        warm: a warm process of this agent's, where one was started ahead.

    Raises:
        PlatformError: the plan is for more nodes, or its directories are not here.
    """
    if plan.nodes > 1:
        raise PlatformError(
            f"{plan.nodes} nodes were asked for, and nothing says where they meet",
            evidence="SEATRIAL_LEAD is not set",
        )
    check_paths(plan)
    return Nodes(Node(plan, Place(), warm))


def lead(
    plan: LaunchPlan, meeting: Meeting | None, say: Callable[[str], None], given_up: Callable[[], bool]
) -> Nodes:
    """This node, the first, and all others once they have checked in.

    Args:
        plan: the attempt's.
        meeting: where they meet; None where the plan is for one node.
        say: prints a line.
        given_up: whether to stop waiting.

    Raises:
        PlatformError: a node did not come, or this is not the one where they are to meet.
        GivenUpError: it was given up.
    """
    if meeting is None or plan.nodes == 1:
        return alone(plan)
    check_paths(plan)
    if not is_local(meeting.address):
        raise PlatformError(
            f"{meeting.address} is not an address of {socket.gethostname()}, the first node",
            evidence=f"hosts: {', '.join(meeting.hosts)}",
        )
    ear = Lead(meeting)
    own = Node(plan, Place(0, meeting.address, interface_of(meeting.address)))
    say(f"waiting for {plan.nodes - 1} more nodes on {meeting.address}:{meeting.port}")
    try:
        hellos = ear.check_in(plan.nodes, _identity(plan), given_up)
        if given_up():
            raise GivenUpError
    except (SeatrialError, GivenUpError):
        own.close()
        ear.close()
        raise
    rows = [{"node_rank": 0, "host": socket.gethostname(), "facts": node_facts()}, *hellos]
    nodes = [{key: row[key] for key in ("node_rank", "host", "facts")} for row in rows]
    write_json(RunPaths(plan.run_dir).attempt(plan.attempt).nodes, {"schema": 1, "nodes": nodes})
    say(f"all {plan.nodes} nodes are here: {', '.join(row['host'] for row in nodes)}")
    return Nodes(own, ear, meeting)


def follow(run_dir: Path, attempt: int, node_rank: int, meeting: Meeting) -> ExitCode:
    """This node's part of an attempt that the first node leads; the agent's exit code.

    Raises:
        SeatrialError: this node can't take part; the leading agent knows by then.
    """
    me = {"node_rank": node_rank, "host": socket.gethostname()}
    try:
        plan = read_plan(run_dir, attempt)
        check_paths(plan)
    except (SeatrialError, OSError) as error:
        known = error if isinstance(error, SeatrialError) else PlatformError(str(error))
        connect(meeting, {**me, "error": known.to_dict()})
        raise known from error
    # Imports begin while the nodes check in; the first start says where the ranks meet.
    interface = interface_of(own_address(meeting))
    node = Node(plan, Place(node_rank, meeting.address, interface))
    try:
        wire = connect(meeting, {**me, **_identity(plan), "facts": node_facts()})
    except SeatrialError:
        node.close()
        raise
    return Follower(node, wire).run()


def _identity(plan: LaunchPlan) -> dict[str, Any]:
    """What all nodes must agree on."""
    text = json.dumps(plan.to_dict(), sort_keys=True)
    return {
        "run_id": plan.run_id,
        "attempt": plan.attempt,
        "plan": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def check_paths(plan: LaunchPlan) -> None:
    """The directories that every rank needs are there on this node.

    Raises:
        PlatformError: one is not.
    """
    for path, what in ((plan.run_dir, "the run directory"), (plan.cwd, "the working directory")):
        if not os.access(path, os.R_OK | os.X_OK):
            raise PlatformError(
                f"{what} can't be read on {socket.gethostname()}", evidence=str(path),
                remedy="put it on a file system that all nodes share: --runs-dir DIRECTORY",
            )  # fmt: skip
    aside = plan.run_dir / f"attempt-{plan.attempt}" / f".{socket.gethostname()}.{os.getpid()}"
    try:
        aside.write_text("")
        aside.unlink()
    except OSError as error:
        raise PlatformError(
            f"the run directory can't be written on {socket.gethostname()}", evidence=str(error),
            remedy="seatrial doctor",
        ) from error  # fmt: skip
