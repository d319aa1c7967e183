"""How long a checkpoint of a 500 MB state keeps the training waiting, against `torch.save` of the same state.

A model of `--megabytes` (weights and AdamW's two moments) is trained on CPU, 1 and 2 ranks. In turns, a step is followed by
`torch.save` (rank 0 writes, the others wait, as trainers do), by Seatrial's save, or by nothing. Two figures are given:

blocked   the time that the loop spends in calls of the saver, waiting for the copy included; for torch.save, in torch.save
          and the barrier behind it
extra     the time of a round of steps with a save, less that of a round without: what the background work costs as well,
          where it shares cores and memory with the training

Nothing is synced to the disk for torch.save; Seatrial's file is, in the background.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from seatrial.job.checkpoint import TrainState
from seatrial.job.optimizer import make_optimizer, make_scheduler, update
from seatrial.job.saver import Saver
from seatrial.job.world import World
from seatrial.runs.retention import Retention
from seatrial.spec.run import TrainSpec

WIDTH = 1024


def make_state(megabytes: int) -> TrainState:
    torch.manual_seed(0)
    depth = max(1, round(megabytes * 2**20 / (3 * 4 * WIDTH * (WIDTH + 1))))
    net = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(depth)])
    train = TrainSpec()
    optimizer = make_optimizer(net, train)
    return TrainState(
        net, optimizer, make_scheduler(optimizer, 1000, train), torch.amp.GradScaler(enabled=False)
    )


def steps(state: TrainState, saver: Saver, batch: torch.Tensor, num_steps: int) -> None:
    for _ in range(num_steps):
        state.model(batch).square().mean().backward()
        if dist.get_world_size() > 1:
            for parameter in state.model.parameters():
                dist.all_reduce(parameter.grad)
        saver.before_update()
        update(state.optimizer, state.scaler, 1.0)
        state.step += 1


def work(rank: int, args: argparse.Namespace, world_size: int, directory: Path) -> None:
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size)
    world = World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    state = make_state(args.megabytes)
    saver = Saver(directory / "checkpoints", state, world, Retention(1), global_batch=1)
    batch = torch.randn(args.batch, WIDTH)
    file = directory / "torch_save.pt"
    found: dict[str, list[float]] = {
        name: [] for name in ("none", "torch.save", "seatrial", "blocked_torch", "blocked")
    }
    for n in range(args.n + 1):  # the first round warms up, and is left out
        for kind in ("none", "torch.save", "seatrial"):
            dist.barrier()
            began, blocked = time.perf_counter(), saver.blocked_s
            if kind == "torch.save":
                if rank == 0:
                    torch.save(
                        {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}, file
                    )
                dist.barrier()
                blocked = time.perf_counter() - began
            elif kind == "seatrial" and state.step:
                saver.save()
            steps(state, saver, batch, args.steps)
            took = time.perf_counter() - began
            if kind == "seatrial":
                blocked = saver.blocked_s - blocked
                saver.finish()
            os.sync()  # what one left for the disk is not the next one's business
            if n:
                found[kind].append(took)
                if kind != "none":
                    found["blocked_torch" if kind == "torch.save" else "blocked"].append(blocked)
    if rank == 0:
        (directory / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    os._exit(0)


def measure(args: argparse.Namespace, world_size: int) -> dict[str, float]:
    directory = Path(tempfile.mkdtemp(prefix="stall-", dir=args.directory))
    try:
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=work, args=(rank, args, world_size, directory))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        found = json.loads((directory / "found.json").read_text())
    finally:
        shutil.rmtree(directory)
    median = {name: statistics.median(values) for name, values in found.items()}
    return {
        "world_size": world_size,
        "step_s": median["none"] / args.steps,
        "torch_save_s": median["blocked_torch"],
        "blocked_s": median["blocked"],
        "blocked_percent": 100 * median["blocked"] / median["blocked_torch"],
        "extra_s": median["seatrial"] - median["none"],
        "torch_save_extra_s": median["torch.save"] - median["none"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=7, help="rounds")
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--directory", type=Path, help="disk to write to [the temporary directory]")
    args = parser.parse_args()
    for world_size in (1, 2):
        row = measure(args, world_size)
        print(
            f"{world_size} ranks: step {row['step_s']:.3f} s   torch.save {row['torch_save_s']:.3f} s   "
            f"blocked {row['blocked_s']:.4f} s = {row['blocked_percent']:.1f} %   "
            f"extra {row['extra_s']:+.3f} s (torch.save {row['torch_save_extra_s']:+.3f} s)"
        )
        print(json.dumps(row))


if __name__ == "__main__":
    main()
