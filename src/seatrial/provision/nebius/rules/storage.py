"""Rules about what is kept: file systems, disks, where they are mounted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath

from seatrial.provision.nebius.rules.common import Case, Finding, fail, plain, rule, warn, whole
from seatrial.provision.nebius.tables import STEPPED_DISKS

_PLACEHOLDER = re.compile(r"[<>]|YOUR|CHANGE|XXX|^$", re.IGNORECASE)
_NFS_STEP_GIB, _NFS_MOST_GIB = 93, 262074
_BACKED_UP_BELOW_GIB = 12 * 1024


@rule("accounting-incomplete")
def accounting(case: Case) -> Iterator[Finding]:
    """10. Accounting without its node or its file system: the plan fails on a null value."""
    if not case.values.get("accounting_enabled"):
        return
    for variable, key, what in (
        ("slurm_nodeset_accounting", "accounting", "node"),
        ("filestore_accounting", "storage.accounting", "file system"),
    ):
        if case.values.get(variable) is None:
            yield fail(f"accounting is on, and has no {what}", key, f"say its {what}, or accounting: null")


@rule("image-disk-null")
def image_disk(case: Case) -> Iterator[Finding]:
    """11. `node_local_image_disk` without a spec crashes the recipe's plan, even where it is off."""
    disk = case.values.get("node_local_image_disk")
    if isinstance(disk, dict) and disk.get("spec") is None:
        yield fail(
            "the image disk has no spec: the recipe reads it even where the disk is off, and its plan crashes",
            case.rendered.place("node_local_image_disk"), "leave it to storage.images",
        )  # fmt: skip


@rule("existing-or-spec")
def one_of(case: Case) -> Iterator[Finding]:
    """12. A file system is made, or exists: one of both."""
    for store in case.stores:
        if (store.size_gib is None) == (store.existing is None):
            both = store.size_gib is not None
            yield fail(
                f"{store.name or 'a file system'} has {'both a size and an id' if both else 'neither a size nor an id'}",
                store.place, "size_gib: N for one that is made, existing: computefilesystem-… for one that is there",
            )  # fmt: skip


@rule("names-twice")
def names(case: Case) -> Iterator[Finding]:
    """13. Two file systems of one name."""
    seen: set[str] = set()
    for store in case.stores:
        if store.path is not None and store.name in seen:
            yield fail(
                f"two submounts are called {store.name!r}",
                f"{store.place}.name",
                "a name of its own for each",
            )
        if store.path is not None:
            seen.add(store.name)


@rule("id-placeholder")
def placeholders(case: Case) -> Iterator[Finding]:
    """14. An id that nobody has filled in."""
    for store in case.stores:
        if store.existing is not None and (
            _PLACEHOLDER.search(store.existing) or not store.existing.startswith("computefilesystem-")
        ):
            yield fail(
                f"{store.existing!r} is no file system's id", f"{store.place}.existing",
                "nebius compute filesystem list    (computefilesystem-…)",
            )  # fmt: skip


@rule("nfs-size")
def nfs(case: Case) -> Iterator[Finding]:
    """17. An NFS disk in other than steps of 93 GiB."""
    body = case.values.get("nfs")
    size = whole(plain(body, "size_gibibytes"))
    if (
        isinstance(body, dict)
        and body.get("enabled")
        and (size < 1 or size % _NFS_STEP_GIB or size > _NFS_MOST_GIB)
    ):
        yield fail(f"{size} GiB is no size of an NFS disk", f"{case.rendered.place('nfs')}.size_gibibytes", _stepped(size, _NFS_STEP_GIB))  # fmt: skip


@rule("disk-step")
def disks(case: Case) -> Iterator[Finding]:
    """25. Disks whose type goes in steps, and whose size doesn't: the claim would stay Pending for ever."""
    found = [
        (f"storage.local.{i}", plain(d, "disk_type"), whole(plain(d, "size_gibibytes")))
        for i, d in enumerate(case.values.get("node_local_jail_submounts") or [])
    ]
    image = case.values.get("node_local_image_disk")
    if plain(image, "enabled"):
        found.append(("storage.images", plain(image, "spec", "disk_type"), whole(plain(image, "spec", "size_gibibytes"))))  # fmt: skip
    for place, kind, size in found:
        step = STEPPED_DISKS.get(str(kind))
        if step and size % step:
            yield fail(f"{size} GiB of {kind}: its sizes are multiples of {step}", f"{place}.size_gib", _stepped(size, step))  # fmt: skip


@rule("image-disk-type")
def image_disk_type(case: Case) -> Iterator[Finding]:
    """25. The image disk is of a type that the recipe takes for it."""
    kind = plain(case.values.get("node_local_image_disk"), "spec", "disk_type")
    if kind is not None and kind not in STEPPED_DISKS:
        yield fail(f"the recipe takes no {kind} for images", "storage.images.type", " or ".join(STEPPED_DISKS))  # fmt: skip


@rule("block-size")
def blocks(case: Case) -> Iterator[Finding]:
    """26. A block size that no file system has."""
    for store in case.stores:
        size = store.block_kib
        if store.size_gib is not None and (not 4 <= size <= 128 or size & (size - 1)):
            yield fail(f"blocks of {size} KiB", f"{store.place}.block_kib", "4, 8, 16, 32, 64 or 128")


@rule("paths-clash")
def paths(case: Case) -> Iterator[Finding]:
    """28. Mounts over each other, or over the homes."""
    nfs_body = case.values.get("nfs")
    mounts = [(s.path, f"{s.place}.path") for s in case.stores if s.path is not None]
    mounts += [
        (str(plain(d, "mount_path")), f"storage.local.{i}.path")
        for i, d in enumerate(case.values.get("node_local_jail_submounts") or [])
    ]
    for path, place in mounts:
        if not path.startswith("/") or path.rstrip("/") in {"", "/usr", "/etc", "/opt", "/root", "/var"}:
            yield fail(f"{path!r} is no place for a mount", place, "a path of its own, such as /mnt/training")
        elif path.rstrip("/") == "/home" and (plain(nfs_body, "enabled") or case.recipe.series == "1.22"):
            yield fail("/home is where the homes are", place, "another path, such as /mnt/training")
    known = sorted((PurePosixPath(path), place) for path, place in mounts if path.startswith("/"))
    for (upper, _), (lower, place) in pairwise(known):
        if upper == lower or upper in lower.parents:
            yield fail(
                f"{lower} {'is mounted twice' if upper == lower else f'lies in {upper}, which is another mount'}",
                place, "paths side by side",
            )  # fmt: skip


@rule("jail-dies")
def jail(case: Case) -> Iterator[Finding]:
    """33. The shared root is destroyed with the cluster, and above 12 TiB not backed up."""
    for store in case.stores:
        if store.name == "jail" and store.size_gib is not None:
            if not any(s.path and s.existing for s in case.stores):
                yield warn(
                    "the jail and all submounts are made with the cluster, and die with it: what jobs leave there is lost on `cluster down`",
                    store.place, "results that matter belong in a file system of their own (existing: computefilesystem-…) or a bucket",
                )  # fmt: skip
            if store.size_gib > _BACKED_UP_BELOW_GIB and case.values.get("backups_enabled") == "auto":
                yield warn(
                    f"a jail of {store.size_gib} GiB is not backed up: `auto` stops at {_BACKED_UP_BELOW_GIB}",
                    f"{store.place}.size_gib", "data into submounts, or backups: {enabled: force_enable}",
                )  # fmt: skip


def _stepped(size: int, step: int) -> str:
    lower = size // step * step
    return f"{lower} or {lower + step}" if lower else str(step)
