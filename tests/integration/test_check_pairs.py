"""Pairs of pretend nodes on real processes: every pair, a slow link and a slow node, suspects tried again."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from .check_ranks import run_program


def test_every_pair_and_a_slow_link(tmp_path: Path) -> None:
    faults = ["slow-link:node=1,peer=2,factor=0.05", "flipped-bits:node=3"]
    samples, codes, printed = run_program(
        "pairs", tmp_path, "pairs", nodes=4, nproc=1, inject=faults, pairs="full", pair_mib=128
    )
    assert codes == [0] * 4, printed
    rates = {(s.node, s.peer): s for s in samples if s.metric == "pair"}
    assert set(rates) == set(combinations(("node0", "node1", "node2", "node3"), 2))
    assert {s.detail["round"] for s in rates.values()} == {0, 1, 2}
    slow = rates.pop(("node1", "node2"))
    assert slow.value < 0.4 * min(s.value for s in rates.values())
    assert {(s.node, s.value) for s in samples if s.metric == "wrong_elements"} == {("node3", 1)}
    assert len([s for s in samples if s.metric == "wrong_elements"]) == 3


def test_two_rounds_clear_the_partner_of_a_slow_node(tmp_path: Path) -> None:
    samples, codes, printed = run_program(
        "pairs", tmp_path, "pairs", nodes=4, nproc=1, inject=["slow-node:node=3,factor=0.05"], pair_mib=128
    )
    assert codes == [0] * 4, printed
    rates = {(s.detail["round"], s.node, s.peer): s.value for s in samples}
    assert set(rates) >= {(0, "node0", "node2"), (0, "node1", "node3")} and len(rates) == 4
    best = {
        node: max(v for key, v in rates.items() if node in key)
        for node in ("node0", "node1", "node2", "node3")
    }
    assert best["node3"] < 0.4 * min(best["node0"], best["node1"], best["node2"])


def test_rails_and_suspects_tried_again(tmp_path: Path) -> None:
    samples, codes, printed = run_program(
        "pairs",
        tmp_path,
        "pairs",
        nodes=2,
        nproc=2,
        options={"rounds": [[[1, 0]], [[0, 1]], [[0, 7]]]},
        pair_mib=4,
    )
    assert codes == [0] * 4, printed
    assert [(s.node, s.peer, s.detail["round"]) for s in samples] == [
        ("node0", "node1", 0),
        ("node0", "node1", 1),
    ]
    for sample in samples:
        assert len(sample.detail["rails"]) == 2 and sum(sample.detail["rails"]) == sample.value
        assert len(sample.values) >= 5
