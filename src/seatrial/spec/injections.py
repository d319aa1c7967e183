"""Faults on purpose of an acceptance test: ``slow-gpu:node=3,gpu=1,factor=0.8``. Data and validation only.

`job.checks.inject` does them, each where the real one would show: a rank sleeps, a probe hangs, bits are flipped in what was
received. What no rank can do (a driver's version, an Xid) is put into what the probe reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault."""

    kind: str
    node: int = 0
    """Node rank."""
    gpu: int | None = None
    """Index on the node; None is every one."""
    peer: int | None = None
    """Node rank of a link's other end."""
    factor: float = 0.5
    """What is left of the speed."""
    value: str = ""
    """What the probe reads instead."""

    @property
    def about(self) -> str:
        """For people."""
        return KINDS[self.kind][1]


KINDS: dict[str, tuple[frozenset[str], str]] = {
    "slow-gpu": (frozenset({"node", "gpu", "factor"}), "a GPU computes at factor of its speed"),
    "slow-node": (frozenset({"node", "factor"}), "every GPU of a node computes, and its network sends, at factor of the speed"),
    "slow-link": (frozenset({"node", "peer", "factor"}), "two nodes send to each other at factor of the speed"),
    "lost-gpu": (frozenset({"node", "gpu"}), "the driver no longer lists a GPU"),
    "wrong-driver": (frozenset({"node", "value"}), "a node reports another driver"),
    "small-shm": (frozenset({"node"}), "/dev/shm of 64 MiB"),
    "low-memlock": (frozenset({"node"}), "64 KiB of locked memory, with InfiniBand"),
    "hung-probe": (frozenset({"node", "gpu"}), "a probe never ends"),
    "dead-node": (frozenset({"node"}), "a node never answers"),
    "dead-rank": (frozenset({"node", "gpu"}), "a rank dies inside a collective"),
    "flipped-bits": (frozenset({"node", "gpu"}), "a collective delivers a wrong number"),
    "wrong-result": (frozenset({"node", "gpu"}), "a matrix product has a wrong bit"),
    "throttling": (frozenset({"node", "gpu"}), "thermal slowdown under load"),
    "xid": (frozenset({"node", "value"}), "the driver logged Xid value (79)"),
    "wrong-transport": (frozenset({"node"}), "sockets carry what InfiniBand should"),
    "slow-clock": (frozenset({"node", "value"}), "the node's clock is value seconds off (60)"),
}  # fmt: skip
"""Keys of each kind, and what it does."""
_NEEDS_PEER = "slow-link"


def parse(text: str) -> Injection:
    """The fault that a text names.

    Raises:
        ValueError: it can't be read.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"{text!r}: {kind!r} is not a fault: {', '.join(KINDS)}")
    allowed = KINDS[kind][0]
    values: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, word = pair.partition("=")
        key = key.strip()
        if not equals or key not in allowed:
            raise ValueError(f"{text!r}: {kind} takes {', '.join(sorted(allowed))}, not {pair!r}")
        try:
            values[key] = word if key == "value" else float(word) if key == "factor" else int(word)
        except ValueError:
            raise ValueError(f"{text!r}: {word!r} is not a number") from None
    if not 0 < values.get("factor", 0.5) < 1:
        raise ValueError(f"{text!r}: factor is what is left of the speed, between 0 and 1")
    if kind == _NEEDS_PEER and ("node" not in values or "peer" not in values):
        raise ValueError(f"{text!r}: a link has two ends: slow-link:node=0,peer=1")
    return Injection(kind, **values)
