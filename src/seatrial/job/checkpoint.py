"""What a checkpoint holds, and going on from one: verified before it is believed, read by any number of ranks.

``checkpoints/step_000500/`` holds ``trainer.json`` and one ``rank_00000.safetensors`` a rank (`job.shards`), sealed by
`runs.commit`; `job.saver` writes it. Frozen parameters are not in it: they are those of ``models/original``.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_pieces
from torch.optim.lr_scheduler import LambdaLR

from seatrial.errors import PlatformError, SpecError
from seatrial.job import shards
from seatrial.job.reporter import Reporter
from seatrial.job.vocabulary import is_trimmed
from seatrial.job.world import World
from seatrial.runs.commit import ASIDE, is_committed, problems
from seatrial.runs.evidence import Verdict
from seatrial.runs.files import read_json

DAMAGED = ".damaged"
"""A checkpoint that failed its verification is set aside under this ending, until a later one is committed."""


@dataclass(slots=True)
class TrainState:
    """Everything that a step changes."""

    model: torch.nn.Module
    optimizer: torch.optim.AdamW
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    step: int = 0
    """Optimizer steps done. With the seed it also fixes the position in the data, and the learning rate."""
    held_out: tuple[int, float | None] = (0, None)
    """The latest evaluation: the step, and the loss where it was finite."""

    def updated(self) -> dict[str, torch.Tensor]:
        """What an optimizer step changes in place, and nothing else does: ``model.…`` and ``optimizer.…``."""
        names: dict[torch.Tensor, str] = {
            p: name for name, p in self.model.named_parameters() if p.requires_grad
        }
        found = {f"model.{name}": p.detach() for p, name in names.items()}
        for parameter, entries in self.optimizer.state.items():
            for key, value in entries.items():
                found[f"optimizer.{names[parameter]}.{key}"] = value
        return found

    def buffers(self) -> dict[str, torch.Tensor]:
        """What a forward pass may change in place: the model's persistent buffers."""
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        state = self.model.state_dict()
        return {f"model.{name}": state[name] for name in state.keys() - parameters}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint whose files have been verified."""

    path: Path
    step: int
    world_size: int
    global_batch: int
    """Samples of one optimizer step; kept when the number of ranks changes."""
    scaler: dict[str, Any]
    held_out_loss: float | None
    tp_size: int = 1


def directory(root: Path, step: int) -> Path:
    """``step_000500``."""
    return root / f"step_{step:06d}"


def committed_steps(root: Path) -> list[int]:
    """Steps of the committed checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(int(p.name[5:]) for p in root.iterdir() if p.name[5:].isdigit() and is_committed(p))


def newest(root: Path, world: World, reporter: Reporter) -> Checkpoint | None:
    """The newest sound checkpoint; every rank calls this before anything is built. The ranks share the hashing.

    A checkpoint whose files differ from what was committed is set aside for the one before, and recorded. What was
    never committed is removed.

    Raises:
        PlatformError: checkpoints can't be written here; better said before training than at the first of them.
    """
    _check_writable(root, world)
    if world.is_main:
        for leftover in root.glob(f"*{ASIDE}"):
            shutil.rmtree(leftover)
    for step in reversed(_everywhere(committed_steps(root), world)[0]):
        path = directory(root, step)
        found = _everywhere(_problems(path, world), world)
        wrong = [problem for of_rank in found for problem in of_rank]
        if not wrong:
            return _opened(path)
        reporter.evidence(
            f"checkpoint_step_{step:06d}", Verdict.WARN, measured=wrong[0], expected="the bytes that were committed",
            source=str(path),
            message=f"the checkpoint of step {step} is damaged ({wrong[0]}); falling back to the one before",
        )  # fmt: skip
        if world.is_main:
            shutil.rmtree(path.with_name(path.name + DAMAGED), ignore_errors=True)
            path.rename(path.with_name(path.name + DAMAGED))
    return None


