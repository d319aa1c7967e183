"""What a machine is: asked by one script that needs nothing but a shell, and no rights."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from seatrial.errors import PlatformError
from seatrial.provision.nodes.remote import script

SUPPORTED = {("ubuntu", "22.04"), ("ubuntu", "24.04"), ("debian", "12")}
RECORD = "/var/lib/seatrial/added"
"""What was added to a machine, a line each; `functions.sh` writes it, `undo.sh` reads it."""
LEAST_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as nvidia-smi has it."""

    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a machine said of itself."""

    host: str
    values: dict[str, str]
    pythons: tuple[tuple[str, tuple[int, int]], ...] = ()
    """Path and version, newest first."""
    gpus: tuple[Gpu, ...] = ()
    rdma: tuple[tuple[str, str, str], ...] = ()
    """Device, link layer (InfiniBand or Ethernet), state (ACTIVE), a port each."""
    added: tuple[str, ...] = ()
    """What Seatrial's record of this machine holds."""
    has_pci_gpu: bool = False
    skew_s: float = field(default=0.0)
    """How far its clock is from this machine's."""

    @property
    def system(self) -> tuple[str, str]:
        """Such as ("ubuntu", "22.04")."""
        return self.values.get("os", ""), self.values.get("os_version", "")

    @property
    def cpus(self) -> int:
        """Processors that are on."""
        return int(self.values.get("cpus") or 1)

    @property
    def memory_gib(self) -> float:
        """All of it."""
        return int(self.values.get("memory_kib") or 0) / 2**20

    @property
    def shm_gib(self) -> float:
        """Size of /dev/shm."""
        return int(self.values.get("shm_kib") or 0) / 2**20

    @property
    def is_root_able(self) -> bool:
        """Whether it takes orders as root without a password."""
        return self.values.get("sudo") in {"root", "yes"}

    @property
    def shell(self) -> str:
        """What reads a script as root."""
        return "sh" if self.values.get("sudo") == "root" else "sudo -n sh"

    @property
    def python(self) -> str | None:
        """An interpreter that is new enough."""
        return next((path for path, version in self.pythons if version >= LEAST_PYTHON), None)

    @property
    def infiniband(self) -> list[str]:
        """Devices with an active InfiniBand port."""
        return sorted({device for device, layer, state in self.rdma if layer == "InfiniBand" and state == "ACTIVE"})  # fmt: skip

    @property
    def roce(self) -> list[str]:
        """Devices with an active port that carries RDMA over Ethernet."""
        return sorted(
            {device for device, layer, state in self.rdma if layer == "Ethernet" and state == "ACTIVE"}
        )


def look(host: str) -> Facts:
    """Asks a machine what it is.

    Raises:
        UnreachableError: it can't be reached.
        PlatformError: it has no shell that says.
    """
    began = time.time()
    said = script(host, Path(__file__).with_name("probe.sh").read_text(encoding="utf-8"))
    if "end=yes" not in said.stdout:
        raise PlatformError(
            f"{host} did not say what it is", evidence=(said.stderr or said.stdout).strip()[-300:], remedy=f"ssh {host} sh -c 'uname -a'"
        )  # fmt: skip
    return parse(host, said.stdout, (began + time.time()) / 2)


def parse(host: str, text: str, at: float) -> Facts:
    """What the probe's output says, asked at a time of this machine's clock."""
    values: dict[str, str] = {}
    pythons: list[tuple[str, tuple[int, int]]] = []
    gpus, rdma, added = [], [], []
    pci = False
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals:
            continue
        match name:
            case "python":
                path, _, version = value.partition(" ")
                found = re.fullmatch(r"(\d+)\.(\d+)", version)
                if found and all(path != known for known, _ in pythons):
                    pythons.append((path, (int(found[1]), int(found[2]))))
            case "gpu":
                parts = [p.strip() for p in value.split(",")]
                if len(parts) == 3:
                    gpus.append(Gpu(parts[0], int(float(parts[1])) if parts[1].replace(".", "").isdigit() else 0, parts[2]))  # fmt: skip
            case "rdma":
                words = value.split()
                if len(words) == 4:
                    rdma.append((words[0], words[2], words[3]))
            case "added":
                added.append(value)
            case "pci_gpu":
                pci = True
            case _:
                values[name] = value
    skew = float(values["now"]) + 0.5 - at if values.get("now", "").isdigit() else 0.0
    return Facts(host, values, tuple(pythons), tuple(gpus), tuple(rdma), tuple(added), pci, skew)
