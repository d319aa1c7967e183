"""Saving beside the training: the loop waits for a copy in memory at most, never for the disk.

A save has three parts. *Plan*, once: torch.distributed.checkpoint deals the tensors out, so that what all ranks hold
alike is written by one of them. *Copy*: this rank's share goes into a buffer on the CPU while the next forward and
backward pass run, which only read it; `Saver.before_update` waits for its end. *Write*: a thread writes and hashes the
buffer; once all ranks have, rank 0 commits the checkpoint and applies the retention policy.

The threads talk over a gloo group of their own, so they never meet a collective of the training.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan

from seatrial.errors import PlatformError, SeatrialError, from_dict
from seatrial.job import shards
from seatrial.job.checkpoint import DAMAGED, TrainState, committed_steps, directory, rng_state
from seatrial.job.reporter import Reporter, explain, is_disk_full
from seatrial.job.world import World
from seatrial.runs.commit import ASIDE, commit, read_marker
from seatrial.runs.evidence import Verdict
from seatrial.runs.files import write_json
from seatrial.runs.retention import Kept, Retention

_GROUP_TIMEOUT = timedelta(days=1)
"""A slow disk is waited for; a rank that is gone is noticed by its closed connection."""
_WRITER_NICENESS = 5
_WORTH_SAYING_S = 1.0
"""A shorter wait for the save before is no news."""
_Sources: TypeAlias = list[tuple[shards.Piece, torch.Tensor]]


class Saver:
    """Writes checkpoints of one run; every rank has one, and calls it at the same steps.

    Args:
        root: the run's ``checkpoints/``.
        state: what to save.
        world: who saves which part.
        retention: which checkpoints stay.
        global_batch: recorded, so that another number of ranks goes on with it.
        reporter: gets an event for each checkpoint, and a warning when a save outlasts the interval.
        minutes: also save when so many minutes have passed since the last one.
        midway: called with the step in the middle of writing, for tests.
    """

    def __init__(
        self,
        root: Path,
        state: TrainState,
        world: World,
        retention: Retention,
        *,
        global_batch: int,
        reporter: Reporter | None = None,
        minutes: float | None = None,
        midway: Callable[[int], None] | None = None,
    ) -> None:
        self.blocked_s = 0.0
        """Time that the training loop has spent here."""
        self._root, self._state, self._world, self._retention = root, state, world, retention
        self._global_batch, self._reporter, self._minutes, self._midway = (
            global_batch,
            reporter,
            minutes,
            midway,
        )
        several = world.world_size > 1
        self._group = dist.new_group(backend="gloo", timeout=_GROUP_TIMEOUT) if several else None
        self._planner = DefaultSavePlanner(flatten_state_dict=False)
        self._layout: shards.Layout | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._names: list[str] = []
        self._stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None
        self._staged = threading.Event()
        self._staged.set()
        self._thread: threading.Thread | None = None
        self._error: SeatrialError | None = None
        self._said_slow = False
        self._last_save = time.monotonic()

    def is_due(self) -> bool:
        """Whether `minutes` have passed, by rank 0's clock; true once. The ranks have to agree on it."""
        if not self._world.is_main or self._minutes is None:
            return False
        if time.monotonic() - self._last_save < 60 * self._minutes:
            return False
        self._last_save = time.monotonic()
        return True

    def before_update(self) -> None:
        """Call before every optimizer step: what is being copied must not change.

        Raises:
            SeatrialError: the checkpoint being written failed, on this rank or another.
        """
        began = time.perf_counter()
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)  # the device waits, not this thread
        self._staged.wait()
        self.blocked_s += time.perf_counter() - began
        self._raise()

    def save(self) -> None:
        """Begins a checkpoint of the state as it is; a save that still runs is waited for.

        Raises:
            SeatrialError: the save before failed.
        """
        began = time.perf_counter()
        self._wait_for_the_one_before()
        state = self._state
        tensors, buffers = state.updated(), state.buffers()
        local = {shards.LOCAL + name: value for name, value in rng_state(self._world).items()}
        if self._layout is None or self._names != [*tensors, *buffers]:
            self._plan(tensors, buffers, local)
        self._planner.state_dict = {**tensors, **buffers}
        at_once = self._sources({*buffers, *local}, local)
        later = self._sources(set(tensors), local)
        if self._stream is None:
            self._copy(at_once)
        else:
            self._copy_from_device(at_once, later)
            later = []
        trainer = {
            "schema": 1,
            "step": state.step,
            "world_size": self._world.world_size,
            "tp_size": self._world.tp_size,
            "global_batch": self._global_batch,
            "scaler": state.scaler.state_dict(),
            "held_out_loss": state.held_out[1] if state.held_out[0] == state.step else None,
        }
        self._staged.clear()
        self._thread = threading.Thread(
            target=self._run, args=(trainer, later), name="checkpoint", daemon=True
        )
        self._thread.start()
        self._last_save = time.monotonic()
        self.blocked_s += time.perf_counter() - began

    def finish(self) -> None:
        """Waits until what was begun is committed.

        Raises:
            SeatrialError: it failed.
        """
        began = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.blocked_s += time.perf_counter() - began
        self._raise()

    # --- plan and copy ------------------------------------------------------------------------------------------

    def _plan(
        self,
        tensors: dict[str, torch.Tensor],
        buffers: dict[str, torch.Tensor],
        local: dict[str, torch.Tensor],
    ) -> None:
        """Deals the pieces out over the ranks, and makes room for this rank's share."""
        world = self._world
        self._planner.set_up_planner({**tensors, **buffers}, is_coordinator=world.is_main)
        mine = self._planner.create_local_plan()
        if self._group is None:
            plans, _ = self._planner.create_global_plan([mine])
        else:
            plans = self._deal(mine)
        items = self._planner.finish_plan(plans[0]).items
        self._layout = shards.Layout.of(items, local)
        self._buffer = torch.empty(
            self._layout.num_bytes, dtype=torch.uint8, pin_memory=self._stream is not None
        )
        self._names = [*tensors, *buffers]

    def _deal(self, mine: SavePlan) -> list[SavePlan]:
        """Rank 0 sees what each rank holds, and says who writes it; returns this rank's part, alone in a list."""
        world = self._world
        gathered: list[Any] | None = [None] * world.world_size if world.is_main else None
        dist.gather_object(mine, gathered, dst=0, group=self._group)
        plans: list[Any] | None = None
        if gathered is not None:
            plans, _ = self._planner.create_global_plan(gathered)
        received: list[Any] = [None]
        dist.scatter_object_list(received, plans, src=0, group=self._group)
        return received

    def _sources(self, names: set[str], local: dict[str, torch.Tensor]) -> _Sources:
        assert self._layout is not None
        return [
            (
                piece,
                local[piece.tensor] if piece.tensor in local else self._planner.lookup_object(piece.index),
            )
            for piece in self._layout.pieces
            if piece.tensor in names
        ]

    def _copy(self, sources: _Sources) -> None:
        """Into the buffer, by one thread that does not hold the interpreter."""
        buffer = self._buffer.numpy()
        for piece, tensor in sources:
            data = tensor.detach().reshape(-1).view(torch.uint8).numpy()
            np.copyto(buffer[piece.begin : piece.end], data)

    def _copy_from_device(self, at_once: _Sources, later: _Sources) -> None:
        """Queues copies into pinned memory: the first behind what is computed, the rest on a stream of their own."""
        assert self._stream is not None
        self._queue(at_once)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._queue(later)
            self._copied = torch.cuda.Event()
            self._copied.record(self._stream)

    def _queue(self, sources: _Sources) -> None:
        for piece, tensor in sources:
            room = self._buffer[piece.begin : piece.end].view(piece.dtype).view(piece.sizes)
            room.copy_(tensor.detach(), non_blocking=True)

    def _wait_for_the_one_before(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            began = time.perf_counter()
            self._thread.join()
            waited = time.perf_counter() - began
            if self._reporter is not None and not self._said_slow and waited >= _WORTH_SAYING_S:
                self._said_slow = True
                self._reporter.evidence(
                    "checkpoint_slow", Verdict.WARN, measured=round(waited, 3), expected=0, unit="s",
                    source=str(self._root),
                    message=f"at step {self._state.step} the checkpoint before was still being written; training waited "
                    f"{waited:.1f} s for it (said once): save less often, or to a faster disk",
                )  # fmt: skip
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # --- write, in the thread -----------------------------------------------------------------------------------

    def _run(self, trainer: dict[str, Any], later: _Sources) -> None:
        try:
            self._stage(later)
            self._write(trainer, time.perf_counter())
        except SeatrialError as error:
            self._error = error
        except Exception as error:  # a peer that is gone, above all: the training notices by itself
            self._error = explain(error)
        finally:
            self._staged.set()

    def _stage(self, later: _Sources) -> None:
        self._copy(later)
        if self._copied is not None:
            self._copied.synchronize()
        self._staged.set()

    def _write(self, trainer: dict[str, Any], began: float) -> None:
        world, step = self._world, trainer["step"]
        final = directory(self._root, step)
        aside = final.with_name(final.name + ASIDE)
        _be_nice()
        parts = self._exchange(self._try(lambda: self._write_part(aside, trainer), step))
        failure = next((part["error"] for part in parts if "error" in part), None)
        if world.is_main:
            if failure is None:
                failure = self._try(lambda: self._commit(aside, final, parts, trainer), step).get("error")
            if failure is not None:
                shutil.rmtree(aside, ignore_errors=True)
        failure = self._exchange(failure)[0]  # no rank leaves before rank 0 has tidied up
        if failure is not None:
            raise from_dict(failure)
        if self._reporter is not None:
            num_bytes = self._layout.num_bytes if self._layout is not None else 0
            self._reporter.event(
                "checkpoint", step=step, bytes=num_bytes, write_s=round(time.perf_counter() - began, 3)
            )

    def _write_part(self, aside: Path, trainer: dict[str, Any]) -> dict[str, Any]:
        """This rank's file, and rank 0's account of the rest; hashes by name."""
        assert self._layout is not None
        rank, step = self._world.rank, trainer["step"]
        aside.mkdir(parents=True, exist_ok=True)
        midway = None if self._midway is None else lambda: self._midway(step)  # type: ignore[misc]
        name = shards.file_name(rank)
        entry = shards.write(aside / name, self._layout, self._buffer.numpy().data, midway)
        if self._world.is_main:
            write_json(aside / "trainer.json", trainer)
        return {name: entry}

    def _commit(
        self, aside: Path, final: Path, parts: list[dict[str, Any]], trainer: dict[str, Any]
    ) -> dict[str, Any]:
        """Seals the checkpoint with what all ranks wrote; only then the older ones may go."""
        files = {name: entry for part in parts for name, entry in part.items()}
        facts = {key: trainer[key] for key in ("step", "world_size", "held_out_loss")}
        commit(aside, final, hashed=files, **facts)
        old = [directory(self._root, step) for step in self._retention.superfluous(_kept(self._root))]
        for path in [*old, *self._root.glob(f"*{DAMAGED}")]:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
        return {}

    def _try(self, action: Callable[[], dict[str, Any]], step: int) -> dict[str, Any]:
        """What `action` returns, or ``{"error"}`` in three parts: the other ranks have to hear of it."""
        try:
            return action()
        except OSError as error:
            kept = committed_steps(self._root)
            left = f"; step {kept[-1]} is kept" if kept else ""
            evidence = f"rank {self._world.rank}: {error}{left}"
            what = (
                "the disk is full"
                if is_disk_full(error)
                else f"the checkpoint of step {step} can't be written"
            )
            remedy = "free some space" if is_disk_full(error) else f"look at the file system of {self._root}"
            return {
                "error": PlatformError(
                    what, evidence=evidence, remedy=f"{remedy}, then: seatrial runs resume RUN"
                ).to_dict()
            }

    def _exchange(self, mine: Any) -> list[Any]:
        """What each rank says, by rank."""
        if self._group is None:
            return [mine]
        found: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(found, mine, group=self._group)
        return found


def _kept(root: Path) -> list[Kept]:
    kept = []
    for step in committed_steps(root):
        with contextlib.suppress(
            ValueError
        ):  # a marker that can't be read is no reason to delete, nor to stop
            kept.append(Kept(step, (read_marker(directory(root, step)) or {}).get("held_out_loss")))
    return kept


def _be_nice() -> None:
    """Where cores are scarce, the training goes first: the write has until the next checkpoint."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(
            os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _WRITER_NICENESS
        )
