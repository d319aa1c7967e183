"""Notices when training goes wrong, and does what the recipe says about it.

Steps leave their loss and gradient norm on the device; they are looked at together, at logging steps and before
checkpoints. Losses are reduced then, so that every rank sees the same figures and decides the same.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from seatrial.errors import MeasuredFailure
from seatrial.job import checkpoint
from seatrial.job.proof import RankComparison
from seatrial.job.reporter import Reporter
from seatrial.job.world import World
from seatrial.runs.clock import now
from seatrial.runs.evidence import Verdict
from seatrial.runs.files import read_json, write_json
from seatrial.runs.metrics import read_metrics
from seatrial.spec.run import TrainSpec

MAX_ROW = 5
"""Skipped updates in a row that are no accident: the weights are at fault, not a batch."""
SCALE_FLOOR = 1e-4
"""Below it, fp16's loss scale will not recover: gradients overflow whatever it is (fairseq's ``--min-loss-scale``)."""
HISTORY = 20
"""Logging windows that a loss is compared with; at least `MIN_HISTORY` of them."""
MIN_HISTORY = 10


class StepResult(NamedTuple):
    """What a step left behind."""

    step: int
    """Counted from 1."""
    loss: float
    """Sum over the samples (tokens) of all ranks, in nats."""
    norm: float
    """Of the reduced gradient, before clipping."""
    weight: int
    """Samples (tokens) of all ranks."""

    @property
    def is_finite(self) -> bool:
        """Whether both loss and gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass(slots=True)