def load(found: Checkpoint | None, state: TrainState, world: World, seed: int = 0) -> int:
    """Loads a checkpoint into `state`, on as many ranks as there are now.

    On as many ranks as wrote it, shared alike, all goes on bit for bit. On another number each rank takes the pieces that are
    its own now, and draws its random numbers (dropout) from a stream of its own.

    The learning rate follows from the recipe and the step, the optimizer's settings from the recipe.

    Returns:
        The step to go on from; 0 without a checkpoint.

    Raises:
        SpecError: the model has other parameters than the one that was saved.
    """
    if found is None:
        return 0
    reader = shards.ShardReader(found.path)
    _allocate(state.optimizer, dict(state.model.named_parameters()), reader)
    wanted = state.updated() | state.buffers()
    _check_embedding(found, reader.names(), wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each rank reads for itself
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        try:
            load_pieces(wanted, storage_reader=reader, planner=planner, no_dist=True)
        except CheckpointException as error:
            reasons = [str(failure[0]) for failure in error.failures.values()]
            raise SpecError(
                f"the checkpoint of step {found.step} does not fit the model",
                evidence=f"{found.path}: {reasons[0][:300]}",
                remedy="resume with the recipe that wrote it, or start a new run",
            ) from error
    set_step(state.scheduler, found.step)
    state.scaler.load_state_dict(found.scaler)
    state.step, state.held_out = found.step, (found.step, found.held_out_loss)
    if (world.world_size, world.tp_size) == (found.world_size, found.tp_size):
        _set_rng_state(shards.read_local(found.path, world.rank), world)
    else:
        torch.manual_seed(seed + 1 + world.dp_rank + (found.step << 32))
    return found.step


def _check_embedding(found: Checkpoint, names: Iterable[str], wanted: Iterable[str]) -> None:
    if is_trimmed(names) and not is_trimmed(wanted):
        used = next(name for name in names if is_trimmed([name]))
        raise SpecError(
            f"the checkpoint of step {found.step} holds a part of the embedding, and this attempt trains the whole",
            evidence=f"{found.path}: {used} has the rows in use (train.trim_vocabulary), as only train.parallel=ddp trains them",
            remedy="go on with train.parallel=ddp train.trim_vocabulary=true\n"
            "(or start a new run with train.trim_vocabulary=false: it can go on in either way)",
        )


def restore(root: Path, state: TrainState, world: World, reporter: Reporter) -> int:
    """`newest` and `load` in one, into a state that is there; every rank calls this."""
    return load(newest(root, world, reporter), state, world)


def first_global_batch(reporter: Reporter) -> int | None:
    """The global batch that the first attempt of this run set, should no checkpoint have been written since."""
    for index in range(reporter.attempt_index):
        facts = read_json(reporter.paths.attempt(index).facts) or {}
        if "global_batch" in facts:
            return int(facts["global_batch"])
    return None


def set_step(scheduler: LambdaLR, step: int) -> None:
    """Puts schedule and learning rates where they are after `step` steps; a schedule is a function of the step."""
    rates = [
        base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    scheduler.last_epoch, scheduler._step_count, scheduler._last_lr = step, step + 1, rates
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def rng_state(world: World) -> dict[str, torch.Tensor]:
    """The state of this rank's random number generators, as bytes on the CPU."""
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def _set_rng_state(state: dict[str, torch.Tensor], world: World) -> None:
    torch.set_rng_state(state["cpu"])
    if world.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], world.device)


def _opened(path: Path) -> Checkpoint:
    trainer = json.loads((path / "trainer.json").read_text())
    trainer.pop("schema")
    return Checkpoint(path=path, **trainer)


def _allocate(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.Tensor], reader: shards.ShardReader
) -> None:
    """Room for the optimizer's state, which is empty before the first step: as the parameter, or a number."""
    entries = reader.read_metadata().state_dict_metadata
    for name, entry in entries.items():
        owner, _, key = name.removeprefix("optimizer.").rpartition(".")
        parameter = parameters.get(owner)
        if not name.startswith("optimizer.") or parameter is None:
            continue
        shape, dtype = entry.size, entry.properties.dtype  # type: ignore[union-attr]
        value = (
            torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            if shape == parameter.shape and len(shape) > 0
            else torch.zeros(shape, dtype=dtype, device=parameter.device)
        )
        optimizer.state[parameter].setdefault(key, value)


def _check_writable(root: Path, world: World) -> None:
    probe = root / f".probe_{world.rank:05d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise PlatformError(
            "checkpoints can't be written",
            evidence=f"rank {world.rank}: {error}",
            remedy=f"make {root} writable and free some space, then: seatrial runs resume RUN",
        ) from error


def _problems(path: Path, world: World) -> list[str]:
    try:
        return problems(path, part=(world.rank, world.world_size))
    except OSError as error:
        return [str(error)]


def _everywhere(mine: Any, world: World) -> list[Any]:
    """What each rank has, by rank. With one rank, no process group is needed."""
    if world.world_size == 1:
        return [mine]
    found: list[Any] = [None] * world.world_size
    dist.all_gather_object(found, mine)
    return found
