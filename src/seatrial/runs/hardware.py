"""What a node is made of, so that another machine under the same name is known for another: cheap, and without torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seatrial import command
from seatrial.errors import PlatformError

_TIMEOUT_S = 30.0


def read(runner: command.CommandRunner = command.run, root: Path = Path("/")) -> dict[str, Any]:
    """This machine: ``{cpu, cores, memory_gib, gpus: {uuid: name}, driver}``; what can't be read is left out.

    Memory is in whole GiB: what the kernel keeps for itself differs from boot to boot.
    """
    found: dict[str, Any] = {"cores": os.cpu_count()}
    cpu = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if cpu:
        found["cpu"] = cpu.group(1)
    if memory:
        found["memory_gib"] = round(int(memory.group(1)) / 2**20)
    return found | _gpus(runner)


def fingerprint(hardware: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of hardware as canonical JSON."""
    return hashlib.sha256(json.dumps(hardware, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(tested: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is another thing here than what was tested, of what both say."""
    return [
        f"{key}: {_short(tested[key])} was tested, {_short(here[key])} is here"
        for key in sorted(set(tested) & set(here))
        if tested[key] != here[key]
    ]


def _short(value: Any) -> str:
    return ", ".join(sorted(value)) or "none" if isinstance(value, Mapping) else str(value)


def _gpus(runner: command.CommandRunner) -> dict[str, Any]:
    argv = ["nvidia-smi", "--query-gpu=uuid,name,driver_version", "--format=csv,noheader"]
    try:
        done = runner(argv, timeout_s=_TIMEOUT_S)
    except PlatformError:
        return {}
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == 3]
    if done.returncode != 0 or not rows:
        return {}
    return {"gpus": {uuid: name for uuid, name, _ in rows}, "driver": rows[0][2]}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
