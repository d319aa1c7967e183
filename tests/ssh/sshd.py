"""A private sshd of this user on 127.0.0.1, and an ssh that knows only it: nothing of ~/.ssh is read or written.

with Sshd(directory, {"SLURM_CONF": …}) as login:
    subprocess.run(["ssh", "login", "hostname"], env={**os.environ, **login.env})
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Sshd:
    """A login node under the name ``login``.

    Args:
        env: of the sessions on it.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.session_env = dict(env)
        self.directory = Path(tempfile.mkdtemp(prefix="sshd-", dir="/tmp"))
        self.config = self.directory / "ssh_config"
        self.known_hosts = self.directory / "known_hosts"
        self.log = self.directory / "sshd.log"
        self.port = _free_port()
        self.command = ""
        """What runs instead of what is asked for (ForceCommand)."""
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def unavailable() -> str:
        """Why there can be none; "" when there can."""
        lacking = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
        lacking += [] if SSHD else ["sshd"]
        return f"not installed: {', '.join(lacking)} (scripts/install-test-tools, as root)" if lacking else ""

    @property
    def env(self) -> dict[str, str]:
        """What makes a process a user of it."""
        path = f"{self.directory / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        return {"PATH": path, "XDG_RUNTIME_DIR": str(self.directory / "run")}

    def __enter__(self) -> Sshd:
        (self.directory / "run").mkdir(mode=0o700)
        (self.directory / "bin").mkdir()
        for key in ("host", "user", "stranger", "other_host"):
            self._keygen(key)
        shutil.copy(self.directory / "user.pub", self.directory / "authorized_keys")
        self.know("host")
        self._write_client()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def _keygen(self, name: str) -> None:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.directory / name)], check=True
        )  # fmt: skip

    def know(self, key: str | None) -> None:
        """Makes the client expect this host key; None: it knows none."""
        text = "" if key is None else (self.directory / f"{key}.pub").read_text()
        self.known_hosts.write_text(text and f"[127.0.0.1]:{self.port} {text}")

    def _write_client(self, *lines: str, key: str = "user") -> None:
        self.config.write_text(
            f"Host login\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.directory / key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
            + "".join(f"  {line}\n" for line in lines)
        )
        program = self.directory / "bin" / "ssh"
        program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh", path=os.defpath)} -F {self.config} "$@"\n')
        program.chmod(0o755)

    def client(self, *lines: str, key: str = "user") -> None:
        """Replaces what the user's ssh_config says of it."""
        self._write_client(*lines, key=key)

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists, when it is root's
        quoted = " ".join(f'"{name}={value}"' for name, value in self.session_env.items())
        config = self.directory / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.directory / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {self.directory / 'authorized_keys'}\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nSetEnv {quoted}\n"
            + (f"ForceCommand {self.command}\n" if self.command else "")
        )
        assert SSHD is not None
        self._process = subprocess.Popen(
            self._inside([SSHD, "-D", "-e", "-f", str(config)]),
            stdin=subprocess.DEVNULL,
            stderr=self.log.open("ab"),
        )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as link:
                if link.recv(4).startswith(b"SSH"):
                    return
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def _inside(self, argv: list[str]) -> list[str]:
        """What starts the server where it is to be: here."""
        return argv

    def restart(self) -> None:
        """Ends it, and starts it as it is described now."""
        self.stop()
        self.start()

    def sessions(self) -> list[psutil.Process]:
        """Its children: one for each connection."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children()
        return []

    def cut(self) -> int:
        """Ends all connections at once, as a network would; how many there were."""
        sessions = self.sessions()
        for session in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                # Of what a session runs nothing is touched: it has to notice by itself.
                for process in [*session.children(recursive=True), session]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if process.name().startswith("sshd"):
                            process.kill()
        psutil.wait_procs(sessions, 5)
        return len(sessions)

    def stop(self) -> None:
        """Ends it and all connections; whatever runs in a session ends when it notices."""
        self.cut()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
