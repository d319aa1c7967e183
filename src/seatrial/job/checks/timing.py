"""How long work takes on a device, block by block, until the rate is steady."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seatrial.job.checks.inject import stretch

# Student's t, 97.5 %, by degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T_MANY = 1.96
_STEADY = 0.01
_LEAST_BLOCKS = 3


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rates of blocks of iterations, in their order."""

    rates: tuple[float, ...]
    """Iterations a second."""
    iterations: int
    """Of each block."""
    seconds: float
    """All blocks together."""
    converged: bool
    """Whether the rate was steady before the time was up."""
    busy: bool
    """Whether other processes may have had the processor in between (CPU)."""

    @property
    def typical(self) -> float:
        """Iterations a second in the steady state; see `steady`."""
        return steady(self.rates, busy=self.busy)

    def detail(self) -> dict[str, Any]:
        """What a sample says of how it was measured."""
        return {
            "seconds": round(self.seconds, 4),
            "blocks": len(self.rates),
            "iterations": self.iterations,
            "half_width": round(half_width(_last(self.rates)), 5),
            "converged": self.converged,
            "statistic": "upper quartile" if self.busy else "median of the second half",
        }


def steady(rates: Sequence[float], *, busy: bool) -> float:
    """The rate that readings stand for: the median of their second half.

    Where the processor is shared (`busy`), the upper quartile of all: others can only take time away.
    """
    if busy:
        return statistics.quantiles(rates, n=4, method="inclusive")[2] if len(rates) > 1 else rates[0]
    return statistics.median(rates[len(rates) // 2 :])


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the median, as a part of it.

    The median's standard error is sqrt(pi/2) that of the mean (Kenney and Keeping 1962,
    https://mathworld.wolfram.com/StatisticalMedian.html); few values widen it by Student's t.
    """
    n = len(values)
    if n < 2:
        return math.inf
    t = _T[n - 1] if n - 1 < len(_T) else _T_MANY
    return t * math.sqrt(math.pi / 2) * statistics.stdev(values) / math.sqrt(n) / statistics.median(values)


def elapsed_s(work: Callable[[], object], iterations: int, device: torch.device) -> float:
    """Seconds that iterations take: by CUDA events on the current stream; on the CPU, of this thread's processor time.

    CPUs are shared: what other processes take is no property of this one.
    """
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(iterations):
            work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.thread_time()
    for _ in range(iterations):
        work()
    return time.thread_time() - began


def measure(
    work: Callable[[], object],
    device: torch.device,
    *,
    cap_s: float,
    least_s: float = 0.0,
    slow: float = 1.0,
    block_s: float | None = None,
    elapsed: Callable[[Callable[[], object], int, torch.device], float] = elapsed_s,
) -> Blocks:
    """Repeats work until its rate is steady: the half width of the last blocks is at most 1 %.

    There are at least three blocks.

    Args:
        work: one iteration; what it puts on the current stream is waited for.
        device: where it runs.
        cap_s: no block begins after so long.
        least_s: so long at least, where clocks fall as the device gets warm.
        slow: what is left of the speed (a fault on purpose): the rest of the time is slept.
        block_s: length of a block [0.5 on a GPU, 0.05 on a CPU].
        elapsed: the stopwatch.
    """
    block_s = block_s or (0.5 if device.type == "cuda" else 0.05)
    elapsed(work, 1, device)
    iterations = 1
    while (once := elapsed(work, iterations, device)) < block_s / 4:
        iterations *= 2
    iterations = max(1, math.ceil(iterations * block_s / once))
    rates: list[float] = []
    total = 0.0
    converged = False
    while len(rates) < _LEAST_BLOCKS or (total < cap_s and not converged):
        took = elapsed(work, iterations, device)
        if slow < 1:
            began = time.perf_counter()
            stretch(took, slow)
            took += time.perf_counter() - began
        total += took
        rates.append(iterations / took)
        converged = len(rates) >= _LEAST_BLOCKS and total >= least_s and half_width(_last(rates)) <= _STEADY
    return Blocks(tuple(rates), iterations, total, converged, device.type != "cuda")


def _last(rates: Sequence[float]) -> Sequence[float]:
    return rates[-max(_LEAST_BLOCKS, len(rates) // 2) :]
