"""Why a run waits, or failed: the platform's word, the first failing rank, and what its logs are known to mean."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from seatrial.backends import registry
from seatrial.backends.base import Explains, JobHandle, Why
from seatrial.launch.signatures import diagnose
from seatrial.runs.files import read_json
from seatrial.runs.manifest import Manifest
from seatrial.runs.metrics import read_metrics
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState

_LAST_LINES = 400
_MOST_LOGS = 64


def why(paths: RunPaths, manifest: Manifest) -> Why:
    """Why the run is where it is.

    Args:
        paths: the run's.
        manifest: as `launcher.settle` has just given it.
    """
    if not manifest.attempts:
        return Why(manifest.state, "it was never submitted")
    record = manifest.attempt
    if manifest.state is RunState.PENDING:
        return _waits(paths, manifest)
    if manifest.state is RunState.RUNNING:
        return Why(manifest.state, _where(paths))
    if manifest.state is RunState.COMPLETED:
        return Why(manifest.state, f"attempt {record.index} ended well at {record.ended}")
    failure = record.failure or {}
    sentence = failure.get("what") or manifest.reason or f"attempt {record.index} was {record.outcome}"
    evidence = [line for line in str(failure.get("evidence") or "").splitlines() if line]
    if manifest.reason and manifest.reason != sentence:
        evidence.append(manifest.reason)
    rank = failure.get("rank")
    if rank is not None:
        evidence.append(f"first failing rank: {rank}; its log: {paths.attempt(record.index).rank_log(rank)}")
    findings = diagnose(_logs(paths, record.index, rank))
    evidence += [f"{found.signature.meaning}: [{found.source}] {found.line}" for found in findings]
    helps = [text for text in [failure.get("remedy"), *(f.signature.remedy for f in findings)] if text]
    named = [text.replace("RUN", manifest.run_id) for text in dict.fromkeys(helps)]
    return Why(manifest.state, sentence, evidence, named or [f"seatrial runs resume {manifest.run_id}"])


def _waits(paths: RunPaths, manifest: Manifest) -> Why:
    """The platform's answer, on the job that goes on where the latest attempt ended."""
    record = manifest.attempt
    continues = (read_json(paths.attempt(record.index).exit) or {}).get("continues") or {}
    handle = JobHandle.parse(continues.get("handle") or record.handle or "")
    backend = registry.get(handle.backend)
    if isinstance(backend, Explains):
        return backend.why(handle)
    return Why(manifest.state, manifest.reason or "the platform does not say why it waits")


def _where(paths: RunPaths) -> str:
    rows = read_metrics(paths.metrics).get("train", [])
    return (
        f"it runs: step {rows[-1]['step']}, loss {rows[-1]['loss']:.4g}"
        if rows
        else "it runs; no step is done yet"
    )


def _logs(paths: RunPaths, attempt: int, rank: int | None) -> dict[str, list[str]]:
    """The ends of the logs: the first failing rank's, the other ranks', the agents' and the platform's."""
    directory = paths.attempt(attempt).logs
    first = [paths.attempt(attempt).rank_log(rank)] if rank is not None else []
    ranks = sorted(directory.glob("rank_*.log"))[:_MOST_LOGS]
    others = sorted(set(directory.glob("*.log")) - set(ranks))
    files = dict.fromkeys([*first, *ranks, *others, *sorted(paths.root.glob("slurm-*.out"))])
    return {file.stem: _tail(file) for file in files if file.exists()}


def _tail(file: Path) -> list[str]:
    with file.open(errors="replace") as lines:
        return [line.rstrip("\n") for line in deque(lines, _LAST_LINES)]
