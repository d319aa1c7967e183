"""What a launch does with the verdicts of acceptance tests: nodes that failed are left out, and what is not used is said."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from seatrial.backends.slurm.text import hosts
from seatrial.errors import MeasuredFailure, PlatformError, SpecError
from seatrial.runs import evidence as proof
from seatrial.runs import hardware, signature
from seatrial.runs.acceptance import Acceptance, NodeVerdict
from seatrial.runs.evidence import Evidence, Verdict
from seatrial.runs.files import sha256_file
from seatrial.runs.manifest import read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import Device
from seatrial.spec.run import RunSpec, ScriptSpec

NONE = "none"
"""In the place of a verdict's file: go by none."""
_CHECK = "acceptance"
_REMEDY = "seatrial check    (or --verdict none, to go on all the same)"
_LEAVE_OUT = ("slurm", "k8s")
"""Platforms that can be told which nodes not to use."""
_MOST_NOTES = 3
_MOST_LEFT_OUT = 10
_MEASURED = {Verdict.PASS, Verdict.WARN, Verdict.FAIL}
_Spec = TypeVar("_Spec", bound=RunSpec | ScriptSpec)


@dataclass(frozen=True, slots=True)
class Admission:
    """What the verdicts mean for a launch."""

    evidence: Evidence
    exclude: dict[str, str] = field(default_factory=dict)
    """Nodes that failed, each with the finding."""
    notes: list[str] = field(default_factory=list)
    """For people: who is left out, and which verdicts are not used and why."""
    used: list[dict[str, str]] = field(default_factory=list)
    """``{path, sha256, run_id}`` of each verdict that says something of a node."""


def admit(
    platform: str,
    cluster: Callable[[], str],
    device: Device,
    runs_dir: Path,
    now: datetime,
    verdict: str | None = None,
    *,
    here: Callable[[], Mapping[str, Any]] = hardware.read,
) -> Admission:
    """Reads ``verdict.json`` of every test in the runs directory; for each node the newest that is valid holds.

    A node that failed stays out until a later test has measured anew what it failed: a shorter suite lifts nothing.

    Args:
        platform: the backend's name.
        cluster: gives the cluster's name; asked only where there is a verdict.
        device: what the run's ranks use.
        runs_dir: where tests leave their verdicts.
        now: with a time zone.
        verdict: a file to go by instead; `NONE` for no verdict.
        here: this machine's hardware; asked only on ``local``.

    Raises:
        SpecError: the file that was named can't be used.
        PlatformError: the cluster does not tell its name.
    """
    if verdict == NONE:
        return Admission(_evidence(Verdict.UNMEASURED, f"not looked at: --verdict {NONE}"))
    paths = sorted(runs_dir.glob("*/verdict.json")) if verdict is None else [Path(verdict)]
    valid: list[tuple[Path, Acceptance]] = []
    unused: list[tuple[datetime | None, str]] = []
    for path in paths:
        try:
            found = Acceptance.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            unused.append((None, f"{_name(path)}: it can't be read: {_first_line(error)}"))
            continue
        why = _why_not(found, platform, cluster(), device, now, here)
        if why is None:
            valid.append((path, found))
        else:
            unused.append((found.tested, f"{found.run_id}: {why}"))
    if verdict is not None and unused:
        raise SpecError("the verdict that was named can't be used", evidence=unused[0][1], remedy=_REMEDY)
    valid.sort(key=lambda pair: pair[1].tested, reverse=True)
    return _weigh(valid, unused, platform, now)


def apply(spec: _Spec, admission: Admission, platform: str) -> _Spec:
    """The spec without the nodes that failed.

    Raises:
        MeasuredFailure: this very machine, or a node of the allocation that this runs in, failed.
        SpecError: the spec insists on a node that failed.
    """
    if not admission.exclude:
        return spec
    if platform == "local":
        raise _failed("this machine failed its acceptance test", admission.exclude)
    if platform == "k8s":
        left_out = dict.fromkeys([*spec.kubernetes.exclude, *admission.exclude])
        pods = spec.kubernetes.model_copy(update={"exclude": tuple(left_out)})
        return cast(_Spec, spec.model_copy(update={"kubernetes": pods}))
    if platform != "slurm":
        raise _failed(
            f"nodes failed their acceptance test, and {platform} can't leave them out", admission.exclude
        )
    allocated = hosts(os.environ.get("SLURM_JOB_NODELIST", "")) if "SLURM_JOB_ID" in os.environ else []
    stuck = {name: admission.exclude[name] for name in allocated if name in admission.exclude}
    if stuck:
        raise _failed("this allocation has nodes that failed their acceptance test", stuck)
    wanted = [name for name in hosts(",".join(spec.slurm.nodelist)) if name in admission.exclude]
    if wanted:
        raise SpecError(
            f"slurm.nodelist names {wanted[0]}, which failed its acceptance test",
            evidence="\n".join(f"{name}: {admission.exclude[name]}" for name in wanted),
            remedy=f"leave it out of slurm.nodelist, or --verdict {NONE}",
        )
    there = set(hosts(",".join(spec.slurm.exclude)))
    added = [name for name in admission.exclude if name not in there]
    exclude = (*spec.slurm.exclude, *added)
    slurm = spec.slurm.model_copy(update={"exclude": exclude})
    return cast(_Spec, spec.model_copy(update={"slurm": slurm}))


