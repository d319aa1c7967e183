"""The other end of ``--on ssh://HOST``: ``python -m seatrial.cli.login_node DIRECTORY``, started by ssh and asked over its stdin.

It serves one command outside, and ends with it. What it starts is what `seatrial train` and `seatrial run` start when a
person types them on the login node: runs in DIRECTORY/runs, which any Seatrial there can go on with.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seatrial.backends import registry
from seatrial.backends.base import JobHandle
from seatrial.backends.ssh import store, wire
from seatrial.backends.ssh.store import Store
from seatrial.errors import PlatformError, SeatrialError, SpecError
from seatrial.launch import launcher
from seatrial.launch.plan import stages_of
from seatrial.launch.source import Source
from seatrial.launch.why import why
from seatrial.runs.manifest import CodeState, GitState, Manifest, read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import read_plan
from seatrial.runs.state import RunState
from seatrial.spec import load
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import RunSpec
from seatrial.spec.site import Layer, site_layers

_ALIVE_EVERY_S = 10.0


class LoginNode:
    """Answers what it is asked; each public method is a question.

    Args:
        directory: of the store.
        output: to the other side.
        reader: from there.
    """

    def __init__(self, directory: str, output: wire.Output, reader: wire.Reader) -> None:
        self._directory = directory
        self._output, self._reader = output, reader
        self._told: dict[str, dict[str, tuple[int, int]]] = {}

    @property
    def _store(self) -> Store:
        return Store.at(self._directory)

    def prepare(
        self, paths: list[str], trees: list[tuple[str, str, int]], dry_run: bool = False
    ) -> dict[str, Any]:
        """Whether paths are here, and which trees (kind, SHA-256, bytes) are not; for a `dry_run` nothing is made."""
        if shutil.which("sbatch") is None:
            raise PlatformError(
                "the login node has no Slurm",
                evidence=f"no sbatch on PATH={os.environ.get('PATH', '')}, which is that of a shell without a terminal",
                remedy="name a login node of the cluster; or set PATH there in ~/.bashrc, above what is for terminals only",
            )
        kept = Store(Path(self._directory).expanduser()) if dry_run else self._store
        missing = [found for found in trees if not kept.path(found[0], found[1]).is_dir()]
        if not dry_run:
            kept.check_room(sum(size for _, _, size in missing))
        return {
            "root": str(kept.root),
            "missing": [sha256 for _, sha256, _ in missing],
            "paths": {path: Path(path).expanduser().exists() for path in paths},
        }

    def put(self, kind: str, sha256: str) -> None:
        """Takes a tree."""
        self._output.send({"send": True})
        self._store.receive(kind, sha256, self._reader.payloads())

    def probe(self, values: dict[str, Any]) -> dict[str, Any]:
        """What the platform has for a spec."""
        return asdict(registry.get("slurm").probe(_spec(values)[0]))

    def start(self, order: dict[str, Any]) -> str:
        """Starts a run, and returns its handle."""
        kept = self._store
        os.chdir(order["cwd"])
        self._start(order, kept.runs, dry_run=False)
        return read_manifest(kept.run(order["run_id"])).attempt.handle or ""

    def dry_run(self, order: dict[str, Any], look: bool) -> str:
        """What `start` would do, for people; the data is looked at only where `look` says that it is here."""
        with contextlib.redirect_stdout(io.StringIO()) as text:
            self._start(order, Path(self._directory).expanduser() / "runs", dry_run=True, look=look)
        return text.getvalue()

    def _start(self, order: dict[str, Any], runs_dir: Path, *, dry_run: bool, look: bool = True) -> None:
        from seatrial.cli.start import start_new, start_training

        spec, origins = _spec(order["values"])
        source = Source(
            git=None if order["git"] is None else GitState.model_validate(order["git"]),
            code=CodeState.model_validate(order["code"]),
        )
        given: dict[str, Any] = {
            "argv": order["argv"], "runs_dir": runs_dir, "after": order["after"], "detach": True, "dry_run": dry_run,
            "run_id": order["run_id"], "source": source, "look": look, "verdict": order["verdict"],
        }  # fmt: skip
        if isinstance(spec, RunSpec):
            start_training(load.LoadedSpec(spec, origins), then=order["then"], **given)
        else:
            start_new(spec, functools.partial(stages_of, spec), origins=origins, **given)

    def look(self, run_id: str) -> dict[str, Any] | None:
        """The settled manifest, and the files that have changed since this was last asked; None for an unknown run."""
        paths = self._store.run(run_id)
        if not paths.manifest.exists():
            return None
        manifest = launcher.settle(paths)
        if manifest.state is RunState.COMPLETED and _still_works(paths, manifest):
            manifest.state, manifest.reason = (
                RunState.RUNNING,
                "the job compares the models, and draws the page",
            )
        there = store.listing(paths.root)
        told = self._told.get(run_id, {})
        self._told[run_id] = there
        return {
            "manifest": manifest.model_dump(mode="json", by_alias=True),
            "files": {name: found for name, found in there.items() if told.get(name) != found},
        }

    def models(self, run_id: str) -> dict[str, tuple[int, int]]:
        """The files of its models and checkpoints."""
        return store.listing(self._store.run(run_id).root, models=True)

    def read(self, run_id: str, name: str, offset: int, size: int) -> bytes:
        """A piece of one of its files."""
        return store.read(self._store.run(run_id).root, name, offset, size)

    def cancel(self, run_id: str, force: bool) -> None:
        """Asks a run to save and stop."""
        manifest = launcher.settle(self._store.run(run_id))
        if not manifest.state.is_terminal:
            handle = JobHandle.parse(manifest.attempt.handle or "")
            registry.get(handle.backend).cancel(handle, force=force)

    def why(self, run_id: str) -> dict[str, Any]:
        """Why it waits or failed."""
        paths = self._store.run(run_id)
        return asdict(why(paths, launcher.settle(paths)))

    def resume(
        self, run_id: str, overrides: list[str], nproc: int | None, allow_change: bool, verdict: str | None
    ) -> None:
        """One more attempt."""
        from seatrial.cli.runs import resume

        kept = self._store
        code = read_manifest(kept.run(run_id)).cwd
        os.chdir(code if Path(code).is_dir() else kept.root)
        assert resume.callback is not None
        resume.callback(
            run=run_id, overrides=tuple(overrides), runs_dir=kept.runs, nproc=nproc, allow_change=allow_change,
            detach=True, verdict=verdict,
        )  # fmt: skip

    def serve(self) -> None:
        """Answers until the other side has gone."""
        while True:
            try:
                message, _ = self._reader.message()
            except EOFError:
                return
            busy = threading.Event()
            threading.Thread(target=self._stay_alive, args=(busy,), daemon=True).start()
            try:
                answer = self._answer(message)
            except SeatrialError as error:
                self._output.send({"error": error.to_dict()})
            except Exception as error:  # a defect here is told, and doesn't end the connection
                self._output.send({"error": _defect(error).to_dict()})
            else:
                payload = answer if isinstance(answer, bytes) else None
                self._output.send({"answer": None if payload is not None else answer}, payload)
            finally:
                busy.set()

    def _answer(self, message: dict[str, Any]) -> Any:
        question = message.pop("do")
        if question.startswith("_") or question == "serve":
            raise SpecError(f"there is no question {question!r}")
        method: Callable[..., Any] = getattr(self, question)
        with contextlib.redirect_stderr(wire.Notes(self._output)):
            return method(**message)

    def _stay_alive(self, busy: threading.Event) -> None:
        while not busy.wait(_ALIVE_EVERY_S):
            self._output.send({"alive": True})


def _still_works(paths: RunPaths, manifest: Manifest) -> bool:
    """Whether the job goes on after its attempt has ended well: with the comparison, which the copy outside wants, too."""
    record = manifest.attempt
    if record.handle is None or not read_plan(paths.root, record.index).afterwards:
        return False
    handle = JobHandle.parse(record.handle)
    return not registry.get(handle.backend).state(handle).state.is_terminal


def _spec(values: dict[str, Any]) -> tuple[AnySpec, dict[str, str]]:
    """A spec of what was said outside, laid over this cluster's own defaults."""
    layers = [*site_layers(), Layer("the recipe", values)]
    if values.get("task") == "script":
        script = load.load_script({}, under=layers)
        return script.spec, script.origins
    loaded = load.load(None, under=layers)
    return loaded.spec, loaded.origins


def _defect(error: Exception) -> PlatformError:
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = "" if where is None else f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})"
    return PlatformError(
        "Seatrial on the login node failed",
        evidence=f"{type(error).__name__}: {error}{place}",
        remedy="log in there, and try the same command with --on slurm",
    )


def main() -> int:
    """Serves until stdin ends."""
    output = wire.Output(os.dup(1))
    # Whatever prints to stdout here, a library or a child, would be taken for an answer.
    os.dup2(2, 1)
    output.hello()
    LoginNode(sys.argv[1], output, wire.Reader(lambda size: os.read(0, size))).serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
