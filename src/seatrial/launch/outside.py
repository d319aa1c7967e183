"""Starting a run on a cluster from outside: what is only here is sent, once; the order to start follows."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from seatrial.backends import registry
from seatrial.backends.base import JobHandle
from seatrial.backends.ssh import tree
from seatrial.backends.ssh.backend import SshBackend, login_of, values_of
from seatrial.backends.ssh.connection import Connection, open_login
from seatrial.backends.ssh.mirror import Mirror, Remote
from seatrial.backends.ssh.tree import Tree
from seatrial.errors import PlatformError, SeatrialError, SpecError, UnreachableError
from seatrial.launch import copies, launcher, places, snapshot
from seatrial.launch.launcher import Submitted
from seatrial.launch.places import PREFIX
from seatrial.launch.source import git_state
from seatrial.runs.files import read_json
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import read_plan
from seatrial.runs.state import RunState
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec, ScriptSpec

Say = Callable[[str], None]


@dataclass
class Parcel:
    """What a run needs on the cluster, and where it will be there."""

    code: snapshot.Code
    cwd: str
    """Where the run is started, in the code."""
    paths: dict[str, str] = field(default_factory=dict)
    """By key of the recipe: a path of the cluster, which has to be there."""
    trees: dict[str, tuple[Path, Tree]] = field(default_factory=dict)
    """By key of the recipe: what is sent for it."""

    @property
    def all_trees(self) -> list[tuple[str, Tree]]:
        """Each with its kind."""
        return [("code", self.code.tree), *(("data", found) for _, found in self.trees.values())]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest sizes of what is sent, and the recipe's keys for them."""

    code_bytes: int
    data_bytes: int
    code_key: str
    data_key: str


def limits_of(spec: AnySpec) -> Limits:
    """Those of a cluster that is reached over ssh."""
    remote = spec.slurm.remote
    return Limits(
        int(remote.max_code_mib * 2**20), int(remote.max_data_gib * 2**30), "slurm.remote.max_code_mib",
        "slurm.remote.max_data_gib",
    )  # fmt: skip


def pack(spec: AnySpec, cwd: Path, runs_dir: Path, limits: Limits) -> Parcel:
    """Looks at what there is to send; sends nothing.

    A path that exists here is meant as it is here, and sent; one with ``cluster:`` in front is the cluster's; any other is
    left for the cluster to make out: a path there, or a name on the hub.

    Raises:
        SpecError: something is too large, or can't be read.
    """
    code = snapshot.of_code(cwd, limit_bytes=limits.code_bytes, leave_out=[runs_dir], larger=limits.code_key)
    parcel = Parcel(code, code.inside(cwd.resolve()))
    named = places.named(spec) if isinstance(spec, RunSpec) else {}
    for key, value in named.items():
        here = Path(value).expanduser()
        if value.startswith(PREFIX):
            parcel.paths[key] = value.removeprefix(PREFIX)
        elif here.exists():
            parcel.trees[key] = (
                here,
                snapshot.of_path(here, limit_bytes=limits.data_bytes, key=key, larger=limits.data_key),
            )
    return parcel


def pack_code(cwd: Path, runs_dir: Path, limits: Limits) -> Parcel:
    """As `pack`, of the code alone."""
    code = snapshot.of_code(cwd, limit_bytes=limits.code_bytes, leave_out=[runs_dir], larger=limits.code_key)
    return Parcel(code, code.inside(cwd.resolve()))


def send(parcel: Parcel, connection: Connection, say: Say, *, dry_run: bool = False) -> dict[str, Any]:
    """Sends what the cluster has not got yet; says what, and how much.

    Returns:
        Where things are there: ``root`` of all; ``missing``, the hashes of what it lacks (lacked, unless `dry_run`).

    Raises:
        SpecError: a path is not on the cluster.
        PlatformError: there is no room, or no Slurm.
    """
    trees = [(kind, found.sha256, found.bytes) for kind, found in parcel.all_trees]
    there, _ = connection.ask("prepare", paths=list(parcel.paths.values()), trees=trees, dry_run=dry_run)
    for key, path in parcel.paths.items():
        if not there["paths"][path]:
            raise SpecError(
                f"{key}: there is no {path} on {connection.login.host}",
                evidence=f"{PREFIX}{path}",
                remedy=f"{connection.login.by_hand} ls {path}",
            )
    for kind, found in parcel.all_trees:
        if found.sha256 in there["missing"]:
            what = f"{len(found.items)} files of {kind}, {snapshot.size_text(found.bytes)}"
            if found.items:
                say(f"{'would send' if dry_run else 'sending'} {what} to {connection.login.host}")
            if not dry_run:
                connection.ask(
                    "put", feed=functools.partial(tree.pack, found), kind=kind, sha256=found.sha256
                )
    return dict(there)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where things of a run are on its cluster."""

    cwd: str
    paths: dict[str, str]
    """By key of the recipe."""
    command: tuple[str, ...]
    """Of a script."""
    sent: dict[str, str]
    """By the path here."""


def placed(spec: AnySpec, parcel: Parcel, root: str) -> Placed:
    """Where what is sent will be, below the cluster's directory for it. Pure."""
    code = PurePosixPath(root, "code", parcel.code.tree.sha256)
    paths, sent = dict(parcel.paths), {}
    for key, (here, found) in parcel.trees.items():
        paths[key] = sent[str(here)] = str(PurePosixPath(root, "data", found.sha256, here.resolve().name))
    words = spec.command if isinstance(spec, ScriptSpec) else ()
    command = tuple(_inside(word, parcel.code.root, str(code)) for word in words)
    return Placed(str(code / parcel.cwd), paths, command, sent)


