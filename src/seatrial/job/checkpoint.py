"""Checkpoints: whole or not there, verified before they are believed.

``checkpoints/step_000500/`` holds ``model.safetensors``, ``optimizer.pt`` (ours, read with ``weights_only``),
``trainer.json`` and one ``rng_rank_00000.pt`` a rank, sealed by `runs.commit`.
"""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model

from seatrial.job.reporter import Reporter
from seatrial.job.world import World
from seatrial.runs.commit import commit, is_committed, problems, start
from seatrial.runs.evidence import Verdict

_FULL_BYTES = 2**20


@dataclass(slots=True)
class TrainState:
    """Everything that a step changes."""

    model: torch.nn.Module
    optimizer: torch.optim.AdamW
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    step: int = 0
    """Optimizer steps done. With the seed it also fixes the position in the data."""


def directory(root: Path, step: int) -> Path:
    """``step_000500``."""
    return root / f"step_{step:06d}"


def committed_steps(root: Path) -> list[int]:
    """Steps of the committed checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(int(p.name[5:]) for p in root.iterdir() if p.name[5:].isdigit() and is_committed(p))


def save(root: Path, state: TrainState, world: World, keep: int, fault: Any = None) -> None:
    """Every rank calls this at the same step. Old checkpoints go only after the new one is committed.

    Args:
        root: the run's ``checkpoints/``.
        state: what to save.
        world: who saves which part.
        keep: how many committed checkpoints stay.
        fault: called in the middle of writing, for tests.

    Raises:
        OSError: the disk is full or gone; the earlier checkpoints are untouched, the part written is removed.
    """
    final = directory(root, state.step)
    if is_committed(final):
        return
    aside = start(final) if world.is_main else final.with_name(final.name + ".writing")
    dist.barrier()
    try:
        torch.save(_rng_state(world), aside / f"rng_rank_{world.rank:05d}.pt")
        if world.is_main:
            save_model(state.model, str(aside / "model.safetensors"))
            if fault is not None:
                fault(state.step)
            torch.save(state.optimizer.state_dict(), aside / "optimizer.pt")
            trainer = {
                "schema": 1,
                "step": state.step,
                "scheduler": state.scheduler.state_dict(),
                "scaler": state.scaler.state_dict(),
                "world_size": world.world_size,
            }
            (aside / "trainer.json").write_text(json.dumps(trainer))
    except BaseException as error:
        free = shutil.disk_usage(root).free
        if world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, RuntimeError) and free < _FULL_BYTES:
            # torch.save says "unexpected pos" when the disk has no more room.
            raise OSError(errno.ENOSPC, f"No space left on device ({free} bytes free)", str(aside)) from error
        raise
    dist.barrier()
    if world.is_main:
        commit(aside, final, step=state.step, world_size=world.world_size)
        for step in committed_steps(root)[:-keep]:
            shutil.rmtree(directory(root, step))


def restore(root: Path, state: TrainState, world: World, reporter: Reporter) -> int:
    """Loads the newest sound checkpoint into `state`; every rank calls this.

    A checkpoint whose files differ from what was committed is passed over for the one before, and recorded.

    Returns:
        The step to go on from; 0 where there is no sound checkpoint.
    """
    chosen = [_newest_sound(root, reporter) if world.is_main else 0]
    dist.broadcast_object_list(chosen, src=0)
    step = chosen[0]
    if step == 0:
        return 0
    path = directory(root, step)
    load_model(state.model, str(path / "model.safetensors"))
    device = world.device
    state.optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location=device, weights_only=True))
    trainer = json.loads((path / "trainer.json").read_text())
    state.scheduler.load_state_dict(trainer["scheduler"])
    state.scaler.load_state_dict(trainer["scaler"])
    state.step = trainer["step"]
    rng = path / f"rng_rank_{world.rank:05d}.pt"
    if rng.is_file():
        _set_rng_state(torch.load(rng, weights_only=True), world)
    return step


def _newest_sound(root: Path, reporter: Reporter) -> int:
    for step in reversed(committed_steps(root)):
        wrong = problems(directory(root, step))
        if not wrong:
            return step
        reporter.evidence(
            f"checkpoint_step_{step:06d}",
            Verdict.WARN,
            measured=wrong[0],
            expected="the bytes that were committed",
            source=str(directory(root, step)),
            message=f"the checkpoint of step {step} is damaged ({wrong[0]}); falling back to the one before",
        )
        # Out of the way, so that this step can be saved again.
        damaged = directory(root, step).with_name(f"step_{step:06d}.damaged")
        shutil.rmtree(damaged, ignore_errors=True)
        directory(root, step).rename(damaged)
    return 0


def _rng_state(world: World) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def _set_rng_state(state: dict[str, torch.Tensor], world: World) -> None:
    torch.set_rng_state(state["cpu"])
    if world.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], world.device)
