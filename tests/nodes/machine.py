"""A machine to be changed and thrown away: this one's own system under an overlay, with a real sshd inside.

What is written in it lands in a directory of its own; its packages, its users and its apt are this system's.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.ssh.sshd import Sshd


@functools.cache
def _no_overlay() -> str:
    """Why this system can't lie under an overlay; "" where it can: tried, since it depends on what it lies on itself."""
    directory = Path(tempfile.mkdtemp(prefix="overlay-", dir="/tmp"))
    try:
        for name in ("upper", "work", "root"):
            (directory / name).mkdir()
        root = directory / "root"
        script = (
            f"mount -t overlay overlay -o lowerdir=/,upperdir={directory / 'upper'},workdir={directory / 'work'} {root} && "
            f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc && chroot {root} sh -c 'touch /etc/seatrial-try && rm /etc/seatrial-try'"
        )
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
        )
        return (
            ""
            if done.returncode == 0
            else f"no overlay of this system: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Machine(Sshd):
    """Reached as ``login``."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        super().__init__(env or {"PIP_CONFIG_FILE": os.environ.get("PIP_CONFIG_FILE", "/dev/null")})

    @staticmethod
    def unavailable() -> str:
        """Why there can be none; "" where there can."""
        if why := Sshd.unavailable():
            return why
        if os.getuid() != 0:
            return "a throw-away root needs root"
        lacking = [name for name in ("unshare", "mount", "chroot", "apt-get") if shutil.which(name) is None]
        if lacking:
            return f"not installed: {', '.join(lacking)}"
        release = platform.freedesktop_os_release()
        if (release["ID"], release.get("VERSION_ID")) not in {
            ("debian", "12"),
            ("ubuntu", "22.04"),
            ("ubuntu", "24.04"),
        }:
            return f"this system is {release['ID']} {release.get('VERSION_ID')}"
        return _no_overlay()

    @property
    def upper(self) -> Path:
        """Where what is written in it lands."""
        return self.directory / "upper"

    def _inside(self, argv: list[str]) -> list[str]:
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir(exist_ok=True)
        root = self.directory / "root"
        script = (
            f"mount -t overlay overlay -o lowerdir=/,upperdir={self.upper},workdir={self.directory / 'work'} {root} && "
            f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc && mount --rbind /sys {root}/sys && "
            f"mount -t tmpfs tmpfs {root}/run && mkdir -p {root}/run/sshd && mount -t tmpfs tmpfs {root}/tmp && "
            f'mkdir -p {root}{self.directory} && mount --bind {self.directory} {root}{self.directory} && exec chroot {root} "$@"'
        )
        # What is mounted in this namespace is gone with its last process.
        return ["unshare", "--mount", "sh", "-c", script, "sh", *argv]

    def tree(self) -> dict[str, str]:
        """All that was written: path and what it is, by hash; what apt, dpkg and the clock write for themselves left out."""
        found = {}
        for path in sorted(self.upper.rglob("*")):
            name = "/" + str(path.relative_to(self.upper))
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            elif path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.is_char_device():
                found[name] = "removed"
        return {name: what for name, what in found.items() if not name.startswith(_OWN)}

    def there(self, path: str) -> bool:
        """Whether something is in it."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/root{path}").exists()

    def inside(self, path: str) -> Path:
        """A file of it, from outside."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/root{path}")


_OWN = (
    "/var/log/",
    "/var/cache/",
    "/var/lib/apt/",
    f"{Path.home()}/.cache/",
    "/var/lib/dpkg/",
    "/etc/ld.so.cache",
    "/var/lib/systemd/",
)
