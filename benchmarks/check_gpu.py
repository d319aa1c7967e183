"""The speed probe of `seatrial check` against the same shapes timed by hand with CUDA events, on one GPU.

    benchmarks/check_gpu.py --rounds 3

By hand is what one would type to know the number: warm up, record an event, repeat, record another, divide. Both are processes
of their own and take turns. Printed are both medians and their ratio; and the time that the whole of `seatrial check quick`
takes on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seatrial.job.checks.task import VARIABLE, Task
from seatrial.runs.samples import read_all
from seatrial.spec.checks import SUITES

BY_HAND = """
import json
import torch

def rate(work, amount, repeats):
    for _ in range(repeats // 5 + 3):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return amount * repeats / start.elapsed_time(end) * 1e3

n, found = 8192, {}
for name, dtype in (("tf32", torch.float32), ("bf16", torch.bfloat16)):
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    found["gemm_" + name] = rate(lambda: torch.mm(a, b, out=out), 2 * n**3 / 1e12, 1500 if name == "bf16" else 700)
a, b, c = (torch.ones(2**28, device="cuda") for _ in range(3))
found["memory_copy"] = rate(lambda: a.copy_(b), 2 * 2**30 / 1e9, 1000)
found["memory_triad"] = rate(lambda: torch.add(b, c, alpha=3.0, out=a), 3 * 2**30 / 1e9, 700)
host, there = torch.empty(2**28, dtype=torch.uint8, pin_memory=True), torch.empty(2**28, dtype=torch.uint8, device="cuda")
found["h2d"] = rate(lambda: there.copy_(host, non_blocking=True), 2**28 / 1e9, 200)
found["d2h"] = rate(lambda: host.copy_(there, non_blocking=True), 2**28 / 1e9, 200)
print(json.dumps(found))
"""
UNITS = {"gemm": "TFLOP/s", "memory": "GB/s"}


def by_hand() -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", BY_HAND], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def probe(directory: Path, number: int) -> dict[str, float]:
    suite = SUITES["quick"].model_copy(update={"gemm_s": 5.0})
    task = Task(
        node="here", node_rank=0, nodes={0: "here"}, nproc=1, gpu=0, device="cuda", suite=suite.model_dump(mode="json"),
        checks=("gemm", "memory", "host_copy"), repeat=number, run_dir=directory, attempt=0,
        out=directory / str(number) / "speed.jsonl",
    )  # fmt: skip
    env = os.environ | {VARIABLE: task.to_text()}
    subprocess.run([sys.executable, "-m", "seatrial.job.checks.speed"], env=env, check=True)
    return {s.metric: float(s.value) for s in read_all(directory / str(number)) if s.value is not None}


def quick(directory: Path) -> tuple[float, int]:
    began = time.monotonic()
    argv = [sys.executable, "-m", "seatrial", "check", "quick", "--runs-dir", str(directory / "runs")]
    done = subprocess.run(argv, check=False)
    return time.monotonic() - began, done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-quick", action="store_true", help="leave out the suite")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        hand: list[dict[str, float]] = []
        ours: list[dict[str, float]] = []
        for number in range(args.rounds):
            hand.append(by_hand())
            ours.append(probe(directory, number))
        for metric in hand[0]:
            a, b = (statistics.median(row[metric] for row in rows) for rows in (hand, ours))
            unit = UNITS.get(metric.partition("_")[0], "GB/s")
            print(f"{metric:<14} by hand {a:8.1f}   probe {b:8.1f} {unit:<8} ratio {b / a:.3f}")
        if not args.no_quick:
            seconds, code = quick(directory)
            print(f"seatrial check quick: {seconds:.0f} s, exit code {code}")


if __name__ == "__main__":
    main()
