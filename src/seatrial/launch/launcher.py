"""From a plan to a submitted attempt, and from a finished attempt to a settled manifest."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import seatrial
from seatrial.backends import registry
from seatrial.backends.base import Backend, JobHandle, JobRequest, Mirrors
from seatrial.errors import ExitCode, PlatformError, SeatrialError, SpecError, from_dict
from seatrial.launch import copies
from seatrial.launch.source import Source, git_state
from seatrial.runs import commit, lock
from seatrial.runs import evidence as proof
from seatrial.runs.clock import now
from seatrial.runs.evidence import Evidence, Verdict, read_evidence
from seatrial.runs.files import read_json, write_json, write_text
from seatrial.runs.manifest import AttemptRecord, Manifest, read_manifest, write_manifest
from seatrial.runs.paths import AttemptPaths, RunPaths
from seatrial.runs.plan import LaunchPlan, plan_path, read_plan, write_plan
from seatrial.runs.state import RunState
from seatrial.spec.changes import OF_THE_ATTEMPT, Changes, render
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec

_OUTCOMES = {str(state): state for state in RunState if state.is_terminal}
_EXIT_CODES = {
    RunState.INTERRUPTED: ExitCode.INTERRUPTED,
    RunState.PREEMPTED: ExitCode.PREEMPTED,
}
_RECORD_WAIT_S = 2.0
LAST_HEARD = "when last heard of"
"""Ends the reason of a run whose platform does not answer."""
JUDGEMENTS = frozenset({"comparison", "gate_compare"})
"""Checks that judge the model, not whether the run did what it should."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """An attempt that runs or waits."""

    paths: RunPaths
    plan: LaunchPlan
    backend: Backend
    handle: JobHandle


def new_run_id(name: str) -> str:
    """``<name>-<date>-<time>-<4 hex digits>``: sorts by time, and two in one second differ."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def create(
    paths: RunPaths,
    spec: AnySpec,
    argv: Sequence[str],
    *,
    beside: Manifest | Source | None = None,
) -> Manifest:
    """A new run directory with spec and manifest.

    Args:
        paths: the run's.
        spec: the run's.
        argv: the command that starts it.
        beside: a run that the same command has just made, or where the run comes from: git is not asked again.

    Raises:
        SpecError: the directory exists, or can't be made.
    """
    try:
        paths.root.mkdir(parents=True)
    except FileExistsError as error:
        raise SpecError(f"{paths.root} exists", evidence="a run has a directory of its own") from error
    except OSError as error:
        raise SpecError(
            "the run directory can't be made", evidence=str(error), remedy="--runs-dir DIRECTORY"
        ) from error
    data = spec.model_dump(mode="json", by_alias=True)
    write_json(paths.spec, data)
    manifest = Manifest(
        run_id=paths.run_id,
        name=spec.name,
        task=spec.task,
        command=list(argv),
        cwd=str(Path.cwd()),
        tags=list(spec.tags),
        spec_sha256=_sha256(data),
        git=git_state(Path.cwd()) if beside is None else beside.git,
        code=None if beside is None else beside.code,
        seatrial_version=seatrial.__version__,
        python=platform.python_version(),
    )
    write_manifest(paths, manifest)
    return manifest


def change_recipe(paths: RunPaths, spec: RunSpec, changes: Changes, attempt: int) -> None:
    """Makes `spec` the run's recipe from its next attempt on, and says so in the evidence.

    What belongs to the attempt alone (resources, and what a scheduler is asked for) is only said.
    """
    recorded = json.loads(paths.spec.read_text(encoding="utf-8"))
    data = spec.model_dump(mode="json", by_alias=True)
    data |= {key: recorded[key] for key in ("resources", "slurm", "kubernetes") if key in recorded}
    write_json(paths.spec, data)
    manifest = read_manifest(paths)
    manifest.spec_sha256 = _sha256(data)
    write_manifest(paths, manifest)
    lasting = any(not key.startswith(OF_THE_ATTEMPT) for key in changes)
    proof.record(
        paths.evidence,
        Evidence(
            check="recipe_unchanged", verdict=Verdict.WARN if lasting else Verdict.PASS,
            measured={key: new for key, (_, new) in changes.items()},
            expected={key: old for key, (old, _) in changes.items()}, source=paths.spec.name,
            message="resumed with another recipe: " + "; ".join(render(changes).splitlines()), attempt=attempt,
        ),
    )  # fmt: skip


