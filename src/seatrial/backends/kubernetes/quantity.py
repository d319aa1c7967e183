"""Amounts as Kubernetes writes them: ``500m``, ``64Gi``, ``8``."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_UNITS = {
    "": Decimal(1), "m": Decimal("0.001"), "n": Decimal("1e-9"), "u": Decimal("1e-6"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
"""https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/"""
_FORM = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]{0,2})")
GIB = 2**30


def amount(text: str | int | float) -> Decimal:
    """The number that an amount is, in the resource's own unit.

    Raises:
        ValueError: it is none.
    """
    found = _FORM.fullmatch(str(text))
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is not an amount")
    try:
        return Decimal(found[1]) * _UNITS[found[2]]
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not an amount") from error


def cpu_text(cpus: Decimal) -> str:
    """CPUs: whole ones, or thousandths."""
    return str(int(cpus)) if cpus == int(cpus) else f"{int(cpus * 1000)}m"


def memory_text(size_bytes: Decimal | int) -> str:
    """Bytes, in the largest unit that leaves them whole."""
    size = int(size_bytes)
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size % factor == 0 and size:
            return f"{size // factor}{unit}"
    return str(size)


def people(resource: str, value: Decimal) -> str:
    """An amount of a resource for people: ``64 GiB``, ``7.5``."""
    if resource in {"memory", "ephemeral-storage"}:
        return f"{float(value) / GIB:.4g} GiB"
    return f"{float(value):.4g}"
