"""What to measure once more before anybody is blamed: the judge names parts and pairs, this makes steps of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from seatrial.job.checks.steps import Step

MOST = 4
"""How often at most: with the first reading there are five then, after which another one is not asked for."""
_PAIR_S = 5.0


def steps_again(
    answer: Mapping[str, Any], done: Iterable[Step], numbers: Mapping[str, int]
) -> Iterator[tuple[Step, list[int]]]:
    """The steps to repeat, each with the nodes that take part.

    Args:
        answer: of ``seatrial.check.gate --suspects``.
        done: the steps of the phase.
        numbers: node ranks by name.
    """
    again = answer.get("again") or {}
    done = list(done)
    for step in done:
        parts = [
            part
            for part in again.get("parts", [])
            if part["check"] in step.checks and part["node"] in numbers
        ]
        checks = tuple(check for check in step.checks if any(part["check"] == check for part in parts))
        if checks and step.world != "all":
            yield replace(step, checks=checks), sorted({numbers[part["node"]] for part in parts})
    pairs = [(numbers[a], numbers[b]) for a, b in again.get("pairs", []) if a in numbers and b in numbers]
    scan = next((step for step in done if step.program == "pairs"), None)
    if scan is not None and pairs:
        rounds = disjoint(pairs)
        options = {"rounds": [[list(pair) for pair in pairs] for pairs in rounds]}
        members = sorted({number for pair in pairs for number in pair})
        yield replace(scan, options=options, timeout_s=scan.timeout_s + len(rounds) * _PAIR_S), members


def disjoint(pairs: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Rounds in which nobody is in two pairs, each pair in the first that has room for it."""
    rounds: list[list[tuple[int, int]]] = []
    for pair in pairs:
        room = next((r for r in rounds if not any(set(pair) & set(other) for other in r)), None)
        if room is None:
            rounds.append([pair])
        else:
            room.append(pair)
    return rounds