def record(paths: RunPaths, admission: Admission, attempt: int) -> None:
    """Writes down what a launch went by: in the evidence, and in the manifest where there was a verdict."""
    proof.record(paths.evidence, admission.evidence.model_copy(update={"attempt": attempt}))
    if admission.used:
        manifest = read_manifest(paths)
        manifest.acceptance = {"used": admission.used, "exclude": admission.exclude}
        write_manifest(paths, manifest)


def _why_not(
    found: Acceptance,
    platform: str,
    cluster: str,
    device: Device,
    now: datetime,
    here: Callable[[], Mapping[str, Any]],
) -> str | None:
    """Why a verdict says nothing of this launch; the cheap reasons first."""
    if found.profile == "rehearsal":
        return "it is of a rehearsal, whose nodes are pretended"
    if (found.platform, found.cluster) != (platform, cluster):
        return f"it is of another cluster: {found.platform} {found.cluster}, and this is {platform} {cluster}"
    if device == "cuda" and found.profile != "gpu":
        return "it is of CPUs only, and this run uses GPUs"
    if found.expires <= now:
        return f"it expired {_ago(now - found.expires)}"
    try:
        why = signature.verify(found)
    except (PlatformError, SpecError) as error:
        return f"its signature can't be checked: {error.what}; {error.evidence}"
    if why is not None:
        return f"it is {why}"
    if platform == "local":
        other = [line for node in found.nodes for line in hardware.differences(node.hardware, here())]
        if other:
            return f"it is of other hardware: {'; '.join(other)}"
    return None


def _weigh(
    valid: Sequence[tuple[Path, Acceptance]],
    unused: Sequence[tuple[datetime | None, str]],
    platform: str,
    now: datetime,
) -> Admission:
    standing = _standing([found for _, found in valid])
    # What is older than a verdict that counts would have changed nothing.
    oldest = min((found.tested for _, found in standing.values()), default=None)
    worth = [text for tested, text in unused if tested is None or oldest is None or tested > oldest]
    notes = [f"a verdict is not used: {text}" for text in worth[-_MOST_NOTES:]]
    if len(worth) > _MOST_NOTES:
        notes.append(f"nor are {len(worth) - _MOST_NOTES} others")
    if not standing:
        why = f": {worth[-1]}" if worth else "; seatrial check makes one"
        return Admission(
            _evidence(Verdict.UNMEASURED, f"no valid verdict of an acceptance test{why}"), notes=notes
        )
    failed = {name: pair for name, pair in standing.items() if pair[0].verdict is Verdict.FAIL}
    exclude = {
        name: f"{node.reason} ({found.run_id}, {_ago(now - found.tested)})"
        for name, (node, found) in failed.items()
    }
    telling = {found.run_id for _, found in standing.values()}
    used = [
        {"path": str(path), "sha256": sha256_file(path), "run_id": found.run_id}
        for path, found in valid if found.run_id in telling
    ]  # fmt: skip
    known = sum(node.verdict in _MEASURED for node, _ in standing.values())
    said = f"{known} nodes tested by {', '.join(entry['run_id'] for entry in used)}"
    if platform not in _LEAVE_OUT and failed:
        return Admission(_evidence(Verdict.FAIL, "; ".join(exclude.values()), known), exclude, notes, used)
    if exclude:
        out = [f"left out: {name}: {why}" for name, why in exclude.items()]
        cut = [f"and {len(out) - _MOST_LEFT_OUT} more"] if len(out) > _MOST_LEFT_OUT else []
        notes = [*out[:_MOST_LEFT_OUT], *cut, *notes]
        said += f"; left out: {', '.join(exclude)}"
    verdict = Verdict.PASS if known else Verdict.UNMEASURED
    return Admission(_evidence(verdict, said, known), exclude, notes, used)


def _standing(newest_first: Sequence[Acceptance]) -> dict[str, tuple[NodeVerdict, Acceptance]]:
    standing: dict[str, tuple[NodeVerdict, Acceptance]] = {}
    measured: dict[str, set[str]] = defaultdict(set)
    for found in newest_first:
        failing: dict[str, set[str]] = defaultdict(set)
        for f in found.findings:
            if f.node is not None and f.verdict is Verdict.FAIL and f.blames_node:
                failing[f.node].add(f.check)
        for node in found.nodes:
            stays = node.verdict is Verdict.FAIL and failing[node.name] - measured[node.name]
            if node.name not in standing or (stays and standing[node.name][0].verdict is not Verdict.FAIL):
                standing[node.name] = (node, found)
        for f in found.findings:
            if f.node is not None and f.verdict in _MEASURED:
                measured[f.node].add(f.check)
    return standing


def _failed(what: str, nodes: Mapping[str, str]) -> MeasuredFailure:
    return MeasuredFailure(
        what, evidence="\n".join(f"{name}: {why}" for name, why in nodes.items()), remedy=_REMEDY
    )


def _evidence(verdict: Verdict, message: str, nodes: int | None = None) -> Evidence:
    return Evidence(
        check=_CHECK, verdict=verdict, measured=nodes, unit="nodes" if nodes is not None else "",
        source="verdict.json" if nodes is not None else "", message=message,
    )  # fmt: skip


def _name(path: Path) -> str:
    return path.parent.name if path.name == "verdict.json" else str(path)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}"
    return str(error)


def _ago(time: timedelta) -> str:
    """``3 days ago``."""
    minutes = int(time.total_seconds() // 60)
    for size, unit in ((1440, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            count = minutes // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
