"""The trainer, top to bottom. Each rank runs ``python -m seatrial.job.train RUN_DIR --attempt K``.

Plain PyTorch: DDP, AdamW, autocast, one visible loop. The loss is normalised by the whole global batch, so any
number of ranks takes the same steps. Nothing leaves the device between two logging steps.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from seatrial.errors import MeasuredFailure, SpecError
from seatrial.job import checkpoint, data, model
from seatrial.job.batches import BatchPlan, Tokens, collate, tokenize
from seatrial.job.checkpoint import TrainState
from seatrial.job.faults import Faults
from seatrial.job.fingerprint import fingerprint
from seatrial.job.proof import after_training, same_on_all_ranks
from seatrial.job.reporter import Reporter, reporting
from seatrial.job.stop import StopAgreement
from seatrial.job.world import World, check_in, process_group
from seatrial.runs.commit import is_committed
from seatrial.runs.evidence import Verdict
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan
from seatrial.spec.load import read_spec
from seatrial.spec.run import RunSpec, TrainSpec

STOPPED = 75
"""Exit code of a rank that was asked to stop, and saved."""


def main() -> None:
    """Reads the run directory and trains what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
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


# --- what a training run consists of ---------------------------------------------------------------------------


@dataclass(slots=True)
class Job:
    """One rank's parts of a training run."""

    spec: RunSpec
    world: World
    reporter: Reporter
    net: torch.nn.Module
    """The model; with more than one rank, wrapped by DDP."""
    loaded: model.LoadedModel
    state: TrainState
    train: Tokens
    test: Tokens
    batches: BatchPlan
    num_steps: int
    faults: Faults
    window: Window


@dataclass(slots=True)
class Window:
    """What happened since the last logging step; the tensors stay on the device."""

    loss: torch.Tensor
    bad_step: torch.Tensor
    """First step (from 1) with a loss or gradient that is not finite; 0 while all is well."""
    grad_norm: torch.Tensor
    weight: int = 0
    samples: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def empty(cls, device: torch.device) -> Window:
        """At the start, and after every logging step."""
        zero = torch.zeros((), device=device)
        return cls(
            loss=zero, bad_step=torch.zeros((), dtype=torch.int64, device=device), grad_norm=zero.clone()
        )


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
    job = build(spec, world, reporter)
    root = reporter.paths.checkpoints
    done = checkpoint.restore(root, job.state, world, reporter)
    reporter.event(
        "training", num_steps=job.num_steps, from_step=done, steps_per_epoch=job.batches.steps_per_epoch
    )
    stop = StopAgreement(world, reporter.attempt)
    first_loss = last_loss = None
    step = done
    while step < job.num_steps:
        job.faults.before_step(step + 1)
        train_step(job, step)
        step = job.state.step = step + 1
        last = step == job.num_steps
        stopping = stop.agreed() and not last
        if last or stopping or step % spec.train.log_every == 0 or step == 1:
            last_loss = log_step(job)
            first_loss = first_loss if first_loss is not None else last_loss
        if last or is_due(step, spec.train.eval_every or job.batches.steps_per_epoch):
            evaluate(job)
        if stopping or (is_due(step, spec.train.checkpoint_every) and not last):
            check_finite(job)
            checkpoint.save(root, job.state, world, spec.train.keep_checkpoints, job.faults.while_saving)
            reporter.event("checkpoint", step=step)
        if stopping:
            stop.close()
            return False
    stop.close()
    finish(job, first_loss, last_loss)
    return True


def is_due(step: int, every: int | None) -> bool:
    """Whether something done every so many steps is done after this one."""
    return every is not None and step % every == 0


# --- building --------------------------------------------------------------------------------------------------