def order(
    spec: AnySpec, parcel: Parcel, root: str, *, run_id: str, argv: Sequence[str], then: Collection[str],
    after: str | None, verdict: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the login node is to start, as plain data. Pure, but for git's word on the code."""
    values, there = values_of(spec), placed(spec, parcel, root)
    if "model" in there.paths:
        values["model"] = there.paths["model"]
    if "data.path" in there.paths:
        values["data"] = {**values["data"], "path": there.paths["data.path"]}
    if isinstance(spec, ScriptSpec):
        values |= {"cwd": there.cwd, "task": "script", "command": list(there.command)}
    git = git_state(parcel.code.root)
    code = parcel.code.tree
    return {
        "run_id": run_id, "values": values, "cwd": there.cwd, "argv": list(argv), "then": list(then), "after": after, "verdict": verdict,
        "git": None if git is None else git.model_dump(mode="json"),
        "code": {"sha256": code.sha256, "files": len(code.items), "bytes": code.bytes, "sent": there.sent},
    }  # fmt: skip


def start(paths: RunPaths, spec: AnySpec, given: dict[str, Any]) -> JobHandle:
    """Has the login node start what `given` orders; the run's copy here is written down before.

    Raises:
        UnreachableError: the connection was lost; whether it was started, the copy will tell.
        SeatrialError: it was not; where nothing of it is on the cluster, nothing stays here.
    """
    backend = registry.get("ssh")
    assert isinstance(backend, SshBackend)
    launcher.create(paths, spec, given["argv"])
    Remote.of(login_of(spec)).write(paths)
    mirror = backend.mirror(paths)
    try:
        handle = backend.start(paths, given)
    except UnreachableError as error:
        error.remedy = f"seatrial runs show {paths.run_id}    (it tells whether the run got there)"
        raise
    except SeatrialError:
        if _is_unknown(mirror):
            shutil.rmtree(paths.root)
        raise
    mirror.look(anyway=True)
    return handle


def submitted(paths: RunPaths) -> Submitted:
    """The latest attempt of a run whose copy was just brought up to date."""
    manifest = read_manifest(paths)
    handle = JobHandle.parse(manifest.attempt.handle or "")
    plan = replace(read_plan(paths.root, manifest.attempt.index), run_dir=paths.root)
    return Submitted(paths, plan, registry.get(handle.backend), handle)


def mirror_of(paths: RunPaths) -> Mirror:
    """The copy of a run; `SpecError` when the run itself is here."""
    backend = registry.get("ssh")
    assert isinstance(backend, SshBackend)
    if not paths.remote.exists():
        raise SpecError(f"the run {paths.run_id} is here already", evidence=f"{paths.root} is no copy")
    return backend.mirror(paths)


def resume(
    paths: RunPaths, overrides: Sequence[str], nproc: int | None, *, allow_change: bool, verdict: str | None,
    say: Say,
) -> Manifest:  # fmt: skip
    """Has the login node begin one more attempt; the copy as it is then."""
    mirror = mirror_of(paths)
    mirror.connection.say = say
    mirror.connection.ask(
        "resume", run_id=paths.run_id, overrides=list(overrides), nproc=nproc, allow_change=allow_change,
        verdict=verdict,
    )  # fmt: skip
    return mirror.look(anyway=True)


def not_here(paths: RunPaths, verb: str) -> SpecError:
    """The error for a verb that needs the models themselves, which a copy has not."""
    if not copies.is_elsewhere(paths):
        where = (read_json(paths.remote) or {}).get("path", "")
        return SpecError(
            f"the models of {paths.run_id} are where its pods ran", evidence=f"on their volume, at {where}; {paths.root} is a copy without them",
            remedy=f"mount that volume, and there: {verb} --runs-dir {PurePosixPath(where).parent}",
        )  # fmt: skip
    remote = mirror_of(paths).remote
    runs = str(PurePosixPath(remote.directory, "runs"))
    return SpecError(
        f"the models of {paths.run_id} are on {remote.host}",
        evidence=f"{paths.root} is a copy",
        remedy=f"{remote.login.by_hand}, and there: {remote.python} -m {verb} --runs-dir {runs}",
    )


def connection_of(spec: AnySpec, say: Say) -> Connection:
    """To the login node that a spec names; what it tells people goes to `say`."""
    connection = open_login(login_of(spec))
    connection.say = say
    return connection


def _is_unknown(mirror: Mirror) -> bool:
    try:
        return mirror.look(anyway=True).state is RunState.SUBMITTING
    except PlatformError:
        return False


def _inside(word: str, root: Path, there: str) -> str:
    """An argument of a script, with a path of the code as it is on the cluster."""
    path = Path(word)
    if path.is_absolute() and path.is_relative_to(root):
        return str(PurePosixPath(there, path.relative_to(root).as_posix()))
    return word
