"""What a machine is and has, in one document to keep, and what differs between two of them."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from seatrial import __version__, command
from seatrial.errors import PlatformError
from seatrial.launch.source import git_state
from seatrial.runs.clock import now
from seatrial.runs.index import Index

_TIMEOUT_S = 120.0
_GPU_FIELDS = (
    "uuid",
    "name",
    "serial",
    "vbios_version",
    "driver_version",
    "pci.bus_id",
    "memory.total",
    "power.limit",
)
_SECRET = re.compile(
    r"(?:hf_|sk-|gh[pousr]_|glpat-|xox[abp]-|AKIA|ASIA|eyJ)[\w-]{8,}|://[^/\s:@]+:[^/\s@]+@|(?<![\w/.])[A-Za-z0-9+_-]{32,}(?![\w/.])"
)
"""Keys as their issuers begin them, passwords in URLs, and long words that are no path: a value that has one is not kept."""
_READS = {
    "packages": "package ",
    "host": "",
    "torch": "torch ",
    "variables": "variable ",
    "os": "",
    "limits": "limit ",
}


def collect(
    runs_dir: Path,
    cwd: Path,
    *,
    runner: command.CommandRunner = command.run,
    root: Path = Path("/"),
    index: Path | None = None,
) -> dict[str, Any]:
    """Everything about this machine. What can't be read stands there with the reason.

    Args:
        runs_dir: whose runs are counted.
        cwd: whose git state is told.
        runner: starts programs.
        root: where ``etc`` and ``sys`` are.
        index: where the index of the runs lies; None in the user's cache.
    """
    document: dict[str, Any] = {"schema": 1, "taken": now(), "seatrial": __version__}
    document["os"] = {"kernel": platform.release(), "release": _release(root), "machine": platform.machine()}
    document |= _python(runner)
    document["gpus"] = _gpus(runner)
    document["gpu_topology"] = _said(runner, ["nvidia-smi", "topo", "-m"])
    document["network"] = _network(root)
    document["infiniband"] = _infiniband(root)
    document["numa"] = _numa(root)
    git = git_state(cwd)
    document["git"] = None if git is None else git.model_dump(mode="json")
    document["runs"] = _runs(runs_dir, index)
    document["variables"] = without_secrets(document.get("variables", {}))
    return document


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is another in the second snapshot, in words, one line each; when it was taken does not count."""
    first, second = (_by_serial(dict(each)) for each in (before, after))
    a, b = (
        dict(_leaves({k: v for k, v in side.items() if k not in {"schema", "taken"}}))
        for side in (first, second)
    )
    lines = []
    for key in sorted({*a, *b}, key=lambda key: (key[0], key)):
        was, now_ = a.get(key), b.get(key)
        if was == now_:
            continue
        name = _READS.get(key[0], f"{key[0]} ") + ".".join(key[1:])
        if was is None:
            lines.append(f"{name}: {now_} is new")
        elif now_ is None:
            lines.append(f"{name}: {was} is gone")
        else:
            lines.append(f"{name}: {was} → {now_}")
    return lines


def _by_serial(document: dict[str, Any]) -> dict[str, Any]:
    """GPUs by their UUIDs: another card in the same slot is another GPU."""
    gpus = document.get("gpus")
    if isinstance(gpus, list):
        document["gpus"] = {
            gpu.get("uuid", str(n)): {k: v for k, v in gpu.items() if k != "uuid"}
            for n, gpu in enumerate(gpus)
        }
    return document


def _leaves(value: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*prefix, str(key)))
    elif value is not None:
        yield prefix, json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _release(root: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release"), re.MULTILINE)
    return found[1] if found else "unknown"


def _python(runner: command.CommandRunner) -> dict[str, Any]:
    """By a process of its own: torch takes seconds and gigabytes."""
    try:
        done = runner([sys.executable, "-m", "seatrial.job.fingerprint"], timeout_s=_TIMEOUT_S)
        return dict(json.loads(done.stdout))
    except (PlatformError, ValueError) as error:
        return {"python": platform.python_version(), "torch": {"error": str(error)[:300]}}


def _gpus(runner: command.CommandRunner) -> list[dict[str, str]] | dict[str, str]:
    text = _said(runner, ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"])
    if isinstance(text, dict):
        return text
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line.strip()]
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows]


def _said(runner: command.CommandRunner, argv: list[str]) -> str | dict[str, str]:
    try:
        done = runner(argv, timeout_s=30.0)
    except PlatformError as error:
        return {"unread": f"{error.what}: {error.evidence}"[:200]}
    return done.stdout if done.returncode == 0 else {"unread": (done.stderr or done.stdout).strip()[:200]}


def _network(root: Path) -> dict[str, Any]:
    found = {}
    for name, about in sorted(psutil.net_if_stats().items()):
        driver = root / "sys/class/net" / name / "device/driver"
        found[name] = {
            "up": about.isup,
            "speed_mbps": about.speed,
            "mtu": about.mtu,
            "driver": driver.resolve().name if driver.exists() else None,
        }
    return found


def _infiniband(root: Path) -> dict[str, Any]:
    ports = sorted((root / "sys/class/infiniband").glob("*/ports/*"))
    return {
        f"{port.parts[-3]}/{port.name}": {
            "state": _text(port / "state").strip(), "rate": _text(port / "rate").strip(), "link_layer": _text(port / "link_layer").strip(),
            "firmware": _text(port.parents[1] / "fw_ver").strip(),
        }
        for port in ports
    }  # fmt: skip


def _numa(root: Path) -> dict[str, str]:
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"))
    return {node.name: _text(node / "cpulist").strip() for node in nodes}


def _runs(runs_dir: Path, index_path: Path | None) -> dict[str, Any]:
    index = Index(runs_dir, index_path)
    states = dict(index.query("SELECT state, count(*) FROM runs GROUP BY state"))
    unreadable = len(index.unreadable())
    index.close()
    return {"directory": str(runs_dir), "states": states, "unreadable": unreadable}


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables whose values look like keys, without these."""
    return {
        name: "redacted" if _SECRET.search(value) and not value.startswith(("GPU-", "MIG-")) else value
        for name, value in variables.items()
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
