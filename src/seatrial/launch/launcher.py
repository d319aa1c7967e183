"""From a plan to a submitted attempt, and from a finished attempt to a settled manifest."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import seatrial
from seatrial.backends import registry
from seatrial.backends.base import Backend, JobHandle, JobRequest
from seatrial.errors import ExitCode, SeatrialError, SpecError, from_dict
from seatrial.launch.source import git_state
from seatrial.runs import commit, lock
from seatrial.runs import evidence as proof
from seatrial.runs.evidence import Evidence, Verdict, read_evidence
from seatrial.runs.files import read_json, write_json, write_text
from seatrial.runs.manifest import AttemptRecord, Manifest, now, read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, write_plan
from seatrial.runs.state import RunState
from seatrial.spec.changes import OF_THE_ATTEMPT, Changes, render
from seatrial.spec.run import RunSpec, ScriptSpec

_OUTCOMES = {
    "completed": RunState.COMPLETED,
    "failed": RunState.FAILED,
    "interrupted": RunState.INTERRUPTED,
    "preempted": RunState.PREEMPTED,
}
_RECORD_WAIT_S = 2.0
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


def create(paths: RunPaths, spec: RunSpec | ScriptSpec, argv: Sequence[str]) -> Manifest:
    """A new run directory with spec and manifest.

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
        git=git_state(Path.cwd()),
        seatrial_version=seatrial.__version__,
        python=platform.python_version(),
    )
    write_manifest(paths, manifest)
    return manifest


def change_recipe(paths: RunPaths, spec: RunSpec, changes: Changes, attempt: int) -> None:
    """Makes `spec` the run's recipe from its next attempt on, and says so in the evidence.

    What belongs to the attempt alone (resources) is only said.
    """
    recorded = json.loads(paths.spec.read_text(encoding="utf-8"))
    data = spec.model_dump(mode="json", by_alias=True) | {"resources": recorded["resources"]}
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
    paths = RunPaths(plan.run_dir)
    lock.check_free(paths.lock)
    manifest = read_manifest(paths)
    record = AttemptRecord(
        index=plan.attempt,
        stages=[stage.name for stage in plan.stages],
        nproc=plan.nproc,
        nodes=plan.nodes,
        device=plan.device,
        changes={key: [old, new] for key, (old, new) in (changes or {}).items()},
    )
    manifest.attempts.append(record)
    manifest.state, manifest.reason = RunState.SUBMITTING, ""
    paths.attempt(plan.attempt).logs.mkdir(parents=True)
    write_plan(plan)
    request: JobRequest = backend.render(plan)
    write_text(paths.request(request.kind), request.text)
    write_manifest(paths, manifest)
    try:
        handle = backend.submit(request)
    except SeatrialError as error:
        manifest.state, manifest.reason = RunState.FAILED, error.what
        record.failure, record.ended = error.to_dict(), now()
        write_manifest(paths, manifest)
        raise
    record.handle = str(handle)
    manifest.state = RunState.RUNNING
    write_manifest(paths, manifest)
    return Submitted(paths, plan, backend, handle)


def settle(paths: RunPaths) -> Manifest:
    """Brings the manifest up to date with what happened; any command may call it, at any time.

    The attempt's own exit record comes first, then the platform's word; a run of which neither knows is lost.
    """
    manifest = read_manifest(paths)
    if manifest.state.is_terminal or not manifest.attempts:
        return manifest
    record = manifest.attempt
    attempt = paths.attempt(record.index)
    ended = read_json(attempt.exit)
    if ended is None:
        state, reason = _ask_platform(record)
        if not state.is_terminal:
            if state is not manifest.state:
                manifest.state, manifest.reason = state, reason
                write_manifest(paths, manifest)
            return manifest
        time.sleep(_RECORD_WAIT_S)  # the record may be on its way through a shared file system
        ended = read_json(attempt.exit)
    if ended is None:
        manifest.state, manifest.reason = RunState.LOST, f"{reason}, and left no {attempt.exit.name}"
        record.outcome, record.ended, record.exit_code = "lost", now(), int(ExitCode.PLATFORM)
    else:
        record.outcome, record.ended = ended["outcome"], ended["ended"]
        record.exit_code, record.failure = ended["exit_code"], ended["failure"]
        manifest.state = _OUTCOMES[ended["outcome"]]
        manifest.reason = (ended["failure"] or {}).get("what", "")
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
    code = {
        RunState.INTERRUPTED: ExitCode.INTERRUPTED,
        RunState.PREEMPTED: ExitCode.PREEMPTED,
    }.get(manifest.state, ExitCode.PLATFORM)
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


def _ask_platform(record: AttemptRecord) -> tuple[RunState, str]:
    if record.handle is None:
        return RunState.LOST, "the launcher ended before it had submitted"
    handle = JobHandle.parse(record.handle)
    answer = registry.get(handle.backend).state(handle)
    return answer.state, answer.reason


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
