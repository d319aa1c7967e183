"""What exists in the cloud and not in the state: a Terraform that was killed while it made things leaves them so."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from seatrial.provision.nebius.changes import Change
from seatrial.provision.nebius.cloud import Cloud, Thing

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Found:
    """A thing that the plan would make, and that is there."""

    change: Change
    thing: Thing


def existing(found: Collection[Change], cloud: Cloud) -> list[Found]:
    """Which of the things that a plan would make exist already, by type, parent and name.

    What lies in something that is itself still to be adopted has no known parent yet; the next round finds it.
    """
    lists: dict[tuple[str, str], list[Thing]] = {}
    result = []
    for change in found:
        if change.action != "make" or not change.parent:
            continue
        key = (change.type, change.parent)
        if key not in lists:
            lists[key] = cloud.things(*key)
        result += [Found(change, thing) for thing in lists[key] if thing.name == change.name]
    return result


def rounds(
    plan: Callable[[list[tuple[str, str]]], list[Change]], cloud: Cloud
) -> tuple[list[Change], list[Found]]:
    """Plans, looks for what exists, and plans again with it imported, until nothing new is found.

    Args:
        plan: makes a plan with these imports (address, id), and says what it changes.
        cloud: where to look.

    Returns:
        The last plan's changes, and all that it adopts.
    """
    adopted: list[Found] = []
    found = plan([])
    for _ in range(ROUNDS):
        more = existing(found, cloud)
        if not more:
            break
        adopted += more
        found = plan([(f.change.address, f.thing.id) for f in adopted])
    return found, adopted
