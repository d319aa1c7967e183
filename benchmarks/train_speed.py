"""Training speed against Hugging Face's Trainer: same model, samples, batch, steps, precision and threads.

    python benchmarks/train_speed.py --threads 1 --rounds 5

Each variant is a process of its own that trains for some steps and prints how long each took, in CPU time (the machines
are shared) and wall time; variants take turns. The first steps are left out. `--curves` trains Trainer at its best and
Seatrial on three seeds instead, and prints the losses.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import inputs

BATCH = 32
LEARNING_RATE = 1e-4
SKIPPED = 8
VARIANTS = {
    "Trainer, padded to 128": 12,
    "Trainer, as it comes": 40,
    "Trainer, at its best": 80,
    "Trainer, at its best, compiled": 80,
    "Seatrial": 80,
}
"""Steps that are timed: about equally long for each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=[v for v in VARIANTS if "compiled" not in v])
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "seatrial-benchmark")
    parser.add_argument("--worker", nargs=3, metavar=("VARIANT", "STEPS", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        variant, steps, seed = args.worker
        run = seatrial if variant == "Seatrial" else trainer
        print(json.dumps(run(args.directory, variant, int(steps), int(seed))))
        return
    inputs.make(args.directory)
    if args.curves:
        curves(args)
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in args.variants}
    for _ in range(args.rounds):
        for name in args.variants:
            found[name].append(worker(args, name, SKIPPED + VARIANTS[name], 0))
    report(found, args.threads)


def worker(args: argparse.Namespace, name: str, steps: int, seed: int) -> dict[str, Any]:
    argv = [
        sys.executable,
        __file__,
        "--directory",
        str(args.directory),
        "--worker",
        name,
        str(steps),
        str(seed),
    ]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, list[dict[str, float]]], threads: int) -> None:
    print(
        f"{threads} thread(s), batch {BATCH}, samples per CPU-second and per second; medians of {len(next(iter(found.values())))}"
    )
    ours = found.get("Seatrial", [])
    for name, rounds in found.items():
        cpu, wall = (statistics.median(r[key] for r in rounds) for key in ("per_cpu_s", "per_s"))
        line = f"{name:<32} {cpu:7.1f} /CPU-s  {wall:7.1f} /s"
        if ours and name != "Seatrial":
            # Of each round, so that what slowed one variant down is likely to have slowed the other.
            ratios = [
                statistics.median(o[k] / r[k] for o, r in zip(ours, rounds, strict=True))
                for k in ("per_cpu_s", "per_s")
            ]
            line += f"   Seatrial is {ratios[0]:.2f} × in CPU time, {ratios[1]:.2f} × in wall time"
        print(line)
    print(json.dumps(found))


def rates(marks: list[tuple[float, float]]) -> dict[str, float]:
    """Samples per second from (wall, CPU) clock readings after each step; the median step counts."""
    steps = list(itertools.pairwise(marks[SKIPPED - 1 :]))
    wall, cpu = (statistics.fmean(b[i] - a[i] for a, b in steps) for i in (0, 1))
    return {"per_s": BATCH / wall, "per_cpu_s": BATCH / cpu}


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


# --- the two sides -------------------------------------------------------------------------------------------------


def trainer(directory: Path, variant: str, steps: int, seed: int) -> dict[str, Any]:
    import datasets
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    datasets.disable_progress_bars()
    best = "best" in variant
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    raw = datasets.load_dataset("json", data_files=str(directory / "data" / "train.jsonl"), split="train")
    padding = "max_length" if "128" in variant else False
    encoded = raw.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=128, padding=padding), batched=True
    )
    marks, losses = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(clocks())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append((state.global_step, logs["loss"]))

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=LEARNING_RATE,
        seed=seed, report_to=[], save_strategy="no", logging_steps=10, disable_tqdm=True, dataloader_pin_memory=False,
        weight_decay=0.01, warmup_steps=0.06, lr_scheduler_type="linear", use_cpu=True,
        **({"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"} if best else {}),
        torch_compile="compiled" in variant,
    )  # fmt: skip
    Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(directory / "model", num_labels=2), args=arguments,
        train_dataset=encoded, data_collator=DataCollatorWithPadding(tokenizer), callbacks=[Clock()],
    ).train()  # fmt: skip
    return rates(marks) | {"losses": losses}


def seatrial(directory: Path, variant: str, steps: int, seed: int) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from seatrial.job import data, model
    from seatrial.job import train as training
    from seatrial.job.build import build
    from seatrial.job.guard import Guard
    from seatrial.job.reporter import Reporter
    from seatrial.job.world import World, process_group
    from seatrial.runs.metrics import read_metrics
    from seatrial.runs.paths import RunPaths
    from seatrial.spec.run import RunSpec

    data.quiet_libraries()
    model.quiet_libraries()
    spec = RunSpec.model_validate({
        "name": "benchmark", "model": str(directory / "model"), "data": {"path": str(directory / "data"), "max_length": 128},
        "train": {"batch_size": BATCH, "learning_rate": LEARNING_RATE, "max_steps": steps, "epochs": 100, "seed": seed},
        "gates": {}, "resources": {"nproc": 1, "gpus_per_node": 0},
    })  # fmt: skip
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    root = Path(tempfile.mkdtemp()) / "run"
    root.mkdir()
    marks = []
    with process_group(world):
        reporter = Reporter(RunPaths(root), 0, 0)
        job = build(spec, world, reporter, Guard.open(spec.train, world, reporter))
        for step in range(steps):
            training.train_step(job, step)
            job.state.step = step + 1
            if job.state.step % spec.train.log_every == 0:
                job.guard.healthy(job.window, job.state.scaler, whole=True)
                training.log_step(job)
            marks.append(clocks())
        dist.barrier()
    losses = [(row["step"], row["loss"]) for row in read_metrics(RunPaths(root).metrics)["train"]]
    return rates(marks) | {"losses": losses}


def curves(args: argparse.Namespace) -> None:
    steps = 600
    for seed in range(3):
        for name in ("Trainer, at its best", "Seatrial"):
            print(
                json.dumps(
                    {"variant": name, "seed": seed, "losses": worker(args, name, steps, seed)["losses"]}
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
