"""``nodes.yaml``: the machines that runs over ssh may use."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from seatrial.errors import SpecError
from seatrial.provision.nodes.facts import Facts
from seatrial.provision.nodes.steps import PYTHON
from seatrial.runs.files import write_text
from seatrial.spec.document import parse_yaml, read_text
from seatrial.spec.explain import validate
from seatrial.spec.section import Section


class FleetNode(Section):
    """One machine."""

    host: str = Field(min_length=1)
    """As ssh takes it: a name of ~/.ssh/config, an address, user@name."""
    address: str | None = None
    """Where the other machines reach it [default: the host]."""
    python: str = PYTHON
    """Interpreter there that has Seatrial."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """How many it has."""
    gpu: str | None = None
    """What they are."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    memory_gib: float | None = None
    infiniband: tuple[str, ...] = ()
    """Devices with an active port."""

    @field_validator("infiniband", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Fleet(Section):
    """All machines."""

    directory: str | None = None
    """Directory that all of them see, for code and runs."""
    nodes: tuple[FleetNode, ...] = ()

    @field_validator("nodes", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("nodes")
    @classmethod
    def _each_once(cls, value: tuple[FleetNode, ...]) -> tuple[FleetNode, ...]:
        hosts = [node.host for node in value]
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands there twice")
        return value


def read_fleet(path: Path) -> Fleet:
    """The fleet in a file.

    Raises:
        SpecError: no such file, or not valid.
    """
    try:
        data = parse_yaml(read_text(path), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise SpecError(f"there is no {path}", evidence=str(path.absolute()), remedy="seatrial node bootstrap HOST…    writes it") from None  # fmt: skip
    return validate(Fleet, data if isinstance(data, dict) else {}, str(path), noun="fleet")


def add(path: Path, nodes: Mapping[str, Facts], directory: str | None) -> None:
    """Adds machines to a fleet's file, or brings what is said of them up to date; all else in it stays as it is written."""
    from ruamel.yaml import YAML

    yaml = YAML()
    if path.exists():
        read_fleet(path)
        data = yaml.load(read_text(path)) or {}
    else:
        data = {}
    if directory is not None:
        data["directory"] = directory
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
