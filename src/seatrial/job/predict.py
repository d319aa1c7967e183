"""Runs models of a run over held-out samples: ``python -m seatrial.job.predict RUN_DIR --attempt K``.

The samples are cut into batches of about equal length, so that next to nothing is computed on padding, and the batches
are dealt out over the ranks. What is done is written down every few seconds (`parts`): a predict that was killed goes
on where it stopped, on any number of ranks. Rank 0 checks that each sample came exactly once and commits one Parquet
file a model, its rows in the order of the samples.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from seatrial.errors import SeatrialError
from seatrial.job import data, first_token, generate, images, inputs, model
from seatrial.job.batches import token_budget
from seatrial.job.device import autocast, to_device
from seatrial.job.faults import Faults
from seatrial.job.generate import GoOn
from seatrial.job.images import Encoded, Images
from seatrial.job.inputs import Encoding, Inputs, Wanted
from seatrial.job.parts import Parts, groups
from seatrial.job.reporter import Reporter, reporting
from seatrial.job.token_cache import Split
from seatrial.job.tokens import Tokens
from seatrial.job.world import World, check_in, process_group
from seatrial.runs.commit import weights_sha256
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import read_plan
from seatrial.runs.predictions import PredictionsInfo, read_info, stream_predictions
from seatrial.spec.load import read_spec
from seatrial.spec.run import DataSpec, RunSpec, is_classification

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
"""Padding included. Measured on CPU, where what a batch touches stays in the cache; a GPU wants to be filled (a guess)."""
_FEWEST_BATCHES = 64
"""Small data is cut finer, for the ranks to share and for a kill to cost little …"""
_SMALLEST_BATCH = 512
"""… but not into crumbs."""
_LOGITS_PER_BATCH = 2**26
"""Of a language model: its logits outgrow all else in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is wanted of a run's models."""

    models: tuple[str, ...]
    data: str | None
    """Other data than the run's held-out samples; its held-out split is used."""
    suffix: str
    generation: generate.Generation | None


def main() -> None:
    """Predicts with each model that is named; a file that is there for the same samples and options is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--attempt",
        type=int,
        default=os.environ.get("SEATRIAL_ATTEMPT"),
        required="SEATRIAL_ATTEMPT" not in os.environ,
    )
    parser.add_argument("--models", nargs="+", default=["original", "trained"])
    parser.add_argument("--data")
    parser.add_argument("--suffix", default="", help="added to the names of the prediction files")
    generate.add_arguments(parser)
    args = parser.parse_args()
    request = Request(
        models=tuple(args.models),
        data=args.data,
        suffix=args.suffix,
        generation=generate.from_arguments(args),
    )
    paths = RunPaths(args.run_dir)
    with reporting(paths, args.attempt, "predict") as reporter:
        plan = read_plan(paths.root, args.attempt)
        spec = read_spec(paths.spec)
        assert isinstance(spec, RunSpec)
        data.quiet_libraries()
        model.quiet_libraries()
        world = World.from_env(plan.device)
        with process_group(world):
            check_in(world, plan)
            for name in request.models:
                predict(name, request, spec, world, reporter)


def predict(model_name: str, request: Request, spec: RunSpec, world: World, reporter: Reporter) -> None:
    """One model over all samples, into one committed file.

    Raises:
        PlatformError: the parts of the ranks do not cover each sample exactly once.
    """
    path, name = reporter.paths.model(model_name), model_name + request.suffix
    target = reporter.paths.predictions(name)
    found, prompts = held_out(request, model_name, spec, world, reporter.paths)
    info = PredictionsInfo(
        task=spec.task,
        labels=found.labels or None,
        data_sha256=found.facts["test"]["sha256"],
        model_name=model_name,
        model_sha256=weights_sha256(path) or "",
        run_id=reporter.paths.run_id,
        split="test",
        num_samples=len(found.test),
        options=options_of(request, found, spec, world),
    )
    if is_kept(target, info):
        reporter.event("kept", model=model_name, num_samples=info.num_samples)
        return
    loaded = model.load_committed(path, spec.task, found.labels)
    parts = Parts(target, info, world)
    reporter.event(
        "predicting", model=model_name, num_samples=info.num_samples, num_done=int(parts.done.sum())
    )
    go_on = generate.engine(request.generation, loaded, path, prompts or found.test, world.device)
    forward(
        loaded,
        found.test.tokens,
        parts,
        go_on,
        spec,
        world,
        Faults(world.rank, reporter.attempt_index),
        reporter,
    )
    dist.barrier()
    if world.is_main:
        table, places = parts.whole(info.num_samples, reporter, name)
        stream_predictions(target, groups(table, places, found.test, found.labels), info)
        parts.remove()
    dist.barrier()


def is_kept(target: Path, info: PredictionsInfo) -> bool:
    """Whether the very file that is wanted is there already."""
    try:
        return target.is_file() and read_info(target) == info
    except SeatrialError:
        return False


def options_of(request: Request, found: Inputs, spec: RunSpec, world: World) -> dict[str, Any]:
    """What decides about the results, besides model and samples."""
    options: dict[str, Any] = {"precision": precision(spec, world), "max_length": found.max_length}
    if request.generation is not None:
        options["generation"] = asdict(request.generation)
    return options


def precision(spec: RunSpec, world: World) -> str:
    """Arithmetic of the forward pass: that of the training on a GPU, fp32 on a CPU, where less only costs time."""
    return spec.train.precision if world.device.type == "cuda" else "fp32"


# --- samples -----------------------------------------------------------------------------------------------------


def held_out(
    request: Request, model_name: str, spec: RunSpec, world: World, paths: RunPaths
) -> tuple[Inputs, Split | None]:
    """The samples to predict, tokenised or resized as this model does; and their prompts, where a column has them."""
    path = paths.model(model_name)

    def how() -> Encoding:
        facts, processor = model.check_model(str(path), spec.task, spec.data.max_length)
        return inputs.encoding(spec.task, processor, facts["max_length"])

    wanted, from_run = wanted_data(request, spec, paths)
    if from_run:
        found = inputs.of_run(spec, paths, world, how)
        if found.tokenizer_sha256 != how().sha256():
            found = inputs.shared(wanted, world, lambda: inputs.prepare(wanted, how()), how)
    else:
        found = inputs.shared(wanted, world, lambda: inputs.prepare(wanted, how()), how)
    column = request.generation.prompt_column if request.generation else None
    if column is None:
        return found, None
    other = Wanted(wanted.spec.model_copy(update={"text": column}), wanted.task, wanted.seed, wanted.classes)
    return found, inputs.shared(other, world, lambda: inputs.prepare(other, how()), how).test


def wanted_data(request: Request, spec: RunSpec, paths: RunPaths) -> tuple[Wanted, bool]:
    """Where the samples are, and whether they are those of the run."""
    own = spec.data
    if request.data is None:
        return Wanted(own, spec.task, spec.train.seed), True
    other = DataSpec(
        path=request.data, text=own.text, image=own.image, label=own.label, id=own.id, max_length=own.max_length
    )  # fmt: skip
    classes = model.class_names(paths.model("trained")) if is_classification(spec.task) else ()
    return Wanted(other, spec.task, 0, classes), False


# --- the loop ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def forward(
    loaded: model.LoadedModel,
    tokens: Encoded,
    parts: Parts,
    go_on: GoOn,
    spec: RunSpec,
    world: World,
    faults: Faults,
    reporter: Reporter,
) -> None:
    """This rank's batches, longest first; nothing is read back from the device before it is written down."""
    net = loaded.model.to(world.device).eval()
    if spec.task == "text-classification":
        first_token.enable(net)
    results = probabilities if is_classification(spec.task) else nats
    vocabulary = 1 if is_classification(spec.task) else int(net.config.vocab_size)
    batches = batches_of(tokens.lengths, TOKENS_PER_BATCH[world.device.type], vocabulary)
    for number, batch in enumerate(batches[world.rank :: world.world_size], start=1):
        rows = batch[~parts.done[batch]]
        if len(rows) == 0:
            continue
        faults.before_step(number, net)
        with autocast(precision(spec, world), world.device):
            values = results(net, **to_device(model_inputs(tokens, rows, loaded.pad_id), world.device))
            parts.add(rows, values, go_on(rows))
        reporter.heart.beat(phase="predicting")
    parts.flush()