def submit(plan: LaunchPlan, backend: Backend, changes: Changes | None = None) -> Submitted:
    """Writes what will be done, then does it: a crash in between leaves a record that `settle` understands.

    Args:
        plan: what the attempt does.
        backend: where.
        changes: what it changed of the recorded recipe.

    Raises:
        SpecError: the run directory is in use.
    """
    request: JobRequest = backend.render(plan)
    announce(plan, request.kind, request.text, changes)
    try:
        handle = backend.submit(request)
    except SeatrialError as error:
        refused(plan, error)
        raise
    return accepted(plan, backend, handle)


def announce(plan: LaunchPlan, kind: str, text: str, changes: Changes | None = None) -> None:
    """Writes down an attempt that is about to be submitted, with its request; one of `refused` and `accepted` follows.

    Raises:
        SpecError: the run directory is in use.
    """
    paths = RunPaths(plan.run_dir)
    lock.check_free(paths.lock)
    manifest = read_manifest(paths)
    record = attempt_record(plan)
    record.changes = {key: [old, new] for key, (old, new) in (changes or {}).items()}
    manifest.attempts.append(record)
    manifest.state, manifest.reason = RunState.SUBMITTING, ""
    write_manifest(
        paths, manifest
    )  # before the plan: one without a record is of an attempt that a scheduler began
    paths.attempt(plan.attempt).logs.mkdir(parents=True)
    write_plan(plan)
    write_text(paths.request(kind), text)


def refused(plan: LaunchPlan, error: SeatrialError) -> None:
    """Writes down that the platform did not take an attempt."""
    paths = RunPaths(plan.run_dir)
    manifest = read_manifest(paths)
    manifest.state, manifest.reason = RunState.FAILED, error.what
    manifest.attempt.failure, manifest.attempt.ended = error.to_dict(), now()
    write_manifest(paths, manifest)


def accepted(plan: LaunchPlan, backend: Backend, handle: JobHandle) -> Submitted:
    """Writes down that the platform has taken an attempt."""
    if handle.backend != backend.name:
        backend = registry.get(handle.backend)  # who looks after it from now on
    paths = RunPaths(plan.run_dir)
    manifest = read_manifest(paths)
    record = manifest.attempt
    # A command that looked while the platform was being asked has found an attempt that nobody had submitted.
    record.handle, record.outcome, record.ended, record.exit_code = str(handle), None, None, None
    manifest.reason = ""
    manifest.state = RunState.PENDING if backend.keeps_jobs else RunState.RUNNING
    write_manifest(paths, manifest)
    return Submitted(paths, plan, backend, handle)


