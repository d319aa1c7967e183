"""Phase 4: real networks trained on made-up data by all ranks (DDP): throughput, scaling, and who is waited for.

``python -m seatrial.job.checks.work``, a rank. Its options may say ``peak_tflops``, the device's peak in the precision that
is used, for MFU.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from seatrial.job.checks import inject
from seatrial.job.checks.networks import Decoder, parameters, resnet18, resnet50, train_flop, transformer
from seatrial.job.checks.ranks import Ranks, end, joined
from seatrial.job.checks.task import Task

NETS = ("resnet18", "resnet50", "transformer")
_REPEATS = 3
_LEAST_STEPS = 10
_WARM_STEPS = 3
_CPU_CAP_S = 2.0
_DIES_AT = 2
# Samples of a step on each rank, and the images' side; on a GPU as many as fit 24 GB.
_BATCH = {
    "cuda": {"resnet18": 256, "resnet50": 128, "transformer": 8},
    "cpu": {"resnet18": 4, "resnet50": 4, "transformer": 4},
}
_IMAGE = {"cuda": 224, "cpu": 32}
# The first use of each shape picks kernels.
_FIRST_STEP_S = 60.0


def throughput(samples: Sequence[float], walls_s: Sequence[float]) -> float:
    """Samples a second of all ranks: what each did itself, summed once, by the longest of their times."""
    return sum(samples) / max(walls_s)


def timed(
    step: Callable[[], object], steps: int, batch: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Samples that this rank went through in so many steps, and the seconds that it took."""
    began = clock()
    for _ in range(steps):
        step()
    return float(steps * batch), clock() - began


