"""Rounds of pairs: every pair once, and a slow node told from its partner in two rounds."""

from __future__ import annotations

from itertools import combinations
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.job.checks.rounds import Pair, full_rounds, next_round


@given(st.integers(0, 130))
def test_every_pair_meets_once_and_nobody_is_in_two_places(n: int) -> None:
    rounds = full_rounds(n)
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(range(n), 2))
    for pairs in rounds:
        assert len({node for pair in pairs for node in pair}) == 2 * len(pairs) == n - n % 2
    assert len(rounds) == (0 if n < 2 else n - 1 if n % 2 == 0 else n)


@given(st.integers(2, 64), st.data())
def test_an_adaptive_round_is_disjoint_whole_and_new(n: int, data: st.DataObject) -> None:
    results: list[dict[Pair, float]] = []
    for _ in range(2):
        pairs = next_round(results, n)
        assert pairs == next_round(results, n)
        nodes = [node for pair in pairs for node in pair]
        assert len(nodes) == len(set(nodes)) == n - n % 2 and all(0 <= a < b < n for a, b in pairs)
        results.append({pair: data.draw(st.floats(0, 100)) for pair in pairs})
    if n > 3:
        assert not set(results[0]) & set(results[1])


def test_first_round_spans_the_halves() -> None:
    assert next_round([], 5) == [(0, 2), (1, 3)]


@given(st.integers(8, 100), st.data())
def test_two_rounds_clear_the_partners_of_slow_nodes(n: int, data: st.DataObject) -> None:
    slow = data.draw(st.sets(st.integers(0, n - 1), max_size=n // 5))
    speed = [80.0 if node in slow else 100.0 for node in range(n)]
    results: list[dict[Pair, float]] = []
    for _ in range(2):
        results.append({(a, b): min(speed[a], speed[b]) for a, b in next_round(results, n)})
    best = [
        max((rates[p] for rates in results for p in rates if node in p), default=None) for node in range(n)
    ]
    typical = median(b for b in best if b is not None)
    assert {node for node, b in enumerate(best) if b is not None and b < 0.93 * typical} == slow


@pytest.mark.parametrize("n", [0, 1])
def test_nobody_to_meet(n: int) -> None:
    assert next_round([], n) == [] == full_rounds(n)
    assert next_round([{}], n) == []
