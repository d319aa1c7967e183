"""Runs models of a run over held-out samples: ``python -m seatrial.job.predict RUN_DIR --attempt K``.

The samples are dealt out over the ranks, each exactly once, longest first so that batches hold little padding;
every rank writes its part, rank 0 checks that the parts make the whole and commits one Parquet file a model.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from seatrial.errors import PlatformError
from seatrial.job import data, model
from seatrial.job.batches import Tokens, collate, token_budget, tokenize
from seatrial.job.reporter import Reporter, reporting
from seatrial.job.world import World, check_in, process_group
from seatrial.runs.commit import weights_sha256
from seatrial.runs.evidence import Verdict
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import read_plan
from seatrial.runs.predictions import (
    PredictionsInfo,
    classification_table,
    language_table,
    write_predictions,
)
from seatrial.spec.load import read_spec
from seatrial.spec.run import DataSpec, RunSpec

_TOKENS_PER_BATCH = 8192
_EXCERPT = 240
"""Characters of a sample's text that go into the file, for people to read."""


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's results: rows of the split, and a value for each."""

    rows: np.ndarray
    """int64 [n]"""
    values: np.ndarray
    """float32 [n, classes] probabilities, or float64 [n] nats of each sample."""


def main() -> None:
    """Predicts with each model that is named; a file that was committed for the same samples is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--models", nargs="+", default=["original", "trained"])
    parser.add_argument(
        "--data", help="other data than the run's held-out samples; its held-out split is used"
    )
    parser.add_argument("--suffix", default="", help="added to the names of the prediction files")
    args = parser.parse_args()
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
            names, samples = held_out(paths, spec, args.data)
            for name in args.models:
                reporter.event("predicting", model=name, num_samples=len(samples))
                predict(name, name + args.suffix, samples, names, spec, world, reporter)


def held_out(paths: RunPaths, spec: RunSpec, other: str | None) -> tuple[tuple[str, ...], data.Samples]:
    """Class names in the order of the model's outputs, and the samples to predict."""
    if other is None:
        loaded = data.load_data(spec.data, spec.task, spec.train.seed)
        return loaded.labels, loaded.test
    own = spec.data
    wanted = DataSpec(path=other, text=own.text, label=own.label, id=own.id, max_length=own.max_length)
    labels = model.class_names(paths.model("trained")) if spec.task == "text-classification" else ()
    return labels, data.load_held_out(wanted, spec.task, labels)


def predict(
    model_name: str,
    file_name: str,
    samples: data.Samples,
    labels: tuple[str, ...],
    spec: RunSpec,
    world: World,
    reporter: Reporter,
) -> None:
    """One model over all samples, into one committed file.

    Raises:
        PlatformError: the parts of the ranks do not cover each sample exactly once.
    """
    path = reporter.paths.model(model_name)
    loaded = model.load_committed(path, spec.task, labels)
    tokens = tokenize(samples, loaded.tokenizer, loaded.max_length(spec.data.max_length))
    mine = np.argsort(-tokens.lengths, kind="stable")[world.rank :: world.world_size]
    part = forward(loaded, tokens, mine, spec, world, reporter)
    target = reporter.paths.predictions(file_name)
    target.parent.mkdir(exist_ok=True)
    write_part(part_path(target, world.rank), part)
    dist.barrier()
    if not world.is_main:
        return
    parts = [part_path(target, rank) for rank in range(world.world_size)]
    values = whole(parts, len(samples), reporter, file_name)
    texts = [text[:_EXCERPT] for text in samples.texts]
    if spec.task == "text-classification":
        table = classification_table(samples.ids, samples.labels, values.argmax(1), values, labels, texts)
    else:
        table = language_table(samples.ids, tokens.targets, values, texts)
    info = PredictionsInfo(
        task=spec.task,
        labels=labels or None,
        data_sha256=samples.sha256(labels),
        model_name=model_name,
        model_sha256=weights_sha256(path) or "",
        run_id=reporter.paths.run_id,
        split=samples.split,
        num_samples=len(samples),
    )
    write_predictions(target, table, info)
    for file in parts:
        file.unlink()


@torch.inference_mode()
def forward(
    loaded: model.LoadedModel,
    tokens: Tokens,
    mine: np.ndarray,
    spec: RunSpec,
    world: World,
    reporter: Reporter,
) -> Part:
    """This rank's samples, longest first."""
    net = loaded.model.to(world.device).eval()
    results = []
    for rows in token_budget(tokens.lengths, mine, _TOKENS_PER_BATCH):
        batch = {name: t.to(world.device) for name, t in collate(tokens, rows, loaded.pad_id).items()}
        _, _, values = model.loss_and_hits(net, batch, spec.task)
        results.append(values.cpu().numpy())
        reporter.heart.beat(phase="predicting")
    if not results:
        shape = (0, len(net.config.id2label)) if spec.task == "text-classification" else (0,)
        results = [np.empty(shape, np.float32)]
    return Part(mine, np.concatenate(results))


# --- the parts of the ranks, and the whole -----------------------------------------------------------------------


def part_path(target: Path, rank: int) -> Path:
    """Where a rank leaves its part of a prediction file."""
    return target.with_name(f".{target.stem}.rank_{rank:05d}.parquet")


def write_part(path: Path, part: Part) -> None:
    """Rows and values; two-dimensional values as a list a row."""
    values = pa.array(list(part.values)) if part.values.ndim == 2 else pa.array(part.values)
    pq.write_table(pa.table({"row": pa.array(part.rows), "values": values}), path)


def whole(parts: list[Path], num_samples: int, reporter: Reporter, name: str) -> np.ndarray:
    """The values of all ranks in the order of the samples.

    Raises:
        PlatformError: a sample is missing or came twice.
    """
    table = pa.concat_tables([pq.read_table(path) for path in parts])
    rows = table["row"].to_numpy()
    times = np.bincount(rows, minlength=num_samples)
    exact = len(times) == num_samples and bool((times == 1).all())
    reporter.evidence(
        f"predictions_cover_{name}", Verdict.PASS if exact else Verdict.FAIL, measured=len(rows),
        expected=num_samples, unit="samples", source=f"parts of {len(parts)} ranks",
        message=f"{name}: each of {num_samples} held-out samples was predicted exactly once"
        if exact else f"{name}: {int((times == 0).sum())} samples missing, {int((times > 1).sum())} repeated",
    )  # fmt: skip
    if not exact:
        raise PlatformError(
            f"the predictions of {name} are not whole", evidence=f"{len(rows)} rows, {num_samples} samples"
        )
    values = np.asarray(table["values"].to_pylist())
    return values[np.argsort(rows)]


if __name__ == "__main__":
    main()