class Training:
    """One network on one rank."""

    def __init__(self, ranks: Ranks, name: str) -> None:
        self.ranks, self.task, self.check = ranks, ranks.task, f"train_{name}"
        device = ranks.device
        kind = device.type
        self.batch, self.image = _BATCH[kind][name], _IMAGE[kind]
        self.cap_s = self.task.spec.train_s if ranks.cuda else min(self.task.spec.train_s, _CPU_CAP_S)
        torch.manual_seed(0)
        net = (
            {"resnet18": resnet18, "resnet50": resnet50}[name]()
            if name != "transformer"
            else transformer(device)
        )
        self.flop, self.size = train_flop(net, self.image), parameters(net)
        self.bare: nn.Module = net.to(device)
        self.net: nn.Module = self.bare
        self.bf16 = ranks.cuda and torch.cuda.get_device_capability(device) >= (8, 0)
        torch.manual_seed(ranks.rank)
        if isinstance(net, Decoder):
            self.inputs = torch.randint(net.token.num_embeddings, (self.batch, net.length), device=device)
            self.targets = self.inputs.roll(-1, 1)
        else:
            self.inputs = torch.randn(self.batch, 3, self.image, self.image, device=device)
            self.targets = torch.randint(1000, (self.batch,), device=device)
            if ranks.cuda:
                self.bare = self.net = self.bare.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                self.inputs = self.inputs.to(memory_format=torch.channels_last)
        self.optimizer = self.sgd()
        self.loss = torch.zeros((), device=device)
        self.extra_s = 0.0
        self.steps_done = 0

    def sgd(self) -> torch.optim.Optimizer:
        """Of the weights as they are, without a past."""
        return torch.optim.SGD(self.bare.parameters(), lr=0.01, momentum=0.9)

    def step(self) -> None:
        """Forward, backward and update on one batch, as far as the host goes: a GPU may still be at it."""
        if self.net is not self.bare:
            if self.steps_done == _DIES_AT:
                inject.die_if(self.task, self.ranks.world.local_rank)
            self.steps_done += 1
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.net(self.inputs)
            self.loss = F.cross_entropy(logits.flatten(0, -2), self.targets.flatten())
        if self.extra_s:
            self.ranks.synchronize()
            time.sleep(self.extra_s)
        self.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def clock(self) -> float:
        """Seconds, once this rank's device has done what it was given."""
        self.ranks.synchronize()
        return time.perf_counter()

    def step_s(self, steps: int = _LEAST_STEPS) -> float:
        """Seconds of a step, one by one; the median."""
        times = []
        for _ in range(steps):
            self.ranks.alive(_FIRST_STEP_S)
            times.append(timed(self.step, 1, self.batch, self.clock)[1])
        return statistics.median(times)

    def compute_s(self) -> float:
        """Seconds of a step whose gradients stay on their rank: forward, backward, update, and nobody to wait for."""
        assert isinstance(self.net, DistributedDataParallel)
        times = []
        with self.net.no_sync():
            for _ in range(_REPEATS):
                self.ranks.alive(_FIRST_STEP_S)
                times.append(timed(self.step, _LEAST_STEPS, self.batch, self.clock)[1] / _LEAST_STEPS)
        return statistics.median(times)

    def run(self) -> None:
        """Each rank alone, then all together, then what each computes between two meetings."""
        ranks = self.ranks
        ranks.doing(self.check, "solo_samples_per_s", _FIRST_STEP_S)
        self.step_s(_WARM_STEPS)
        factor = inject.slow_down(self.task, ranks.world.local_rank)
        if factor < 1:
            self.extra_s = (1 / factor - 1) * self.step_s()
        solo = self.samples_per_s(1)[1]
        ranks.doing(self.check, "samples_per_s", _FIRST_STEP_S)
        self.net = DistributedDataParallel(self.bare, device_ids=[ranks.device] if ranks.cuda else None)
        # Momentum of the steps alone differs from rank to rank, and would lead the weights apart.
        self.optimizer = self.sgd()
        self.step_s(_WARM_STEPS)
        together, _, finite = self.samples_per_s(_REPEATS)
        equal = ranks.gather(float(self.checksum()))
        ranks.doing(self.check, "compute_s")
        compute = [row[0] for row in ranks.gather(self.compute_s())]
        if ranks.rank == 0:
            self.write(together, solo, compute, finite, [row[0] for row in equal])
        ranks.barrier()

    def samples_per_s(self, repeats: int) -> tuple[list[tuple[float, float]], list[float], list[float]]:
        """Trains for the suite's time, so often; as many steps on every rank.

        Returns:
            Of each repeat, samples a second of all ranks and seconds a step; of each rank, its own samples a second;
            of each rank, 1.0 where its loss was finite all the time.
        """
        ranks = self.ranks
        longest = max(max(row) for row in ranks.gather(self.step_s(_WARM_STEPS)))
        steps = max(_LEAST_STEPS, math.ceil(self.cap_s / max(longest, 1e-6)))
        found, own, finite = [], [0.0] * ranks.size, [1.0] * ranks.size
        for _ in range(repeats):
            ranks.alive(3 * steps * longest)
            ranks.barrier()
            samples, wall_s = timed(self.step, steps, self.batch, self.clock)
            rows = ranks.gather(samples, wall_s, float(bool(torch.isfinite(self.loss))))
            found.append(
                (
                    throughput([row[0] for row in rows], [row[1] for row in rows]),
                    max(r[1] for r in rows) / steps,
                )
            )
            own = [row[0] / row[1] for row in rows]
            finite = [min(a, row[2]) for a, row in zip(finite, rows, strict=True)]
        return found, own, finite

    def checksum(self) -> int:
        """48 bits of a hash of all weights, which a float holds exactly."""
        digest = hashlib.sha256()
        for weight in self.bare.parameters():
            digest.update(
                weight.detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
        return int.from_bytes(digest.digest()[:6], "big")

    def write(
        self, together: list[tuple[float, float]], solo: list[float], compute: list[float], finite: list[float],
        sums: list[float],
    ) -> None:  # fmt: skip
        """All samples of the network, by rank 0."""
        ranks, n = self.ranks, self.ranks.size
        rates, steps_s = [rate for rate, _ in together], [step for _, step in together]
        rate, step_s, alone = statistics.median(rates), statistics.median(steps_s), statistics.median(solo)
        detail = {"ranks": n, "nodes": len(ranks.numbers), "batch": self.batch, "parameters": self.size,
                  "precision": "bf16" if self.bf16 else "fp32"}  # fmt: skip

        def sample(
            metric: str,
            value: Any,
            values: Sequence[float] = (),
            unit: str = "",
            reason: str = "",
            **more: Any,
        ) -> None:
            self.task.write(self.task.sample(self.check, metric, value, values=list(values), unit=unit, reason=reason,
                                             gpu=None, detail=detail | more))  # fmt: skip

        share = 1 - statistics.median(compute) / step_s
        sample("samples_per_s", rate, rates, "samples/s")
        sample("step_s", step_s, steps_s, "s", not_compute_share=share)
        sample("solo_samples_per_s", alone, solo, "samples/s", by_rank=solo)
        sample("efficiency", rate / (n * alone) if n > 1 else None, formula="T(n) / (n T(1)), T(1) the median of all ranks alone",
               reason="" if n > 1 else "one rank waits for nobody")  # fmt: skip
        peak = self.task.options.get("peak_tflops")
        mfu = rate * self.flop / (n * float(peak) * 1e12) if peak else None
        sample("mfu", mfu, reason="" if peak else "the device's peak is not known", flop_per_sample=self.flop,
               peak_tflops=peak, formula="samples/s x FLOP per sample / (ranks x peak)")  # fmt: skip
        sample("loss_finite", all(finite), by_rank=finite)
        usual = statistics.mode(sums)
        differ = [rank for rank, value in enumerate(sums) if value != usual]
        sample("params_equal", not differ, differ=differ)
        for rank, seconds in enumerate(compute):
            where = {"node": ranks.node_of(rank), "gpu": rank % self.task.nproc}
            # A step of all takes as long on every rank: what one does not compute, it waits, or sends.
            for metric, value in (("compute_s", seconds), ("wait_s", max(0.0, step_s - seconds))):
                one = self.task.sample(
                    self.check, metric, value, unit="s", detail=detail | {"step_s": step_s}
                )
                self.task.write(one.model_copy(update=where))


def main() -> int:
    """Trains the networks that are wanted; 0 unless a rank failed."""
    task = Task.from_env()
    wanted = [name for name in NETS if task.wants(f"train_{name}")]
    if not wanted:
        return 0
    torch.backends.cudnn.benchmark = True
    with joined(task, f"train_{wanted[0]}") as ranks:
        for name in wanted:
            ranks.doing(f"train_{name}", "samples_per_s", _FIRST_STEP_S)
            Training(ranks, name).run()
            if ranks.cuda:
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    end(main())
