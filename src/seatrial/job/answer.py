"""The programs that answer a question before a launch: one JSON document on stdout, facts or an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seatrial.errors import SeatrialError
from seatrial.job import data, model
from seatrial.spec.load import read_spec
from seatrial.spec.run import RunSpec


def answer(spec_file: Path, question: Callable[[RunSpec], dict[str, Any]]) -> int:
    """Prints ``{"facts": …}``, or ``{"error": …}`` in three parts.

    Returns:
        0, or the error's exit code.
    """
    spec = read_spec(spec_file)
    assert isinstance(spec, RunSpec)
    data.quiet_libraries()
    model.quiet_libraries()
    try:
        print(json.dumps({"facts": question(spec)}))  # noqa: T201 - this is the output
    except SeatrialError as error:
        print(json.dumps({"error": error.to_dict()}))  # noqa: T201 - this is the output
        return int(error.exit_code)
    return 0
