"""``train.compile``: torch.compile where it pays, which a short timed trial decides, once for a run.

Compiling costs a minute or more, and what it gains depends on model, device and shapes. So passes over real batches are
timed as they are and compiled, before the first step and without leaving a trace in weights, gradients or random
numbers. Whether it is worth trying at all follows from how long the run will take without. Rank 0 decides for all. A run
that goes on keeps the decision of its first attempt, since compiled kernels round differently.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from seatrial.job import model
from seatrial.job.batches import BatchPlan, collate
from seatrial.job.device import autocast, to_device
from seatrial.job.images import Encoded
from seatrial.job.reporter import Reporter
from seatrial.job.world import World
from seatrial.runs.evidence import Verdict
from seatrial.runs.files import read_json
from seatrial.spec.run import RunSpec

_WORTH_TRYING_S = 600.0
"""A training that is shorter ends before compiling has paid, on whatever device."""
_WARMUP, _TIMED = 2, 6
_LEAST_GAIN = 0.03
"""Of a pass; less is noise."""

Pass = Callable[[int], None]
"""Forward and backward pass over the n-th of some real batches."""


def decide(
    net: torch.nn.Module, one_pass: Pass, num_passes: int, wanted: str, world: World, reporter: Reporter
) -> dict[str, Any]:
    """Compiles the model in place, or leaves it as it is; every rank calls this before the model is wrapped.

    Args:
        net: on its device, in training mode.
        one_pass: what is timed; its gradients are dropped.
        num_passes: how many a rank will make in this run.
        wanted: ``on``, ``off`` or ``auto``.
        world: this rank's place.
        reporter: knows the attempts before; the trial is recorded there.

    Returns:
        ``{"used", "reason"}``, and of a trial ``eager_s``, ``compiled_s`` (seconds a pass) and ``compile_s``.
    """
    found = _earlier(reporter)
    if found is None and wanted != "auto":
        found = {"used": wanted == "on", "reason": f"train.compile is {wanted}"}
    if found is not None:
        if found["used"]:
            net.compile(dynamic=True)
        return found
    with _without_a_trace(net):
        found = _tried(net, one_pass, num_passes, world)
    if not found["used"]:
        net._compiled_call_impl = None
    reporter.evidence(
        "compile", Verdict.PASS, measured=found.get("compiled_s"), expected=found["eager_s"], unit="s",
        source="timed passes before step 1", message=f"torch.compile is {'' if found['used'] else 'not '}used: {found['reason']}",
    )  # fmt: skip
    return found


def first_batches(batches: BatchPlan, num_steps: int, rank: int) -> list[np.ndarray]:
    """Samples of a rank's forward passes in the first steps, as a trial needs them."""
    steps = range(min(num_steps, _TIMED))
    found = [part for step in steps for part in batches.micro_batches(batches.indices(step), rank)]
    return found or [batches.indices(0)[:1]]


def pass_over(
    parts: list[np.ndarray], spec: RunSpec, loaded: model.LoadedModel, train: Encoded, world: World
) -> Pass:
    """A pass as the training makes it, over one of some batches."""
    net = loaded.model.to(world.device).train()

    def one_pass(number: int) -> None:
        batch = to_device(collate(train, parts[number % len(parts)], loaded.pad_id), world.device)
        with autocast(spec.train.precision, world.device):
            loss, _, _ = model.loss_and_hits(net, batch, spec.task)
        loss.backward()

    return one_pass


@contextlib.contextmanager
def eagerly(net: torch.nn.Module) -> Iterator[None]:
    """The model as it is within the block: what is called now and then would need a compilation of its own."""
    compiled, net._compiled_call_impl = net._compiled_call_impl, None
    try:
        yield
    finally:
        net._compiled_call_impl = compiled


def _tried(net: torch.nn.Module, one_pass: Pass, num_passes: int, world: World) -> dict[str, Any]:
    eager_s = _seconds(one_pass, world)
    # The product, since ranks make unequal numbers of passes, and all have to go on to the same exchange.
    left_s = _of_rank_0(eager_s * num_passes, world)
    if left_s < _WORTH_TRYING_S:
        return {
            "used": False,
            "eager_s": eager_s,
            "reason": f"the training takes about {left_s:.0f} s without it",
        }
    net.compile(dynamic=True)
    began = time.perf_counter()
    try:
        one_pass(0)
        compile_s = time.perf_counter() - began
        compiled_s = _seconds(one_pass, world)
        error = None
    except Exception as failure:  # of whatever kind: a missing compiler, a model that it can't trace
        compile_s, compiled_s = time.perf_counter() - began, float("inf")
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    times = _of_rank_0((eager_s, compiled_s, compile_s, error), world)
    worked = bool(_lowest(compiled_s < float("inf"), world))
    eager_s, compiled_s, compile_s, error = times
    used = worked and compiled_s < (1 - _LEAST_GAIN) * eager_s
    reason = (
        error or f"{compiled_s:.4f} s a pass against {eager_s:.4f} s, after {compile_s:.0f} s of compiling"
    )
    found = {"used": used, "reason": reason, "eager_s": eager_s, "compile_s": compile_s}
    return found | ({"compiled_s": compiled_s} if worked else {})


def _seconds(one_pass: Pass, world: World) -> float:
    """Median of a few passes, each waited for."""
    times = []
    for number in range(_WARMUP + _TIMED):
        began = time.perf_counter()
        one_pass(number)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        times.append(time.perf_counter() - began)
    return median(times[_WARMUP:])


@contextlib.contextmanager
def _without_a_trace(net: torch.nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    devices: Sequence[int] = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield
    net.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)


def _earlier(reporter: Reporter) -> dict[str, Any] | None:
    """What an earlier attempt of the run decided; also this one, before it went back to a checkpoint."""
    for index in range(reporter.attempt_index + 1):
        facts = read_json(reporter.paths.attempt(index).facts) or {}
        if "compile" in facts:
            return dict(facts["compile"])
    return None


def _of_rank_0(value: Any, world: World) -> Any:
    agreed = [value]
    if world.world_size > 1:
        dist.broadcast_object_list(agreed)
    return agreed[0]


def _lowest(value: bool, world: World) -> int:
    answer = torch.tensor(int(value), device=world.device)
    if world.world_size > 1:
        dist.all_reduce(answer, dist.ReduceOp.MIN)
    return int(answer.item())