def batches_of(lengths: np.ndarray, num_tokens: int, vocabulary: int = 1) -> list[np.ndarray]:
    """All samples, longest first, cut into batches; a function of the data alone, not of ranks or of what is done."""
    fair = max(int(lengths.sum()) // _FEWEST_BATCHES, _SMALLEST_BATCH)
    budget = min(num_tokens, fair, max(_LOGITS_PER_BATCH // vocabulary, 1))
    return list(token_budget(lengths, np.argsort(-lengths, kind="stable"), budget))


def model_inputs(samples: Encoded, rows: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
    """What `probabilities` and `nats` take: of texts `padded`, of images `images.Images.inputs`."""
    return samples.inputs(rows) if isinstance(samples, Images) else padded(samples, rows, pad_id)


def padded(tokens: Tokens, rows: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
    """Samples as a matrix.

    Returns:
        ``input_ids`` int64 [batch, length], padded on the right, and ``attention_mask`` int64 of that shape, left out
        where no row is padded: without a mask, attention is cheaper and says the same.
    """
    starts, lengths = tokens.offsets[rows], tokens.lengths[rows]
    columns = np.arange(int(lengths.max()))
    real = columns < lengths[:, None]
    if real.all():
        return {"input_ids": torch.from_numpy(tokens.ids[starts[:, None] + columns].astype(np.int64))}
    where = np.where(real, starts[:, None] + columns, 0)
    ids = np.where(real, tokens.ids[where], pad_id).astype(np.int64)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}


def probabilities(net: Any, **batch: torch.Tensor) -> torch.Tensor:
    """float32 [batch, classes]."""
    found: torch.Tensor = net(**images.normalised(batch)).logits.float().softmax(-1)
    return found


def nats(net: Any, **batch: torch.Tensor) -> torch.Tensor:
    """float64 [batch]: the negative log-likelihood of each sample, summed over its tokens from the second on."""
    ids = batch["input_ids"]
    logits = net(**batch).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )
    if "attention_mask" in batch:
        losses = losses * batch["attention_mask"][:, 1:]
    return losses.double().sum(1)


if __name__ == "__main__":
    main()
