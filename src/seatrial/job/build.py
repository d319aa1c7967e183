"""The parts of a training run, put together on each rank before the first step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from seatrial.errors import SpecError
from seatrial.job import adapters, batch_size, data, memory, model, sharded
from seatrial.job.batches import BatchPlan, Tokens, tokenize
from seatrial.job.checkpoint import TrainState
from seatrial.job.faults import Faults
from seatrial.job.optimizer import make_optimizer, make_scheduler
from seatrial.job.parallel import parallelize
from seatrial.job.reporter import Reporter
from seatrial.job.world import World
from seatrial.runs.commit import is_committed
from seatrial.runs.evidence import Verdict
from seatrial.spec.run import RunSpec, TrainSpec


@dataclass(slots=True)
class Job:
    """One rank's parts of a training run."""

    spec: RunSpec
    world: World
    reporter: Reporter
    net: torch.nn.Module
    """The model; with more than one rank, wrapped by `parallel`."""
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


def build(spec: RunSpec, world: World, reporter: Reporter) -> Job:
    """Data, model (the original is saved before anything changes it), optimizer and schedule."""
    reporter.event("loading")
    torch.manual_seed(spec.train.seed)
    torch.backends.cudnn.benchmark = False
    if spec.train.tf32:
        torch.set_float32_matmul_precision("high")
    check_precision(spec.train, world)

    samples = data.load_data(spec.data, spec.task, spec.train.seed)
    loaded = load_original(spec, samples.labels, world, reporter)
    train_tokens, test_tokens = (
        tokenize(split, loaded.tokenizer, loaded.max_length(spec.data.max_length))
        for split in (samples.train, samples.test)
    )
    resolved = batch_size.resolved(spec, loaded, train_tokens, world)
    report_data(reporter, samples, train_tokens, test_tokens, loaded)
    net = parallelize(loaded.model, world)
    batches = BatchPlan.of(resolved, train_tokens.lengths, world.world_size)
    num_steps = batches.num_steps(spec.train.epochs, spec.train.max_steps)
    optimizer = make_optimizer(loaded.model, spec.train)
    state = TrainState(
        model=loaded.model,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, num_steps, spec.train),
        scaler=torch.amp.GradScaler(world.device.type, enabled=spec.train.precision == "fp16"),
    )
    torch.manual_seed(spec.train.seed + 1 + world.rank)  # dropout differs between ranks
    loaded.model.train()
    return Job(
        spec=spec, world=world, reporter=reporter, net=net, loaded=loaded, state=state, train=train_tokens,
        test=test_tokens, batches=batches, num_steps=num_steps,
        faults=Faults(world.rank, reporter.attempt_index), window=Window.empty(world.device),
    )  # fmt: skip


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
    loaded.facts["parallel"] = {"strategy": strategy, "reason": reason}
    return adapters.add(loaded, spec)


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
