"""Pairs of nodes: slow node told from slow link, and an innocent partner left alone."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.check import pair_model
from seatrial.check.judge import judge, suspects
from seatrial.runs.acceptance import Finding, Profile
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample
from tests.unit.check_samples import names, spec

SPEC = spec("pairs")
Pair = tuple[int, int]


class World:
    """Nodes and links with rates, and readings of pairs as min(a_i, a_j, l_ij) with noise."""

    def __init__(self, n: int, *, noise: float = 0.02, spread: float = 0.01, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.n, self.noise = n, noise
        self.node = [1 + self.rng.gauss(0, spread) for _ in range(n)]
        self.link: dict[Pair, float] = {}

    def read(self, i: int, j: int) -> Sample:
        rate = min(self.node[i], self.node[j]) * self.link.get((i, j), 1.0)
        value = 48 * rate * (1 + self.rng.gauss(0, self.noise))
        return Sample(
            check="pairs",
            metric="pair",
            node=names(self.n)[i],
            peer=names(self.n)[j],
            value=value,
            unit="GB/s",
        )

    def full(self) -> list[Sample]:
        return [self.read(i, j) for i, j in combinations(range(self.n), 2)]

    def until_clear(self, samples: list[Sample], profile: Profile = "gpu") -> list[Sample]:
        """Reads again what the judge asks for, as the test of a real cluster does."""
        index = {name: i for i, name in enumerate(names(self.n))}
        for _ in range(20):
            _, again = suspects(samples, SPEC, profile=profile, expected_nodes=names(self.n))
            if not again:
                break
            samples = samples + [self.read(*sorted((index[a], index[b]))) for a, b in again]
        return samples


def verdict(samples: list[Sample], n: int, profile: Profile = "gpu") -> list[Finding]:
    findings = judge(samples, SPEC, profile=profile, expected_nodes=names(n))
    return [f for f in findings if f.judge == "peers"]


def blamed(samples: list[Sample], n: int, profile: Profile = "gpu") -> set[tuple[str | None, str | None]]:
    return {(f.node, f.peer) for f in verdict(samples, n, profile) if f.verdict is Verdict.FAIL}


def test_a_slow_node_is_blamed_and_none_of_its_partners() -> None:
    world = World(16)
    world.node[5] *= 0.9
    assert blamed(world.until_clear(world.full()), 16) == {("node005", None)}


def test_a_slow_link_is_blamed_and_neither_of_its_nodes() -> None:
    world = World(16)
    world.link[3, 9] = 0.9
    samples = world.until_clear(world.full())
    assert blamed(samples, 16) == {("node003", "node009")}
    found = next(f for f in verdict(samples, 16) if f.verdict is Verdict.FAIL)
    assert (
        found.blame == "link"
        and "what both nodes reach with others" in found.message
        and "readings" in found.message
    )


def test_a_slow_node_and_a_slow_link_are_told_apart() -> None:
    world = World(24, seed=3)
    world.node[5] *= 0.8
    world.link[3, 9] = 0.8
    assert blamed(world.until_clear(world.full()), 24) == {("node005", None), ("node003", "node009")}


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 24), st.integers(0, 10**6))
def test_healthy_nodes_and_links_are_left_alone(n: int, seed: int) -> None:
    world = World(n, seed=seed, noise=0.01, spread=0.005)
    assert blamed(world.until_clear(world.full()), n) == set()


@settings(max_examples=15, deadline=None)
@given(st.integers(6, 24), st.integers(0, 10**6), st.data())
def test_a_node_at_70_percent_is_always_found(n: int, seed: int, data: st.DataObject) -> None:
    world = World(n, seed=seed)
    bad = data.draw(st.integers(0, n - 1))
    world.node[bad] *= 0.7
    assert blamed(world.until_clear(world.full()), n) == {(names(n)[bad], None)}


def test_the_order_of_samples_says_nothing() -> None:
    samples = World(8).full()
    assert verdict(samples, 8) == verdict(samples[::-1], 8)


def test_one_low_reading_of_a_link_blames_nobody_and_is_read_again() -> None:
    world = World(16, noise=0.005)
    samples = world.full()
    low = samples[40]
    samples[40] = low.model_copy(update={"value": low.value * 0.8})
    assert blamed(samples, 16) == set()
    assert suspects(samples, SPEC, profile="gpu", expected_nodes=names(16))[1] == [(low.node, low.peer)]
    assert blamed(world.until_clear(samples), 16) == set()


def two_rounds(world: World) -> list[Sample]:
    """First with the node half the number on; then the slower half with the faster, as the adaptive rounds are."""
    half = world.n // 2
    first = [world.read(i, i + half) for i in range(half)]
    order = sorted(range(half), key=lambda i: first[i].value)
    second = []
    for slow, fast in zip(order[: half // 2], order[::-1], strict=False):
        second += [world.read(*sorted((slow, fast))), world.read(*sorted((slow + half, fast + half)))]
    return first + second


def test_after_two_rounds_a_node_is_told_and_its_partners_are_not_blamed() -> None:
    world = World(32, seed=1)
    world.node[5] *= 0.8
    samples = world.until_clear(two_rounds(world))
    assert blamed(samples, 32) == {("node005", None)}


def test_after_two_rounds_it_is_said_that_links_can_not_be_told() -> None:
    found = verdict(two_rounds(World(32)), 32)
    said = [f.message for f in found if f.verdict is Verdict.SKIP]
    assert len(said) == 1 and "of 496 links were measured" in said[0] and "pairs: full" in said[0]


def test_two_nodes_can_not_be_told_from_their_link() -> None:
    found = verdict(World(2).full(), 2)
    assert [(f.verdict, f.code) for f in found] == [(Verdict.UNMEASURED, "too_few")]


@pytest.mark.parametrize("profile", ["rehearsal", "cpu"])
def test_pretend_nodes_are_told_by_the_effect_alone(profile: Profile) -> None:
    for seed in range(20):
        world = World(4, noise=0.05, seed=seed)
        assert blamed(world.full(), 4, profile) == set()
        world.node[2] *= 0.5
        assert blamed(world.full(), 4, profile) == {("node002", None)}
        world.node[2] *= 2
        world.link[0, 3] = 0.5
        assert blamed(world.full(), 4, profile) == {("node000", "node003")}


def test_pairs_are_read_again_side_by_side() -> None:
    pairs = list(combinations(range(6), 2))
    rounds = pair_model.rounds(pairs)
    assert sorted(pair for some in rounds for pair in some) == pairs
    for some in rounds:
        nodes = [node for pair in some for node in pair]
        assert len(nodes) == len(set(nodes))
