"""The parts of a training run, put together on each rank before the first step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from seatrial.errors import SpecError
from seatrial.job import (
    adapters,
    batch_size,
    compiling,
    first_token,
    flops,
    inputs,
    memory,
    model,
    packing,
    sharded,
    vocabulary,
)
from seatrial.job.batches import BatchPlan
from seatrial.job.checkpoint import Checkpoint, TrainState, first_global_batch
from seatrial.job.faults import Faults
from seatrial.job.guard import Guard, Window
from seatrial.job.images import Encoded, Images
from seatrial.job.optimizer import make_optimizer, make_scheduler
from seatrial.job.parallel import parallelize, statistics
from seatrial.job.phases import Phases
from seatrial.job.reporter import Reporter
from seatrial.job.saver import Saver
from seatrial.job.sharded import is_sharded
from seatrial.job.shards import ShardReader
from seatrial.job.world import World
from seatrial.runs.commit import is_committed
from seatrial.runs.evidence import Verdict
from seatrial.runs.retention import Retention
from seatrial.spec.run import RunSpec, TrainSpec


@dataclass(slots=True)
class Job:
    """One rank's parts of a training run."""

    spec: RunSpec
    world: World
    reporter: Reporter
    net: torch.nn.Module
    """The model; with more than one rank, wrapped by `parallel`."""
    statistics: list[torch.Tensor]
    """Its buffers that ranks have to be given alike; most models have none."""
    loaded: model.LoadedModel
    state: TrainState
    saver: Saver
    train: Encoded
    test: Encoded
    batches: BatchPlan
    num_steps: int
    faults: Faults
    guard: Guard
    window: Window
    phases: Phases


def build(
    spec: RunSpec, world: World, reporter: Reporter, guard: Guard, found: Checkpoint | None = None
) -> Job:
    """Data, model (the original is saved before anything changes it), optimizer and schedule.

    A run that goes on, from the checkpoint `found` or from the start, keeps its global batch whatever ranks it has.
    """
    reporter.event("loading")
    torch.manual_seed(spec.train.seed)
    torch.backends.cudnn.benchmark = False
    if spec.train.tf32:
        torch.set_float32_matmul_precision("high")
    check_precision(spec.train, world)

    samples = inputs.of_run(spec, reporter.paths, world, lambda: encoding(spec, reporter))
    loaded = load_original(spec, samples.labels, world, reporter)
    if loaded.facts["parallel"]["strategy"] == "tp":
        world = replace(world, tp_size=sharded.tp_size(spec, world.world_size))
    train_tokens, test_tokens = samples.splits["train"].tokens, samples.test.tokens
    if isinstance(train_tokens, Images):
        train_tokens = replace(train_tokens, augment=spec.data.augment, seed=spec.train.seed)
    resolved = batch_size.resolved(spec, loaded, train_tokens, world)
    assert resolved.batch_size != "auto"
    reporter.batch = (resolved.batch_size, resolved.grad_accumulation)
    if may_trim(spec, loaded, found):
        loaded.facts["embedding_rows"] = vocabulary.trim(loaded.model, train_tokens, loaded.pad_id)
    report_data(reporter, samples, loaded)
    kept_batch = found.global_batch if found is not None else first_global_batch(reporter)
    batches = BatchPlan.of(resolved, train_tokens.lengths, world.dp_size, kept_batch)
    per_token = flops.per_token(loaded.model, spec.task, train_tokens.lengths)
    reporter.facts(global_batch=batches.global_batch, flops_per_token=per_token)
    num_steps = batches.num_steps(spec.train.epochs, spec.train.max_steps)
    if is_sharded(loaded.model) and spec.train.compile != "off":
        # Only auto leads here: asked for together, the recipe is refused.
        reporter.facts(compile={"used": False, "reason": "the model is sharded"})
    elif spec.train.compile != "off":
        parts = compiling.first_batches(batches, num_steps, world.rank)
        one_pass = compiling.pass_over(parts, spec, loaded, train_tokens, world)
        num_passes = num_steps * len(batches.micro_batches(batches.indices(0), world.rank))
        decision = compiling.decide(loaded.model, one_pass, num_passes, spec.train.compile, world, reporter)
        reporter.facts(compile=decision)
    net = parallelize(loaded.model, world)
    optimizer = make_optimizer(loaded.model, spec.train)
    state = TrainState(
        model=loaded.model,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, num_steps, spec.train),
        scaler=torch.amp.GradScaler(world.device.type, enabled=spec.train.precision == "fp16"),
    )
    faults = Faults(world.rank, reporter.attempt_index)
    saver = make_saver(spec.train, reporter, state, world, batches.global_batch, faults)
    guard.settle = saver.finish
    phases = Phases(reporter, world)
    phases.watch_gradients(net)
    phases.in_communication = lambda: faults.dawdle("slow_comm", state.step + 1)
    torch.manual_seed(spec.train.seed + 1 + world.dp_rank)  # dropout differs where the samples do
    loaded.model.train()
    return Job(
        spec=spec, world=world, reporter=reporter, net=net, statistics=statistics(net), loaded=loaded, state=state, saver=saver,
        train=train_tokens, test=test_tokens, batches=batches, num_steps=num_steps, faults=faults, guard=guard,
        window=Window(), phases=phases,
    )  # fmt: skip


