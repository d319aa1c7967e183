"""The exporter at 1,024 GPUs: one run of 128 nodes with 8 GPUs each, beside 100 other runs that go on.

    benchmarks/exporter.py --rounds 9

Made-up samples of the last minutes; each scrape is a fresh look at the files, as Prometheus asks every 15 s.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from seatrial.check.floors import peak_tflops
from seatrial.watch.exporter import Exporter, text
from seatrial.watch.look import look

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.monitoring.conftest import running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--others", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        root = Path(name, "runs")
        running(root, "large", nodes=args.nodes, seconds=args.seconds)
        for i in range(args.others):
            running(root, f"small{i}", nodes=1, gpus=1, seconds=args.seconds)
        now = [time.time()]
        exporter = Exporter(root, partial(look, peak=peak_tflops, last_bytes=32 * 1024), clock=lambda: now[0])
        times = []
        for _ in range(args.rounds):
            now[0] += 15
            began = time.perf_counter()
            answer = text(exporter)
            times.append(time.perf_counter() - began)
    gpus = answer.count("\nDCGM_FI_PROF_SM_ACTIVE{")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{gpus} GPUs, {args.others + 1} runs, {args.seconds} s of samples: scrape {statistics.median(times):.2f} s (median of {args.rounds}; "
          f"{min(times):.2f} to {max(times):.2f}), {len(answer) / 1e6:.1f} MB, {peak:.0f} MB of memory")  # fmt: skip


if __name__ == "__main__":
    main()
