"""What a rule looks at, and what it says."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from seatrial.provision.nebius.adapters import Rendered
from seatrial.provision.nebius.checkout import Checkout
from seatrial.provision.nebius.hcl import Variable
from seatrial.provision.nebius.keys import PublicKey
from seatrial.provision.nebius.tables import Preset
from seatrial.runs.evidence import Verdict
from seatrial.spec.cluster import ClusterSpec


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, where, and what to do about it."""

    verdict: Verdict
    found: str
    place: str
    """Key of ``cluster.yaml``, or what else it is about."""
    fix: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """A set of nodes, as the recipe is told of it."""

    name: str
    place: str
    platform: str
    preset: Preset | None
    preset_name: str
    size: int
    max_size: int
    boot_gib: int
    fabric: str | None
    """None: no GPU cluster is asked for."""
    group: int | None = None
    preemptible: bool = False
    set_name: str = ""

    @property
    def is_worker(self) -> bool:
        """Jobs run on it."""
        return self.name.startswith("worker")

    @property
    def gpus(self) -> int:
        """Of all its nodes."""
        return 0 if self.preset is None else self.preset.gpus * self.size


@dataclass(frozen=True, slots=True)
class Store:
    """A shared file system, as the recipe is told of it."""

    name: str
    place: str
    size_gib: int | None
    existing: str | None
    block_kib: int
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A cluster, as the rules see it."""

    spec: ClusterSpec
    recipe: Checkout
    rendered: Rendered
    variables: Mapping[str, Variable]
    keys: list[PublicKey | ValueError]
    roles: list[Role] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)

    @classmethod
    def of(
        cls, spec: ClusterSpec, recipe: Checkout, rendered: Rendered, variables: Mapping[str, Variable],
        keys: list[PublicKey | ValueError],
    ) -> Case:  # fmt: skip
        """With the roles and file systems that its variables stand for."""
        return cls(spec, recipe, rendered, variables, keys, list(_roles(rendered)), list(_stores(rendered)))

    @property
    def values(self) -> Mapping[str, Any]:
        """The recipe's variables."""
        return self.rendered.values

    @property
    def region(self) -> str:
        """Where it is to be."""
        return str(self.values.get("region", ""))

    @property
    def workers(self) -> list[Role]:
        """What jobs run on."""
        return [role for role in self.roles if role.is_worker]


Rule = Callable[[Case], Iterable[Finding]]
RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Registers a rule under its id."""

    def register(function: Rule) -> Rule:
        assert name not in RULES
        RULES[name] = function
        return function

    return register


def fail(found: str, place: str, fix: str) -> Finding:
    """What would break, or cost money for nothing."""
    return Finding(Verdict.FAIL, found, place, fix)


def warn(found: str, place: str, fix: str) -> Finding:
    """What may be meant so, and often isn't."""
    return Finding(Verdict.WARN, found, place, fix)


def near(word: str, valid: Iterable[str]) -> str:
    """``did you mean …?``, or what there is."""
    known = sorted(valid)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)}"


def plain(values: Any, *path: str | int) -> Any:
    """What lies at a path of nested mappings and lists; None where there is nothing."""
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def whole(value: Any) -> int:
    """A number of whole things; 0 where it is none."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _roles(rendered: Rendered) -> Iterator[Role]:
    values = rendered.values
    for name in ("system", "controller", "login", "accounting"):
        body = values.get(f"slurm_nodeset_{name}")
        if isinstance(body, dict):
            yield _role(
                name, rendered.place(f"slurm_nodeset_{name}"), body, fixed=1 if name == "accounting" else None
            )
    workers = values.get("slurm_nodeset_workers")
    for i, body in enumerate(workers if isinstance(workers, list) else []):
        if isinstance(body, dict):
            yield _role("worker", f"{rendered.place('slurm_nodeset_workers')}.{i}", body)
    nfs = values.get("nfs")
    if isinstance(nfs, dict) and nfs.get("enabled"):
        yield _role("nfs", rendered.place("nfs"), nfs, fixed=1)


def _role(name: str, place: str, body: dict[str, Any], fixed: int | None = None) -> Role:
    preset = str(plain(body, "resource", "preset") or "")
    size = fixed or whole(body.get("size", body.get("min_size")))
    fabric = plain(body, "gpu_cluster", "infiniband_fabric")
    return Role(
        name, place, str(plain(body, "resource", "platform") or ""), Preset.parse(preset), preset, size,
        whole(body.get("max_size")) or size, whole(plain(body, "boot_disk", "size_gibibytes")),
        str(fabric) if fabric is not None else None,
        group=whole(body["nodes_per_nodegroup"]) if "nodes_per_nodegroup" in body else None,
        preemptible=body.get("preemptible") is not None, set_name=str(body.get("name", "")),
    )  # fmt: skip


def _stores(rendered: Rendered) -> Iterator[Store]:
    for variable, name in (
        ("filestore_controller_spool", "controller-spool"), ("filestore_jail", "jail"), ("filestore_accounting", "accounting"),
    ):  # fmt: skip
        body = rendered.values.get(variable)
        if isinstance(body, dict):
            yield _store(name, rendered.place(variable), body)
    submounts = rendered.values.get("filestore_jail_submounts")
    for i, body in enumerate(submounts if isinstance(submounts, list) else []):
        if isinstance(body, dict):
            place = f"{rendered.place('filestore_jail_submounts')}.{i}"
            yield _store(str(body.get("name", "")), place, body, path=str(body.get("mount_path", "")))


def _store(name: str, place: str, body: dict[str, Any], path: str | None = None) -> Store:
    size, block = plain(body, "spec", "size_gibibytes"), plain(body, "spec", "block_size_kibibytes")
    return Store(
        name, place, None if size is None else whole(size), plain(body, "existing", "id"), whole(block), path
    )
