"""Writing ``nodes.yaml``: machines that were made ready, and those that were put back."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from seatrial.provision.nodes.facts import Facts
from seatrial.runs.files import write_text
from seatrial.spec.document import read_text
from seatrial.spec.fleet import PYTHON, read_fleet


def add(path: Path, nodes: Mapping[str, Facts]) -> None:
    """Adds machines to a fleet's file, or brings what is said of them up to date; all else in it stays as it is written."""
    from ruamel.yaml import YAML

    yaml = YAML()
    if path.exists():
        read_fleet(path)
        data = yaml.load(read_text(path)) or {}
    else:
        data = {}
    if data.get("nodes") is None:
        data["nodes"] = []
    known = {row["host"]: row for row in data["nodes"]}
    for host, facts in nodes.items():
        values: dict[str, Any] = {"host": host}
        if facts.values.get("address"):
            values["address"] = facts.values["address"]
        values |= {
            "python": PYTHON,
            "gpus": len(facts.gpus),
            "cpus": facts.cpus,
            "memory_gib": round(facts.memory_gib, 1),
        }
        if facts.gpus:
            values["gpu"] = facts.gpus[0].name
        if facts.infiniband:
            values["infiniband"] = facts.infiniband
        if host in known:
            known[host].update(values)
        else:
            data["nodes"].append(values)
    out = StringIO()
    yaml.dump(data, out)
    write_text(path, out.getvalue())


def remove(path: Path, hosts: list[str]) -> bool:
    """Takes machines out of a fleet's file; whether one stood there."""
    from ruamel.yaml import YAML

    if not path.exists():
        return False
    yaml = YAML()
    data = yaml.load(read_text(path)) or {}
    rows = data.get("nodes") or []
    kept = [row for row in rows if row["host"] not in hosts]
    if len(kept) == len(rows):
        return False
    data["nodes"] = kept
    out = StringIO()
    yaml.dump(data, out)
    write_text(path, out.getvalue())
    return True
