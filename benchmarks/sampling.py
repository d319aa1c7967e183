"""What sampling costs a training beside it: steps of a loop, with and without a node's sampler, in turn.

    benchmarks/sampling.py --rounds 7 --seconds 20 --gpus 8

The training is a loop of matrix products on every core. The sampler is the real program with eight pretend GPUs (NVML's calls answered
by `seatrial.testing.FakeGpus`, which reads a file at each call and so costs more than the library does), and the one for processors.
Beside it, what the phases cost a step: boundaries of one step, timed by themselves.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from step_loop import STEPS

from seatrial.runs.plan import LaunchPlan, Stage, write_plan
from seatrial.runs.telemetry import read_node
from seatrial.testing.gpus import FakeGpus, Gpu


def steps(seconds: float) -> tuple[float, float]:
    """Median and mean step, with as many loops as cores; those of the first."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    loops = [
        subprocess.Popen(
            [sys.executable, "-c", STEPS, str(seconds)], env=env, stdout=subprocess.PIPE, text=True
        )
        for _ in range(len(os.sched_getaffinity(0)))
    ]
    outputs = [loop.communicate()[0].split() for loop in loops]
    return statistics.mean(float(o[0]) for o in outputs), statistics.mean(float(o[1]) for o in outputs)


def sampler(directory: Path, device: str, gpus: int, number: int) -> tuple[subprocess.Popen[bytes], Path]:
    run = directory / f"{device}-{number}"
    (run / "attempt-0").mkdir(parents=True)
    write_plan(
        LaunchPlan(run_id=run.name, run_dir=run, attempt=0, nodes=1, nproc=1, device=device, threads=1, python=sys.executable,  # type: ignore[arg-type]
                   stages=(Stage(name="train", argv=()),), cwd=run, gpus_per_node=gpus if device == "cuda" else 0)
    )  # fmt: skip
    env = FakeGpus(directory / "gpus", [Gpu(busy=90, sm=80, processes=1)] * gpus).environment()
    argv = [sys.executable, "-m", "seatrial.job.sampler", str(run), "--attempt", "0", "--node-rank", "0"]
    return subprocess.Popen(
        argv, env=env, stdout=subprocess.DEVNULL
    ), run / "attempt-0/telemetry/node_00000.jsonl"


def phases_us(count: int = 20000) -> float:
    """Microseconds of the boundaries of one step, on CPU."""
    import torch

    from seatrial.job.phases import Phases
    from seatrial.job.reporter import Reporter
    from seatrial.job.world import World
    from seatrial.runs.paths import RunPaths

    with tempfile.TemporaryDirectory() as directory:
        world = World.from_env("cpu") if "RANK" in os.environ else None
        reporter = Reporter(RunPaths(Path(directory)), 0, 0)
        clock = Phases(reporter, world or type("W", (), {"device": torch.device("cpu")})())  # type: ignore[arg-type]
        began = time.perf_counter()
        for step in range(count):
            for phase in ("data", "forward", "backward", "communication", "optimizer"):
                clock.enter(phase)
            clock.end_step()
            clock.write(step)
        return (time.perf_counter() - began) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--gpus", type=int, default=8)
    args = parser.parse_args()
    print(f"boundaries of a step: {phases_us():.1f} us")
    with tempfile.TemporaryDirectory() as name:
        for device in ("cuda", "cpu"):
            medians, means, rows = [], [], []
            for number in range(args.rounds):
                without = steps(args.seconds)
                process, path = sampler(Path(name), device, args.gpus, number)
                time.sleep(1)
                known = psutil.Process(process.pid)
                spent = sum(known.cpu_times()[:2])
                beside = steps(args.seconds)
                load = (sum(known.cpu_times()[:2]) - spent) / args.seconds
                process.terminate()
                process.wait()
                node = read_node(path)
                rows.append(0 if node is None else len(node.times))
                medians.append(beside[0] / without[0])
                means.append(beside[1] / without[1])
                print(
                    f"{device} round {number}: median {medians[-1]:.4f}, mean {means[-1]:.4f}, {rows[-1]} rows, {load:.2%} of a core",
                    flush=True,
                )
            print(
                f"{device}: median step {statistics.median(medians):.4f} x, mean step {statistics.median(means):.4f} x of without"
            )


if __name__ == "__main__":
    main()
