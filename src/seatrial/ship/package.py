"""A run's model as a release: a directory that plain Transformers loads, with the evidence for it. The same run gives the same bytes."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.errors import IncompleteError, MeasuredFailure, PlatformError, SpecError
from seatrial.runs import commit, released
from seatrial.runs.evidence import Evidence, read_evidence
from seatrial.runs.files import read_json, replacing, sha256_file, write_json, write_text
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from seatrial.runs.stores.directory import copy_verified
from seatrial.ship import license
from seatrial.ship.card import card

CARD = "MODEL_CARD.md"
EVIDENCE = "evidence"
SUMS = "SHA256SUMS"
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft")
_ATTRIBUTES = (
    "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.model filter=lfs diff=lfs merge=lfs -text\n"
)
"""What the hub's own repositories keep out of git."""


@dataclass(frozen=True, slots=True)
class Release:
    """A directory with a model and what is known of it."""

    root: Path

    @property
    def marker(self) -> dict[str, Any]:
        """``{sha256, files, run_id, model}``."""
        return commit.read_marker(self.root) or {}

    @property
    def sha256(self) -> str:
        """Of all its files."""
        return str(self.marker["sha256"])

    @property
    def run_id(self) -> str:
        """Of the run that it comes from."""
        return str(self.marker["run_id"])

    @property
    def comparison(self) -> dict[str, Any] | None:
        """The original against the trained model."""
        found = read_json(self.root / EVIDENCE / "comparison.json")
        return found if isinstance(found, dict) else None

    @property
    def evidence(self) -> list[Evidence]:
        """The run's verdicts."""
        return read_evidence(self.root / EVIDENCE / "evidence.jsonl")

    @property
    def weights_sha256(self) -> str | None:
        """Of the weights alone, as the comparison knows them."""
        return commit.weights_sha256(self.root)


def open_release(root: Path) -> Release:
    """The release in a directory, every file looked at.

    Raises:
        SpecError: there is none.
        MeasuredFailure: it is not what was packaged.
    """
    marker = commit.read_marker(root)
    if marker is None or marker.get("kind") != "release":
        raise SpecError(
            f"{root} is no release", evidence=f"no {commit.MARKER} of one", remedy="seatrial package RUN"
        )
    if wrong := commit.problems(root):
        raise MeasuredFailure(f"the release {root} is not what was packaged", evidence="\n".join(wrong[:5]))
    return Release(root)