def build(spec: RunSpec, world: World, reporter: Reporter) -> Job:
    """Data, model (the original is saved before anything changes it), optimizer and schedule."""
    reporter.event("loading")
    torch.manual_seed(spec.train.seed)
    torch.backends.cudnn.benchmark = False
    if spec.train.tf32:
        torch.set_float32_matmul_precision("high")
    check_precision(spec.train, world)

    samples = data.load_data(spec.data, spec.task, spec.train.seed)
    original = reporter.paths.model("original")
    if is_committed(original):
        loaded = model.load_committed(original, spec.task, samples.labels)
    else:
        loaded = model.load_model(spec.model, spec.task, samples.labels)
        dist.barrier()  # nobody may still be looking whether it is there
        if world.is_main:
            model.save_model(original, loaded.model, loaded.tokenizer, **loaded.facts)
    train_tokens, test_tokens = (
        tokenize(split, loaded.tokenizer, loaded.max_length(spec.data.max_length))
        for split in (samples.train, samples.test)
    )
    report_data(reporter, samples, train_tokens, test_tokens, loaded)

    net = loaded.model.to(world.device)
    if world.world_size > 1:
        device_ids = [world.local_rank] if world.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=device_ids, gradient_as_bucket_view=True)
    batches = BatchPlan(
        len(train_tokens),
        spec.train.batch_size,
        spec.train.grad_accumulation,
        world.world_size,
        spec.train.seed,
    )
    num_steps = batches.num_steps(spec.train.epochs, spec.train.max_steps)
    optimizer = make_optimizer(loaded.model, spec.train)
    state = TrainState(
        model=loaded.model,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps, spec.train)),
        scaler=torch.amp.GradScaler(world.device.type, enabled=spec.train.precision == "fp16"),
    )
    torch.manual_seed(spec.train.seed + 1 + world.rank)  # dropout differs between ranks
    loaded.model.train()
    return Job(
        spec=spec, world=world, reporter=reporter, net=net, loaded=loaded, state=state, train=train_tokens,
        test=test_tokens, batches=batches, num_steps=num_steps,
        faults=Faults(world.rank, reporter.attempt_index), window=Window.empty(world.device),
    )  # fmt: skip


def report_data(
    reporter: Reporter, samples: data.Data, train: Tokens, test: Tokens, loaded: model.LoadedModel
) -> None:
    """What was loaded, for the manifest, and whether the held-out samples are new to the model."""
    facts = samples.facts
    facts["train"]["num_cut"], facts["test"]["num_cut"] = train.num_cut, test.num_cut
    reporter.facts(data=facts, model=loaded.facts)
    if train.targets.sum() == 0:
        raise SpecError("the training samples have nothing to predict", evidence="each is a single token")
    seen = facts["held_out_texts_seen_in_training"]
    reporter.evidence(
        "held_out_is_new", Verdict.WARN if seen else Verdict.PASS, measured=seen, expected=0, unit="samples",
        source="exact texts of both splits", message=f"{seen} of {len(test)} held-out texts are in the training data",
    )  # fmt: skip


def check_precision(train: TrainSpec, world: World) -> None:
    """Refuses a precision that the device lacks; nothing falls back."""
    cuda = world.device.type == "cuda"
    if train.precision == "fp16" and not cuda:
        raise SpecError(
            "fp16 needs a GPU", evidence="the ranks run on CPU", remedy="train.precision=fp32 or bf16"
        )
    if train.precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(world.device)
        raise SpecError("this GPU has no bf16", evidence=name, remedy="train.precision=fp16 or fp32")


def make_optimizer(net: torch.nn.Module, train: TrainSpec) -> torch.optim.Optimizer:
    """Fused AdamW; weight decay on matrices, not on biases and norms."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=train.learning_rate, fused=True)


def learning_rate_factor(step: int, num_steps: int, train: TrainSpec) -> float:
    """Part of the highest learning rate at a step counted from 0: linear warmup, then the schedule."""
    warmup = math.ceil(train.warmup * num_steps) if train.warmup < 1 else int(train.warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    part = (step - warmup) / max(1, num_steps - warmup)
    match train.schedule:
        case "linear":
            return max(0.0, 1 - part)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
        case "constant":
            return 1.0


# --- one step --------------------------------------------------------------------------------------------------


def train_step(job: Job, step: int) -> None:
    """One optimizer step, counted from 0: this rank's part of the global batch, then the update."""
    train, world, window, state = job.spec.train, job.world, job.window, job.state
    indices = job.batches.indices(step)
    weight = int(job.train.targets[indices].sum())
    micro = job.batches.micro_batches(indices, world.rank)
    # A rank without samples still has to take part in the reduction: one sample, weighing nothing.
    parts = [(part, 1.0) for part in micro] or [(indices[:1], 0.0)]
    loss = torch.zeros((), device=world.device)
    for i, (part, counts) in enumerate(parts):
        batch = to_device(collate(job.train, part, job.loaded.pad_id), world)
        with unsynced(job.net, wanted=i < len(parts) - 1):
            with autocast(train, world):
                part_loss, _, _ = model.loss_and_hits(job.net, batch, job.spec.task)
            # DDP averages over ranks; the loss is a mean over the samples (tokens) of all of them.
            scaled = part_loss * (counts * world.world_size / max(weight, 1))
            state.scaler.scale(scaled).backward()
        loss += part_loss.detach() * counts
    if job.faults.is_due("nan", step + 1):
        loss *= torch.nan
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), train.clip_norm or math.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=True)

    window.loss += loss
    window.grad_norm = norm.detach()
    # With fp16, an overflowing gradient is the scaler's business: it skips the step and lowers the scale.
    healthy = torch.isfinite(loss) & (torch.isfinite(norm) | state.scaler.is_enabled())
    window.bad_step = torch.where(healthy | (window.bad_step > 0), window.bad_step, step + 1)
    window.weight += weight
    window.samples += len(indices)
    window.tokens += int(job.train.lengths[indices].sum())


