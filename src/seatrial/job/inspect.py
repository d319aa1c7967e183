"""Looks at what a spec names before anything is launched: ``python -m seatrial.job.inspect SPEC.json``.

Prints one JSON document: the facts, or the error in three parts. Nothing is written, no weights are loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from seatrial.errors import SeatrialError
from seatrial.job import adapters, data, model
from seatrial.spec.load import read_spec
from seatrial.spec.run import RunSpec


def inspect(spec: RunSpec) -> dict[str, Any]:
    """What the data and the model are.

    Raises:
        SpecError: whatever is wrong with either.
    """
    found_model = model.check_model(spec.model, spec.data.max_length, spec.model_options)
    found = data.load_data(spec.data, spec.task, spec.train.seed)
    meta = model.meta_model(spec.model, spec.task, found.labels)
    model.check_head(spec.model, spec.task, found.labels, spec.model_options, meta)
    if spec.adapter is not None:
        adapters.check(spec.adapter, spec.task, meta)
    return {"data": found.facts, "model": found_model}


def main() -> int:
    """0 with facts, or the error's exit code with the error."""
    spec = read_spec(Path(sys.argv[1]))
    assert isinstance(spec, RunSpec)
    data.quiet_libraries()
    model.quiet_libraries()
    try:
        print(json.dumps({"facts": inspect(spec)}))  # noqa: T201 - this is the output
    except SeatrialError as error:
        print(json.dumps({"error": error.to_dict()}))  # noqa: T201 - this is the output
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
