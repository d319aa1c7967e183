"""What a plan would do, and what of it is refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from seatrial.provision.nebius.tables import GIB

FILESYSTEM = "nebius_compute_v1_filesystem"
CLUSTER = "nebius_mk8s_v1_cluster"
BILLABLE = (
    FILESYSTEM, CLUSTER, "nebius_mk8s_v1_node_group", "nebius_compute_v1_gpu_cluster", "nebius_vpc_v1_allocation",
    "nebius_compute_v1_instance", "nebius_compute_v1_disk", "nebius_storage_v1_bucket",
)  # fmt: skip
_NOISE = re.compile(r"kubectl_cluster_context|lb_service_ip|local_file\.this|group_membership")
"""The recipe plans these anew each time: it is never without changes."""
_ORDER = {"destroy": 0, "replace": 1, "shrink": 2, "change": 3, "adopt": 4, "make": 5, "forget": 6}


@dataclass(frozen=True, slots=True)
class Change:
    """One resource, and what would become of it."""

    address: str
    type: str
    action: str
    """make, change, shrink, replace, destroy, adopt, forget."""
    name: str
    parent: str | None
    """Id of what it is in, where that is known."""
    before_bytes: int | None
    after_bytes: int | None
    id: str | None
    """Of what is there."""
    fields: tuple[str, ...] = ()

    @property
    def is_noise(self) -> bool:
        """The recipe does it each time."""
        return bool(_NOISE.search(self.address))

    @property
    def detail(self) -> str:
        """What changes, for people."""
        if self.after_bytes is not None and self.before_bytes is not None and self.after_bytes != self.before_bytes:  # fmt: skip
            return f"{self.before_bytes / GIB:,.0f} GiB → {self.after_bytes / GIB:,.0f} GiB"
        size = self.after_bytes or self.before_bytes
        return f"{size / GIB:,.0f} GiB" if size else ", ".join(self.fields[:4])


def changes(plan: Mapping[str, Any]) -> list[Change]:
    """What a plan (``terraform show -json``) changes, what destroys first; reads and no-ops left out."""
    found = [_change(r) for r in plan.get("resource_changes", []) if r.get("mode", "managed") == "managed"]
    return sorted((c for c in found if c is not None), key=lambda c: (_ORDER[c.action], c.address))


def refused(found: Collection[Change], allowed: Collection[str] = ()) -> list[tuple[Change, str, str]]:
    """Changes that lose data or a cluster: which, why, and what to do instead.

    Args:
        found: of a plan that is not one of a removal.
        allowed: addresses whose loss somebody has asked for by name.
    """
    wrong = []
    for change in found:
        if change.address in allowed:
            continue
        if change.type == FILESYSTEM and change.action == "shrink":
            wrong.append(
                (change, f"a file system can't shrink ({change.detail}): the cloud refuses it in the middle of `up`",
                 f"keep the size ({(change.before_bytes or 0) // GIB} GiB); or a new submount of the smaller size under another name, and copy")
            )  # fmt: skip
        elif change.type == FILESYSTEM and change.action in {"replace", "destroy"}:
            wrong.append(
                (change, f"its data would be lost ({change.detail})",
                 f"take back what changes its {', '.join(change.fields[:3]) or 'place in cluster.yaml'}; to lose it on purpose: --lose '{change.address}'")
            )  # fmt: skip
        elif change.type in {CLUSTER, "nebius_mk8s_v1_node_group"} and change.action in {"replace", "destroy"}:  # fmt: skip
            what = (
                "the whole cluster"
                if change.type == CLUSTER
                else f"the nodes of {change.name}, with their jobs,"
            )
            wrong.append(
                (change, f"{what} would go" + (" and be made anew" if change.action == "replace" else ""),
                 f"take back what changes its {', '.join(change.fields[:3]) or 'place in cluster.yaml'}; to do it on purpose: --lose '{change.address}'")
            )  # fmt: skip
    return wrong


def _change(row: Mapping[str, Any]) -> Change | None:
    change = row["change"]
    actions = list(change.get("actions", []))
    before, after = change.get("before") or {}, change.get("after") or {}
    unknown = change.get("after_unknown") or {}
    before_bytes, after_bytes = _bytes(before), _bytes(after)
    action = _action(actions, bool(change.get("importing")))
    if action is None:
        return None
    if action == "change" and before_bytes and after_bytes and after_bytes < before_bytes:
        action = "shrink"
    if action == "replace":
        fields = tuple(".".join(map(str, path)) for path in change.get("replace_paths", []))
    else:
        fields = (
            tuple(sorted(k for k in after if after.get(k) != before.get(k))) if action == "change" else ()
        )
    parent = None if unknown.get("parent_id") is True else after.get("parent_id", before.get("parent_id"))
    return Change(
        str(row["address"]), str(row["type"]), action, str(after.get("name") or before.get("name") or row.get("name", "")),
        parent, before_bytes, after_bytes, before.get("id"), fields,
    )  # fmt: skip


def _action(actions: list[str], importing: bool) -> str | None:
    if set(actions) == {"create", "delete"}:
        return "replace"
    if actions == ["create"]:
        return "make"
    if actions == ["delete"]:
        return "destroy"
    if actions == ["update"]:
        return "change"
    if actions == ["forget"]:
        return "forget"
    return "adopt" if importing else None


def _bytes(values: Mapping[str, Any]) -> int | None:
    size = values.get("size_bytes")
    if isinstance(size, int | float):
        return int(size)
    gib = values.get("size_gibibytes")
    return int(gib) * GIB if isinstance(gib, int | float) else None
