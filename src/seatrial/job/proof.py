"""The post-conditions of training, each a recorded verdict: a job that did nothing must not end well."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist

from seatrial.errors import MeasuredFailure, PlatformError
from seatrial.job.reporter import Reporter
from seatrial.job.sharded import whole
from seatrial.job.world import World
from seatrial.runs.commit import weights_sha256
from seatrial.runs.evidence import Verdict


class RankComparison:
    """Compares the weights of all ranks by a checksum, while training goes on; every rank makes one at a step.

    Made, it queues the checksums and an all-gather of 8 bytes a rank on the device, and returns; `finish` waits.
    A drift is silent otherwise: data-parallel ranks exchange gradients, never weights.
    """

    def __init__(self, net: torch.nn.Module, world: World, step: int) -> None:
        self._step, self._world = step, world
        # A shard (a DTensor, which has placements) is meant to differ.
        named = [(n, p) for n, p in net.named_parameters() if not hasattr(p, "placements")]
        self._names = [name for name, _ in named]
        self._sums = checksums([p for _, p in named]) if world.world_size > 1 and named else None
        if self._sums is None:
            return
        # Odd factors by position, so that two tensors that changed places count as well.
        factors = torch.arange(1, 2 * len(named), 2, device=self._sums.device)
        mine = (self._sums * factors).sum().reshape(1)
        self._all = [torch.empty_like(mine) for _ in range(world.world_size)]
        self._work = dist.all_gather(self._all, mine, async_op=True)

    def finish(self, reporter: Reporter) -> None:
        """Every rank calls this.

        Raises:
            PlatformError: the weights differ; the ranks that drifted and the first tensors are named.
        """
        if self._sums is None:
            return
        self._work.wait()
        odd = odd_ones(torch.cat(self._all).tolist())
        if not odd:
            return
        gathered = [torch.empty_like(self._sums) for _ in range(self._world.world_size)]
        dist.all_gather(gathered, self._sums)
        reference = next(sums for rank, sums in enumerate(gathered) if rank not in odd)
        differ = [
            n for i, n in enumerate(self._names) if any(gathered[rank][i] != reference[i] for rank in odd)
        ]
        raise drifted(reporter, odd, f"step {self._step}", f"{len(differ)} of {len(self._names)} tensors differ, "
                      f"the first: {', '.join(differ[:3])}")  # fmt: skip


def checksums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [tensors], on their device: the sum of each tensor's bits, taken as int64 words, modulo 2⁶⁴."""
    return torch.stack([_sum_of_bits(tensor.detach().reshape(-1)) for tensor in tensors])


def _sum_of_bits(flat: torch.Tensor) -> torch.Tensor:
    width = flat.element_size()
    if flat.storage_offset() * width % 8:
        return flat.view(torch.uint8).sum(dtype=torch.int64)
    # Words of 8 bytes are summed several times faster than narrower ones, which are widened first.
    whole = flat.numel() * width // 8 * 8 // width
    return flat[:whole].view(torch.int64).sum() + flat[whole:].view(torch.uint8).sum(dtype=torch.int64)


def odd_ones(values: Sequence[object]) -> list[int]:
    """The positions whose value is not that of the most; where no value leads, not that of the first."""
    counts = Counter(values)
    usual, most = counts.most_common(1)[0]
    if counts[values[0]] == most:
        usual = values[0]
    return [i for i, value in enumerate(values) if value != usual]


def drifted(reporter: Reporter, odd: Sequence[int], when: str, evidence: str) -> PlatformError:
    """The error, with its verdict recorded, of ranks that hold other weights than the rest."""
    who = f"rank {odd[0]} has" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} have"
    reporter.evidence(
        "ranks_agree", Verdict.FAIL, measured=list(odd), expected=[], unit="ranks", source="weights of each rank",
        message=f"{who} other weights than the rest at {when}",
    )  # fmt: skip
    return PlatformError(
        f"{who} other weights than the rest at {when}",
        evidence=f"{evidence}. Data-parallel ranks hold the same weights, bit for bit: memory, a GPU or a kernel is at fault",
        remedy="seatrial check    then, without the machine that it names: seatrial runs resume RUN",
    )


def same_on_all_ranks(net: torch.nn.Module, world: World, reporter: Reporter) -> str:
    """Compares the weights of all ranks by hash; returns the hash.

    Of a sharded model each rank hashes what it gathers, within its own replica: what is replicated must agree.

    Raises:
        PlatformError: the ranks have drifted apart, which data-parallel training excludes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(whole(tensor.detach()).reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    hashes = [""] * world.world_size
    dist.all_gather_object(hashes, digest.hexdigest())
    odd = odd_ones(hashes)
    if odd:
        raise drifted(
            reporter, odd, "the end", f"SHA-256 of the state dict: {', '.join(h[:12] for h in hashes[:8])}"
        )
    reporter.evidence(
        "ranks_agree", Verdict.PASS, measured=1, expected=1, unit="distinct weights",
        source="SHA-256 of the state dict on each rank", message="all ranks ended with the same weights",
    )  # fmt: skip
    return hashes[0]


def after_training(
    reporter: Reporter,
    step: int,
    num_steps: int,
    first_loss: float | None,
    last_loss: float | None,
    num_without_update: int,
    state_sha256: str,
    before_and_after: tuple[str, str] | None = None,
) -> None:
    """Rank 0: the steps were done, the loss fell, the weights changed.

    `before_and_after` are hashes of what was trained, where that is not the whole of the saved models.

    Raises:
        MeasuredFailure: the trained weights are the original ones.
    """
    reporter.evidence(
        "steps_done", Verdict.PASS if step == num_steps else Verdict.FAIL, measured=step, expected=num_steps,
        unit="steps", source="trainer", message=f"{step} of {num_steps} optimizer steps were done"
        + (f", {num_without_update} of them without an update" if num_without_update else ""),
    )  # fmt: skip
    if first_loss is None or last_loss is None or first_loss is last_loss:
        verdict, message = Verdict.UNMEASURED, "too few steps in this attempt to see the loss fall"
    elif last_loss < first_loss:
        verdict, message = Verdict.PASS, f"training loss {first_loss:.4f} → {last_loss:.4f}"
    else:
        # A model that had converged before may not improve; the comparison decides, this only says it.
        verdict, message = Verdict.WARN, f"training loss did not fall: {first_loss:.4f} → {last_loss:.4f}"
    reporter.evidence(
        "loss_fell", verdict, measured=last_loss, expected=first_loss and f"< {first_loss:.6g}", unit="nats",
        source="first and last row of metrics.jsonl in this attempt", message=message,
    )  # fmt: skip
    before, after = before_and_after or (
        weights_sha256(reporter.paths.model(name)) for name in ("original", "trained")
    )
    changed = before is not None and after is not None and before != after
    reporter.evidence(
        "weights_changed", Verdict.PASS if changed else Verdict.FAIL, measured=after, expected=f"not {before}",
        source="SHA-256 of what was trained" if before_and_after else "SHA-256 of the safetensors of both models",
        message="training changed the weights" if changed else "the trained weights are the original ones",
    )  # fmt: skip
    reporter.facts(training={"steps": step, "first_loss": first_loss, "last_loss": last_loss,
                             "steps_without_update": num_without_update, "state_sha256": state_sha256})  # fmt: skip
    if not changed:
        raise MeasuredFailure(
            "training changed nothing",
            evidence=f"models/original and models/trained have the same weights ({before})",
            remedy="is train.learning_rate large enough, and are there samples to train on?",
        )
