"""Recorded verdicts: what was checked, what was measured, what was expected."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from seatrial.runs.files import append_json_line, read_json_lines


class Verdict(StrEnum):
    """How a check came out. What was not measured is never passed."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    WARN = "WARN"
    FAIL = "FAIL"
    ERROR = "ERROR"
    SKIP = "SKIP"
    UNMEASURED = "UNMEASURED"


class Evidence(BaseModel):
    """One verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    """What was checked, such as ``weights_changed``."""
    verdict: Verdict
    measured: Any = None
    expected: Any = None
    unit: str = ""
    source: str = ""
    """Where the measurement comes from: a file of the run, a rank."""
    message: str = ""
    attempt: int = 0
    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


def record(path: Path, evidence: Evidence) -> Evidence:
    """Appends one verdict to ``evidence.jsonl``."""
    append_json_line(path, evidence.model_dump(mode="json"))
    return evidence


def read_evidence(path: Path) -> list[Evidence]:
    """The last verdict of each check, in the order in which the checks first appeared.

    A resumed run checks again; the later verdict is the one that holds.
    """
    latest: dict[str, Evidence] = {}
    for row in read_json_lines(path):
        evidence = Evidence.model_validate(row)
        latest[evidence.check] = evidence
    return list(latest.values())
