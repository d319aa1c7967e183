"""How far Terraform is: what it has in hand, what is done, how long it may take still."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_TYPICAL_S = {
    "nebius_compute_v1_filesystem": 20,
    "nebius_compute_v1_gpu_cluster": 20,
    "nebius_mk8s_v1_cluster": 240,
    "nebius_mk8s_v1_node_group": 420,
    "nebius_vpc_v1_allocation": 5,
    "helm_release": 120,
    "terraform_data": 60,
}
"""What one takes, from the recipe's own documents (40 minutes for two nodes) and its waits; only to weigh them against each other."""
_OTHER_S = 10
_EVERY_S = 10.0


@dataclass
class Progress:
    """Takes Terraform's events, and says what people want to know.

    Args:
        planned: type by address, of what is to be done.
        say: prints a line.
        now: a clock.
    """

    planned: dict[str, str]
    say: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    done: set[str] = field(default_factory=set)
    in_hand: dict[str, float] = field(default_factory=dict)
    _began: float = field(init=False)
    _said: float = field(init=False)

    def __post_init__(self) -> None:
        """Starts the clock."""
        self._began = self._said = self.now()

    def take(self, event: dict[str, Any]) -> None:
        """One event."""
        kind = event.get("type")
        hook = event.get("hook") or {}
        address = str((hook.get("resource") or {}).get("addr", ""))
        if kind == "apply_start":
            self.in_hand[address] = self.now()
        elif kind == "apply_complete":
            self.in_hand.pop(address, None)
            self.done.add(address)
            self._line(
                f"{_past(str(hook.get('action', '')))} {address}" + _seconds(hook.get("elapsed_seconds"))
            )
        elif kind == "apply_errored":
            self.in_hand.pop(address, None)
            self._line(f"failed {address}" + _seconds(hook.get("elapsed_seconds")))
        elif kind == "provision_progress" and str(hook.get("output", "")).strip():
            self._line(f"{address}: {str(hook['output']).strip()[:160]}")

    def tick(self) -> None:
        """Says every now and then what is in hand."""
        if self.in_hand and self.now() - self._said >= _EVERY_S:
            longest = sorted(self.in_hand.items(), key=lambda item: item[1])
            words = [f"{address} ({self.now() - since:.0f} s)" for address, since in longest[:3]]
            more = f" and {len(longest) - 3} more" if len(longest) > 3 else ""
            self._line(f"in hand: {', '.join(words)}{more}")

    @property
    def left_s(self) -> float:
        """A guess: what is left weighs, at the pace of what is done, or what it typically takes where little is done."""
        total = sum(map(self._weight, self.planned))
        done = sum(self._weight(a) for a in self.planned if a in self.done)
        elapsed = self.now() - self._began
        if total == 0 or done >= total:
            return 0.0
        if done / total < 0.1:
            # Many are made side by side; the longest chain is a cluster, its nodes, and the waits.
            return max(0.6 * total - elapsed, 0.0)
        return elapsed / done * (total - done)

    def _weight(self, address: str) -> float:
        return _TYPICAL_S.get(self.planned[address], _OTHER_S)

    def _line(self, text: str) -> None:
        self._said = self.now()
        count = f"{len(self.done & self.planned.keys())}/{len(self.planned)}"
        left = self.left_s
        guess = (
            f"about {left / 60:.0f} min left"
            if left >= 90
            else f"about {left:.0f} s left"
            if left > 0
            else ""
        )
        self.say(f"{count:>7}  {text}" + (f"    {guess}" if guess else ""))


def _past(action: str) -> str:
    return {"create": "made", "update": "changed", "delete": "removed", "read": "read"}.get(
        action, action or "done"
    )


def _seconds(value: Any) -> str:
    return f" in {value:.0f} s" if isinstance(value, int | float) else ""
