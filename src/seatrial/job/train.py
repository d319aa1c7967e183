"""The trainer, top to bottom. Each rank runs ``python -m seatrial.job.train RUN_DIR --attempt K``.

Plain PyTorch: DDP, AdamW, autocast, one visible loop. The loss is normalised by the whole global batch, so any
number of ranks takes the same steps. Nothing leaves the device between two logging steps.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from seatrial.job import adapters, checkpoint, data, model, vocabulary
from seatrial.job.batches import collate
from seatrial.job.build import Job, build
from seatrial.job.compiling import eagerly
from seatrial.job.device import autocast, to_device
from seatrial.job.fingerprint import fingerprint
from seatrial.job.guard import Guard, Window
from seatrial.job.optimizer import update
from seatrial.job.parallel import passes, settle_buckets, share_statistics, shares, unsynced
from seatrial.job.proof import after_training, same_on_all_ranks
from seatrial.job.reporter import Reporter, reporting
from seatrial.job.stop import StopAgreement
from seatrial.job.world import World, check_in, process_group
from seatrial.runs.commit import is_committed
from seatrial.runs.evidence import Verdict
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan
from seatrial.spec.load import read_spec
from seatrial.spec.run import RunSpec

STOPPED = 75
"""Exit code of a rank that was asked to stop, and saved."""


def main() -> None:
    """Reads the run directory and trains what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--attempt",
        type=int,
        default=os.environ.get("SEATRIAL_ATTEMPT"),
        required="SEATRIAL_ATTEMPT" not in os.environ,
    )
    args = parser.parse_args()
    paths = RunPaths(args.run_dir)
    with reporting(paths, args.attempt, "train") as reporter:
        plan = read_plan(paths.root, args.attempt)
        spec = read_spec(paths.spec)
        assert isinstance(spec, RunSpec)
        data.quiet_libraries()
        model.quiet_libraries()
        world = World.from_env(plan.device)
        with process_group(world):
            finished = is_committed(paths.model("trained")) or train(spec, plan, world, reporter)
            if not finished:
                reporter.event("stopped")
    if not finished:
        raise SystemExit(STOPPED)


# --- the loop -------------------------------------------------------------------------------------------------


def train(spec: RunSpec, plan: LaunchPlan, world: World, reporter: Reporter) -> bool:
    """Trains from the newest sound checkpoint, or from the start, to the end.

    Returns:
        Whether the end was reached; False when all ranks agreed to stop, after a checkpoint.
    """
    present = check_in(world, plan)
    if world.is_main:
        reporter.facts(environment=fingerprint())
    reporter.evidence(
        "ranks_present", Verdict.PASS, measured=len(present), expected=plan.world_size, unit="ranks",
        source="all_gather before step 1", message=f"{len(present)} of {plan.world_size} ranks reported",
    )  # fmt: skip
    job = begin(spec, world, reporter)
    stop = StopAgreement(world, reporter.attempt)
    first_loss = last_loss = None
    step = job.state.step
    while step < job.num_steps:
        job.faults.before_step(step + 1, job.net)
        reporter.heart.beat(step + 1)
        train_step(job, step)
        step = job.state.step = step + 1
        last = step == job.num_steps
        wishes = stop.agreed(save=job.saver.is_due())
        stopping = wishes.stop and not last
        logging = last or stopping or step % spec.train.log_every == 0 or step == 1
        saving = stopping or ((wishes.save or is_due(step, spec.train.checkpoint_every)) and not last)
        if is_due(step, spec.train.compare_ranks_every, otherwise=saving):
            job.guard.compare_ranks(job.net, step)
        if (logging or saving) and not job.guard.healthy(job.window, job.state.scaler, whole=logging):
            del job  # its memory is needed
            job = begin(spec, world, reporter)
            step = job.state.step
            continue
        if logging:
            job.phases.write(step, last=last or stopping)
            logged = log_step(job)
            last_loss = logged if logged is not None else last_loss
            first_loss = first_loss if first_loss is not None else last_loss
        if last or is_due(step, spec.train.eval_every or job.batches.steps_per_epoch):
            job.phases.enter("evaluate")
            evaluate(job)
            job.phases.enter("other")
        if saving:
            job.phases.enter("checkpoint")
            job.saver.save()
            job.phases.enter("other")
        if stopping:
            stop.close()
            job.saver.finish()
            return False
    stop.close()
    job.saver.finish()
    finish(job, first_loss, last_loss)
    return True


def begin(spec: RunSpec, world: World, reporter: Reporter) -> Job:
    """Everything as it was after the newest sound checkpoint, or at the start: of an attempt, or after going back."""
    guard = Guard.open(spec.train, world, reporter)
    found = checkpoint.newest(reporter.paths.checkpoints, world, reporter)
    job = build(spec, world, reporter, guard, found)
    done = checkpoint.load(found, job.state, world, spec.train.seed)
    guard.remember(done)
    settle_buckets(job.net, world, job.statistics, lambda: settle_step(job, done))
    reporter.event(
        "training", num_steps=job.num_steps, from_step=done, steps_per_epoch=job.batches.steps_per_epoch
    )
    return job


def settle_step(job: Job, step: int) -> None:
    """One forward and backward pass over samples of the next step."""
    part = passes(job.batches, job.batches.indices(min(step, job.num_steps - 1)), job.world, job.net)[0][0]
    batch = to_device(collate(job.train, part, job.loaded.pad_id, job.batches.epoch(step)), job.world.device)
    with autocast(job.spec.train.precision, job.world.device):
        lengths = torch.from_numpy(job.train.lengths[part]) if job.spec.train.packing else None
        loss, _, _ = model.loss_and_hits(job.net, batch, job.spec.task, lengths)
    loss.backward()


