"""Scripts on other machines, through the system's own ssh: the user's config, agent and jump hosts hold."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from seatrial import command
from seatrial.errors import PlatformError, SpecError, UnreachableError

_T = TypeVar("_T")
_CONNECT_S = 15
_AT_ONCE = 16
_LOST = 255


@dataclass(frozen=True, slots=True)
class Said:
    """What a script on another machine left behind."""

    code: int
    stdout: str
    stderr: str


def script(host: str, text: str, *, shell: str = "sh", timeout_s: float = 120) -> Said:
    """Runs a script on a host; it goes in by stdin, so nothing of it is in an argv.

    Args:
        host: as ssh takes it.
        text: of the script.
        shell: what reads it there: ``sh``, or ``sudo -n sh``.
        timeout_s: for all of it.

    Raises:
        UnreachableError: the host can't be reached, or was lost.
    """
    check_host(host)
    argv = [
        "ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", "-o", "ServerAliveInterval=15", "--", host, f"{shell} -s",
    ]  # fmt: skip
    done = command.run(argv, timeout_s=timeout_s, stdin=text)
    if done.returncode == _LOST:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnreachableError(f"{host} can't be reached by ssh", evidence=last, remedy=f"ssh {host} true    (must work without a question)")  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


def send(host: str, path: str, data: bytes, *, shell: str = "sh", timeout_s: float = 600) -> None:
    """Writes a file on a host.

    Raises:
        PlatformError: it can't be written.
    """
    import base64

    encoded = base64.encodebytes(data).decode()
    said = script(host, f"base64 -d > {path} <<'SEATRIAL_END'\n{encoded}SEATRIAL_END\n", shell=shell, timeout_s=timeout_s)  # fmt: skip
    if said.code != 0:
        raise PlatformError(f"{path} can't be written on {host}", evidence=said.stderr.strip()[-300:])


def check_host(host: str) -> None:
    """Raises `SpecError` for what ssh would take for an option, or a shell for more than a word."""
    if not host or host.startswith("-") or any(c.isspace() or c in "'\"`$;&|<>()\\" for c in host):
        raise SpecError(f"{host!r} is no host", evidence="a name, an address, or user@name")


def each(hosts: Sequence[str], do: Callable[[str], _T]) -> dict[str, _T | PlatformError]:
    """Does it on all hosts side by side; one that fails doesn't stop the others."""
    found: dict[str, _T | PlatformError] = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(_AT_ONCE, max(len(hosts), 1))) as pool:
        waiting = {pool.submit(do, host): host for host in hosts}
        for future in concurrent.futures.as_completed(waiting):
            try:
                found[waiting[future]] = future.result()
            except PlatformError as error:
                found[waiting[future]] = error
    return {host: found[host] for host in hosts}
