"""The post-conditions of training, each a recorded verdict: a job that did nothing must not end well."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist

from seatrial.errors import MeasuredFailure, PlatformError
from seatrial.job.reporter import Reporter
from seatrial.job.sharded import whole
from seatrial.job.world import World
from seatrial.runs.commit import weights_sha256
from seatrial.runs.evidence import Verdict


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
    odd = [rank for rank, value in enumerate(hashes) if value != hashes[0]]
    reporter.evidence(
        "ranks_agree", Verdict.FAIL if odd else Verdict.PASS, measured=len(set(hashes)), expected=1,
        unit="distinct weights", source="SHA-256 of the state dict on each rank",
        message=f"ranks {odd} have other weights than rank 0" if odd else "all ranks ended with the same weights",
    )  # fmt: skip
    if odd:
        raise PlatformError(
            "the ranks ended with different weights", evidence=f"ranks {odd} differ from rank 0"
        )
    return hashes[0]


def after_training(
    reporter: Reporter,
    step: int,
    num_steps: int,
    first_loss: float | None,
    last_loss: float | None,
    state_sha256: str,
    before_and_after: tuple[str, str] | None = None,
) -> None:
    """Rank 0: the steps were done, the loss stayed finite and fell, the weights changed.

    `before_and_after` are hashes of what was trained, where that is not the whole of the saved models.

    Raises:
        MeasuredFailure: the trained weights are the original ones.
    """
    reporter.evidence(
        "steps_done", Verdict.PASS if step == num_steps else Verdict.FAIL, measured=step, expected=num_steps,
        unit="steps", source="trainer", message=f"{step} of {num_steps} optimizer steps were done",
    )  # fmt: skip
    reporter.evidence(
        "loss_finite", Verdict.PASS, measured=last_loss, expected="finite at every step", unit="nats",
        source="metrics.jsonl", message="the loss and its gradient were finite at every step of this attempt",
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
                             "state_sha256": state_sha256})  # fmt: skip
    if not changed:
        raise MeasuredFailure(
            "training changed nothing",
            evidence=f"models/original and models/trained have the same weights ({before})",
            remedy="is train.learning_rate large enough, and are there samples to train on?",
        )