def unsynced(net: torch.nn.Module, *, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """DDP's ``no_sync`` for all forward passes of a step but the last."""
    if wanted and isinstance(net, DistributedDataParallel):
        return net.no_sync()
    return contextlib.nullcontext()


def autocast(train: TrainSpec, world: World) -> torch.amp.autocast:
    """Lower precision for the forward pass, when asked for."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[train.precision]
    return torch.amp.autocast(world.device.type, dtype=dtype, enabled=train.precision != "fp32")


def to_device(batch: dict[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """Moves a batch; from pinned memory, so that the copy does not wait for the device."""
    if world.device.type == "cpu":
        return batch
    return {name: tensor.pin_memory().to(world.device, non_blocking=True) for name, tensor in batch.items()}


# --- once in a while -------------------------------------------------------------------------------------------


def log_step(job: Job) -> float:
    """Writes a row of metrics over the steps since the last one; the mean loss per sample or token over all ranks.

    Raises:
        MeasuredFailure: a loss or a gradient was not finite.
    """
    window, step = job.window, job.state.step
    total = window.loss.double()
    dist.all_reduce(total)
    check_finite(job)
    loss = total.item() / max(window.weight, 1)
    elapsed = time.perf_counter() - window.started
    job.reporter.metric(
        kind="train", step=step, epoch=round(step / job.batches.steps_per_epoch, 4), loss=loss,
        learning_rate=job.state.scheduler.get_last_lr()[0], grad_norm=finite(window.grad_norm.item()),
        samples_per_s=window.samples / elapsed, tokens_per_s=window.tokens / elapsed, window_s=elapsed,
    )  # fmt: skip
    job.window = Window.empty(job.world.device)
    return loss


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def check_finite(job: Job) -> None:
    """Stops every rank when one saw a loss or gradient that is not finite; no checkpoint holds such weights."""
    bad = job.window.bad_step.clone()
    bad[bad == 0] = torch.iinfo(torch.int64).max
    dist.all_reduce(bad, dist.ReduceOp.MIN)
    if bad.item() == torch.iinfo(torch.int64).max:
        return
    kept = checkpoint.committed_steps(job.reporter.paths.checkpoints)
    step = int(bad.item())
    job.reporter.evidence(
        "loss_finite", Verdict.FAIL, measured=step, expected="finite at every step", unit="step", source="rank losses",
        message=f"the loss or its gradient is not finite at step {step}",
    )  # fmt: skip
    raise MeasuredFailure(
        f"the loss is not finite at step {step}",
        evidence=f"learning rate {job.state.scheduler.get_last_lr()[0]:.3g}, precision {job.spec.train.precision}; "
        + (f"last good checkpoint: step {kept[-1]}" if kept else "no checkpoint had been saved yet"),
        remedy="lower train.learning_rate, lengthen train.warmup, or use train.precision=fp32",
    )


@torch.no_grad()
def evaluate(job: Job) -> None:
    """Loss and accuracy over the held-out samples, each seen by one rank once. Chooses nothing: only for the curve."""
    world, tokens, began = job.world, job.test, time.perf_counter()
    job.loaded.model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)
    mine = np.argsort(tokens.lengths, kind="stable")[world.rank :: world.world_size]
    for start in range(0, len(mine), 2 * job.spec.train.batch_size):
        part = mine[start : start + 2 * job.spec.train.batch_size]
        with autocast(job.spec.train, world):
            loss, hits, _ = model.loss_and_hits(
                job.loaded.model, to_device(collate(tokens, part, job.loaded.pad_id), world), job.spec.task
            )
        totals += torch.stack([loss.double(), hits.double()])
    dist.all_reduce(totals)
    job.loaded.model.train()
    job.window.started += time.perf_counter() - began  # throughput is of training
    weight = max(1, int(tokens.targets.sum()))
    loss_sum, hits_sum = totals.tolist()
    job.reporter.metric(
        kind="eval", step=job.state.step, loss=finite(loss_sum / weight), accuracy=hits_sum / weight
    )  # fmt: skip


def finish(job: Job, first_loss: float | None, last_loss: float | None) -> None:
    """Saves the trained model and proves that it was trained."""
    job.reporter.event("saving")
    weights = same_on_all_ranks(job.loaded.model, job.world, job.reporter)
    if job.world.is_main:
        job.loaded.model.eval()
        model.save_model(
            job.reporter.paths.model("trained"), job.loaded.model, job.loaded.tokenizer, step=job.state.step
        )
        after_training(job.reporter, job.state.step, job.num_steps, first_loss, last_loss, weights)
    dist.barrier()


if __name__ == "__main__":
    main()
