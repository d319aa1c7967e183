"""The peers' verdict: a part that is slower than those of its kind.

The median and the MAD of all parts are what one expects, so that a few bad ones don't move it. Robust z (Iglewicz and
Hoaglin, "How to Detect and Handle Outliers", 1993): 0.6745 · |x - median| / MAD, here with a floor of 0.5 % of the median
under the MAD, since on a fleet that is nearly equal everything would stand out. A part must also be slower by what
matters. Three things guard against blaming by chance:

- the z that convicts grows with the number of parts, so that fewer than 0.0002 healthy ones of all are convicted where
  speeds are normal (Bonferroni);
- one reading, or two, convict only where they are far off, else they warn, and `Judged.suspects` says what to measure again;
- of several readings two thirds must agree, and their own noise, told from their differences, is taken out of the spread.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Literal

from seatrial.check.cluster import Cluster
from seatrial.check.findings import found
from seatrial.check.metrics import number, rate, variant
from seatrial.runs.acceptance import Finding, Profile
from seatrial.runs.evidence import Verdict
from seatrial.runs.samples import Sample

MIN_PARTS = 5
"""Below, the median is as likely to be wrong as the part."""
MIN_PARTS_REHEARSED = 4
EFFECT = 0.05
"""How far off the median matters: GPUs of one healthy node differ by some percent."""
EFFECT_CPU = 0.30
"""Pretend nodes, and CPUs that others use, too: their noise is of this size."""
EFFECT_DISK = 0.30
"""Disks serve others, too."""
EFFECT_REHEARSED = 0.60
"""Of collectives: pretend nodes do them at the same time on the same cores, and whose turn it is, is chance."""
OUTLIER_Z = 3.5
"""Iglewicz and Hoaglin's threshold."""
FALSE_PARTS = 0.0002
"""How many healthy parts of a group may be convicted, on average."""
ONCE = 3
"""Times the effect: what less than `LEAST` readings must be off by to convict."""
LEAST = 3
"""Readings without which a part is not convicted, other than by `ONCE`."""
ENOUGH = 7
"""Readings after which another one is not asked for."""
MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, for normal noise: sqrt(pi / 2)."""
_MAD_FLOOR = 0.005
_NORMAL = 0.6745  # MAD of a normal distribution, in standard deviations
_SUSPICION = 0.6

Key = tuple[str, int | None, str | None, int | None]
"""Node, GPU, and the other end."""
Word = Literal["good", "doubtful", "slow"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One group of parts, judged."""

    median: float
    deficit: Mapping[Key, float]
    """By part, what it lacks of the median: 0.1 is 10 % slower."""
    word: Mapping[Key, Word]
    suspects: tuple[Key, ...]
    """What should be measured again before anybody is blamed."""
    divided: bool
    """More than half of the parts are far under the fastest quarter: the median may be the slow ones'."""


def effect(check: str, profile: Profile) -> float:
    """How far off the median matters."""
    if profile == "rehearsal" and check.endswith("_collectives"):
        return EFFECT_REHEARSED
    if profile != "gpu":
        return EFFECT_CPU
    return EFFECT_DISK if check.endswith("_disk") else EFFECT


def convicting_z(parts: int) -> float:
    """The z that healthy parts reach no oftener than `FALSE_PARTS` times among them all, where speeds are normal.

    Larger by the error of the MAD that z is measured in, whose efficiency is 37 % (Rousseeuw and Croux, "Alternatives to the
    Median Absolute Deviation", JASA 88, 1993): 1 / sqrt(2 · 0.37 · parts).
    """
    parts = max(parts, 1)
    return max(OUTLIER_Z, NormalDist().inv_cdf(1 - FALSE_PARTS / parts) * (1 + 1 / math.sqrt(0.74 * parts)))


