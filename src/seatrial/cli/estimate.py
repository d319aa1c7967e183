"""``seatrial train --estimate``: the memory that a training needs, as a table."""

from __future__ import annotations

import json
from typing import Any

import click

from seatrial.backends import machine
from seatrial.errors import ExitCode, from_dict
from seatrial.launch.inspect import estimate
from seatrial.launch.plan import ranks
from seatrial.runs.plan import Device
from seatrial.spec.run import ResourcesSpec, RunSpec

_GIB = 2**30
_PARTS = ("parameters", "gradients", "optimizer", "activations", "buffers", "total")


def show(spec: RunSpec, *, as_json: bool) -> int:
    """Prints the estimate; 2 where what the recipe asks for does not fit."""
    device, nproc = _where(spec.resources)
    found = estimate(spec, device, nproc)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(table(found))
        if found["refusal"] is not None:
            click.echo(f"error: {from_dict(found['refusal'])}", err=True)
    return int(ExitCode.OK if found["refusal"] is None else ExitCode.BAD_REQUEST)


def table(found: dict[str, Any]) -> str:
    """One line a way to train, in GiB a rank, the recipe's own first; then the choice and its reason."""
    lines = [
        f"memory of one of {found['world_size']} ranks ({found['device']}), GiB, for {found['batch_size']} samples of "
        f"{_size(found)} in a pass, {found['precision']}; it has {found['memory_bytes'] / _GIB:.1f} and may plan "
        f"with {found['usable']:.0%} of that",
        " ".join(f"{name:>11}" for name in (*_PARTS, "fits")) + "  recipe",
    ]
    for row in found["rows"]:
        numbers = " ".join(f"{row[part] / _GIB:11.2f}" for part in _PARTS)
        lines.append(f"{numbers} {'yes' if row['fits'] else 'no':>11}  {row['recipe']}")
    if found["chosen"]:
        lines.append(f"chosen: {found['chosen']}: {found['reason']}")
    return "\n".join(lines)


def _size(found: dict[str, Any]) -> str:
    """Of the samples that the estimate is for."""
    return " × ".join(map(str, found["image"])) if found.get("image") else f"{found['length']} tokens"


def _where(resources: ResourcesSpec) -> tuple[Device, int]:
    """Device and ranks a node: this machine's, or GPUs elsewhere whose memory is given."""
    if (
        resources.memory_gib is not None
        and isinstance(resources.gpus_per_node, int)
        and resources.gpus_per_node
    ):
        return "cuda", resources.gpus_per_node
    return ranks(resources, machine.probe())
