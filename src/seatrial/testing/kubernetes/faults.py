"""What goes wrong with a pretend cluster, on request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from seatrial.testing.kubernetes.store import StatusError


@dataclass
class Faults:
    """Set its fields, or call its methods, at any time."""

    user: str = "alice"
    denied: set[tuple[str, str]] = field(default_factory=set)
    """Verb and resource, such as ``("list", "nodes")``, that the user may not do; ``*`` is every verb."""
    token_expired: bool = False
    slow_s: float = 0.0
    """Every answer takes so much longer."""
    cuts: int = 0
    """How often the streams were cut."""
    closed: bool = False
    _answers: list[tuple[str, StatusError]] = field(default_factory=list)

    def answer(self, code: int, times: int = 1, *, on: str = "") -> None:
        """The next requests get an error instead of an answer.

        Args:
            code: 429, 500, 503, …
            times: how many.
            on: only those whose ``METHOD path`` has this in it.
        """
        reasons = {
            429: "TooManyRequests",
            500: "InternalError",
            503: "ServiceUnavailable",
            504: "Timeout",
            409: "Conflict",
        }
        said = f"pretended {reasons.get(code, 'Unknown')}"
        self._answers += [(on, StatusError(code, reasons.get(code, "Unknown"), said))] * times

    def cut_streams(self) -> None:
        """Every watch and every log that is followed ends in the middle."""
        self.cuts += 1

    def next(self, method: str, path: str) -> StatusError | None:
        """The error for this request."""
        if self.slow_s:
            time.sleep(self.slow_s)
        line = f"{method} {path}"
        for i, (on, error) in enumerate(self._answers):
            if on in line:
                del self._answers[i]
                return error
        return None

    def allows(self, verb: str, resource: str, namespace: str) -> bool:
        """Whether the user may do that."""
        return not self.denied & {(verb, resource), ("*", resource)}