def settle(paths: RunPaths) -> Manifest:
    """Brings the manifest up to date with what happened; any command may call it, at any time.

    The attempt's own exit record comes first, then the platform's word; a run of which neither knows is lost.
    """
    manifest = read_manifest(paths)
    if manifest.state.is_terminal:
        return manifest
    if paths.remote.exists() and copies.is_elsewhere(paths):
        backend = registry.get("ssh")
        assert isinstance(backend, Mirrors)
        return backend.look(paths)
    if not manifest.attempts:
        return manifest
    if manifest.attempt.handle is not None:
        copies.deliver(paths, manifest.attempt.handle)
    added = _add_begun(paths, manifest)
    record = manifest.attempt
    attempt = paths.attempt(record.index)
    ended = read_json(attempt.exit)
    reason = ""
    if not is_last_word(record.handle, ended):
        state, reason = _ask_platform(record, ended, manifest.state)
        if not state.is_terminal:
            if added or (state, reason) != (manifest.state, manifest.reason):
                manifest.state, manifest.reason = state, reason
                write_manifest(paths, manifest)
            return manifest
        if state is not RunState.INTERRUPTED or _has_begun(attempt):
            time.sleep(_RECORD_WAIT_S)  # the record may be on its way through a shared file system
        if _add_begun(paths, manifest):
            write_manifest(paths, manifest)
            return settle(paths)
        ended = read_json(attempt.exit)
    _close(record, ended)
    if ended is None:
        told = state is not RunState.COMPLETED and state is not RunState.LOST
        manifest.state = state if told else RunState.LOST
        record.outcome, record.exit_code = (
            str(manifest.state),
            int(_EXIT_CODES.get(manifest.state, ExitCode.PLATFORM)),
        )
        manifest.reason = f"{reason}, and left no {attempt.exit.name}{_last_words(paths, record)}"
    elif ended.get("continues"):
        manifest.state, manifest.reason = state, f"queued again after attempt {record.index}: {reason}"
    else:
        manifest.state = _OUTCOMES[ended["outcome"]]
        # Agents can't know what ended the job that they were asked to leave.
        manifest.reason = (ended["failure"] or {}).get("what", "") or reason
    if record.stages == ["predict"] and any(
        a.exit_code == 0 and "train" in a.stages for a in manifest.attempts[:-1]
    ):
        # More predictions of a run that was complete: whether they came off says nothing of the run.
        manifest.state, manifest.reason = RunState.COMPLETED, ""
    _collect(paths, manifest)
    write_manifest(paths, manifest)
    return manifest


def failure_of(manifest: Manifest) -> SeatrialError | None:
    """The error of the latest attempt, as the command that followed it reports it; None when it went well."""
    record = manifest.attempt
    if record.exit_code == 0:
        return None
    resume = f"seatrial runs resume {manifest.run_id}"
    if record.failure is not None:
        lines = "\n".join(record.failure.get("last_lines") or [])
        error = from_dict(record.failure)
        if record.failure.get("rank") is not None:
            error.evidence += f"\nfirst failing rank: {record.failure['rank']}; its last lines:\n{lines}"
        error.remedy = error.remedy.replace("resume RUN", f"resume {manifest.run_id}") or resume
        return error
    code = _EXIT_CODES.get(manifest.state, ExitCode.PLATFORM)
    return from_dict(
        {
            "exit_code": code,
            "what": f"the run was {manifest.state}",
            "evidence": manifest.reason,
            "remedy": resume,
        }
    )


