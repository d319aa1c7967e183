"""Driving the user's own Terraform: its events, its end, and its interruption without a loss."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.provision.nebius.account import write_private

Event = dict[str, Any]
_INIT_TRIES = 4
_TICK_S = 0.2
_QUOTA = re.compile(r"(\S+) \(limit (\d+), requested (\d+)\)")
_TRANSIENT = re.compile(r"\b(50[0234]|timeout|timed out|connection reset|TLS handshake|temporary failure)\b", re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What Terraform complains of."""

    summary: str
    detail: str
    address: str

    def __str__(self) -> str:
        """On as few lines as it takes."""
        where = f"{self.address}: " if self.address else ""
        detail = " ".join(self.detail.split())
        return f"{where}{self.summary}" + (f": {detail}" if detail and detail != self.summary else "")

    @property
    def quota(self) -> tuple[str, int, int] | None:
        """Quota, limit, and the total that was asked for."""
        found = _QUOTA.search(f"{self.summary} {self.detail}")
        return None if found is None else (found[1], int(found[2]), int(found[3]))


@dataclass(slots=True)
class Outcome:
    """How a Terraform command ended."""

    code: int
    errors: list[Diagnostic] = field(default_factory=list)
    interrupted: bool = False

    def says(self, *words: str) -> bool:
        """Whether one of its complaints has one of these words."""
        text = " ".join(str(e) for e in self.errors).lower()
        return any(word.lower() in text for word in words)


