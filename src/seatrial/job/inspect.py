"""Looks at what a spec names before anything is launched: ``python -m seatrial.job.inspect SPEC.json [--prepare]``.

Prints one JSON document: the facts, or the error in three parts. No weights are loaded, and nothing is written, unless
the data is to be prepared as well: then it is in the cache, tokenised or resized, for the ranks to map.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from seatrial.job import adapters, images, inputs, model
from seatrial.job.answer import answer
from seatrial.spec.run import RunSpec


def inspect(spec: RunSpec, *, prepare: bool) -> dict[str, Any]:
    """What the data and the model are; with `prepare`, also the record of the prepared data, under ``inputs``.

    Raises:
        SpecError: whatever is wrong with either.
    """
    found_model, processor = model.check_model(
        spec.model, spec.task, spec.data.max_length, spec.model_options
    )
    wanted = inputs.Wanted(spec.data, spec.task, spec.train.seed)
    found: dict[str, Any] = {"model": found_model}
    if prepare:
        record = inputs.prepare(wanted, inputs.encoding(spec.task, processor, found_model["max_length"]))
        found |= {"data": record["facts"], "inputs": record}
    else:
        found["data"] = wanted.load()[2]
    labels = tuple(found["data"]["labels"])
    meta = model.meta_model(spec.model, spec.task, labels)
    model.check_head(spec.model, spec.task, labels, spec.model_options, meta)
    if "image" in found_model:
        images.check_fits(meta, found_model["image"])
    model.check_checkpointing(spec, meta)
    if spec.adapter is not None:
        adapters.check(spec.adapter, spec.task, meta)
    return found


def main() -> int:
    """0 with facts, or the error's exit code with the error."""
    return answer(Path(sys.argv[1]), lambda spec: inspect(spec, prepare="--prepare" in sys.argv[2:]))


if __name__ == "__main__":
    raise SystemExit(main())
