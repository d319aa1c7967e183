"""The chain of evidence behind a model, held against a policy. Pure.

A policy says what must have been shown::

    require:
      compare: better        # or: not worse; the comparison's verdict
      gate: pass             # the recipe's own gate
      check: pass            # the acceptance test of the nodes that it was trained on
      utilisation: pass      # any other name is a check of evidence.jsonl

``pass`` takes PASS alone, ``warn`` takes WARN as well. What was not measured never passes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seatrial.errors import IncompleteError, MeasuredFailure, SeatrialError, SpecError
from seatrial.runs.evidence import Evidence, Verdict
from seatrial.spec.document import read_yaml

COMPARE = "compare"
_GATE = "gate"
_OTHER_NAMES = {_GATE: "gate_compare", "check": "acceptance"}
"""By the name in a policy, the check in the evidence."""
_WANTED = {COMPARE: ("better", "not worse")}
_VERDICTS = ("pass", "warn")
DEFAULT: Mapping[str, str] = {COMPARE: "better"}
"""Without a policy. A release without better figures has no reason; what else must hold depends on the site."""
Standing = Literal["shown", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class Link:
    """One requirement, and what there is of it."""

    name: str
    required: str
    found: str
    """The verdict that there is, or UNMEASURED."""
    message: str
    standing: Standing
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.found}" + (f": {self.message}" if self.message else "")

    def to_dict(self) -> dict[str, str]:
        """For a version's record."""
        return {"name": self.name, "required": self.required, "found": self.found, "message": self.message,
                "standing": self.standing}  # fmt: skip


def read_policy(path: Path) -> dict[str, str]:
    """What a policy file requires.

    Raises:
        SpecError: it can't be read, or asks for what nothing can show.
    """
    if not path.is_file():
        raise SpecError(f"there is no policy {path}", remedy="require: {compare: better, check: pass}")
    values = read_yaml(path)
    required = values.pop("require", None)
    if values or not isinstance(required, Mapping) or not required:
        raise SpecError(
            f"{path} is no policy", evidence=f"unknown: {', '.join(values)}" if values else "it requires nothing",
            remedy="require: {compare: better, check: pass}",
        )  # fmt: skip
    return {str(name): _wanted(str(name), str(value), str(path)) for name, value in required.items()}


def _wanted(name: str, value: str, where: str) -> str:
    allowed = _WANTED.get(name, _VERDICTS)
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.4)
        raise SpecError(
            f"{where}: {name} can't be required to be {value!r}", evidence=f"known: {', '.join(allowed)}",
            remedy=f"did you mean {near[0]!r}?" if near else "",
        )  # fmt: skip
    return value


def links(
    required: Mapping[str, str],
    comparison: Mapping[str, Any] | None,
    evidence: Sequence[Evidence],
    run_id: str,
) -> list[Link]:
    """Each requirement beside what the run has shown.

    Args:
        required: of the policy.
        comparison: ``comparison.json``.
        evidence: of the run, one a check.
        run_id: for remedies.
    """
    found = {row.check: row for row in evidence}
    return [
        _of_comparison(wanted, comparison, run_id)
        if name == COMPARE
        else _of_evidence(name, wanted, found.get(_OTHER_NAMES.get(name, name)), run_id)
        for name, wanted in required.items()
    ]


def _of_comparison(wanted: str, comparison: Mapping[str, Any] | None, run_id: str) -> Link:
    if comparison is None:
        return Link(
            COMPARE,
            wanted,
            Verdict.UNMEASURED,
            "the run has no comparison",
            "missing",
            f"seatrial compare {run_id}",
        )
    verdict = comparison["verdict"]["verdict"]
    good = verdict == "better" or (wanted == "not worse" and verdict == "no evidence")
    return Link(COMPARE, wanted, verdict, comparison["verdict"]["sentence"], "shown" if good else "failed")


def _of_evidence(name: str, wanted: str, row: Evidence | None, run_id: str) -> Link:
    remedy = "seatrial check, then train again" if name == "check" else f"seatrial runs show {run_id}"
    if row is None:
        return Link(name, wanted, Verdict.UNMEASURED, "the run has no such evidence", "missing", remedy)
    good = row.verdict is Verdict.PASS or (wanted == "warn" and row.verdict is Verdict.WARN)
    measured = row.verdict in {Verdict.PASS, Verdict.WARN, Verdict.FAIL}
    standing: Standing = "shown" if good else "failed" if measured else "missing"
    return Link(name, wanted, row.verdict, row.message, standing, "" if good else remedy)


def refusal(found: Sequence[Link]) -> SeatrialError | None:
    """Why a model with this chain is not promoted; None where nothing is in the way.

    Returns:
        `MeasuredFailure` where something was measured and did not pass, else `IncompleteError` for what is missing.
    """
    broken = [link for link in found if link.standing == "failed"] or [
        link for link in found if link.standing == "missing"
    ]
    if not broken:
        return None
    failed = broken[0].standing == "failed"
    error = MeasuredFailure if failed else IncompleteError
    return error(
        f"not promoted: {broken[0].name} is {broken[0].found}, the policy requires {broken[0].required!r}",
        evidence="\n".join(str(link) for link in found if link.standing != "shown"),
        remedy=(f"{broken[0].remedy}\n" if broken[0].remedy else "")
        + "or, on record for ever: --override 'the reason'",
    )
