"""One machine's end: ``python -m seatrial.backends.hosts.anchor``, started by ssh and told what to do over its stdin.

It holds the machine for one run, starts the agent there, and ends it when its connection is gone: nothing is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from seatrial import __version__, command
from seatrial.errors import PlatformError

MARK = "@@seatrial-anchor"
LOCK = "SEATRIAL_NODE_LOCK"
"""Names the lock's file, where the usual place is none."""
ALIVE_S = 5.0
SILENCE_S = 45.0
"""The supervisor says something every few seconds; after so long without a word, the connection is gone."""
_KILL_MARGIN_S = 15.0


def main() -> int:
    """Serves one attempt."""
    with contextlib.suppress(EOFError):
        Anchor(sys.stdin.fileno(), os.dup(1)).serve()
    return 0


class Anchor:
    """Talks in JSON lines.

    Args:
        incoming: descriptor to read from.
        outgoing: descriptor to write to.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._rest = b""
        self._lines: list[bytes] = []
        self._heard_at = time.monotonic()
        self._writing = threading.Lock()

    def serve(self) -> None:
        """Holds the machine, runs the agent, and ends it."""
        self._say({"hello": __version__, "host": socket.gethostname()})
        order = self._next(60)
        if order is None:
            return
        with _held(str(order["run_id"])) as holder:
            if holder is not None:
                self._say({"busy": holder})
                return
            self._say({"held": True, "port": _free_port()})
            start = self._next(600)
            if start is not None and "start" in start:
                self._run(start["start"])

    def _run(self, order: dict[str, Any]) -> None:
        run_dir = Path(order["run_dir"])
        if not (run_dir / "manifest.json").exists():
            self._say(
                {
                    "error": f"{run_dir} is not there: the run's directory must be on a file system that this machine and all others see"
                }
            )
            return
        logs = run_dir / f"attempt-{order['attempt']}" / "logs"
        log = logs / (f"agent-{order['node_rank']:03d}.log" if order["node_rank"] else "agent-lead.log")
        logs.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **order["env"]}
        cwd = Path(order["cwd"])
        if not cwd.is_dir():
            self._say(
                {"error": f"{cwd} is not there: the code must be on a file system that all machines see"}
            )
            return
        argv = [
            sys.executable,
            "-m",
            "seatrial.job.agent",
            str(run_dir),
            "--attempt",
            str(order["attempt"]),
            "--node-rank-from",
            "SEATRIAL_NODE_RANK",
        ]
        try:
            process = command.start(argv, log=log, env=env, cwd=cwd, new_session=True)
        except PlatformError as error:
            self._say({"error": str(error)})
            return
        offset = 0
        said = time.monotonic()
        while True:
            code = process.wait(0.2)
            offset = self._tell(log, offset)
            if code is not None:
                # Agents end what they have started; a killed one could not.
                _end(_family(process.pid, order["env"]))
                self._say({"ended": code})
                return
            try:
                message = self._next(0)
            except EOFError:
                message = {"lost": True}
            if message is not None and "signal" in message:
                process.send_signal(int(message["signal"]))
            if message is not None and "kill" in message:
                _end(_family(process.pid, order["env"]))
                self._say({"ended": -int(signal.SIGKILL)})
                return
            if (message is not None and "lost" in message) or time.monotonic() - self._heard_at > SILENCE_S:
                self._give_up(process, float(order["grace_s"]), order["env"])
                return
            if time.monotonic() - said > ALIVE_S:
                said = time.monotonic()
                self._say({"alive": True})

    def _give_up(self, process: command.Process, grace_s: float, env: dict[str, str]) -> None:
        """The connection is gone: save, and leave nothing."""
        process.send_signal(signal.SIGTERM)
        process.wait(grace_s + _KILL_MARGIN_S)
        _end(_family(process.pid, env))

    def _tell(self, log: Path, offset: int) -> int:
        """What the agent has written since, whole lines."""
        with log.open("rb") as file:
            file.seek(offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            self._say({"lines": whole.decode(errors="replace").splitlines()})
        return offset + len(whole)

    def _say(self, message: dict[str, Any]) -> None:
        # Who reads no more is found out by reading, where it is decided what that means.
        with self._writing, contextlib.suppress(OSError):
            os.write(self._outgoing, f"{MARK} {json.dumps(message)}\n".encode())

    def _next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message but for signs of life; None when none came in time.

        Raises:
            EOFError: the connection is closed.
        """
        until = time.monotonic() + timeout_s
        while True:
            while self._lines:
                message: dict[str, Any] = json.loads(self._lines.pop(0))
                if "alive" not in message:
                    return message
            ready, _, _ = select.select([self._incoming], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._incoming, 1 << 16)
            if not data:
                raise EOFError
            self._heard_at = time.monotonic()
            *self._lines, self._rest = (self._rest + data).split(b"\n")


@contextlib.contextmanager
def _held(run_id: str) -> Iterator[str | None]:
    """Holds this machine; yields who else does, or None."""
    try:
        descriptor = _opened(lock_path())
    except OSError as error:
        yield f"nobody, but its lock can't be opened: {error}"
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "another run"
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{run_id} of uid {os.getuid()}, process {os.getpid()}".encode(), 0)
        yield None
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """The lock's file. In a directory that all write to, a kernel refuses to "create" what another user has made."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(descriptor, 0o666)  # whoever comes first, others lock it, too
            return descriptor
    raise OSError(f"{path} comes and goes")


def lock_path() -> Path:
    """The lock of this machine, one for all of its users."""
    named = os.environ.get(LOCK)
    if named:
        return Path(named)
    shared = Path("/run/lock")
    return (shared if os.access(shared, os.W_OK) else Path.home()) / "seatrial-node.lock"


def _family(pid: int, env: dict[str, str]) -> list[psutil.Process]:
    """A process with all below it, and what lost its parent on the way: it has the attempt's token and this node's rank in its environment."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
    for process in psutil.process_iter():
        if process.pid == os.getpid() or process.pid in found:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            its = process.environ()
            if all(its.get(name) == env[name] for name in ("SEATRIAL_LINK_TOKEN", "SEATRIAL_NODE_RANK")):
                found[process.pid] = process
    return list(found.values())


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, 10)


def _free_port() -> int:
    """A port of this machine that nobody has, below those that the kernel hands out."""
    for port in range(20000 + os.getpid() % 9000, 32000, 7):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise PlatformError("this machine has no free port")


if __name__ == "__main__":
    raise SystemExit(main())