class Terraform:
    """Terraform in one installation.

    Args:
        binary: the program.
        directory: of the installation.
        env: the whole environment.
        log: gets its events, one JSON object a line; the file is private.
    """

    def __init__(self, binary: str, directory: Path, env: Mapping[str, str], log: Path) -> None:
        self._binary, self._directory, self._env, self._log = binary, directory, dict(env), log

    def init(self) -> None:
        """Readies providers, modules and the state's place; tries again where the network failed.

        Raises:
            PlatformError: it can't.
        """
        for attempt in range(_INIT_TRIES):
            outcome = self._run(["init", "-json", "-input=false", "-reconfigure"], lambda event: None)
            if outcome.code == 0:
                return
            text = "\n".join(str(e) for e in outcome.errors) or self._tail()
            if attempt + 1 < _INIT_TRIES and _TRANSIENT.search(text):
                time.sleep(2**attempt)
                continue
            raise PlatformError("terraform init failed", evidence=text, remedy=_after_init(text))

    def plan(self, out: Path, on_event: Callable[[Event], None], *, destroy: bool = False) -> Outcome:
        """Plans into a file; the caller deletes it: it holds secrets in clear text."""
        words = ["plan", "-json", "-input=false", "-lock-timeout=20s", "-parallelism=20", f"-out={out}"]
        return self._run([*words, *(["-destroy"] if destroy else [])], on_event)

    def show(self, plan: Path) -> dict[str, Any]:
        """A plan as data. It holds secrets: never written, never printed.

        Raises:
            PlatformError: it can't be read.
        """
        done = command.run(
            [self._binary, f"-chdir={self._directory}", "show", "-json", str(plan)], timeout_s=300, env=self._env
        )  # fmt: skip
        if done.returncode != 0:
            raise PlatformError("terraform can't show its plan", evidence=done.stderr.strip()[:500])
        return dict(json.loads(done.stdout))

    def apply(
        self, plan: Path, on_event: Callable[[Event], None], on_tick: Callable[[], None], say: Callable[[str], None]
    ) -> Outcome:  # fmt: skip
        """Carries a plan out. Ctrl-C has it finish what is begun and save; it is never killed with things in hand."""
        return self._run(["apply", "-json", "-input=false", "-parallelism=20", "-lock-timeout=20s", str(plan)], on_event, on_tick, say)  # fmt: skip

    def state(self) -> list[dict[str, Any]]:
        """The resources that it knows of: address, type, name and values (which may be secret)."""
        done = command.run(
            [self._binary, f"-chdir={self._directory}", "show", "-json"], timeout_s=300, env=self._env
        )
        if done.returncode != 0:
            raise PlatformError("terraform can't read its state", evidence=done.stderr.strip()[:500])
        root = json.loads(done.stdout or "{}").get("values", {}).get("root_module", {})
        return list(_resources(root))

    def unlock(self, lock_id: str) -> None:
        """Takes away a lock of the state that nobody holds any more.

        Raises:
            PlatformError: it can't.
        """
        done = command.run(
            [self._binary, f"-chdir={self._directory}", "force-unlock", "-force", lock_id], timeout_s=120, env=self._env
        )  # fmt: skip
        if done.returncode != 0:
            raise PlatformError("the state can't be unlocked", evidence=done.stderr.strip()[:500])

    def _run(
        self, words: list[str], on_event: Callable[[Event], None], on_tick: Callable[[], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Outcome:  # fmt: skip
        # In a session of its own: the terminal's Ctrl-C would reach the providers, and what they are making would be lost.
        # Its output goes to a file: it goes on and saves its state even where this process is killed.
        offset = self._log.stat().st_size if self._log.exists() else 0
        process = command.start(
            [self._binary, f"-chdir={self._directory}", *words],
            log=self._log,
            env=self._env,
            new_session=True,
        )
        import psutil

        write_private(self._log.with_name("terraform.pid"), {"pid": process.pid, "created": psutil.Process(process.pid).create_time()})  # fmt: skip
        outcome = Outcome(code=-1)
        presses = 0
        reader = _Lines(self._log, offset)
        while True:
            try:
                code = process.wait(_TICK_S)
                for line in reader.lines(last=code is not None):
                    self._take(line, outcome, on_event)
                if code is not None:
                    outcome.code = code
                    if outcome.interrupted and say is None:
                        raise KeyboardInterrupt  # nothing was in the making: a plan, or what comes before it
                    return outcome
                if on_tick is not None:
                    on_tick()
            except KeyboardInterrupt:
                if process.poll() is not None and say is None:
                    raise
                presses += 1
                outcome.interrupted = True
                if presses == 1 or say is None:
                    process.send_signal(signal.SIGINT)
                if say is not None:
                    say(
                        "stopping: terraform finishes what it has begun, and saves its state"
                        if presses == 1
                        else "still finishing; it is not killed, since what it is making would be lost to its state"
                    )

    def _take(self, line: str, outcome: Outcome, on_event: Callable[[Event], None]) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            if line.strip().startswith(("Error:", "│ Error:")):
                outcome.errors.append(Diagnostic(line.strip(" │"), "", ""))
            return
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if kind == "diagnostic" and event["diagnostic"].get("severity") == "error":
            found = event["diagnostic"]
            outcome.errors.append(
                Diagnostic(
                    str(found.get("summary", "")), str(found.get("detail", "")), str(found.get("address", ""))
                )
            )
        on_event(event)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])


def lock_of(outcome: Outcome) -> dict[str, str] | None:
    """Who holds the state's lock, where that is what a command failed of: ID, Who, Operation, Created."""
    if not outcome.says("acquiring the state lock", "state lock"):
        return None
    text = "\n".join(f"{e.summary}\n{e.detail}" for e in outcome.errors)
    return dict(re.findall(r"^\s*(ID|Who|Operation|Created|Path):\s*(\S.*?)\s*$", text, re.MULTILINE))


class _Lines:
    """Whole lines that are appended to a file."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path, self._offset, self._rest = path, offset, b""

    def lines(self, *, last: bool) -> Iterator[str]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if last and self._rest:
            whole.append(self._rest)
        yield from (line.decode(errors="replace") for line in whole)


def _resources(module: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in module.get("resources", []):
        if resource.get("mode") == "managed":
            yield resource
    for child in module.get("child_modules", []):
        yield from _resources(child)


def _after_init(text: str) -> str:
    if "Unreadable module" in text or "module directory" in text:
        return "a whole checkout of the recipe: seatrial cluster preflight says what it lacks"
    if "403" in text or "AccessDenied" in text or "InvalidAccessKeyId" in text:
        return (
            "the state's key is refused: wait a minute (a new key takes a while), then the same command again"
        )
    return "read the message above; the same command tries again"