class Window:
    """The steps since the last logging step; what they left on the device stays there until `read`."""

    results: list[StepResult] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    _unread: list[tuple[int, int, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def add(self, step: int, weight: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Keeps a step's loss (this rank's sum, 0-d) and gradient norm (0-d, the same on all ranks)."""
        self._unread.append((step, weight, loss, norm))

    def read(self) -> list[StepResult]:
        """The steps since the last read, reduced over the ranks; every rank calls this. Waits for the device once."""
        if not self._unread:
            return []
        steps, weights, losses, norms = zip(*self._unread, strict=True)
        self._unread.clear()
        total = torch.stack(losses).double()
        dist.all_reduce(total)
        values = torch.stack([total, torch.stack(norms).double()]).tolist()
        read = [StepResult(*row) for row in zip(steps, *values, weights, strict=True)]
        self.results += read
        return read

    @property
    def loss(self) -> float | None:
        """Mean loss in nats a sample (token) of the steps that were read and are finite; None without any."""
        good = [r for r in self.results if math.isfinite(r.loss)]
        return sum(r.loss for r in good) / max(1, sum(r.weight for r in good)) if good else None


class Guard:
    """The policy of a run, and what has happened to it so far (``guard.json``, written before the run goes on)."""

    def __init__(self, train: TrainSpec, world: World, reporter: Reporter, record: dict[str, Any]) -> None:
        self.train, self.world, self.reporter = train, world, reporter
        self.skipped: set[int] = set(record["skipped"])
        self.rollbacks: list[dict[str, Any]] = record["rollbacks"]
        self.left_out = frozenset(step for row in self.rollbacks for step in row["steps"])
        """Steps (from 1) that train on nothing: their batch was left out by a rollback."""
        self.settle: Callable[[], None] = lambda: None
        """Ends what is being saved, so that the last good checkpoint is known; every rank calls it."""
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._on_spike = False
        self._spikes: list[int] = []
        self._comparison: RankComparison | None = None

    @classmethod
    def open(cls, train: TrainSpec, world: World, reporter: Reporter) -> Guard:
        """With what earlier attempts recorded; every rank calls this, before a checkpoint is restored.

        A rollback that was recorded but cut short is completed.
        """
        found = [_read(reporter) if world.is_main else {}]
        dist.broadcast_object_list(found, src=0)
        guard = cls(train, world, reporter, found[0])
        guard._discard_checkpoints()
        return guard

    def remember(self, step: int) -> None:
        """Takes up the losses that the run had logged up to the step that it goes on from."""
        rows = read_metrics(self.reporter.paths.metrics)["train"] if self.world.is_main else []
        losses = [[row["loss"] for row in rows if row["step"] <= step and row["loss"] is not None][-HISTORY:]]
        dist.broadcast_object_list(losses, src=0)
        self._history.extend(losses[0])

    def compare_ranks(self, net: torch.nn.Module, step: int) -> None:
        """Starts to compare the weights of all ranks; the next `healthy` has the answer."""
        self._comparison = RankComparison(net, self.world, step)

    def healthy(self, window: Window, scaler: torch.amp.GradScaler, *, whole: bool) -> bool:
        """Reads the window and judges it; every rank calls this at the same step.

        Args:
            window: the steps since the last logging step.
            scaler: fp16's; its own skips are no fault until the scale is at its floor.
            whole: whether the window ends here; only a whole one is compared with those before.

        Returns:
            True to go on; False when the run has to go back: checkpoints that are no good are gone, the steps to
            leave out are on record, and the job is to be built again as for a resume.

        Raises:
            MeasuredFailure: the recipe says stop, or a bound was reached.
            PlatformError: the ranks have drifted apart.
        """
        if self._comparison is not None:
            self._comparison.finish(self.reporter)
            self._comparison = None
        fp16 = scaler.is_enabled()
        bad = [r for r in window.read() if not (math.isfinite(r.loss) if fp16 else r.is_finite)]
        if bad:
            return self._on_nonfinite(bad)
        if fp16 and scaler.get_scale() < SCALE_FLOOR:
            raise self._failure(
                f"fp16's loss scale is at its floor at step {window.results[-1].step}",
                f"scale {scaler.get_scale():.1g}: gradients overflow at every scale",
            )
        return not whole or self._is_steady(window)

    def conclude(self) -> None:
        """Evidence over the whole run, once training has ended."""
        gone = sorted(
            self.skipped | {s for r in self.rollbacks if r["why"] == "not finite" for s in r["steps"]}
        )
        self.reporter.evidence(
            "loss_finite", Verdict.WARN if gone else Verdict.PASS, measured=gone or "finite",
            expected="finite at every step", unit="steps", source="losses and gradient norms of all ranks",
            message=f"the loss or its gradient was not finite at {_name(gone)}, which changed nothing" if gone
            else "the loss and its gradient were finite at every step of this attempt",
        )  # fmt: skip
        spikes = sorted(
            {*self._spikes, *(r["seen_at_step"] for r in self.rollbacks if r["why"] == "loss spike")}
        )
        verdict, message = Verdict.PASS, "no loss stood out from those before it"
        if self.train.on_spike == "off":
            verdict, message = Verdict.SKIP, "train.on_spike is off"
        elif spikes:
            verdict, message = Verdict.WARN, f"the loss stood out from those before it at {_name(spikes)}"
        elif len(self._history) <= MIN_HISTORY:
            verdict, message = Verdict.UNMEASURED, "too few logging steps to tell a spike"
        self.reporter.evidence(
            "loss_steady", verdict, measured=spikes, expected="no spike", unit="steps", source="metrics.jsonl",
            message=message,
        )  # fmt: skip

    @property
    def num_without_update(self) -> int:
        """Steps that changed nothing, in all attempts."""
        return len(self.skipped | self.left_out)

    # --- what is done about it ---------------------------------------------------------------------------------

    def _on_nonfinite(self, bad: Sequence[StepResult]) -> bool:
        steps, policy = [r.step for r in bad], self.train.on_nonfinite
        if policy == "rollback":
            return self._go_back(steps, "not finite", seen_at=steps[-1], check="loss_finite")
        # The update changes nothing only where the gradient is not finite.
        if policy == "stop" or any(math.isfinite(r.norm) for r in bad):
            raise self._failure(f"the loss is not finite at step {steps[0]}", "")
        self.skipped |= set(steps)
        self._write()
        self.reporter.evidence(
            "loss_finite", Verdict.WARN, measured=sorted(self.skipped), expected="finite at every step", unit="steps",
            source="losses and gradient norms of all ranks",
            message=f"the loss or its gradient is not finite at {_name(steps)}: skipped, "
            f"{len(self.skipped)} of at most {self.train.max_skips}",
        )  # fmt: skip
        row = longest_row(self.skipped)
        if len(self.skipped) > self.train.max_skips or row >= MAX_ROW:
            raise self._failure(
                f"too many steps were not finite, the last one step {steps[-1]}",
                f"{len(self.skipped)} updates were skipped (train.max_skips is {self.train.max_skips}), {row} in a row",
            )
        return True

    def _is_steady(self, window: Window) -> bool:
        loss = window.loss
        if self.train.on_spike == "off" or loss is None:
            return True
        limit = spike_limit(self._history)
        if loss <= limit:
            self._history.append(loss)
            self._on_spike = False
            return True
        first, last = window.results[0].step, window.results[-1].step
        if self.train.on_spike == "rollback":
            # The update just before the window may be what did it.
            return self._go_back(
                range(max(1, first - 1), last + 1), "loss spike", seen_at=last, check="loss_steady"
            )
        self._history.append(loss)  # a level that stays is the level
        if not self._on_spike:
            self._spikes.append(last)
            self.reporter.evidence(
                "loss_steady", Verdict.WARN, measured=loss, expected=f"<= {limit:.4g}", unit="nats",
                source="metrics.jsonl", message=f"the loss of the steps up to {last} is {loss:.4g}; the median of "
                f"those before is {statistics.median(self._history):.4g}",
            )  # fmt: skip
        self._on_spike = True
        return True

    def _go_back(self, steps: Iterable[int], why: str, *, seen_at: int, check: str) -> bool:
        """Always False. What a kill at any moment leaves behind is completed by the next `open`."""
        found = sorted(set(steps) - self.left_out)
        if len(self.rollbacks) >= self.train.max_rollbacks:
            raise self._failure(
                f"{why} at {_name(found)}, and the run went back {len(self.rollbacks)} times already",
                f"train.max_rollbacks is {self.train.max_rollbacks}",
                check,
            )
        self.rollbacks.append(
            {"steps": found, "why": why, "seen_at_step": seen_at, "attempt": self.reporter.attempt_index,
             "time": now(), "done": False}
        )  # fmt: skip
        self.settle()
        self._write()
        self._discard_checkpoints()
        self.reporter.evidence(
            check, Verdict.WARN, measured=found, expected="none", unit="steps", source="losses and gradient norms",
            message=f"{why}: seen at step {seen_at}; going back to the checkpoint before and leaving out {_name(found)}",
        )  # fmt: skip
        return False

    def _discard_checkpoints(self) -> None:
        """Removes those of pending rollbacks that hold a step which is to be left out."""
        pending = [row for row in self.rollbacks if not row["done"]]
        if not pending:
            return
        if self.world.is_main:
            root = self.reporter.paths.checkpoints
            first = min(step for row in pending for step in row["steps"])
            for step in checkpoint.committed_steps(root):
                if step >= first:
                    shutil.rmtree(checkpoint.directory(root, step))
        for row in pending:
            row["done"] = True
        self._write()

    def _write(self) -> None:
        if self.world.is_main:
            write_json(
                self.reporter.paths.guard,
                {"schema": 1, "skipped": sorted(self.skipped), "rollbacks": self.rollbacks},
            )
        dist.barrier()  # on disk before any rank goes on

    def _failure(self, what: str, evidence: str, check: str = "loss_finite") -> MeasuredFailure:
        self.settle()
        self.reporter.evidence(
            check,
            Verdict.FAIL,
            measured=what,
            expected="finite and steady",
            source="losses of all ranks",
            message=what,
        )
        kept = checkpoint.committed_steps(self.reporter.paths.checkpoints)
        return MeasuredFailure(
            what,
            evidence=(f"{evidence}; " if evidence else "")
            + f"learning rate {self.train.learning_rate:.3g}, precision {self.train.precision}; "
            + (f"last good checkpoint: step {kept[-1]}" if kept else "no checkpoint had been saved yet"),
            remedy="lower train.learning_rate, lengthen train.warmup, or use train.precision=fp32",
        )


def spike_limit(history: Sequence[float]) -> float:
    """The loss above which a logging window stands out; infinite with less than `MIN_HISTORY` windows before it.

    ``median + max(8 × 1.4826 × MAD, median / 2, 0.2 nats)`` over the last `HISTORY` windows: the robust z-score
    (Iglewicz and Hoaglin 1993; 1.4826 × MAD estimates the standard deviation of a normal distribution) at 8, and
    floors for a loss that hardly varies or is near zero.
    """
    if len(history) < MIN_HISTORY:
        return math.inf
    middle = statistics.median(history)
    mad = statistics.median(abs(loss - middle) for loss in history)
    return middle + max(8 * 1.4826 * mad, middle / 2, 0.2)


def longest_row(steps: Iterable[int]) -> int:
    """How many of the steps follow each other without a gap, at most."""
    longest, row, previous = 0, 0, None
    for step in sorted(steps):
        row = row + 1 if previous is not None and step == previous + 1 else 1
        longest, previous = max(longest, row), step
    return longest


def _name(steps: Sequence[int]) -> str:
    """``step 3``, ``steps 3 and 5`` or ``steps 3 to 9``."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if len(steps) > 2 and steps[-1] - steps[0] == len(steps) - 1:
        return f"steps {steps[0]} to {steps[-1]}"
    return f"steps {', '.join(map(str, steps[:-1]))} and {steps[-1]}"


def _read(reporter: Reporter) -> dict[str, Any]:
    return read_json(reporter.paths.guard) or {"schema": 1, "skipped": [], "rollbacks": []}
