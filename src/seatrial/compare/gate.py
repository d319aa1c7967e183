"""The gate: does the comparison show what was asked for?"""

from __future__ import annotations

import difflib
import math
from typing import Any

from seatrial.compare.metrics import change_unit, format_change
from seatrial.compare.verdict import Verdict, percent, readable_width
from seatrial.errors import SpecError

REQUIREMENTS = ("better", "not worse")


def check_gate(require: str | None, min_improvement: float) -> None:
    """Raises `SpecError` for a requirement that does not exist or an improvement that is not one."""
    if require is not None and require not in REQUIREMENTS:
        nearest = difflib.get_close_matches(require, REQUIREMENTS, n=1, cutoff=0.4)
        raise SpecError(
            f"a comparison can't be required to be {require!r}",
            evidence=f"known: {', '.join(REQUIREMENTS)}",
            remedy=f"did you mean {nearest[0]!r}?" if nearest else "use 'better'",
        )
    if not 0 <= min_improvement < math.inf:
        raise SpecError(
            f"min_improvement is {min_improvement}",
            evidence="it is an amount, 0 or more, also for metrics of which less is better",
            remedy="min_improvement=0.02 asks for two points of accuracy, or for 0.02 nats less",
        )


def judge_gate(verdict: Verdict, require: str | None, min_improvement: float) -> dict[str, Any]:
    """Whether the comparison shows what was asked for.

    ``better`` asks for that verdict. ``not worse`` asks for any verdict but "worse": it passes on no
    evidence, which few samples always give, so its reason says which loss is not excluded.

    ``min_improvement`` above 0 asks for the verdict "better" (also without `require`) and is held against the
    near end of the interval, not against the estimate: of the models that are exactly that much better, half
    have a higher estimate by luck, and a gate passes on what has been shown. It is a test of superiority by a
    margin (Wellek, "Testing Statistical Hypotheses of Equivalence and Noninferiority", 2010).

    Returns:
        ``{require, min_improvement, passed, reason}``; ``passed`` is None where nothing was asked for.
    """
    shown = verdict.shown_improvement
    checks = []
    if require is not None:
        allowed = ("better",) if require == "better" else ("better", "no evidence")
        checks.append(
            (verdict.verdict in allowed, f"required {require!r}, the verdict is {verdict.verdict!r}")
        )
    if min_improvement > 0:
        enough = verdict.verdict == "better" and shown >= min_improvement - 1e-12
        checks.append((enough, _improvement_text(verdict, min_improvement)))
    if require == "not worse" and verdict.verdict == "no evidence" and shown < 0:
        checks.append((True, f"a loss of up to {_amount(verdict, -shown)} is not excluded"))
    passed = all(check for check, _ in checks) if checks else None
    reasons = "; ".join(text for _, text in checks)
    return {
        "require": require,
        "min_improvement": min_improvement,
        "passed": passed,
        "reason": reasons or "no gate was asked for",
    }


def _improvement_text(verdict: Verdict, min_improvement: float) -> str:
    shown = verdict.shown_improvement
    amount = _amount(verdict, shown) if shown > 0 else "none"
    return (
        f"required an improvement of at least {_amount(verdict, min_improvement)}, "
        f"the {percent(verdict.confidence)} interval shows {amount}"
    )


def _amount(verdict: Verdict, value: float) -> str:
    """A positive amount with its unit, exact enough for the interval and for the amount itself."""
    width = min(readable_width(verdict.estimate) or value, value)
    return format_change(value, verdict.metric, width)[1:] + change_unit(verdict.metric)
