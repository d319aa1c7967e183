"""Which nodes send to which, round by round: every pair once, or two rounds that tell a slow node from its partner. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Pair = tuple[int, int]
"""Two places among the nodes that take part, the smaller first."""


def full_rounds(n: int) -> list[list[Pair]]:
    """Every pair of `n` nodes exactly once, each node at most once a round.

    n - 1 rounds where n is even; n rounds where it is odd, with one node resting in each: the circle method
    (https://en.wikipedia.org/wiki/Round-robin_tournament#Circle_method).
    """
    size = n + n % 2
    circle = list(range(size))
    rounds = []
    for _ in range(size - 1):
        pairs = [(circle[i], circle[size - 1 - i]) for i in range(size // 2)]
        rounds.append(sorted(_pair(a, b) for a, b in pairs if a < n and b < n))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return [pairs for pairs in rounds if pairs]


def next_round(results: Sequence[Mapping[Pair, float]], n: int) -> list[Pair]:
    """The next of the adaptive rounds of `n` nodes; the same for equal results.

    First node i with node i + n//2. After that the nodes are ordered by the best rate that each had with anybody: the
    slower half meets the faster half, the slowest the fastest, and nobody whom it met before where that can be. So both
    ends of a slow pair meet partners known to be fast, and the one that is fast there is cleared. At most half of the
    pairs of the first round may be slow for that to hold. Where n is odd, the fastest node rests.

    Args:
        results: of each round so far, the rate of each pair; 0 for a pair that failed.
        n: number of nodes.
    """
    if not results:
        return [(i, i + n // 2) for i in range(n // 2)]
    best = [-1.0] * n
    for rates in results:
        for pair, rate in rates.items():
            for node in pair:
                best[node] = max(best[node], rate)
    met = {_pair(*pair) for rates in results for pair in rates}
    order = sorted(range(n), key=lambda node: (best[node], node))
    half = n // 2
    slow, fast = order[:half], order[half : 2 * half][::-1]
    for i in range(half - 1, -1, -1):
        if _pair(slow[i], fast[i]) not in met:
            continue
        for j in sorted(range(half), key=lambda k, i=i: abs(k - i)):  # type: ignore[misc]
            if _pair(slow[i], fast[j]) not in met and _pair(slow[j], fast[i]) not in met:
                fast[i], fast[j] = fast[j], fast[i]
                break
    return sorted(_pair(a, b) for a, b in zip(slow, fast, strict=True))


def _pair(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)
