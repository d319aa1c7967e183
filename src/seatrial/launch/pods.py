"""Starting a run in pods: what is only here is packed to go along, and the plan names everything by its place there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seatrial.backends.kubernetes.backend import KubernetesBackend
from seatrial.backends.kubernetes.parcel import Parcel
from seatrial.errors import SpecError
from seatrial.launch import outside, places
from seatrial.launch.outside import Limits
from seatrial.launch.source import Source, git_state
from seatrial.runs.manifest import CodeState
from seatrial.runs.paths import RunPaths
from seatrial.spec.checks import CheckSpec
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec, ScriptSpec

_KEY = "kubernetes.max_code_mib"


@dataclass(frozen=True, slots=True)
class There:
    """Where a run is in its pods."""

    spec: AnySpec
    """With the paths that hold there."""
    paths: RunPaths
    cwd: Path
    python: str
    parcels: tuple[str, ...]
    """Names of what goes along."""
    source: Source


def send(
    spec: AnySpec, run_id: str, backend: KubernetesBackend, cwd: Path, runs_dir: Path, *, is_new: bool
) -> There:
    """Packs code and data, for the next submission to take along.

    Args:
        spec: the run's.
        run_id: its id.
        backend: what submits it.
        cwd: where it is started.
        runs_dir: which is no code.
        is_new: whether paths are meant as they are here; those of a run that goes on are the pods' already.

    Raises:
        SpecError: something is too large, can't be read, or is neither here nor said to be there.
    """
    root, python = Path(spec.kubernetes.path), spec.kubernetes.python
    paths = RunPaths(root / "runs" / run_id)
    if isinstance(spec, CheckSpec):
        # A test brings no code of the user's; its own is in the image.
        return There(spec, paths, root, python, (), Source(git=git_state(cwd), code=None))
    size = int(spec.kubernetes.max_code_mib * 2**20)
    limits = Limits(size, size, _KEY, _KEY)
    if is_new:
        _check_paths(spec)
        found = outside.pack(spec, cwd, runs_dir, limits)
    else:
        found = outside.pack_code(cwd, runs_dir, limits)
    code = found.code.tree
    parcels = [Parcel.of("code", code, f"the code in {found.code.root}")] if code.items else []
    parcels += [Parcel.of("data", tree, f"{key} {path}") for key, (path, tree) in found.trees.items()]
    at = outside.placed(spec, found, str(root))
    if isinstance(spec, ScriptSpec):
        spec = spec.model_copy(update={"command": at.command, "cwd": at.cwd if code.items else str(root)})
    else:
        spec = places.put(spec, at.paths)
    state = CodeState(sha256=code.sha256, files=len(code.items), bytes=code.bytes, sent=at.sent)
    return There(
        spec, paths, Path(at.cwd) if code.items else root, python, backend.pack(parcels),
        Source(git=git_state(found.code.root), code=state),
    )  # fmt: skip


def _check_paths(spec: RunSpec | ScriptSpec) -> None:
    for key, value in places.named(spec).items() if isinstance(spec, RunSpec) else ():
        if value.startswith(("/", "./", "../", "~")) and not Path(value).expanduser().exists():
            raise SpecError(
                f"{key}: there is no {value} here", evidence=f"{key} = {value}",
                remedy=f"{key}={places.PREFIX}{value}, if that is where the pods see it    (kubernetes.path is {spec.kubernetes.path})",
            )  # fmt: skip
