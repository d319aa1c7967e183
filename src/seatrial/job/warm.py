"""The warm process of a node: ``python -m seatrial.job.warm CHANNEL KIND``. Ranks are forks of it.

It imports torch, Transformers and Seatrial's programs once, while it has one thread and no CUDA context, and forks
each rank of each stage from there; to a rank, it is what torchrun is: the same environment, a session and a log of
its own, death with its parent, TERM and then KILL when a peer dies, and a record of what every failed rank ended with.
The agent tells it what to do through a channel, and it ends with the agent.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial.command import Channel
from seatrial.errors import PlatformError, SeatrialError
from seatrial.job.environment import Place, outer_environment, rank_environment, rank_variables
from seatrial.job.processes import become, die_with_parent, redirect
from seatrial.runs.files import write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan

_POLL_S = 0.05
_PEER_GRACE_S = 5.0
"""For the survivors of a rank that died: they hang in a collective or say what they saw; there is nothing to save."""
_IN_AGREEMENT = 75
_PROGRAMS = ("seatrial.job.train", "seatrial.job.predict", "seatrial.job.inspect")
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Program:
    """What a fork turns into."""

    argv: tuple[str, ...]
    """Arguments of the interpreter: ``-m module …`` or ``script.py …``."""
    done: Channel | None = None
    """Told that the program has ended well, before the interpreter takes its time to end."""


@dataclass
class Gang:
    """The ranks of one start of one stage."""

    number: int
    record: Path
    ranks: dict[int, int]
    """Living ranks: pid to rank."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    asked: bool = False
    """Whether the agent, and not the death of a rank, wanted their end."""
    kill_at: float | None = None

    def signal(self, number: int, grace_s: float) -> None:
        """Signals every living rank; whoever lives on after `grace_s` is killed."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + grace_s
        for pid in self.ranks:
            os.kill(pid, number)  # not reaped yet, so the pid is still the rank's

    def reap(self, grace_s: float) -> bool:
        """Looks who has ended, and ends the rest when one failed; true once none is left."""
        for pid, rank in list(self.ranks.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == 0:
                continue
            del self.ranks[pid]
            code = os.waitstatus_to_exitcode(status)
            if code != 0 and (self.kill_at is None or self.asked):
                row = {"rank": rank, "pid": pid, "exitcode": code, "time": time.time(), "asked": self.asked}
                self.failures.append(row)
        if self.ranks and self.failures and self.kill_at is None:
            # Ranks that stopped together are still saving, each at its own pace.
            together = all(row["exitcode"] == _IN_AGREEMENT for row in self.failures)
            self.signal(signal.SIGTERM, grace_s if together else _PEER_GRACE_S)
        if self.ranks and self.kill_at is not None and time.monotonic() > self.kill_at:
            self.kill_at = float("inf")
            for pid in self.ranks:
                os.kill(pid, signal.SIGKILL)
        if not self.ranks and self.failures:
            write_json(self.record, {"schema": 1, "failures": self.failures})
        return not self.ranks


class Warm:
    """Does what the agent says."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._gang: Gang | None = None
        self._grace_s = 0.0
        self._helpers: list[int] = []

    def serve(self) -> Program:
        """Works until the agent goes; returns in a fork only, with what that is to become.

        Messages: ``{"do": "gang", "number", "run_dir", "attempt", "stage", "restart", "port", "place"}`` starts ranks,
        ``{"do": "signal", "signal"}`` signals them, ``{"do": "run", "argv", "stdout", "preload"}`` runs a program once.
        Answers: ``{"ended": number, "returncode"}`` (a program has the number -1), or ``"error"`` instead of the code.
        """
        try:
            while True:
                message = self._channel.receive(_POLL_S if self._gang or self._helpers else None)
                program = self._do(message) if message is not None else None
                if program is not None:
                    return program
                self._look()
        except EOFError:
            for pid in [*self._helpers, *(self._gang.ranks if self._gang else ())]:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)

    def _do(self, message: dict[str, Any]) -> Program | None:
        try:
            if message["do"] == "gang":
                return self._start_gang(message)
            if message["do"] == "run":
                return self._run(message)
        except SeatrialError as error:
            self._channel.send({"ended": message.get("number", -1), "error": error.to_dict()})
            return None
        if self._gang is not None:
            self._gang.asked = True
            self._gang.signal(message["signal"], self._grace_s)
        return None

    def _look(self) -> None:
        if self._gang is not None and self._gang.reap(self._grace_s):
            code = 1 if self._gang.failures else 0
            number, self._gang = self._gang.number, None
            self._channel.send({"ended": number, "returncode": code})
        for pid in list(self._helpers):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._helpers.remove(pid)
                self._channel.send({"ended": -1, "returncode": os.waitstatus_to_exitcode(status)})

    def _start_gang(self, message: dict[str, Any]) -> Program | None:
        plan = read_plan(Path(message["run_dir"]), message["attempt"])
        preload_for_run(plan)
        check_forkable()
        attempt = RunPaths(plan.run_dir).attempt(plan.attempt)
        stage = plan.stages[message["stage"]]
        self._grace_s = plan.grace_s
        place = Place(**message["place"])
        redirect(attempt.launcher_log("warm", place.node_rank))
        gang = Gang(message["number"], attempt.launcher_failures(place.node_rank), {})
        common = rank_environment(plan, outer_environment(os.environ), message["restart"], place)
        gc.freeze()  # a rank's collector would touch, and so copy, every page of what was imported
        for local_rank in range(plan.nproc):
            pid = fork()
            if pid == 0:
                self._channel.close()
                variables = rank_variables(plan, place, local_rank, message["port"], message["restart"])
                title = [plan.python, "-u", *stage.argv]
                enter(common | variables, title, attempt.rank_log(int(variables["RANK"])), plan.cwd)
                return Program(stage.argv)
            gang.ranks[pid] = place.ranks(plan)[local_rank]
        gc.unfreeze()
        self._gang = gang
        return None

    def _run(self, message: dict[str, Any]) -> Program | None:
        check_forkable()
        pid = fork()
        if pid == 0:
            enter(outer_environment(os.environ), message["argv"], Path(message["stdout"]), Path.cwd())
            return Program(tuple(message["argv"][1:]), self._channel)
        self._helpers.append(pid)
        preload_model(*message["preload"])
        return None


