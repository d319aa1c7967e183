"""Code and data that travel with a run: trees named by their hash, in ConfigMaps that every run of the same code shares."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

from seatrial.backends.kubernetes.api import Object
from seatrial.backends.kubernetes.names import MANAGED
from seatrial.backends.ssh import tree
from seatrial.backends.ssh.tree import Tree
from seatrial.errors import SpecError

_PART_BYTES = 700 << 10
"""Of a ConfigMap, which may have 1 MiB: base64 makes a third more of it."""
_MOST_PARTS = 40


@dataclass(frozen=True, slots=True)
class Parcel:
    """A tree as it is sent."""

    kind: str
    sha256: str
    parts: tuple[bytes, ...]

    @classmethod
    def of(cls, kind: str, packed: Tree, what: str) -> Parcel:
        """Packs a tree.

        Raises:
            SpecError: it is too large for ConfigMaps, or has changed meanwhile.
        """
        deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        blocks: list[bytes] = []
        tree.pack(packed, lambda data: blocks.append(deflate.compress(data)))
        data = b"".join([*blocks, deflate.flush()])
        parts = tuple(data[i : i + _PART_BYTES] for i in range(0, len(data), _PART_BYTES))
        if len(parts) > _MOST_PARTS:
            raise SpecError(
                f"{what} is too large to be sent in ConfigMaps", evidence=f"{len(data) >> 20} MiB compressed",
                remedy="put it on the volume, and name it there: cluster:/PATH",
            )  # fmt: skip
        return cls(kind, packed.sha256, parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its ConfigMaps."""
        return tuple(f"seatrial-{self.kind}-{self.sha256[:40]}-{i}" for i in range(len(self.parts)))

    def config_maps(self, namespace: str) -> list[Object]:
        """Its ConfigMaps. Equal trees have equal ones, which can't be changed."""
        return [
            {
                "apiVersion": "v1", "kind": "ConfigMap", "immutable": True,
                "metadata": {"name": name, "namespace": namespace, "labels": dict(MANAGED)},
                "binaryData": {f"{self.kind}-{self.sha256}.{i:04d}": base64.b64encode(part).decode()},
            }
            for i, (name, part) in enumerate(zip(self.names, self.parts, strict=True))
        ]  # fmt: skip
