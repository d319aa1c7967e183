"""Steps as one POSIX shell script (over ``functions.sh``), and the script that takes away what such a one has added (``undo.sh``).

What is added stands in a record on the machine, a line each: ``package NAME``, ``directory PATH``, ``file SHA256 PATH``,
``tree PATH``, ``service NAME``. Only what stands there is ever removed; a file that somebody has changed since stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seatrial.provision.nodes.steps import Step

MARK = "@@seatrial"

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Told:
    """What a script said of one step."""

    step: str
    outcome: str
    """same, changed, warned, failed; of an undo: removed, stays, gone."""
    words: str


def bootstrap(steps: Sequence[Step]) -> str:
    """The script that makes all of the steps so. Pure: equal steps give equal text."""
    functions = "\n".join(f"\n# {step.what}\nstep_{step.id}() {{\n{step.body}\n}}" for step in steps)
    calls = "\n".join(f"run_step {step.id}" for step in steps)
    return f"{(_HERE / 'functions.sh').read_text(encoding='utf-8')}{functions}\n\n{calls}\ntell end same ''\nexit $bad\n"


def undo() -> str:
    """The script that takes away what the record holds."""
    return (_HERE / "undo.sh").read_text(encoding="utf-8")


def told(text: str) -> list[Told]:
    """What a script said; other lines left out."""
    found = []
    for line in text.splitlines():
        parts = line.split("\t", 3)
        if len(parts) == 4 and parts[0] == MARK:
            found.append(Told(*parts[1:]))
    return found


def ended(said: Sequence[Told]) -> bool:
    """Whether it came to its end."""
    return any(t.step in {"end", "record"} for t in said)
