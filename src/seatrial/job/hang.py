"""One report of a hang: who holds up the others, in what, and which collective they wait in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seatrial.job.heartbeat import Beat, Frozen
from seatrial.job.stack import Stack
from seatrial.runs.clock import now
from seatrial.runs.files import read_json, write_json
from seatrial.runs.paths import AttemptPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.telemetry import last_rows

_TAIL_BYTES = 16384
# faulthandler's and py-spy's ways of writing a frame.
_FRAMES = (
    re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)'),
    re.compile(r"^\s+(?P<name>\S+) \((?P<file>[^():]+):(?P<line>\d+)\)"),
)
_NOT_OURS = ("/torch/", "/threading.py", "/selectors.py", "/concurrent/")


def write_report(
    attempt: AttemptPaths,
    plan: LaunchPlan,
    frozen: Frozen,
    beats: Sequence[Beat | None],
    stack: Stack,
    found: Mapping[str, Any],
    *,
    restarts: bool,
) -> str:
    """Writes ``hang.json``; the sentence that sums it up.

    Args:
        attempt: where to.
        plan: of the attempt.
        frozen: the rank that holds up the others.
        beats: the last sign of life of each rank.
        stack: what the frozen rank was doing.
        found: what its node says of itself: ``{"host", "links"}``.
        restarts: whether the ranks may be started again.
    """
    dumps = {
        rank: dump for rank in range(plan.world_size) if (dump := read_json(attempt.flight(rank))) is not None
    }
    waiting = waited_for(dumps, frozen.rank)
    place = where(stack.frames)
    report = {
        "schema": 1, "time": now(), "rank": frozen.rank, "node_rank": frozen.rank // plan.nproc, "host": found.get("host", ""),
        "step": frozen.beat.step if frozen.beat else None, "phase": frozen.beat.phase if frozen.beat else None,
        "silent_s": round(frozen.silent_s, 1), "sentence": sentence(frozen, str(found.get("host", "")), place, waiting),
        "process": stack.text, "in": place, "stack_by": stack.source, "stack": stack.frames,
        "waiting": waiting,
        "ranks": [{"rank": r, "step": b.step, "phase": b.phase} if b else {"rank": r} for r, b in enumerate(beats)],
        "devices": _devices(attempt.telemetry(frozen.rank // plan.nproc)), "links": found.get("links", []),
        "decision": "restart" if restarts else "stop",
    }  # fmt: skip
    write_json(attempt.hang, report)
    return str(report["sentence"])


def waited_for(dumps: Mapping[int, Mapping[str, Any]], laggard: int) -> dict[str, Any] | None:
    """The collective that most ranks wait in, and how far the laggard is; None where no recorder tells.

    Args:
        dumps: flight recorders by rank.
        laggard: the rank that they wait for.

    Returns:
        ``{"name", "group", "number", "ranks": […], "laggard_number"}``.
    """
    pending: dict[int, tuple[str, str, int]] = {}
    for rank, dump in dumps.items():
        open_ones = [
            e for e in dump.get("entries", []) if not e.get("retired") and e.get("state") != "completed"
        ]
        if rank != laggard and open_ones:
            last = max(open_ones, key=lambda e: e.get("time_created_ns") or 0)
            pending[rank] = (
                str(last.get("profiling_name")),
                _group(last),
                int(last.get("collective_seq_id") or 0),
            )
    if not pending:
        return None
    (name, group, number), _ = Counter(pending.values()).most_common(1)[0]
    own = [
        int(e.get("collective_seq_id") or 0)
        for e in dumps.get(laggard, {}).get("entries", [])
        if _group(e) == group
    ]
    ranks = sorted(rank for rank, what in pending.items() if what == (name, group, number))
    return {
        "name": name,
        "group": group,
        "number": number,
        "ranks": ranks,
        "laggard_number": max(own, default=None),
    }


def _group(entry: Mapping[str, Any]) -> str:
    group = entry.get("process_group")
    return " ".join(map(str, group)) if isinstance(group, list) else str(group)


def where(frames: Sequence[str]) -> str:
    """The innermost frame that is the program's own, ``before_step (faults.py:61)``; empty where there is none."""
    inner = ""
    for line in frames:
        match = next((m for pattern in _FRAMES if (m := pattern.search(line))), None)
        if match is None:
            continue
        text = f"{match['name']} ({Path(match['file']).name}:{match['line']})"
        inner = inner or text
        if not any(part in match["file"] for part in _NOT_OURS) and "recorder.py" not in match["file"]:
            return text
    return inner


def sentence(frozen: Frozen, host: str, place: str, waiting: Mapping[str, Any] | None) -> str:
    """All of it in one line."""
    on = f" on {host}" if host else ""
    at = f"step {frozen.beat.step}, {frozen.beat.phase}" if frozen.beat else "it never reported a phase"
    text = f"rank {frozen.rank}{on} holds up the others: {at}, silent for {frozen.silent_s:.0f} s"
    if place:
        text += f", in {place}"
    if waiting is not None:
        num = len(waiting["ranks"])
        text += (
            f"; {num} rank{'s wait' if num > 1 else ' waits'} in {waiting['name']} number {waiting['number']}"
        )
        if waiting["laggard_number"] is not None and waiting["laggard_number"] < waiting["number"]:
            text += f", which it has not joined (its last is number {waiting['laggard_number']})"
    return text


def _devices(telemetry: Path) -> list[dict[str, Any]]:
    """The last samples of the devices of a node."""
    header, rows = last_rows(telemetry, _TAIL_BYTES)
    if header is None or not rows:
        return []
    return [
        {**asdict(device), **sample}
        for device, sample in zip(header.devices, rows[-1].get("d", ()), strict=False)
    ]
