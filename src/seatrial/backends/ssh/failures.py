"""What ssh, and the shell behind it, say when they fail, as errors in three parts. Pure.

The words are OpenSSH's (ssh.c, sshconnect.c, packet.c, clientloop.c), of 7.7 to 9.9.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from seatrial import __version__
from seatrial.errors import PlatformError, UnreachableError

SSH_FAILED = 255
"""ssh's own exit code; any other is that of what ran there."""


@dataclass(frozen=True, slots=True)
class Login:
    """Seatrial on a login node."""

    host: str
    """As after ``ssh://``: [user@]host[:port], the host being a name of ~/.ssh/config or of the network."""
    python: str
    directory: str

    @property
    def by_hand(self) -> str:
        """The command that a person would type to get there."""
        return f"ssh ssh://{self.host}" if ":" in self.host else f"ssh {self.host}"


_AWAY = re.compile(
    r"could not resolve hostname|timed out|timeout|connection refused|no route to host|network is unreachable|"
    r"connection reset|connection closed|closed by|broken pipe|kex_exchange_identification|software caused connection abort",
    re.IGNORECASE,
)


def explain(login: Login, returncode: int, said: str, *, begun: bool = False) -> PlatformError:
    """The error for an ssh that ended.

    Args:
        login: where to.
        returncode: its exit code; negative for a signal.
        said: what it printed, stdout and stderr.
        begun: whether Seatrial had answered there before.

    Returns:
        An `UnreachableError` where the network is the cause, and trying again makes sense.
    """
    words = _last_words(said)
    host = login.host
    if returncode == SSH_FAILED:
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
            return PlatformError(
                f"the host key of {host} is not the one that is known",
                evidence=_lines(said, r"fingerprint|offending|SHA256:|host key verification") or words,
                remedy="ask whoever runs the cluster whether its key was replaced; if it was: ssh-keygen -R HOST, then "
                f"{login.by_hand}",
            )
        if re.search(r"host key verification failed|no .* host key is known", said, re.IGNORECASE):
            return PlatformError(
                f"the host key of {host} is not known yet",
                evidence=words,
                remedy=f"{login.by_hand}    (compare the fingerprint that it shows, and say yes)",
            )
        if re.search(r"permission denied|too many authentication failures", said, re.IGNORECASE):
            return PlatformError(
                f"{host} refused to let you in",
                evidence=words,
                remedy=f"{login.by_hand} true has to work without a question: ssh-add KEY; where it asks for a code, set "
                "ControlMaster, ControlPath and ControlPersist for the host in ~/.ssh/config and log in once",
            )
    if begun or (returncode == SSH_FAILED and _AWAY.search(said)):
        return UnreachableError(
            f"the connection to {host} was lost" if begun else f"{host} can't be reached",
            evidence=words or f"ssh ended with {returncode}",
            remedy=f"{login.by_hand} true",
        )
    if returncode == SSH_FAILED:
        return PlatformError(f"ssh to {host} failed", evidence=words, remedy=f"{login.by_hand} true")
    if re.search(r"No module named '?seatrial", said):
        return PlatformError(
            f"{host} has no Seatrial, or an old one, in {login.python}",
            evidence=words,
            remedy=f"{login.by_hand} {shlex.quote(login.python)} -m pip install 'seatrial[train]=={__version__}'",
        )
    if returncode in (126, 127):
        return PlatformError(
            f"{host} can't run {login.python}",
            evidence=words,
            remedy="slurm.remote.python=PATH of the interpreter there that has Seatrial",
        )
    return PlatformError(
        f"Seatrial on {host} did not start",
        evidence=words or f"it ended with exit code {returncode} and printed nothing",
        remedy=f"{login.by_hand} {shlex.quote(login.python)} -m seatrial doctor",
    )


def silent(login: Login, seconds: float, *, begun: bool) -> UnreachableError:
    """The error for a login node that says nothing any more."""
    return UnreachableError(
        f"{login.host} has stopped answering" if begun else f"Seatrial on {login.host} did not answer",
        evidence=f"nothing came for {seconds:g} s",
        remedy=f"{login.by_hand} true",
    )


def differs(login: Login, theirs: str) -> PlatformError:
    """The error for another version there."""
    return PlatformError(
        f"{login.host} has Seatrial {theirs}, and here is {__version__}",
        evidence=f"{login.python} there; both have to be the same",
        remedy=f"{login.by_hand} {shlex.quote(login.python)} -m pip install 'seatrial[train]=={__version__}'",
    )


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[-3:])


def _lines(said: str, pattern: str) -> str:
    found = [line.strip() for line in said.splitlines() if re.search(pattern, line, re.IGNORECASE)]
    return "\n".join(line[:300] for line in found[:4])
