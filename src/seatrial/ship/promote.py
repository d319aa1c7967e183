"""Making a release what others load, on evidence; and going back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.errors import MeasuredFailure, PlatformError, SeatrialError, SpecError
from seatrial.runs import commit, released
from seatrial.runs.paths import RunPaths
from seatrial.runs.stores import ConflictError, StoreError
from seatrial.ship import chain
from seatrial.ship.names import version_number
from seatrial.ship.package import Release
from seatrial.ship.target import Target, is_dead, who


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion came to, or would."""

    version: str | None
    """None: it is current already, or nothing was done."""
    previous: str | None
    links: Sequence[chain.Link]
    overridden: str = ""


def judge(release: Release, required: Mapping[str, str]) -> list[chain.Link]:
    """The release's chain of evidence beside a policy.

    Raises:
        MeasuredFailure: the comparison is of other weights than these.
    """
    comparison = release.comparison
    compared = (comparison or {}).get("trained", {}).get("model_sha256")
    if compared is not None and compared != release.weights_sha256:
        raise MeasuredFailure(
            "the comparison is of another model", evidence=f"weights {str(release.weights_sha256)[:12]}…, compared were "
            f"{str(compared)[:12]}…",
        )  # fmt: skip
    return chain.links(required, comparison, release.evidence, release.run_id)


def promote(
    release: Release,
    target: Target,
    required: Mapping[str, str],
    *,
    override: str = "",
    run: RunPaths | None = None,
    say: Callable[[str], None] = lambda text: None,
    dry_run: bool = False,
) -> Promotion:
    """Copies a release to a target under the next number, and makes that current.

    Args:
        release: verified.
        target: where to.
        required: of the policy.
        override: why it is promoted although the policy refuses.
        run: where to note it.
        say: told of each step.
        dry_run: decide and say, change nothing.

    Raises:
        MeasuredFailure, IncompleteError: the policy refuses.
        ConflictError: somebody else promoted meanwhile, and won.
        StoreError: the target fails; nothing of it is current.
    """
    links = judge(release, required)
    refused = chain.refusal(links)
    if refused is not None and not override.strip():
        raise refused
    if refused is None:
        override = ""
    previous, tag = target.current()
    if previous is not None and (target.marker(previous) or {}).get("sha256") == release.sha256:
        return Promotion(None, previous, links)
    if dry_run:
        return Promotion(None, previous, links, override)
    for version in target.discard_leftovers():
        say(f"{target.name}/{version} was never finished: its files are removed")
    target.catch_up()
    if run is not None:
        released.record(run.root, "promoting", target=target.url, name=target.name, sha256=release.sha256)
    record = {
        "schema": 1, "name": target.name, "sha256": release.sha256, "weights_sha256": release.weights_sha256,
        "run_id": release.run_id, "by": who(), "policy": dict(required), "links": [link.to_dict() for link in links],
        "override": override, "previous": previous,
    }  # fmt: skip
    version = target.claim(record)
    say(f"copying to {target.url}/{target.name}/{version}")
    try:
        target.fill(version, release.root)
    except SeatrialError:
        _undo(target, version)
        raise
    try:
        target.switch(version, tag)
    except ConflictError as error:
        _undo(target, version)
        raise ConflictError(
            f"not promoted: somebody else promoted {target.name} meanwhile",
            evidence=f"it was {previous or 'without a version'}, and is {target.current()[0]}: {error.evidence}",
            remedy=f"seatrial releases show {target.name} --target {target.url}, then promote again",
        ) from error
    target.note({"kind": "promoted", "version": version, "previous": previous, "override": override} | who())
    if run is not None:
        released.record(
            run.root, "promoted", target=target.url, name=target.name, version=version, sha256=release.sha256
        )
    return Promotion(version, previous, links, override)


def _undo(target: Target, version: str) -> None:
    try:
        target.discard(version)
    except StoreError:
        return  # the next promotion does


def rollback(target: Target, to: str | None = None) -> tuple[str, str]:
    """Makes an earlier version current, every file of it looked at before.

    Args:
        target: where.
        to: the version; None is the one that was current when this one was promoted.

    Returns:
        The version that is current now, and the one that was.

    Raises:
        SpecError: there is no such version, or none before.
        MeasuredFailure: its files are not what was promoted.
        ConflictError: somebody else switched meanwhile.
    """
    target.catch_up()
    previous, tag = target.current()
    if previous is None:
        raise SpecError(f"{target.name} has no version", evidence=target.url, remedy="seatrial releases list")
    version = to or _before(target, previous)
    version_number(version)
    if version == previous:
        raise SpecError(f"{target.name} is {version} already", evidence=target.url)
    if wrong := damage(target, version):
        raise MeasuredFailure(
            f"{target.name}/{version} is not what was promoted", evidence="\n".join(wrong[:5])
        )
    target.switch(version, tag)
    target.note({"kind": "rolled back", "version": version, "previous": previous} | who())
    return version, previous


def _before(target: Target, current: str) -> str:
    """What was current when a version was promoted: going back twice goes further back, not to and fro."""
    versions = target.versions()
    version = versions.get(current, {}).get("previous")
    while version is not None and not versions.get(version, {}).get("complete"):
        version = versions.get(version, {}).get("previous")
    if version is None:
        raise SpecError(
            f"{target.name} had no version before {current}", evidence=target.url,
            remedy=f"seatrial releases show {target.name} --target {target.url}",
        )  # fmt: skip
    return str(version)


def damage(target: Target, version: str) -> list[str]:
    """What is wrong with a version's files: each is read and hashed. Empty when it is sound.

    Raises:
        SpecError: there is no such version.
        StoreError: the target does not answer.
    """
    record = target.versions().get(version)
    if record is None:
        raise SpecError(
            f"{target.name} has no {version}", evidence=f"{target.url}: {', '.join(target.versions()) or 'none'}",
            remedy=f"seatrial releases show {target.name} --target {target.url}",
        )  # fmt: skip
    marker = target.marker(version)
    if marker is None:
        return [f"{version} was never finished"]
    found = []
    if commit.tree_hash(marker["files"]) != marker["sha256"] or marker["sha256"] != record.get("sha256"):
        found.append("its marker is not the one that was promoted")
    with tempfile.TemporaryDirectory(prefix="seatrial-verify-") as directory:
        for name, entry in sorted(marker["files"].items()):
            path = Path(directory, "file")
            try:
                target.store.get(f"{target.name}/{version}/{name}", path, entry["sha256"])
            except PlatformError as error:
                found.append(f"{name}: {error.what}")
            path.unlink(missing_ok=True)
    return found


def standing(record: Mapping[str, Any], version: str, current: str | None) -> str:
    """How a version stands, in a word or two."""
    if version == current:
        return "current"
    if record["complete"]:
        return "kept"
    return (
        "discarded"
        if record.get("discarded")
        else "left unfinished"
        if is_dead(dict(record))
        else "being copied"
    )