def is_due(step: int, every: int | None, *, otherwise: bool = False) -> bool:
    """Whether something done every so many steps is done after this one; `otherwise` where no number is given."""
    return otherwise if every is None else step % every == 0


# --- one step --------------------------------------------------------------------------------------------------


def train_step(job: Job, step: int) -> None:
    """One optimizer step, counted from 0: this rank's part of the global batch, then the update."""
    train, world, window, state = job.spec.train, job.world, job.window, job.state
    if step + 1 in job.guard.left_out:
        state.scheduler.step()
        return
    indices = job.batches.indices(step)
    weight = int(job.train.targets[indices].sum())
    parts = passes(job.batches, indices, world, job.net)
    loss = torch.zeros((), device=world.device)
    for i, (part, counts) in enumerate(parts):
        job.phases.enter("data")
        job.faults.dawdle("slow_data", step + 1)
        batch = to_device(collate(job.train, part, job.loaded.pad_id, job.batches.epoch(step)), world.device)
        job.phases.enter("forward")
        job.faults.dawdle("slow_rank", step + 1)
        with unsynced(job.net, wanted=i < len(parts) - 1):
            with autocast(train.precision, world.device):
                lengths = torch.from_numpy(job.train.lengths[part]) if train.packing else None
                part_loss, _, _ = model.loss_and_hits(job.net, batch, job.spec.task, lengths)
            part_loss = job.faults.on_loss(part_loss, step + 1)
            # Gradients are averaged over what sees different samples; the loss is a mean over all samples (tokens).
            factor = counts * world.dp_size / max(weight, 1) * job.faults.gradient_factor(step + 1)
            scaled = part_loss * factor
            if i == len(parts) - 1:
                job.reporter.heart.enter("reducing")  # from here on it waits for its peers
            job.phases.enter("backward", syncs=i == len(parts) - 1)
            state.scaler.scale(scaled).backward()
        loss += part_loss.detach() * counts / world.tp_size
    job.phases.enter("optimizer")
    job.saver.before_update()
    norm = update(state.optimizer, state.scaler, train.clip_norm)
    state.scheduler.step()
    share_statistics(job.statistics, world)
    job.phases.end_step()

    window.add(step + 1, weight, loss, norm)
    window.samples += len(indices)
    window.tokens += int(job.train.lengths[indices].sum())


# --- once in a while -------------------------------------------------------------------------------------------


def log_step(job: Job) -> float | None:
    """Writes a row of metrics over the steps since the last one, which the guard has read.

    Returns:
        The mean loss per sample (token) over all ranks; None when no step had a finite one.
    """
    window, step, loss = job.window, job.state.step, job.window.loss
    elapsed = time.perf_counter() - window.started
    job.reporter.metric(
        kind="train", step=step, epoch=round(step / job.batches.steps_per_epoch, 4), loss=loss,
        learning_rate=job.state.scheduler.get_last_lr()[0],
        grad_norm=finite(window.results[-1].norm) if window.results else None,
        samples_per_s=window.samples / elapsed, tokens_per_s=window.tokens / elapsed, window_s=elapsed,
    )  # fmt: skip
    job.window = Window()
    return loss


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


@torch.no_grad()
def evaluate(job: Job) -> None:
    """Loss and accuracy over the held-out samples, each seen by one rank once. Chooses nothing: only for the curve."""
    world, tokens, began = job.world, job.test, time.perf_counter()
    job.loaded.model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)
    order = np.argsort(tokens.lengths, kind="stable")
    for part, counts in shares(order, 2 * job.batches.micro_batch, world, job.net):
        with autocast(job.spec.train.precision, world.device), eagerly(job.loaded.model):
            loss, hits, _ = model.loss_and_hits(
                job.loaded.model,
                to_device(collate(tokens, part, job.loaded.pad_id), world.device),
                job.spec.task,
            )
        totals += torch.stack([loss.double(), hits.double()]) * counts / world.tp_size
        job.reporter.heart.enter("evaluating")
    dist.all_reduce(totals)
    job.loaded.model.train()
    elapsed = time.perf_counter() - began
    job.window.started += elapsed  # throughput is of training
    weight = max(1, int(tokens.targets.sum()))
    loss_sum, hits_sum = totals.tolist()
    job.state.held_out = (job.state.step, finite(loss_sum / weight))
    job.reporter.metric(
        kind="eval", step=job.state.step, loss=finite(loss_sum / weight), accuracy=hits_sum / weight, eval_s=elapsed,
    )  # fmt: skip


def finish(job: Job, first_loss: float | None, last_loss: float | None) -> None:
    """Saves the trained model and proves that it was trained."""
    job.reporter.event("saving")
    vocabulary.untrim(job.loaded.model)
    weights = same_on_all_ranks(job.loaded.model, job.world, job.reporter)
    job.guard.conclude()
    job.loaded.model.eval()
    changed = adapters.before_and_after(job.loaded.model, job.spec.adapter)
    trained = adapters.finished(job.loaded.model, job.spec.adapter)
    path = job.reporter.paths.model("trained")
    model.save_model(path, trained, job.loaded.tokenizer, is_main=job.world.is_main, step=job.state.step)
    if job.world.is_main:
        after_training(
            job.reporter, job.state.step, job.num_steps, first_loss, last_loss, job.guard.num_without_update, weights,
            changed,
        )  # fmt: skip
    dist.barrier()


if __name__ == "__main__":
    main()