def compare(
    readings: Mapping[Key, Sequence[float]], limit: float, *, higher: bool = True, noisy: bool = False
) -> Judged:
    """Holds parts to each other.

    Args:
        readings: of each part, in order.
        limit: the deficit that matters, as a share of the median.
        higher: whether more is better.
        noisy: the effect alone decides (pretend nodes, whose spread says nothing).
    """
    own = {key: median(values) for key, values in readings.items()}
    centre = median(own.values())
    sign = 1.0 if higher else -1.0
    deficit = {key: sign * (centre - value) / abs(centre) if centre else 0.0 for key, value in own.items()}
    floor = _MAD_FLOOR / _NORMAL
    spread = max(median(abs(d) for d in deficit.values()) / _NORMAL, floor)
    noise = _noise(readings.values()) / abs(centre) if centre else 0.0
    # What noise adds to the spread is not the parts' own. It is known from few parts, those that were read again, and so
    # never taken for more than half.
    usual = median(len(values) for values in readings.values())
    between = max(spread**2 - noise**2 / usual, spread**2 / 2, floor**2)
    decisive = convicting_z(len(own))
    word: dict[Key, Word] = {}
    suspects = []
    for key, values in readings.items():
        d, count = deficit[key], len(values)
        z = d / (between + (MEDIAN_ERROR * noise) ** 2 / count) ** 0.5
        low = sum(sign * (centre - value) >= limit * abs(centre) for value in values)
        agree = 3 * low >= 2 * count
        if d < limit or not (noisy or z > OUTLIER_Z):
            word[key] = "good"
        elif noisy:
            word[key] = "slow" if agree else "doubtful"
        elif count < LEAST:
            word[key] = "slow" if low == count and d >= ONCE * limit else "doubtful"
        else:
            # Who was picked for a low reading is not convicted until the others can outvote it.
            unpicked = count <= usual or count >= ENOUGH or d >= ONCE * limit
            word[key] = "slow" if agree and unpicked and z >= decisive else "doubtful"
        if d >= _SUSPICION * limit and (count < LEAST or (count < ENOUGH and word[key] != "slow")):
            suspects.append(key)
    ordered = sorted(own.values(), reverse=higher)
    fastest = ordered[len(ordered) // 4]
    behind = sum(sign * (fastest - value) >= limit * abs(fastest) for value in ordered)
    return Judged(centre, deficit, word, tuple(suspects), behind * 2 > len(ordered))


def _noise(readings: Iterable[Sequence[float]]) -> float:
    """Standard deviation of a reading, told from differences within parts; 0 where parts were read once.

    The first reading of a part that was read thrice or oftener is left out: it may be why it was read again.
    """
    apart = [
        abs(b - a)
        for values in readings
        for a, b in zip(values[1 if len(values) > 2 else 0 :], values[2 if len(values) > 2 else 1 :], strict=False)
    ]  # fmt: skip
    return median(apart) / (_NORMAL * 2**0.5) if apart else 0.0


def groups(cluster: Cluster) -> dict[tuple[str, str, str, str], list[Sample]]:
    """Samples with figures that can be held to each other: by check, metric, GPU model and variant."""
    kinds: dict[tuple[str, str, str, str], list[Sample]] = defaultdict(list)
    for (check, metric), samples in cluster.by_metric.items():
        if cluster.profile == "rehearsal" and check.endswith("_disk"):
            continue  # pretend nodes have one disk
        for sample in samples:
            kind = rate(sample)
            if kind and kind.peers and number(sample) is not None:
                if cluster.profile == "rehearsal" and check.endswith("_disk"):
                    continue  # Pretend nodes have one disk in common.
                model = "" if check.endswith("_disk") else cluster.model(sample.node, sample.gpu)
                kinds[check, metric, model, variant(sample)].append(sample)
    return kinds


def judge(cluster: Cluster) -> list[Finding]:
    """The peers' verdict of every rate that several parts have."""
    return [
        finding
        for kind, samples in groups(cluster).items()
        for finding in _judge_group(cluster, kind, samples)
    ]


def suspects(cluster: Cluster) -> list[Sample]:
    """One sample of each part and metric that should be measured again before anybody is blamed."""
    found_: list[Sample] = []
    for kind, samples in groups(cluster).items():
        parts = _parts(samples)
        if len(parts) >= _needed(cluster):
            judged = _compare(cluster, kind[0], parts)
            found_ += [parts[key][0] for key in judged.suspects]
    return found_


def _parts(samples: Iterable[Sample]) -> dict[Key, list[Sample]]:
    parts: dict[Key, list[Sample]] = defaultdict(list)
    for sample in samples:
        parts[sample.node, sample.gpu, sample.peer, sample.peer_gpu].append(sample)
    return parts


def _needed(cluster: Cluster) -> int:
    return MIN_PARTS_REHEARSED if cluster.profile == "rehearsal" else MIN_PARTS


def _compare(cluster: Cluster, check: str, parts: Mapping[Key, list[Sample]]) -> Judged:
    readings = {key: [float(s.value) for s in samples] for key, samples in parts.items()}
    kind = rate(next(iter(parts.values()))[0])
    assert kind is not None
    return compare(
        readings, effect(check, cluster.profile), higher=kind.higher, noisy=cluster.profile != "gpu"
    )


def _judge_group(cluster: Cluster, kind: tuple[str, str, str, str], samples: list[Sample]) -> list[Finding]:
    check, metric, model, size = kind
    parts = _parts(samples)
    what = " ".join(filter(None, (metric, f"({size})" if size else "")))
    whole = Finding(
        check=check, metric=metric, verdict=Verdict.UNMEASURED, judge="peers", message="", code="not_read"
    )
    if len(parts) < _needed(cluster):
        say = f"{what}: {len(parts)} of {model or 'a kind'} are too few to hold to each other; it takes {_needed(cluster)}"
        return [whole.model_copy(update={"message": say, "code": "too_few"})]
    judged = _compare(cluster, check, parts)
    findings = []
    if judged.divided:
        say = (
            f"{what}: more than half are {effect(check, cluster.profile):.0%} or more behind the fastest quarter, "
            "so peers can't tell which half is healthy"
        )
        findings.append(whole.model_copy(update={"message": say, "code": "divided"}))
    for key, read in parts.items():
        findings.append(_finding(read, what, judged, key, len(parts)))
    return findings


def _finding(read: list[Sample], what: str, judged: Judged, key: Key, count: int) -> Finding:
    sample = read[0]
    unit = sample.unit
    value = median(float(s.value) for s in read)
    d, word = judged.deficit[key], judged.word[key]
    side = "under" if d >= 0 else "over"
    say = f"{what} is {value:.4g} {unit}, {abs(d):.1%} {side} the median of {count} ({judged.median:.4g})"
    common = {
        "judge": "peers",
        "measured": value,
        "expected": judged.median,
        "unit": unit,
        "source": f"median of {count}",
    }
    if word == "good":
        return found(sample, Verdict.PASS, say, **common)
    again = f"seatrial check --only {sample.check} --repeat 3"
    if word == "doubtful":
        say += f"; {'one reading is' if len(read) == 1 else 'the readings are'} not enough to tell"
        return found(
            sample, Verdict.WARN, say, blame="node", code="slow_against_peers", remedy=again, **common
        )
    where = sample.node if sample.gpu is None else f"{sample.node} GPU {sample.gpu}"
    remedy = f"take {where} out of use and look at its clocks, power and cooling; then {again}"
    return found(sample, Verdict.FAIL, say, blame="node", code="slow_against_peers", remedy=remedy, **common)