def may_trim(spec: RunSpec, loaded: model.LoadedModel, found: Checkpoint | None) -> bool:
    """Whether a part of the embedding may be trained instead of the whole; a run that goes on stays as it began."""
    if loaded.facts["parallel"]["strategy"] != "ddp" or spec.train.parallel not in ("auto", "ddp"):
        return False  # one rank, of a run that is to be shared: others have to be able to go on with it
    wanted = spec.train.trim_vocabulary and spec.adapter is None
    return wanted and (found is None or vocabulary.is_trimmed(ShardReader(found.path).names()))


def make_saver(
    train: TrainSpec, reporter: Reporter, state: TrainState, world: World, global_batch: int, faults: Faults
) -> Saver:
    """What writes the run's checkpoints, by the recipe's policy."""
    return Saver(
        reporter.paths.checkpoints, state, world,
        Retention(train.keep_checkpoints, train.keep_best, train.keep_every),
        global_batch=global_batch, reporter=reporter, minutes=train.checkpoint_minutes, midway=faults.while_saving,
    )  # fmt: skip


def encoding(spec: RunSpec, reporter: Reporter) -> inputs.Encoding:
    """The tokenizer or image processor of the model that the run starts from, without the model."""
    original = reporter.paths.model("original")
    name = str(original) if is_committed(original) else spec.model
    facts, processor = model.check_model(name, spec.task, spec.data.max_length)
    return inputs.encoding(spec.task, processor, facts["max_length"])


def load_original(
    spec: RunSpec, labels: tuple[str, ...], world: World, reporter: Reporter
) -> model.LoadedModel:
    """The model that the run starts from; saved as ``models/original`` unless an earlier attempt did.

    It comes as it is trained: sharded, with an adapter, with activation checkpointing.
    """
    original = reporter.paths.model("original")
    sharding: dict[str, Any] = {}
    strategy, reason = memory.decide(spec, labels, world)
    if strategy != "ddp":
        meta = model.meta_model(spec.model, spec.task, labels)
        sharding = sharded.sharding(spec, strategy, world, meta)
    if is_committed(original):
        loaded = model.load_committed(original, spec.task, labels, **sharding)
    else:
        loaded = model.load_model(spec.model, spec.task, labels, spec.model_options, **sharding)
        dist.barrier()  # nobody may still be looking whether it is there
        model.save_model(original, loaded.model, loaded.tokenizer, is_main=world.is_main, **loaded.facts)
    if spec.adapter is not None and spec.adapter.kind == "qlora":
        dist.barrier()
        loaded = model.load_committed(original, spec.task, labels, **adapters.four_bits(world))
    if spec.train.activation_checkpointing:
        loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.train.packing:
        packing.enable(loaded.model, spec.task)
    elif spec.task == "text-classification":
        loaded.facts["first_token_only"] = first_token.enable(loaded.model)
    loaded.facts["parallel"] = {"strategy": strategy, "reason": reason}
    return adapters.add(loaded, spec)


def report_data(reporter: Reporter, found: inputs.Inputs, loaded: model.LoadedModel) -> None:
    """What was loaded, for the manifest, and whether the held-out samples are new to the model."""
    facts = found.facts
    reporter.facts(data=facts, model=loaded.facts)
    if found.splits["train"].tokens.targets.sum() == 0:
        raise SpecError("the training samples have nothing to predict", evidence="each is a single token")
    seen, noun = facts["held_out_texts_seen_in_training"], found.test.tokens.noun
    reporter.evidence(
        "held_out_is_new", Verdict.WARN if seen else Verdict.PASS, measured=seen, expected=0, unit="samples",
        source=f"exact {noun} of both splits", message=f"{seen} of {len(found.test)} held-out {noun} are in the training data",
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