# --- before the fork -------------------------------------------------------------------------------------------


def preload(kind: str) -> None:
    """Imports what every rank will need: torch alone for a script, or all of Seatrial's programs for training."""
    importlib.import_module("torch.distributed")
    if kind == "training":
        for name in _PROGRAMS:
            importlib.import_module(name)


def preload_for_run(plan: LaunchPlan) -> None:
    """Imports the class of the run's model, if a stage is Seatrial's own."""
    if any(stage.reports for stage in plan.stages):
        spec = json.loads(RunPaths(plan.run_dir).spec.read_text())
        preload_model(spec["model"], spec["task"])


def preload_model(name: str, task: str) -> None:
    """Imports the module of a model's class. What can't be found out without a network, the ranks import themselves."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.models.auto import modeling_auto

    names = {
        "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }.get(task, {})
    # Whatever is wrong with the model, the ranks say it better.
    with contextlib.suppress(Exception):
        local = Path(name) / "config.json"
        config = local if Path(name).is_dir() else Path(str(try_to_load_from_cache(name, local.name)))
        class_name = names[json.loads(config.read_text())["model_type"]]
        getattr(importlib.import_module("transformers"), class_name)


def check_forkable() -> None:
    """A fork copies one thread only, and no CUDA context.

    Raises:
        PlatformError: something that was imported has started a thread, or CUDA.
    """
    tasks = Path("/proc/self/task")
    names = (
        [(t / "comm").read_text().strip() for t in tasks.iterdir()]
        if tasks.is_dir()
        else [t.name for t in threading.enumerate()]
    )
    cuda = sys.modules["torch"].cuda.is_initialized()
    if len(names) > 1 or cuda:
        raise PlatformError(
            "the ranks can't be forked from the warm process",
            evidence=(
                "CUDA is in use there" if cuda else f"an import started threads: {', '.join(sorted(names))}"
            ),
            remedy="resources.launcher=torchrun    (--launcher torchrun)",
        )


def fork() -> int:
    """`os.fork` with signals held back, so that none is lost before the child answers to them."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    pid = os.fork()
    if pid != 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    return pid


# --- after the fork --------------------------------------------------------------------------------------------


def enter(environment: dict[str, str], title: Sequence[str], log: Path, cwd: Path) -> None:
    """Makes the fork what a freshly started rank is: session, log, signals, environment, directory, threads."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    os.setsid()
    for number in _HANDLED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # A scheduler's warning is for the agents, which pass it on as TERM; some send it to every process of the job.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    redirect(log)
    become(" ".join(title), environment)
    os.chdir(cwd)
    torch, threads = sys.modules["torch"], environment.get("OMP_NUM_THREADS")
    if threads is not None and torch.get_num_threads() != int(threads):
        torch.set_num_threads(int(threads))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # ranks that draw without a seed draw different numbers


def run(program: Program) -> None:
    """Runs it as the interpreter would."""
    first, *rest = program.argv
    if first == "-m" and rest[0] in _PROGRAMS:
        sys.argv = rest
        code = importlib.import_module(rest[0]).main()
        if program.done is not None:
            sys.stdout.flush()
            program.done.send({"ended": -1, "returncode": int(code or 0)})
        raise SystemExit(code)
    if first == "-m":
        sys.argv = rest
        sys.path[0] = str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = list(program.argv)
    sys.path[0] = str(Path(first).resolve().parent)
    runpy.run_path(first, run_name="__main__")


def main(argv: list[str]) -> Program:
    """Imports, then serves."""
    die_with_parent()
    # The agent decides: what reaches the whole session (a scheduler's TERM) must not take the ranks' parent first.
    for number in _HANDLED:
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(int(argv[0]))
    preload(argv[1])
    return Warm(channel).serve()


if __name__ == "__main__":
    run(main(sys.argv[1:]))
