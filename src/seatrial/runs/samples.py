"""What an acceptance test measured, before anybody judges it: written by the nodes, one JSON object a line.

A file a writer, under ``attempt-K/samples/``; the order of lines and files says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from seatrial.runs.files import append_json_line, read_json_lines


class Sample(BaseModel):
    """One metric of one part of the cluster; with `value` None, why it could not be measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    """The check that it belongs to, of `spec.checks.CHECKS`."""
    metric: str
    """What was measured, such as ``gemm_bf16`` or ``open_files``."""
    node: str
    """The node's name, unique in the run."""
    gpu: int | None = None
    """Index of the GPU on its node (of the rank, where ranks have none); None for the node as a whole."""
    peer: str | None = None
    """The other end of a link: a node's name."""
    peer_gpu: int | None = None
    """The other end of a link inside a node."""
    repeat: int = 0
    """Which repetition of the suite."""
    value: Any = None
    """The figure that is judged: a number in `unit`, a text, or a list; None is not measured."""
    values: list[float] = []
    """All readings that `value` stands for, in their order."""
    unit: str = ""
    """``TFLOP/s``, ``GB/s`` (1e9 bytes), ``GiB``, ``s``, …; empty for counts and texts."""
    reason: str = ""
    """Why there is no value, or what is to be known of it: ``nvidia-smi: not found``."""
    detail: dict[str, Any] = {}
    """Whatever else was seen: sizes, clocks, times of each rank."""


def append(path: Path, samples: Iterable[Sample]) -> None:
    """Appends samples to a file of one's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        append_json_line(path, sample.model_dump(mode="json", exclude_defaults=True))


def read_all(directory: Path) -> Iterator[Sample]:
    """Every whole line of every file in a directory of samples."""
    for path in sorted(directory.glob("*.jsonl")):
        for row in read_json_lines(path):
            yield Sample.model_validate(row)
