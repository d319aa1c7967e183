"""What a rank tells the run directory: that it started, what it is doing, and why it stopped."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from seatrial.errors import PlatformError, SeatrialError, SpecError
from seatrial.job.heartbeat import Heart
from seatrial.job.recorder import record_flight
from seatrial.runs.clock import now
from seatrial.runs.evidence import Evidence, Verdict, record
from seatrial.runs.files import append_json_line, read_json, write_json
from seatrial.runs.paths import RunPaths

# What a surviving rank raises when a peer dies in the middle of a collective (gloo, NCCL, the store).
_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL remote process exited",
    "Socket closed",
    "failed to recv",
    "recvValue failed",
    "sendBytes failed",
    "Read error",
    "Write error",
)


class Reporter:
    """Writes one rank's events, failure and (rank 0) facts and evidence."""

    def __init__(self, paths: RunPaths, attempt: int, rank: int) -> None:
        self.paths = paths
        self.attempt_index = attempt
        self.attempt = paths.attempt(attempt)
        self.rank = rank
        self.batch: tuple[int, int] | None = None
        """``train.batch_size`` and ``train.grad_accumulation``, once known: what to halve when memory runs out."""
        self.attempt.rank_events(rank).parent.mkdir(parents=True, exist_ok=True)
        self.heart = Heart(self.attempt.heartbeat(rank))
        if threading.current_thread() is threading.main_thread():
            record_flight(self.attempt.flight(rank))

    def event(self, name: str, **facts: Any) -> None:
        """Appends one row to this rank's events."""
        self.heart.enter(name)
        append_json_line(self.attempt.rank_events(self.rank), {"event": name, "time": now(), **facts})

    def facts(self, **facts: Any) -> None:
        """Merges rank 0's findings into the attempt's ``facts.json``; the other ranks know the same."""
        if self.rank == 0:
            write_json(self.attempt.facts, {**(read_json(self.attempt.facts) or {"schema": 1}), **facts})

    def metric(self, **row: Any) -> None:
        """Appends one row to the run's ``metrics.jsonl`` (rank 0)."""
        if self.rank == 0:
            append_json_line(self.paths.metrics, {**row, "attempt": self.attempt_index, "time": now()})

    def evidence(self, check: str, verdict: Verdict, **found: Any) -> None:
        """Records a verdict (rank 0) and prints it into the log."""
        if self.rank == 0:
            kept = record(
                self.paths.evidence,
                Evidence(check=check, verdict=verdict, attempt=self.attempt_index, **found),
            )
            print(f"{kept.verdict} {check}: {kept.message}", flush=True)  # noqa: T201 - the rank's log


@contextmanager
def reporting(paths: RunPaths, attempt: int, stage: str) -> Iterator[Reporter]:
    """Wraps a rank's whole work: start and end as events, any failure as a record in three parts.

    Ends the process with the failure's exit code.
    """
    rank = int(os.environ.get("RANK", "0"))
    reporter = Reporter(paths, attempt, rank)
    reporter.event("started", stage=stage, pid=os.getpid(), host=socket.gethostname())
    try:
        yield reporter
    except Exception as error:
        traceback.print_exc()
        failure = explain(error, reporter.batch)
        secondary = any(sign in str(error) for sign in _PEER_LOST) and not isinstance(error, SeatrialError)
        with contextlib.suppress(OSError):  # a full disk must not hide the reason from the log
            path = reporter.attempt.rank_failure(rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                path,
                {
                    **failure.to_dict(),
                    "rank": rank,
                    "stage": stage,
                    "time": time.time(),
                    "secondary": secondary,
                },
            )
            reporter.event("failed", stage=stage, what=failure.what)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: threads of a process group whose peers are gone can keep the interpreter alive.
        os._exit(int(failure.exit_code))
    reporter.event("finished", stage=stage)


def explain(error: Exception, batch: tuple[int, int] | None = None) -> SeatrialError:
    """The three-part form of whatever a rank died of; `batch` as in `Reporter.batch`."""
    if isinstance(error, SeatrialError):
        return error
    if is_out_of_memory(error):
        return SpecError(
            "the batch does not fit into memory",
            evidence=str(error).splitlines()[0][:300] + _device_memory(),
            remedy=_smaller_batch(batch),
        )
    if is_disk_full(error):
        return PlatformError(
            "the disk is full",
            evidence=" ".join(str(error).split())[:300],
            remedy="free some space, then: seatrial runs resume RUN",
        )
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" at {Path(last.filename).name}:{last.lineno}" if last else ""
    return PlatformError(f"{type(error).__name__}{where}", evidence=str(error)[:600] or repr(error))


def _device_memory() -> str:
    """How the GPU's memory was used; empty without one that is in use."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return ""
    gib = 2**30
    free, total = (value / gib for value in torch.cuda.mem_get_info())
    held, peak = torch.cuda.memory_allocated() / gib, torch.cuda.max_memory_allocated() / gib
    return (
        f"\n{total:.1f} GiB in all, {free:.1f} GiB free; this rank holds {held:.1f} GiB, at most {peak:.1f} GiB: "
        "weights, gradients and optimizer take what is held between steps, the batch takes the rest"
    )


def _smaller_batch(batch: tuple[int, int] | None) -> str:
    """Half the batch with twice the accumulation, which needs about half the memory beyond weights and optimizer."""
    if batch is None:
        return "halve train.batch_size and double train.grad_accumulation: the global batch stays the same"
    size, accumulation = batch
    if size == 1:
        return "train.batch_size is 1 already: a smaller data.max_length, or a smaller model"
    same = "about the same" if size % 2 else "the same"
    return f"train.batch_size={size // 2} train.grad_accumulation={2 * accumulation}    ({same} global batch)"


def is_disk_full(error: Exception) -> bool:
    """Whether a write found no room. Libraries that are not written in Python pass the reason on as text only."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return any(sign in str(error) for sign in ("No space left on device", "Disk quota exceeded"))


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of device memory or of the machine's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            sign in str(error)
            for sign in ("can't allocate memory", "not enough memory", "CUDA out of memory")
        )
    )
