"""What events, metrics and evidence cost of a training step, on CPU, in one process.

    benchmarks/telemetry.py [--steps 150] [--repeats 3] [--log-every 10]

The trainer itself runs with its reporter, and with one that keeps quiet, in turns (A B A B). Two figures: the part of the
loop's wall time that is spent inside reporter calls (exact, since they are timed one by one), and the difference of the
medians of both loops in CPU time (what the whole costs, as far as the machine's noise lets it be seen). Prints one line of
JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from chaos import WORDS, make_inputs

from seatrial.job.reporter import Reporter
from seatrial.job.train import train
from seatrial.job.world import World
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.spec.run import DataSpec, RunSpec, TrainSpec


class Timed(Reporter):
    """Times its own calls while the loop runs; `loud` ones write as well."""

    def __init__(self, paths: RunPaths, loud: bool) -> None:
        super().__init__(paths, 0, 0)
        self.loud, self.inside_s, self.calls = loud, 0.0, 0
        self.began = self.ended = 0.0
        self.cpu_s = 0.0
        """CPU time of the loop."""

    def _time(self, call: Any, *args: Any, **found: Any) -> None:
        start = time.perf_counter()
        if self.loud:
            call(*args, **found)
        if self.began and not self.ended:
            self.inside_s += time.perf_counter() - start
            self.calls += 1

    def event(self, name: str, **facts: Any) -> None:
        self._time(super().event, name, **facts)
        if name == "training":
            self.began, self.cpu_s = time.perf_counter(), -time.process_time()
        if name == "saving":
            self.ended, self.cpu_s = time.perf_counter(), self.cpu_s + time.process_time()

    def metric(self, **row: Any) -> None:
        self._time(super().metric, **row)

    def facts(self, **facts: Any) -> None:
        self._time(super().facts, **facts)

    def evidence(self, check: str, verdict: Any, **found: Any) -> None:
        self._time(super().evidence, check, verdict, **found)


def one(root: Path, spec: RunSpec, loud: bool) -> Timed:
    """One training in a run directory of its own."""
    paths = RunPaths(Path(tempfile.mkdtemp(dir=root)))
    reporter = Timed(paths, loud)
    plan = LaunchPlan(
        run_id="telemetry", run_dir=paths.root, attempt=0, nodes=1, nproc=1, device="cpu", threads=1, stages=(),
        python="", cwd=root,
    )  # fmt: skip
    train(spec, plan, World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu")), reporter)
    return reporter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--log-every", type=int, default=10)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    loops: dict[bool, list[float]] = {True: [], False: []}
    shares, calls = [], 0
    with tempfile.TemporaryDirectory(prefix="telemetry-") as name:
        root = Path(name)
        make_inputs(root, 0, hidden=128, layers=2)
        rng = random.Random(0)
        with (root / "data.jsonl").open("w") as file:
            for i in range(600):
                file.write(json.dumps({"text": " ".join(rng.choices(WORDS, k=24)), "label": i % 2}) + "\n")
        spec = RunSpec(
            name="telemetry", model=str(root / "model"), data=DataSpec(path=str(root / "data.jsonl")),
            train=TrainSpec(epochs=1000, max_steps=args.steps, eval_every=10**6, checkpoint_every=None,
                            log_every=args.log_every),
        )  # fmt: skip
        one(root, spec, True)  # warms up
        for _ in range(args.repeats):
            for loud in (True, False):
                found = one(root, spec, loud)
                loops[loud].append(found.cpu_s / args.steps)
                if loud:
                    shares.append(found.inside_s / (found.ended - found.began))
                    calls = found.calls
    dist.destroy_process_group()
    on, off = (statistics.median(loops[loud]) for loud in (True, False))
    print(json.dumps({
        "step_cpu_ms_on": round(1e3 * on, 3), "step_cpu_ms_off": round(1e3 * off, 3), "difference": round(on / off - 1, 5),
        "inside_reporter": round(statistics.median(shares), 6), "calls": calls, "steps": args.steps,
        "log_every": args.log_every, "repeats": args.repeats,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