def package(paths: RunPaths, output: Path | None = None, *, hub: bool = False) -> Release:
    """Packs a run's trained model.

    Args:
        paths: the run.
        output: the directory to make; None is ``release/`` in the run. One that holds this very release stays.
        hub: as the folder of a repository on a model hub: the card is ``README.md``, weights are for git-lfs.

    Raises:
        IncompleteError: the run is not completed, or has no model.
        MeasuredFailure: the model is not the one that the run trained, or not the one that was compared.
        SpecError: something else is at `output`.
        PlatformError: the disk is full or gone.
    """
    manifest = read_manifest(paths)
    model = paths.model("trained")
    _check(paths, manifest, model)
    final = output or paths.root / "release"
    if final.exists() and not _is_release(final):
        raise SpecError(f"{final} is there already, and is no release", remedy="another --output")
    with _disk_told(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = commit.start(final)
        try:
            files = _fill(aside, paths, manifest, model, hub=hub)
            if final.exists() and (commit.read_marker(final) or {}).get("sha256") == commit.tree_hash(files):
                shutil.rmtree(aside)
                return open_release(final)
            if final.exists():
                raise SpecError(
                    f"{final} holds another release",
                    evidence=f"of {(commit.read_marker(final) or {}).get('run_id')}; the run's evidence may have changed since",
                    remedy="another --output, or remove it",
                )
            commit.commit(
                aside, final, files, kind="release", run_id=paths.run_id, model="trained", name=manifest.name
            )
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    release = Release(final)
    released.record(paths.root, "packaged", target=str(final.absolute()), sha256=release.sha256)
    return release


def write_tar(release: Release, path: Path) -> str:
    """One file of a release, the same bytes each time: sorted, without times and owners. Returns its SHA-256.

    Raises:
        PlatformError: the disk is full or gone.
    """
    with (
        _disk_told(path),
        replacing(path) as aside,
        tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for file in sorted(p for p in release.root.rglob("*") if p.is_file()):
            entry = tarfile.TarInfo(
                f"{path.name.removesuffix('.tar')}/{file.relative_to(release.root).as_posix()}"
            )
            entry.size, entry.mode, entry.mtime = file.stat().st_size, 0o644, 0
            with file.open("rb") as reader:
                tar.addfile(entry, reader)
    return sha256_file(path)


def _check(paths: RunPaths, manifest: Manifest, model: Path) -> None:
    if manifest.state is not RunState.COMPLETED:
        raise IncompleteError(
            f"the run {paths.run_id} is {manifest.state}", evidence=manifest.reason,
            remedy=f"seatrial runs show {paths.run_id}",
        )  # fmt: skip
    if not commit.is_committed(model):
        raise IncompleteError(
            f"the run {paths.run_id} has no trained model", evidence=f"no {model / commit.MARKER}",
            remedy=f"seatrial runs pull {paths.run_id} --models    (where it is elsewhere)",
        )  # fmt: skip
    wrong = commit.problems(model)
    weights = commit.weights_sha256(model)
    trained = manifest.models.get("trained", {}).get("weights_sha256")
    if trained is not None and trained != weights:
        wrong.append(f"its weights are {str(weights)[:12]}…, the run trained {str(trained)[:12]}…")
    comparison = read_json(paths.comparison)
    compared = (comparison or {}).get("trained", {}).get("model_sha256")
    if compared is not None and compared != weights:
        wrong.append(f"its weights are {str(weights)[:12]}…, those that were compared {str(compared)[:12]}…")
    if wrong:
        raise MeasuredFailure(
            "the trained model is not the one that was measured", evidence="\n".join(wrong[:5]),
            remedy=f"seatrial predict {paths.run_id}, or resume from a checkpoint",
        )  # fmt: skip


def _fill(
    aside: Path, paths: RunPaths, manifest: Manifest, model: Path, *, hub: bool
) -> dict[str, dict[str, Any]]:
    """Writes all files of a release; what their hashes are."""
    marker = commit.read_marker(model) or {}
    files: dict[str, dict[str, Any]] = {}
    for name, entry in marker["files"].items():
        if name == "README.md":
            continue  # a base model's card would speak for this one
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        copy_verified(model / name, aside / name, entry["sha256"])
        files[name] = {"sha256": entry["sha256"], "bytes": entry["bytes"]}
    spec = read_json(paths.spec)
    run = about(manifest)
    evidence = read_evidence(paths.evidence)
    found = license.find(spec["model"])
    proof = aside / EVIDENCE
    proof.mkdir()
    write_json(proof / "run.json", run)
    write_json(proof / "spec.json", spec)
    write_text(proof / "evidence.jsonl", "".join(row.model_dump_json() + "\n" for row in evidence))
    comparison = read_json(paths.comparison)
    if comparison is not None:
        write_json(proof / "comparison.json", _without_paths(comparison))
    if found.text is not None:
        shutil.copyfile(found.text, aside / "LICENSE")
    text = card(manifest.name, run, spec, comparison, evidence, found)
    write_text(aside / ("README.md" if hub else CARD), text)
    if hub:
        write_text(aside / ".gitattributes", _ATTRIBUTES)
    for path in _files(aside):
        name = path.relative_to(aside).as_posix()
        files.setdefault(name, {"sha256": sha256_file(path), "bytes": path.stat().st_size})
    sums = io.StringIO()
    for name, entry in sorted(files.items()):
        sums.write(f"{entry['sha256']}  {name}\n")
    write_text(aside / SUMS, sums.getvalue())
    files[SUMS] = {"sha256": sha256_file(aside / SUMS), "bytes": (aside / SUMS).stat().st_size}
    for path in _files(aside):
        path.chmod(0o644)
    return files


def about(manifest: Manifest) -> dict[str, Any]:
    """What a release says of its run: what it takes to judge it, without hosts, people and paths."""
    environment = manifest.environment
    torch = environment.get("torch", {})
    return {
        "schema": 1,
        "run_id": manifest.run_id,
        "name": manifest.name,
        "task": manifest.task,
        "created": manifest.created,
        "tags": manifest.tags,
        "spec_sha256": manifest.spec_sha256,
        "seatrial_version": manifest.seatrial_version,
        "git": None if manifest.git is None else manifest.git.model_dump(mode="json"),
        "environment": {
            "python": environment.get("python"),
            "cuda": torch.get("cuda"),
            "gpus": [gpu.get("name") if isinstance(gpu, dict) else gpu for gpu in torch.get("gpus") or ()],
            "packages": {n: v for n, v in environment.get("packages", {}).items() if n in _PACKAGES},
        },
        "data": {key: value for key, value in manifest.data.items() if key != "source"},
        "models": manifest.models,
        "acceptance": manifest.acceptance.get("used", []),
        "results": manifest.results,
        "attempts": [
            {"index": a.index, "nodes": a.nodes, "nproc": a.nproc, "device": a.device, "outcome": a.outcome,
             "started": a.started, "ended": a.ended}
            for a in manifest.attempts
        ],
    }  # fmt: skip


def _without_paths(comparison: dict[str, Any]) -> dict[str, Any]:
    return comparison | {
        side: {key: value for key, value in comparison[side].items() if key != "path"}
        for side in ("original", "trained")
    }


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def _is_release(path: Path) -> bool:
    return (commit.read_marker(path) or {}).get("kind") == "release"


@contextmanager
def _disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PlatformError(
            f"{path} can't be written", evidence=str(error), remedy="df -h, or another --output"
        ) from error
