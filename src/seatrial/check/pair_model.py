"""Slow node or slow link, from the rates of pairs of nodes.

A pair is as fast as the slowest of its two nodes and the link between them: b_ij = min(a_i, a_j, l_ij), not a sum of
effects. So a node's own rate a_i shows in the pairs whose other node is at least as fast, and their median is its estimate,
which no single slow link moves. What a pair then lacks of min(a_i, a_j) is the link's.

One reading can't tell a link that is 10 % slow among 32,640 (256 nodes) at 2 % noise without blaming some hundred healthy
ones, or missing some slow ones. So nobody is convicted on one reading: what looks slow is read again, some pairs at a time,
until its readings' median is clearly on one side. The number of standard errors that convicts grows with the number of
pairs (Bonferroni), the noise is told from the readings themselves, and a median of several readings does not care for
outliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from seatrial.check.peers import FALSE_PARTS, MEDIAN_ERROR, ONCE, OUTLIER_Z, convicting_z

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ENOUGH = 9
"""Readings of a pair that convict, and after which another one is not asked for. What looks slow was picked for its first
reading, so the rest must outvote it: of 400 healthy pairs picked among 32,640, five readings still leave 0.3 whose median is
5 % low, where noise has heavy tails (Student's t with 4 degrees of freedom); nine leave less than 0.001."""
LEAST = 3
"""Readings that convict a pair that is slower by `ONCE` times the limit."""
MET = 5
"""Partners without which no node is convicted, where there are so many."""
FEW = 6
"""A node that has no more partners than this is known by those that are not much slower than it."""
_NORMAL = 1.4826  # standard deviation over MAD, for normal noise
_FLOOR = 0.005 * _NORMAL
_MIN_NOISE = 0.002


@dataclass(frozen=True, slots=True)
class Told:
    """What the pairs tell."""

    node: Floats
    """Rate of each node; NaN where it has no pair."""
    node_deficit: Floats
    """What it lacks of the median node: 0.1 is 10 % slower."""
    slow_node: Flags
    doubtful_node: Flags
    """Looks slow, and was not met by enough others to say so."""
    link_deficit: Floats
    """n x n: what a pair lacks of its slower node; NaN where it was not read."""
    slow_link: Flags
    doubtful_link: Flags
    again: list[tuple[int, int]]
    """Pairs to read again (or for the first time) before anybody is blamed."""
    noise: float
    """Standard deviation of one reading, as a share."""


def tell(readings: Floats, limit: float, *, noisy: bool = False) -> Told:
    """Attributes what is slow.

    Args:
        readings: n x n x k, symmetric, NaN where there is none.
        limit: the deficit that matters.
        noisy: the effect alone decides (pretend nodes).
    """
    n = len(readings)
    count = np.isfinite(readings).sum(axis=2)
    pair = _median(readings)
    partners = (count > 0).sum(axis=1)
    node = _nodes(pair, partners, limit)
    usual = float(np.nanmedian(node))
    node_deficit = 1 - node / usual
    spread = max(_NORMAL * float(np.nanmedian(np.abs(node_deficit))), _FLOOR)
    z = node_deficit / spread
    with np.errstate(invalid="ignore"):
        low = node_deficit >= limit
        met = partners >= (2 if noisy else min(MET, n - 1))
        slow_node = low & met if noisy else low & met & (z >= convicting_z(n))
        doubtful_node = low & ~slow_node & (noisy | (z > OUTLIER_Z))

    expected = np.minimum(node[:, None], node[None, :])
    ratio = pair / expected
    upper = np.triu(np.isfinite(ratio), 1)
    centre = float(np.median(ratio[upper])) if upper.any() else 1.0
    link_deficit = 1 - ratio / centre
    noise = _noise(readings, expected, count, upper, pair, partners)
    error = noise / np.sqrt(np.maximum(count, 1)) * np.where(count > 2, MEDIAN_ERROR, 1.0)
    blameless = ~(slow_node[:, None] | slow_node[None, :])
    # A node known by one partner only can't be told from its link.
    known = (partners[:, None] > 1) & (partners[None, :] > 1)
    decisive = max(OUTLIER_Z, NormalDist().inv_cdf(1 - FALSE_PARTS / max(int(upper.sum()), 1)))
    with np.errstate(invalid="ignore"):
        off = link_deficit >= limit
        if noisy:
            slow_link = off & blameless & known
            doubtful_link = np.zeros_like(off)
            unclear = np.zeros_like(off)
        else:
            clear = link_deficit >= np.maximum(limit, decisive * error)
            enough = (count >= ENOUGH) | ((count >= LEAST) & (link_deficit >= ONCE * limit))
            slow_link = clear & enough & blameless & known
            doubtful_link = off & (link_deficit >= OUTLIER_Z * error) & ~slow_link & blameless
            unclear = (link_deficit >= limit - error) & ~slow_link & blameless & (count < ENOUGH)
    again = [(int(i), int(j)) for i, j in np.argwhere(np.triu(unclear, 1))]
    again += _introductions(node, node_deficit, slow_node, partners, count, limit, noisy)
    return Told(node, node_deficit, slow_node, doubtful_node, link_deficit, slow_link, doubtful_link, sorted(set(again)), noise)  # fmt: skip


def rounds(pairs: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Pairs in rounds in which each node is at most once, so that no pair shares its network with another of its nodes."""
    found: list[list[tuple[int, int]]] = []
    busy: list[set[int]] = []
    for pair in pairs:
        place = next((k for k, nodes in enumerate(busy) if not nodes & set(pair)), len(busy))
        if place == len(busy):
            found.append([])
            busy.append(set())
        found[place].append(pair)
        busy[place] |= set(pair)
    return found


def _median(readings: Floats) -> Floats:
    """Medians along the last axis; NaN where there is no reading."""
    if readings.shape[2] == 1:
        return readings[:, :, 0]
    single = readings[:, :, 0].copy()
    several = np.isfinite(readings[:, :, 1])
    single[several] = np.nanmedian(readings[several], axis=1)
    return single


def _nodes(pair: Floats, partners: NDArray[np.int64], limit: float) -> Floats:
    """Rate of each node: the median of its pairs with nodes that are at least as fast."""
    n = len(pair)
    filled = np.where(np.isfinite(pair), pair, -np.inf)
    ordered = -np.sort(-filled, axis=1)
    start = np.where(partners <= FEW, 0, partners // 4)
    node = np.where(partners > 0, ordered[np.arange(n), start], np.nan)
    few = partners <= FEW
    for _ in range(4):
        # With many partners those that are faster are plenty; with few, one that is hardly slower tells as much.
        least = np.where(few, (1 - limit) * node, node)
        with np.errstate(invalid="ignore"):
            use = (node[None, :] >= least[:, None]) & np.isfinite(pair)
        rank = np.argsort(np.argsort(-np.where(np.isfinite(pair), node[None, :], -np.inf), axis=1), axis=1)
        # The fastest nodes have nobody above them: their fastest partners come nearest to telling.
        use |= (rank < 5) & np.isfinite(pair) & ~few[:, None]
        chosen = np.where(use, pair, np.nan)
        empty = ~use.any(axis=1)
        chosen[empty] = pair[empty]
        fresh = np.full(n, np.nan)
        some = partners > 0
        fresh[some] = np.nanmedian(chosen[some], axis=1)
        fresh[empty & some] = np.nanmax(pair[empty & some], axis=1) if (empty & some).any() else np.nan
        node = fresh
    return node


def _noise(
    readings: Floats,
    expected: Floats,
    count: NDArray[np.int64],
    upper: Flags,
    pair: Floats,
    partners: NDArray[np.int64],
) -> float:
    """Standard deviation of one reading, as a share."""
    first = readings[:, :, 0] / expected
    inside = first[upper]
    if not inside.size:
        return _MIN_NOISE
    about = _NORMAL * float(np.median(np.abs(inside - np.median(inside))))
    if np.median(partners) <= FEW:
        # Nodes' rates come from these same few readings and so seem to fit them; the pairs' own spread is the safe side.
        rates = pair[upper]
        about = max(about, _NORMAL * float(np.median(np.abs(rates / np.median(rates) - 1))))
    return max(about, _MIN_NOISE)


def _introductions(
    node: Floats,
    deficit: Floats,
    slow: Flags,
    partners: NDArray[np.int64],
    count: NDArray[np.int64],
    limit: float,
    noisy: bool,
) -> list[tuple[int, int]]:
    """For each node that looks slow and has met few, the fastest node that it has not met."""
    if noisy:
        return []
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    fastest = [int(j) for j in np.argsort(-np.where(np.isfinite(node), node, -np.inf))]
    with np.errstate(invalid="ignore"):
        unclear = np.flatnonzero(
            (deficit >= 0.6 * limit) & ~slow & (partners < FEW) & (partners < len(node) - 1)
        )
    for i in unclear:
        friend = next(
            (
                j
                for j in fastest
                if j != i and j not in taken and count[i, j] == 0 and deficit[j] < 0.6 * limit
            ),
            None,
        )
        if friend is not None:
            taken.add(friend)
            found.append((min(int(i), friend), max(int(i), friend)))
    return found
