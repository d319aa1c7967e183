"""``nodes.yaml``: the machines that runs over plain ssh may use (``--on hosts``).

``$SEATRIAL_NODES`` names it; else ``nodes.yaml`` here, else beside the site's config.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from seatrial.errors import SpecError
from seatrial.spec.document import parse_yaml, read_text
from seatrial.spec.explain import validate
from seatrial.spec.section import Section

VARIABLE = "SEATRIAL_NODES"
PYTHON = "/opt/seatrial/venv/bin/python"
"""Where `seatrial node bootstrap` puts it."""


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


def fleet_path(env: Mapping[str, str] = os.environ) -> Path:
    """Where the fleet's file is, or would be."""
    if env.get(VARIABLE):
        return Path(env[VARIABLE]).expanduser()
    here = Path("nodes.yaml")
    if here.exists():
        return here
    return Path(env.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "seatrial" / "nodes.yaml"