def _sha256(spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def _ask_platform(
    record: AttemptRecord, ended: dict[str, Any] | None, before: RunState
) -> tuple[RunState, str]:
    """The platform's word on the job of an attempt, or on the one that goes on where it ended."""
    if record.handle is None:
        return RunState.LOST, "the launcher ended before it had submitted"
    continues = (ended or {}).get("continues")
    handle = JobHandle.parse(continues["handle"] if continues else record.handle)
    try:
        answer = registry.get(handle.backend).state(handle)
    except PlatformError as error:
        return before, f"{error.what}; it was {before} {LAST_HEARD}"
    if ended and continues and not answer.state.is_terminal:
        # Whatever Slurm calls a job that is on its way back into the queue, nothing of the run is running.
        return RunState.PENDING, f"attempt {record.index} was {ended['outcome']}; {answer.reason}".rstrip(
            "; "
        )
    return answer.state, answer.reason


def _has_begun(attempt: AttemptPaths) -> bool:
    """Whether anything ran; a job that was cancelled in the queue leaves nothing that could be on its way."""
    return attempt.logs.is_dir() and any(attempt.logs.iterdir())


def _last_words(paths: RunPaths, record: AttemptRecord) -> str:
    """The last line of what the platform wrote of an attempt that left no record: what else there is to go by."""
    if record.handle is None:
        return ""
    handle = JobHandle.parse(record.handle)
    logs = [path for path in registry.get(handle.backend).logs(handle, paths.root) if path.exists()]
    for log in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        line = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if line:
            return f"; {log.name} ends with: {line[:300]}"
    return ""


def is_last_word(handle: str | None, ended: dict[str, Any] | None) -> bool:
    """Whether an exit record says that the run does not go on by itself.

    Where a scheduler keeps the job, the agent's record is not the last word: the job's own follows.
    """
    if ended is None or ended.get("continues"):
        return False
    return handle is None or "job" in ended or not registry.get(JobHandle.parse(handle).backend).keeps_jobs


def attempt_after(submitted: Submitted) -> Submitted | None:
    """The attempt that a scheduler has begun after this one; None where there is none yet."""
    manifest = settle(submitted.paths)
    index = submitted.plan.attempt + 1
    if index >= len(manifest.attempts):
        return None
    handle = JobHandle.parse(manifest.attempts[index].handle or "")
    plan = replace(read_plan(submitted.paths.root, index), run_dir=submitted.paths.root)
    return Submitted(submitted.paths, plan, registry.get(handle.backend), handle)


def _add_begun(paths: RunPaths, manifest: Manifest) -> bool:
    """Adds the attempts that a scheduler has begun by itself, each from the plan that it left; whether there were any."""
    before = len(manifest.attempts)
    while plan_path(paths.root, len(manifest.attempts)).exists():
        earlier = manifest.attempt
        ended = read_json(paths.attempt(earlier.index).exit)
        _close(earlier, ended)
        plan = read_plan(paths.root, len(manifest.attempts))
        record = attempt_record(plan)
        record.handle = ((ended or {}).get("continues") or {}).get("handle", earlier.handle)
        manifest.attempts.append(record)
    return len(manifest.attempts) > before


def attempt_record(plan: LaunchPlan) -> AttemptRecord:
    """The record of an attempt that has just begun."""
    return AttemptRecord(
        index=plan.attempt, stages=[stage.name for stage in plan.stages], nproc=plan.nproc, nodes=plan.nodes,
        device=plan.device,
    )  # fmt: skip


def _close(record: AttemptRecord, ended: dict[str, Any] | None) -> None:
    """How an attempt ended, into its record; None is without a word."""
    if ended is None:
        record.outcome, record.ended, record.exit_code = "lost", now(), int(ExitCode.PLATFORM)
        return
    record.outcome, record.ended = ended["outcome"], ended["ended"]
    record.exit_code, record.failure = ended["exit_code"], ended["failure"]


def _collect(paths: RunPaths, manifest: Manifest) -> None:
    """What the job side found, into the manifest; a failed post-condition fails a run that ended well."""
    for record in manifest.attempts:
        facts = read_json(paths.attempt(record.index).facts) or {}
        manifest.environment = facts.get("environment", manifest.environment)
        manifest.data = facts.get("data", manifest.data)
        manifest.results |= {"training": facts["training"]} if "training" in facts else {}
        manifest.results |= {"model": facts["model"]} if "model" in facts else {}
    for name in ("original", "trained"):
        marker = commit.read_marker(paths.model(name))
        if marker is not None:
            weights = commit.weights_sha256(paths.model(name))
            manifest.models[name] = {"sha256": marker["sha256"], "weights_sha256": weights}
    failed = [
        e.check
        for e in read_evidence(paths.evidence)
        if e.verdict is Verdict.FAIL and e.check not in JUDGEMENTS
    ]
    if manifest.state is RunState.COMPLETED and failed:
        manifest.state, manifest.reason = RunState.FAILED, f"post-conditions failed: {', '.join(failed)}"
        manifest.attempt.exit_code = int(ExitCode.FAILED)
        manifest.attempt.failure = {
            "exit_code": int(ExitCode.FAILED), "what": manifest.reason, "evidence": str(paths.evidence), "remedy": "",
        }  # fmt: skip
