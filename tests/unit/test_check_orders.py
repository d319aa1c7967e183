"""Orders to crews: who is ended when a process fails."""

from __future__ import annotations

import time
from typing import Any

import pytest

from seatrial.job.checks import orders
from seatrial.job.checks.orders import End, Orders
from seatrial.job.checks.steps import World


class Crew:
    """A node whose processes end as they are told to: by index, seconds and exit code; what is ended, ends with -15."""

    def __init__(self, *plan: tuple[float, int]) -> None:
        self.plan = dict(enumerate(plan))
        self.order, self.began = 0, 0.0
        self.out: list[dict[str, Any]] = []
        self.ends_heard = 0

    def send(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "run":
                self.order, self.began = message["order"], time.monotonic()
            case "end":
                self.ends_heard += 1
                for index in list(self.plan):
                    self._ended(index, -15, ended=True)

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        for index, (after_s, code) in list(self.plan.items()):
            if time.monotonic() - self.began >= after_s:
                self._ended(index, code, ended=False)
        return self.out.pop(0) if self.out else None

    def _ended(self, index: int, code: int, *, ended: bool) -> None:
        del self.plan[index]
        self.out.append(
            {"say": "ended", "order": self.order, "index": index, "returncode": code, "seconds": 0.1, "late": False,
             "ended": ended, "last_lines": []}
        )  # fmt: skip


def carry_out(crews: dict[int, Crew], world: World, asked: bool = False) -> dict[tuple[int, int | None], End]:
    found = Orders(crews, lambda number: asked).carry_out(  # type: ignore[arg-type]
        {node: [{"gpu": gpu} for gpu in range(2)] for node in crews},
        5.0,
        world=world,
        waiting=lambda left: None,
    )
    return {(end.node_rank, end.gpu): end for end in found}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "_PEERS_S", 0.05)


def crews() -> dict[int, Crew]:
    return {0: Crew((0.0, 1), (9.0, 0)), 1: Crew((0.3, 0), (0.3, 0))}


def test_a_failure_inside_a_node_ends_that_node_only() -> None:
    nodes = crews()
    ends = carry_out(nodes, "node")
    assert ends[0, 1].ended and ends[0, 0].returncode == 1 and not ends[0, 0].ended
    assert [ends[1, gpu].returncode for gpu in range(2)] == [0, 0]
    assert (nodes[0].ends_heard, nodes[1].ends_heard) == (1, 0)


def test_a_failure_in_a_world_of_all_ends_all() -> None:
    nodes = crews()
    ends = carry_out(nodes, "all")
    assert all(ends[who].ended for who in [(0, 1), (1, 0), (1, 1)])
    assert [crew.ends_heard for crew in nodes.values()] == [1, 1]


def test_processes_that_need_nobody_go_on() -> None:
    nodes = {0: Crew((0.0, 1), (0.3, 0)), 1: Crew((0.3, 0), (0.3, 0))}
    ends = carry_out(nodes, "none")
    assert [end.returncode for end in ends.values()].count(0) == 3
    assert not any(crew.ends_heard for crew in nodes.values())


def test_who_is_asked_to_stop_tells_each_crew_once() -> None:
    nodes = crews()
    ends = carry_out(nodes, "none", asked=True)
    assert all(end.ended for end in ends.values() if end.returncode != 1)
    assert [crew.ends_heard for crew in nodes.values()] == [1, 1]
