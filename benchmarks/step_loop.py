"""A training of one thread, for benchmarks of what runs beside one: prints the median and the mean of its steps, in seconds."""

from __future__ import annotations

STEPS = """
import sys, time
import numpy as np
a, times, until = np.random.rand(512, 512), [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    began = time.perf_counter()
    for _ in range(4):
        a @ a
    times.append(time.perf_counter() - began)
print(sorted(times)[len(times) // 2], sum(times) / len(times))
"""
